{{/*
Checks of texts with a form of their own. The schema could check them too, but its
errors would show a regular expression in place of what to write.
*/}}

{{/* One check: a list of the key, its value, the pattern, and what to write. Numbers are the schema's. */}}
{{- define "oci-model-csi.check" -}}
{{- $value := index . 1 -}}
{{- if and (kindIs "string" $value) (not (regexMatch (index . 2) $value)) -}}
{{- fail (printf "%s is %q: write %s" (index . 0) $value (index . 3)) -}}
{{- end -}}
{{- end -}}

{{- define "oci-model-csi.words" -}}
{{- $values := .Values -}}
{{- $size := "[0-9]+([.][0-9]+)? ?([KMGT]iB)?" -}}
{{- $percent := "(100|[0-9]{1,2})%" -}}
{{- $bytes := "a number of bytes, or a number with KiB, MiB, GiB or TiB such as 500GiB" -}}
{{- $digest := "sha256: and 64 hex digits, or leave it empty for the tag" -}}
{{- $url := "a URL without a path, such as https://store.example.com or http://store.example.com:8080, or dedicated or dual-stack" -}}
{{- $endpoint := "^(https?://[^/@]+|dedicated|dual-stack)?$" -}}
{{- $names := "letters, digits, dots, underscores and hyphens" -}}

{{- include "oci-model-csi.check" (list "imageRegistry" $values.imageRegistry "^([a-z0-9.-]+(:[0-9]+)?(/[a-z0-9._-]+)*)?$" "a registry with its path, such as fra.ocir.io/mytenancy, without https:// and without a slash at its end") -}}
{{- include "oci-model-csi.imageWords" (list "image" $values.image) -}}
{{- include "oci-model-csi.check" (list "image.digest" $values.image.digest "^(sha256:[0-9a-f]{64})?$" $digest) -}}
{{- range $name, $sidecar := omit $values.sidecars "seLinuxOptions" -}}
{{- include "oci-model-csi.imageWords" (list (printf "sidecars.%s.image" $name) $sidecar.image) -}}
{{- include "oci-model-csi.check" (list (printf "sidecars.%s.image.digest" $name) $sidecar.image.digest "^(sha256:[0-9a-f]{64})?$" $digest) -}}
{{- range $sidecar.additionalArgs -}}
{{- include "oci-model-csi.check" (list (printf "sidecars.%s.additionalArgs" $name) . "^--" "flags that begin with --, such as --v=5") -}}
{{- end -}}
{{- end -}}

{{- with $values.config.cache -}}
{{- include "oci-model-csi.check" (list "config.cache.maxSize" .maxSize (printf "^(%s|%s)$" $size $percent) (printf "%s, or a percentage of the file system such as 80%%" $bytes)) -}}
{{- include "oci-model-csi.check" (list "config.cache.minFree" .minFree (printf "^(auto|%s|%s)$" $size $percent) (printf "auto, %s, or a percentage of the file system such as 10%%" $bytes)) -}}
{{- include "oci-model-csi.check" (list "config.cache.minFreeInodes" .minFreeInodes (printf "^%s$" $percent) "a percentage from 0% to 100%") -}}
{{- include "oci-model-csi.check" (list "config.cache.scrubRate" .scrubRate (printf "^%s$" $size) $bytes) -}}
{{- end -}}
{{- $duration := "^(0|([0-9]+\\s*[a-z]+\\s*)+)$" -}}
{{- range $key, $value := dict "cache.idleTTL" $values.config.cache.idleTTL "cache.scrubInterval" $values.config.cache.scrubInterval "download.abandonAfter" $values.config.download.abandonAfter -}}
{{- include "oci-model-csi.check" (list (printf "config.%s" $key) (toString $value) $duration "a duration with its unit, such as 10m, 1h 30m or 30d") -}}
{{- end -}}
{{- include "oci-model-csi.check" (list "config.download.concurrency" $values.config.download.concurrency "^auto$" "auto, or a number from 1 to 1024") -}}
{{- range $key, $value := dict "download.rangeSize" $values.config.download.rangeSize "download.bandwidthLimit" $values.config.download.bandwidthLimit "limits.maxModelSize" $values.config.limits.maxModelSize -}}
{{- include "oci-model-csi.check" (list (printf "config.%s" $key) $value (printf "^%s$" $size) $bytes) -}}
{{- end -}}

{{- range $values.config.download.sourceAddresses -}}
{{- include "oci-model-csi.check" (list "config.download.sourceAddresses" . "^[0-9a-fA-F.:]+(/[0-9]+)?$" "addresses or networks of the nodes, such as 10.0.1.0/24") -}}
{{- end -}}
{{- with $values.config.objectStorage -}}
{{- include "oci-model-csi.check" (list "config.objectStorage.endpoint" .endpoint $endpoint $url) -}}
{{- if contains "@" .proxy -}}
{{- fail "config.objectStorage.proxy has a login, and a ConfigMap is no place for one: put the URL into a Secret, and name it as HTTPS_PROXY in node.env and controller.env (docs/private-networks.md)" -}}
{{- end -}}
{{- include "oci-model-csi.check" (list "config.objectStorage.proxy" .proxy "^(https?://[^/@]+)?$" "the URL of a proxy, such as http://proxy.example.com:3128") -}}
{{- include "oci-model-csi.check" (list "config.objectStorage.proxyCaFile" .proxyCaFile "^(/.*)?$" "the absolute path of a file in the containers, such as /etc/ca/proxy.pem") -}}
{{- include "oci-model-csi.check" (list "config.objectStorage.caFile" .caFile "^(/.*)?$" "the absolute path of a file in the containers, such as /etc/ca/ca.pem") -}}
{{- range $number, $bucket := .buckets -}}
{{- $key := printf "config.objectStorage.buckets[%d]" $number -}}
{{- include "oci-model-csi.check" (list (printf "%s.name" $key) $bucket.name "^[A-Za-z0-9._-]+$" $names) -}}
{{- include "oci-model-csi.check" (list (printf "%s.namespace" $key) $bucket.namespace "^[A-Za-z0-9._-]*$" $names) -}}
{{- include "oci-model-csi.check" (list (printf "%s.region" $key) $bucket.region "^[A-Za-z0-9._-]*$" "a region by name or short code, such as eu-frankfurt-1 or fra") -}}
{{- include "oci-model-csi.check" (list (printf "%s.endpoint" $key) $bucket.endpoint $endpoint $url) -}}
{{- end -}}
{{- end -}}

{{- range $number, $rule := $values.config.policy.rules -}}
{{- $key := printf "config.policy.rules[%d]" $number -}}
{{- range concat $rule.namespaces (default list $rule.serviceAccounts) -}}
{{- include "oci-model-csi.check" (list (printf "%s.namespaces or serviceAccounts" $key) . "^[a-z0-9.*-]+$" "names as Kubernetes has them, in lower case, where * matches any text") -}}
{{- end -}}
{{- range concat $rule.buckets (default list $rule.objectStorageNamespaces) -}}
{{- include "oci-model-csi.check" (list (printf "%s.buckets or objectStorageNamespaces" $key) . "^[A-Za-z0-9._*-]+$" (printf "%s, where * matches any text" $names)) -}}
{{- end -}}
{{- range $rule.prefixes -}}
{{- include "oci-model-csi.check" (list (printf "%s.prefixes" $key) . "^([^/*][^*]*)?$" "a directory such as models/, without a slash at its beginning and without *") -}}
{{- end -}}
{{- end -}}
{{- range $number, $entry := $values.config.prefetch -}}
{{- $key := printf "config.prefetch[%d]" $number -}}
{{- $uri := "oci://BUCKET/PREFIX or oci://BUCKET@NAMESPACE/PREFIX" -}}
{{- if kindIs "map" $entry -}}
{{- include "oci-model-csi.check" (list (printf "%s.uri" $key) $entry.uri "^oci://" $uri) -}}
{{- range $label, $value := $entry.nodeSelector -}}
{{- include "oci-model-csi.check" (list (printf "%s.nodeSelector" $key) $label "^([a-z0-9.-]+/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$" "keys of labels, such as pool or example.com/pool") -}}
{{- include "oci-model-csi.check" (list (printf "%s.nodeSelector.%s" $key $label) $value "^([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?$" "the value of a label: letters, digits, dots, underscores and hyphens") -}}
{{- end -}}
{{- else -}}
{{- include "oci-model-csi.check" (list $key $entry "^oci://" $uri) -}}
{{- end -}}
{{- end -}}

{{- with $values.node -}}
{{- include "oci-model-csi.check" (list "node.cacheMount" .cacheMount "^((/[A-Za-z0-9._-]+)+)?$" "the absolute path of a directory on the nodes without a slash at its end, such as /mnt/nvme") -}}
{{- include "oci-model-csi.check" (list "node.startupTaint.key" .startupTaint.key "^$|^([a-z0-9.-]+/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$" "the key of a taint, such as example.com/not-ready") -}}
{{- include "oci-model-csi.check" (list "node.heapLimit" .heapLimit "^$|^(25[6-9]|2[6-9][0-9]|[3-9][0-9]{2}|[1-9][0-9]{3,}) ?MiB$|^[1-9][0-9]*([.][0-9]+)? ?[GT]iB$" "256MiB or more, such as 512MiB or 2GiB, or leave it empty for no limit") -}}
{{- include "oci-model-csi.check" (list "node.maxUnavailable" .maxUnavailable "^([1-9][0-9]?|100)%$" "a number of nodes, or a percentage from 1% to 100%") -}}
{{- end -}}
{{- include "oci-model-csi.check" (list "controller.podDisruptionBudget.maxUnavailable" $values.controller.podDisruptionBudget.maxUnavailable (printf "^%s$" $percent) "a number of pods, or a percentage such as 50%") -}}
{{- include "oci-model-csi.check" (list "metrics.podMonitor.interval" $values.metrics.podMonitor.interval "^[0-9]+(ms|s|m|h)$" "a duration with its unit, such as 30s") -}}
{{- include "oci-model-csi.check" (list "metrics.prometheusRule.runbookUrl" $values.metrics.prometheusRule.runbookUrl "^(https?://[^ #]+)?$" "the URL where your team can read docs/runbooks.md, without an anchor") -}}
{{- end -}}

{{/* An image's repository: a list of its key and its values. */}}
{{- define "oci-model-csi.imageWords" -}}
{{- $key := index . 0 -}}
{{- $repository := (index . 1).repository -}}
{{- if regexMatch "(:[^/]*|@.*)$" $repository -}}
{{- fail (printf "%s.repository is %q, which ends with a tag or a digest: leave that out here, and write it in %s.tag or %s.digest" $key $repository $key $key) -}}
{{- end -}}
{{- include "oci-model-csi.check" (list (printf "%s.repository" $key) $repository "^([A-Za-z0-9.-]+(:[0-9]+)?/)?[a-z0-9._/-]*$" "the name of an image with its registry, such as fra.ocir.io/mytenancy/oci-model-csi, without https://") -}}
{{- end -}}
