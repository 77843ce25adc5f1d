{{/*
Checks that the schema cannot express with a clear message. They run before
anything is rendered, so a mistake fails `helm install` instead of a pod.
*/}}
{{- define "oci-model-csi.validate" -}}
{{- $values := .Values -}}
{{- include "oci-model-csi.words" . -}}
{{- if not (or $values.image.repository $values.imageRegistry) -}}
{{- fail "image.repository is empty: no image is published yet. Build one with deploy/image, push it to your registry, and name it with --set image.repository=…" -}}
{{- end -}}
{{- if and $values.node.tolerateAllTaints $values.node.tolerations -}}
{{- fail "node.tolerations has no effect while node.tolerateAllTaints is true: the node plugin tolerates every taint already; set node.tolerateAllTaints to false, or leave node.tolerations out" -}}
{{- end -}}

{{- with $values.tracing.endpoint -}}
{{- if not (regexMatch "^https?://[^/@ ]+$" .) -}}
{{- fail (printf "tracing.endpoint is %q: write http:// or https://, the host and the port of OTLP over gRPC, such as http://collector.observability:4317; a credential belongs in the Secret of tracing.headersSecretName" .) -}}
{{- end -}}
{{- end -}}

{{- $name := $values.csiDriver.name -}}
{{- if or (not (regexMatch "^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$" $name)) (gt (len $name) 63) -}}
{{- fail (printf "csiDriver.name is %q: write a DNS name of at most 63 characters in lower case, such as oci-model-csi.dev" $name) -}}
{{- end -}}

{{- $kubelet := $values.node.kubeletPath -}}
{{- if not (regexMatch "^(/[A-Za-z0-9._-]+)+$" $kubelet) -}}
{{- fail (printf "node.kubeletPath is %q: write an absolute path without a slash at its end, such as /var/lib/kubelet" $kubelet) -}}
{{- end -}}
{{- $socket := printf "%s/plugins_registry/%s-reg.sock" $kubelet $name -}}
{{- if gt (len $socket) 107 -}}
{{- fail (printf "node.kubeletPath and csiDriver.name together are too long: the socket %s has %d bytes, and the kernel takes 107" $socket (len $socket)) -}}
{{- end -}}

{{- if and $values.rbac.ownNodeOnly (semverCompare "<1.32-0" .Capabilities.KubeVersion.Version) -}}
{{- fail (printf "rbac.ownNodeOnly needs Kubernetes 1.32, whose tokens name their node, and this is %s: leave it out" .Capabilities.KubeVersion.Version) -}}
{{- end -}}

{{- if and (eq (include "oci-model-csi.changesNodes" .) "true") (ne (include "oci-model-csi.mayChangeNodes" .) "true") -}}
{{- fail (printf "node.startupTaint.remove and node.modelLabels need the right to change nodes. Kubernetes limits it to the own node from 1.32 on, and this is %s: leave both out, or set rbac.ownNodeOnly to false, and a node plugin can change every node" .Capabilities.KubeVersion.Version) -}}
{{- end -}}

{{- $dir := $values.config.cache.dir -}}
{{- if not (regexMatch "^(/[A-Za-z0-9._-]+)+$" $dir) -}}
{{- fail (printf "config.cache.dir is %q: write the absolute path of a directory on the nodes without a slash at its end, such as /var/lib/oci-model-csi" $dir) -}}
{{- end -}}
{{- if hasPrefix (printf "%s/" $dir) (printf "%s/" $kubelet) -}}
{{- fail (printf "config.cache.dir is %q, which holds kubelet's directory %s: the cache needs a directory of its own" $dir $kubelet) -}}
{{- end -}}
{{- if hasPrefix (printf "%s/pods/" $kubelet) (printf "%s/" $dir) -}}
{{- fail (printf "config.cache.dir is %q, which is among kubelet's pods: the cache needs a directory of its own" $dir) -}}
{{- end -}}

{{- with $values.node.cacheMount -}}
{{- if not (hasPrefix (printf "%s/" .) (printf "%s/" $dir)) -}}
{{- fail (printf "node.cacheMount is %q, and config.cache.dir, %q, is not in it: name a directory that has both the cache and the models to import, such as %s" . $dir (dir $dir)) -}}
{{- end -}}
{{- if hasPrefix (printf "%s/" .) (printf "%s/" $kubelet) -}}
{{- fail (printf "node.cacheMount is %q, which holds kubelet's directory %s: name one that has the cache and the models to import, and no more" . $kubelet) -}}
{{- end -}}
{{- if and $values.config.cache.requireMount (ne . $dir) -}}
{{- fail (printf "config.cache.requireMount wants %q to be a mount point, and with node.cacheMount %q is one in its place: leave one of the two out" $dir .) -}}
{{- end -}}
{{- end -}}

{{- if and (eq $values.config.objectStorage.auth "api_key") (not $values.credentials.secretName) -}}
{{- fail "config.objectStorage.auth is api_key, and credentials.secretName is empty: name a Secret with the oci CLI's file and its key" -}}
{{- end -}}

{{- $auths := list $values.config.objectStorage.auth -}}
{{- range $values.config.objectStorage.buckets -}}
{{- $auths = append $auths (default "" .auth) -}}
{{- end -}}
{{- if and (has "oke_workload_identity" $auths) (not $values.csiDriver.tokenRequests) -}}
{{- fail "config.objectStorage reads as oke_workload_identity, and csiDriver.tokenRequests is empty: kubelet gives the driver no token of a pod; set csiDriver.tokenRequests to [{audience: \"\"}]" -}}
{{- end -}}

{{- if and $values.metrics.podMonitor.enabled $values.networkPolicy.enabled (not $values.networkPolicy.metricsNamespaces) -}}
{{- fail "metrics.podMonitor.enabled needs networkPolicy.metricsNamespaces: without it the NetworkPolicy lets no Prometheus read the metrics; write the labels of its namespace, such as {kubernetes.io/metadata.name: monitoring}" -}}
{{- end -}}

{{- if and $values.metrics.prometheusRule.enabled (not $values.metrics.prometheusRule.runbookUrl) -}}
{{- fail "metrics.prometheusRule.runbookUrl is empty: every alert links to its section of docs/runbooks.md; write where your team can read that file, such as https://wiki.example.com/oci-model-csi/runbooks.md" -}}
{{- end -}}

{{- $ports := list (int $values.node.ports.metrics) (int $values.node.ports.liveness) (int $values.node.ports.registrar) -}}
{{- if lt (len (uniq $ports)) 3 -}}
{{- fail (printf "node.ports are %v: the three have to differ, since one pod has them all" $ports) -}}
{{- end -}}
{{- if eq (int $values.controller.ports.metrics) (int $values.controller.ports.provisioner) -}}
{{- fail (printf "controller.ports are both %v: they have to differ, since one pod has them" $values.controller.ports.metrics) -}}
{{- end -}}
{{- end -}}
