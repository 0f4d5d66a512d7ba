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

{{/* Fails if one half's values name conventional kiam's image, by its own name, a mirror's, or a version before ours: it
     knows none of the flags this chart gives it. Takes the same list. */}}
{{- define "kiam.refuseConventionalImage" -}}
{{- $half := index . 1 -}}
{{- $image := (get (index . 0).Values $half).image -}}
{{- $tag := $image.tag | default "" | toString -}}
{{- if or (regexMatch "(^|/)(uswitch|bitnami)/kiam$" $image.repository) (and (contains "kiam" (base $image.repository)) (regexMatch "^v?[0-4]([.-]|$)" $tag)) -}}
{{- fail (printf "%s.image is conventional kiam's (%s), which doesn't know this chart's flags: name an image built from deploy/Dockerfile" $half (list $image.repository $tag | compact | join ":")) -}}
{{- end -}}
{{- end -}}

{{/* One half's image; takes the same list. */}}
{{- define "kiam.image" -}}
{{- include "kiam.refuseConventionalImage" . -}}
{{- $root := index . 0 -}}
{{- $image := (get $root.Values (index . 1)).image -}}
{{- $tag := $image.tag | default $root.Chart.AppVersion | toString -}}
{{- if hasPrefix "sha256:" $tag -}}
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

{{/* Additional arguments as the CLI's flags: a map by name, or a list of flags with or without their dashes. */}}
{{- define "kiam.extraArgs" -}}
{{- if kindIs "slice" . }}
{{- range . }}
- {{ printf "--%s" (trimPrefix "--" .) | quote }}
{{- end }}
{{- else }}
{{- range $name, $value := . }}
{{- /* What kiam 3 called it. */ -}}
{{- $name = eq $name "whitelist-route-regexp" | ternary "allow-route-regexp" $name }}
{{- if kindIs "bool" $value }}
- --{{ if not $value }}no-{{ end }}{{ $name }}
{{- else if or (kindIs "invalid" $value) (eq (toString $value) "") }}
- --{{ $name }}
{{- else }}
- {{ printf "--%s=%s" $name (kindIs "float64" $value | ternary (toJson $value) (toString $value)) | quote }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Which pod it is: on the host network its host name is the node's. Events about its certificate go there. */}}
{{- define "kiam.pod.env" -}}
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: POD_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
{{- end -}}

{{/* Additional environment variables: a list as in a pod's env, or a map of names and values. */}}
{{- define "kiam.extraEnv" -}}
{{- if kindIs "slice" . -}}
{{- range . }}
- {{ hasKey . "value" | ternary (dict "name" .name "value" (toString .value)) . | toYaml | nindent 2 | trim }}
{{- end }}
{{- else }}
{{- range $name, $value := . }}
- name: {{ $name }}
  value: {{ $value | toString | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{/* A map whose values must be texts, such as labels, of which numbers and booleans may come without quotes. */}}
{{- define "kiam.texts" -}}
{{- $texts := dict -}}
{{- range $name, $value := . -}}
{{- $_ := set $texts $name (kindIs "float64" $value | ternary (toJson $value) (toString $value)) -}}
{{- end -}}
{{- toYaml $texts -}}
{{- end -}}

{{/* Whether the server gets the host's certificates from sslCertHostPath: extraHostPathMounts, where they had to be named
     before there was that value, go first. */}}
{{- define "kiam.mountsSslCerts" -}}
{{- $mounted := false -}}
{{- range .extraHostPathMounts -}}
{{- $mounted = or $mounted (eq (clean .mountPath) "/etc/ssl/certs") -}}
{{- end -}}
{{- if and .sslCertHostPath (not $mounted) -}}
yes
{{- end -}}
{{- end -}}

{{/* The name of an extra mount's volume, which is not to be one of the pod's own. Takes a list: half's values, name. */}}
{{- define "kiam.extraVolumeName" -}}
{{- $own := list "tls" "tmp" "xtables" "cgroup" -}}
{{- if include "kiam.mountsSslCerts" (index . 0) -}}
{{- $own = append $own "ssl-certs" -}}
{{- end -}}
{{ has (index . 1) $own | ternary "extra-" "" }}{{ index . 1 }}
{{- end -}}

{{/* The volumes of one half's extraHostPathMounts; takes its values. */}}
{{- define "kiam.extraVolumes" -}}
{{- range .extraHostPathMounts }}
- name: {{ include "kiam.extraVolumeName" (list $ .name) }}
  hostPath:
    path: {{ .hostPath }}
{{- end }}
{{- end -}}

{{/* And their mounts. */}}
{{- define "kiam.extraVolumeMounts" -}}
{{- range .extraHostPathMounts }}
- name: {{ include "kiam.extraVolumeName" (list $ .name) }}
  mountPath: {{ .mountPath }}
  readOnly: {{ .readOnly }}
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
{{- if or (eq $dataplane "ebpf") (ne (include "kiam.podUid" .) "off") (and (ne $dataplane "none") (ne .Values.agent.hostNetworkPods "ignore")) -}}
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
     find and enter the host's cgroup namespace. */}}
{{- define "kiam.dataplane.capabilities" -}}
{{- $byDataplane := dict "none" list "iptables" (list "NET_ADMIN" "NET_RAW") "nftables" (list "NET_ADMIN") "ebpf" (list "NET_ADMIN" "SYS_ADMIN") -}}
{{- $capabilities := get $byDataplane (include "kiam.dataplane" .) -}}
{{- if include "kiam.needsHostCgroupNamespace" . -}}
{{- $capabilities = concat $capabilities (list "SYS_ADMIN" "SYS_PTRACE") -}}
{{- end -}}
{{- $capabilities | uniq | toJson -}}
{{- end -}}

{{/* Those, and what the agent itself needs: SYS_ADMIN and DAC_READ_SEARCH to look into pods' network namespaces and find a
     cgroup by its number (agent.podUid); NET_ADMIN for the address of the container credentials endpoint. */}}
{{- define "kiam.agent.capabilities" -}}
{{- $capabilities := include "kiam.dataplane.capabilities" . | fromJsonArray -}}
{{- if ne (include "kiam.podUid" .) "off" -}}
{{- $capabilities = concat $capabilities (list "SYS_ADMIN" "DAC_READ_SEARCH") -}}
{{- end -}}
{{- if .Values.containerCredentials.enabled -}}
{{- $capabilities = append $capabilities "NET_ADMIN" -}}
{{- end -}}
{{- if or (lt (int .Values.agent.host.port) 1024) .Values.containerCredentials.enabled -}}
{{- $capabilities = append $capabilities "NET_BIND_SERVICE" -}}
{{- end -}}
{{- $capabilities | uniq | toJson -}}
{{- end -}}

{{/* agent.podUid; off without quotes is false in YAML. */}}
{{- define "kiam.podUid" -}}
{{- kindIs "bool" .Values.agent.podUid | ternary "off" .Values.agent.podUid -}}
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
