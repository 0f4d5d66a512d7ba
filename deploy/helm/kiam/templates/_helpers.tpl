{{/* Names and labels are conventional kiam's chart's, so that an upgrade of its release finds its own objects again. */}}

{{- define "kiam.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "kiam.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 55 | trimSuffix "-" -}}
{{- else if contains (include "kiam.name" .) .Release.Name -}}
{{- .Release.Name | trunc 55 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "kiam.name" .) | trunc 55 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* The labels that select one half's pods. Takes a list: the root context and "agent", "server" or "untaint". */}}
{{- define "kiam.selector" -}}
{{- $root := index . 0 -}}
{{- $half := index . 1 -}}
app: {{ include "kiam.name" $root }}
component: {{ (get $root.Values $half | default dict).name | default $half | quote }}
release: {{ $root.Release.Name }}
{{- end -}}

{{/* All labels of one half's objects; takes the same list. */}}
{{- define "kiam.labels" -}}
{{- $root := index . 0 -}}
{{ include "kiam.selector" . }}
chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
heritage: {{ $root.Release.Service }}
{{- end -}}

{{/* One half's service account; takes the same list. */}}
{{- define "kiam.serviceAccountName" -}}
{{- $root := index . 0 -}}
{{- $half := index . 1 -}}
{{- $account := get $root.Values.serviceAccounts $half -}}
{{- if $account.create -}}
{{- $account.name | default (printf "%s-%s" (include "kiam.fullname" $root) $half) -}}
{{- else -}}
{{- $account.name | default "default" -}}
{{- end -}}
{{- end -}}

{{/* Whether one half's values name conventional kiam's image, which knows none of the flags this chart gives it. */}}
{{- define "kiam.conventionalImage" -}}
{{- $image := (get (index . 0).Values (index . 1)).image -}}
{{- if or (hasSuffix "uswitch/kiam" $image.repository) (and (eq $image.repository "kiam") (regexMatch "^v[0-4]([.]|$)" ($image.tag | default "" | toString))) -}}
yes
{{- end -}}
{{- end -}}

{{/* One half's image; takes the same list. */}}
{{- define "kiam.image" -}}
{{- $root := index . 0 -}}
{{- $image := (get $root.Values (index . 1)).image -}}
{{- $tag := $image.tag | default $root.Chart.AppVersion | toString -}}
{{- if include "kiam.conventionalImage" . -}}
kiam:{{ $root.Chart.AppVersion }}
{{- else if hasPrefix "sha256:" $tag -}}
{{ $image.repository }}@{{ $tag }}
{{- else -}}
{{ $image.repository }}:{{ $tag }}
{{- end -}}
{{- end -}}

{{/* The secrets to pull images with: one name, or a list of names or of objects with a name. */}}
{{- define "kiam.imagePullSecrets" -}}
{{- with .Values.imagePullSecrets -}}
imagePullSecrets:
{{- if kindIs "string" . }}
  - name: {{ . }}
{{- else }}
{{- range . }}
  - name: {{ if kindIs "string" . }}{{ . }}{{ else }}{{ .name }}{{ end }}
{{- end }}
{{- end }}
{{- end -}}
{{- end -}}

{{/* A map of additional arguments as the CLI's flags. */}}
{{- define "kiam.extraArgs" -}}
{{- range $name, $value := . }}
{{- if kindIs "bool" $value }}
- --{{ if not $value }}no-{{ end }}{{ $name }}
{{- else if or (kindIs "invalid" $value) (eq (toString $value) "") }}
- --{{ $name }}
{{- else }}
- {{ printf "--%s=%s" $name (kindIs "float64" $value | ternary (toJson $value) (toString $value)) | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Additional environment variables: a list goes in as it is, a map as names and values. */}}
{{- define "kiam.extraEnv" -}}
{{- if kindIs "slice" . -}}
{{- toYaml . }}
{{- else }}
{{- range $name, $value := . }}
- name: {{ $name }}
  value: {{ $value | toString | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "kiam.extraVolumes" -}}
{{- range . }}
- name: {{ .name }}
  hostPath:
    path: {{ .hostPath }}
{{- end }}
{{- end -}}

{{- define "kiam.extraVolumeMounts" -}}
{{- range . }}
- name: {{ .name }}
  mountPath: {{ .mountPath }}
  readOnly: {{ dig "readOnly" true . }}
{{- end }}
{{- end -}}

{{/* An update strategy given as a word or as an object. */}}
{{- define "kiam.updateStrategy" -}}
{{- if kindIs "string" . -}}
type: {{ . }}
{{- else -}}
{{- toYaml . -}}
{{- end -}}
{{- end -}}

{{/* What a probe does when. */}}
{{- define "kiam.probeTimes" -}}
initialDelaySeconds: {{ .initialDelaySeconds }}
periodSeconds: {{ .periodSeconds }}
timeoutSeconds: {{ .timeoutSeconds }}
successThreshold: {{ .successThreshold }}
failureThreshold: {{ .failureThreshold }}
{{- end -}}

{{/* The annotations that have Prometheus scrape a service, and the user's. Takes one half's values. */}}
{{- define "kiam.serviceAnnotations" -}}
{{- $annotations := dict -}}
{{- if .prometheus.scrape -}}
{{- $annotations = dict "prometheus.io/scrape" "true" "prometheus.io/port" (toString .prometheus.port) -}}
{{- end -}}
{{- range $name, $value := .serviceAnnotations -}}
{{- $_ := set $annotations $name (toString $value) -}}
{{- end -}}
{{- if $annotations -}}
annotations:
{{- toYaml $annotations | nindent 2 }}
{{- end -}}
{{- end -}}

{{/* The dataplane chosen. agent.host.iptables is how conventional kiam's values ask for iptables. */}}
{{- define "kiam.dataplane" -}}
{{- $dataplane := .Values.agent.dataplane -}}
{{- if not .Values.agent.host.iptables -}}
{{- $dataplane -}}
{{- else if has $dataplane (list "none" "iptables") -}}
iptables
{{- else -}}
{{- fail (printf "agent.host.iptables=true asks for iptables, but agent.dataplane is %s: set agent.host.iptables to false" $dataplane) -}}
{{- end -}}
{{- end -}}

{{/* Whether the dataplane looks at cgroups: eBPF hangs there, and nftables tells host-network pods by theirs. */}}
{{- define "kiam.needsCgroups" -}}
{{- $dataplane := include "kiam.dataplane" . -}}
{{- if or (eq $dataplane "ebpf") (and (ne $dataplane "none") (ne .Values.agent.hostNetworkPods "ignore")) -}}
yes
{{- end -}}
{{- end -}}

{{/* Whether the rules name cgroups, which the kernel looks up from the root of the caller's cgroup namespace: to enter
     the host's, a container sees the host's processes and has two capabilities more. eBPF does without. */}}
{{- define "kiam.needsHostCgroupNamespace" -}}
{{- if and (has (include "kiam.dataplane" .) (list "iptables" "nftables")) (ne .Values.agent.hostNetworkPods "ignore") -}}
yes
{{- end -}}
{{- end -}}

{{/* The capabilities the chosen dataplane needs, and none else:
     NET_ADMIN to change rules and attach programs; NET_RAW because iptables-legacy works through a raw socket; SYS_ADMIN
     for eBPF, because opening a program by its number takes it (BPF and PERFMON are part of it); SYS_ADMIN and SYS_PTRACE to
     find and enter the host's cgroup namespace; NET_BIND_SERVICE for a port below 1024. */}}
{{- define "kiam.agent.capabilities" -}}
{{- $byDataplane := dict "none" list "iptables" (list "NET_ADMIN" "NET_RAW") "nftables" (list "NET_ADMIN") "ebpf" (list "NET_ADMIN" "SYS_ADMIN") -}}
{{- $capabilities := get $byDataplane (include "kiam.dataplane" .) -}}
{{- if include "kiam.needsHostCgroupNamespace" . -}}
{{- $capabilities = concat $capabilities (list "SYS_ADMIN" "SYS_PTRACE") -}}
{{- end -}}
{{- if lt (int .Values.agent.host.port) 1024 -}}
{{- $capabilities = append $capabilities "NET_BIND_SERVICE" -}}
{{- end -}}
{{- $capabilities | toJson -}}
{{- end -}}

{{/* A container's securityContext. Takes a dict: capabilities (a list), root, seLinuxOptions, appArmor. Capabilities
     reach a process only when it is root: Kubernetes can't give a container ambient ones. */}}
{{- define "kiam.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
{{- if .root }}
runAsUser: 0
{{- else }}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
{{- end }}
capabilities:
  drop:
    - ALL
  {{- with .capabilities }}
  add:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- with .seLinuxOptions }}
seLinuxOptions:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .appArmor }}
appArmorProfile:
  type: {{ . }}
{{- end }}
{{- end -}}

{{/* The startup taint's toleration. */}}
{{- define "kiam.startupToleration" -}}
- key: {{ .Values.agent.startupTaint.key }}
  operator: Exists
{{- end -}}

{{/* Tolerations of one half: the user's, and the startup taint's. Takes the root context and the user's. */}}
{{- define "kiam.tolerations" -}}
{{- $root := index . 0 -}}
{{- $tolerations := index . 1 -}}
{{- if $root.Values.agent.startupTaint.enabled -}}
{{- $tolerations = concat $tolerations (fromYamlArray (include "kiam.startupToleration" $root)) -}}
{{- end -}}
{{- with $tolerations -}}
tolerations:
{{- toYaml . | nindent 2 }}
{{- end -}}
{{- end -}}
