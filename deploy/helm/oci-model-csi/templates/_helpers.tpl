{{- define "oci-model-csi.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 48 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 48 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 48 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* The labels of selectors, which cannot change while the object exists. */}}
{{- define "oci-model-csi.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "oci-model-csi.controllerSelector" -}}
{{ include "oci-model-csi.selector" . }}
app.kubernetes.io/component: controller
{{- end -}}

{{- define "oci-model-csi.labels" -}}
{{ include "oci-model-csi.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Annotations of an object, as a part of its metadata. */}}
{{- define "oci-model-csi.annotations" -}}
{{- with .Values.commonAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
{{- end }}
{{- end -}}

{{/* Labels of pods: without versions, so that a new chart alone restarts nothing. */}}
{{- define "oci-model-csi.podLabels" -}}
{{ include "oci-model-csi.selector" . }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "oci-model-csi.nodeServiceAccount" -}}
{{- $default := printf "%s-node" (include "oci-model-csi.fullname" .) -}}
{{- if .Values.node.serviceAccount.create -}}
{{- default $default .Values.node.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.node.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "oci-model-csi.controllerServiceAccount" -}}
{{- $default := printf "%s-controller" (include "oci-model-csi.fullname" .) -}}
{{- if .Values.controller.serviceAccount.create -}}
{{- default $default .Values.controller.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.controller.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/*
Whether the node plugin may have the right to change nodes. A role grants it for
all nodes; from Kubernetes 1.32 on a policy limits it to the plugin's own. Before
1.32, rbac.ownNodeOnly: false accepts the right for all nodes.
*/}}
{{- define "oci-model-csi.mayChangeNodes" -}}
{{- or (semverCompare ">=1.32-0" .Capabilities.KubeVersion.Version) (and (kindIs "bool" .Values.rbac.ownNodeOnly) (not .Values.rbac.ownNodeOnly)) -}}
{{- end -}}

{{/* Whether the driver removes the startup taint from its node. */}}
{{- define "oci-model-csi.startupTaint" -}}
{{- if kindIs "bool" .Values.node.startupTaint.remove -}}
{{- .Values.node.startupTaint.remove -}}
{{- else -}}
{{- include "oci-model-csi.mayChangeNodes" . -}}
{{- end -}}
{{- end -}}

{{/* Whether it changes its node at all. */}}
{{- define "oci-model-csi.changesNodes" -}}
{{- or (eq (include "oci-model-csi.startupTaint" .) "true") (gt (int .Values.node.modelLabels) 0) -}}
{{- end -}}

{{/* Whether it reads the labels of its node, for entries of the prefetch list with a nodeSelector. */}}
{{- define "oci-model-csi.readsNode" -}}
{{- $reads := false -}}
{{- range .Values.config.prefetch -}}
{{- if and (kindIs "map" .) .nodeSelector -}}
{{- $reads = true -}}
{{- end -}}
{{- end -}}
{{- $reads -}}
{{- end -}}

{{/*
Whether to render the policy for the plugin's own node: as rbac.ownNodeOnly says. If
it is null: when there is a right to limit, and the cluster supports the policy.
*/}}
{{- define "oci-model-csi.ownNodeOnly" -}}
{{- if kindIs "bool" .Values.rbac.ownNodeOnly -}}
{{- .Values.rbac.ownNodeOnly -}}
{{- else -}}
{{- $nodes := eq (include "oci-model-csi.changesNodes" .) "true" -}}
{{- and .Values.rbac.create $nodes (semverCompare ">=1.32-0" .Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- end -}}

{{- define "oci-model-csi.image" -}}
{{- $image := .Values.image -}}
{{- $repository := default (printf "%s/oci-model-csi" .Values.imageRegistry) $image.repository -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (default .Chart.AppVersion $image.tag) -}}
{{- end -}}
{{- end -}}

{{/* The image of a sidecar, of a list of the root and the values of the image. With imageRegistry the path stays and the host changes. */}}
{{- define "oci-model-csi.sidecarImage" -}}
{{- $image := index . 1 -}}
{{- $repository := $image.repository -}}
{{- with (index . 0).Values.imageRegistry -}}
{{- $repository = printf "%s/%s" . (regexReplaceAll "^[^/]*[.:][^/]*/" $repository "") -}}
{{- end -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository $image.tag -}}
{{- end -}}
{{- end -}}

{{/* Flags of the driver in both of its pods. */}}
{{- define "oci-model-csi.args" -}}
- --csi-endpoint=unix:///csi/csi.sock
- --driver-name={{ .Values.csiDriver.name }}
- --log-format={{ .Values.logging.format }}
- --log-level={{ .Values.logging.level }}
{{- end -}}

{{/*
Settings that commands in the container need too, such as `oci-model-csi cache ls`
through `kubectl exec`: a command inherits the environment, but not the flags.
*/}}
{{- define "oci-model-csi.env" -}}
- name: OCI_MODEL_CSI_CONFIG
  value: /etc/oci-model-csi/config.yaml
{{- if .Values.credentials.secretName }}
- name: OCI_MODEL_CSI_CONFIG_FILE
  value: /etc/oci/config
{{- end }}
{{- if .Values.tracing.endpoint }}
- name: OTEL_EXPORTER_OTLP_TRACES_ENDPOINT
  value: {{ .Values.tracing.endpoint }}
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: POD_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
- name: POD_UID
  valueFrom:
    fieldRef:
      fieldPath: metadata.uid
- name: OTEL_RESOURCE_ATTRIBUTES
  value: k8s.pod.name=$(POD_NAME),k8s.pod.uid=$(POD_UID),k8s.namespace.name=$(POD_NAMESPACE),service.instance.id=$(POD_UID)
{{- if .Values.tracing.headersSecretName }}
- name: OTEL_EXPORTER_OTLP_TRACES_HEADERS
  valueFrom:
    secretKeyRef:
      name: {{ .Values.tracing.headersSecretName }}
      key: headers
{{- end }}
{{- end }}
{{- end -}}

{{/* The configuration that needs a restart of the pods. The driver applies policy and prefetch list while it runs. */}}
{{- define "oci-model-csi.checksum" -}}
{{- omit .Values.config "policy" "prefetch" | toYaml | sha256sum -}}
{{- end -}}

{{- define "oci-model-csi.volumeMounts" -}}
- name: config
  mountPath: /etc/oci-model-csi
  readOnly: true
{{- if .Values.credentials.secretName }}
- name: credentials
  mountPath: /etc/oci
  readOnly: true
{{- end }}
{{- end -}}

{{- define "oci-model-csi.volumes" -}}
- name: config
  configMap:
    name: {{ include "oci-model-csi.fullname" . }}-config
{{- if .Values.credentials.secretName }}
- name: credentials
  secret:
    secretName: {{ .Values.credentials.secretName }}
    defaultMode: 0440
{{- end }}
{{- end -}}

{{/* Probes of readiness. Recovery of a cache may take a while, and must not fail a start. */}}
{{- define "oci-model-csi.readyProbes" -}}
startupProbe:
  httpGet:
    path: /readyz
    port: http-metrics
  periodSeconds: 2
  timeoutSeconds: 3
  failureThreshold: 300
readinessProbe:
  httpGet:
    path: /readyz
    port: http-metrics
  periodSeconds: 10
  timeoutSeconds: 3
{{- end -}}

{{/* Drops every right that a sidecar does not need. */}}
{{- define "oci-model-csi.confined" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}
