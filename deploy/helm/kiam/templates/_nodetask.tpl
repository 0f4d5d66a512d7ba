{{/* A command that runs once on every node that has an agent: a DaemonSet whose init container runs it and leaves its exit code as
     its message, and a pod that waits for all of them, prints what they printed, and takes the DaemonSet away (kiam collect). */}}

{{/* What the proof of kiam dataplane verify needs beside the dataplane's own capabilities: a network namespace for its throwaway
     pod (SYS_ADMIN), raw packets from it (NET_RAW), a cgroup for it (the mount), and the lock of the host's iptables to list rules. */}}
{{- define "kiam.nodeTask.pod" -}}
{{- $root := .root -}}
{{- $agent := $root.Values.agent -}}
{{- $hostCgroups := not (empty (include "kiam.needsHostCgroupNamespace" $root)) -}}
{{- $capabilities := concat (list "NET_ADMIN" "NET_RAW" "SYS_ADMIN") ($hostCgroups | ternary (list "SYS_PTRACE") list) -}}
{{- $security := dict "root" true "capabilities" $capabilities "seLinuxOptions" $agent.seLinuxOptions -}}
{{- if and $hostCgroups (semverCompare ">=1.30.0-0" $root.Capabilities.KubeVersion.Version) -}}
{{- $_ := set $security "appArmor" "Unconfined" -}}
{{- end -}}
hostNetwork: true
{{- if $hostCgroups }}
hostPID: true
{{- end }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- include "kiam.imagePullSecrets" $root | nindent 0 }}
securityContext:
  seccompProfile:
    type: RuntimeDefault
{{- include "kiam.tolerations" (list $root $agent.tolerations) | nindent 0 }}
{{- with $agent.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{ .container }}:
  - name: {{ .task }}
    image: {{ include "kiam.image" (list $root "agent") | quote }}
    imagePullPolicy: {{ $agent.image.pullPolicy }}
    command:
      {{- toYaml .command | nindent 6 }}
    args:
      {{- .arguments | nindent 6 }}
    env:
      {{- include "kiam.agent.env" $root | nindent 6 }}
    securityContext:
      {{- include "kiam.securityContext" $security | nindent 6 }}
    {{- include "kiam.resources" (list "agent" "" dict) | nindent 4 }}
    volumeMounts:
      - name: tmp
        mountPath: /tmp
      - name: xtables
        mountPath: /run/xtables.lock
      - name: cgroup
        mountPath: /sys/fs/cgroup
        mountPropagation: HostToContainer
{{- if eq .container "initContainers" }}
containers:
  # Keeps the pod until what it printed has been read.
  - name: wait
    image: {{ include "kiam.image" (list $root "agent") | quote }}
    imagePullPolicy: {{ $agent.image.pullPolicy }}
    command:
      - sleep
      - infinity
    securityContext:
      {{- include "kiam.securityContext" dict | nindent 6 }}
    resources:
      requests:
        memory: 8Mi
      limits:
        memory: 32Mi
{{- end }}
terminationGracePeriodSeconds: 1
volumes:
  - name: tmp
    emptyDir:
      medium: Memory
      sizeLimit: 64Mi
  - name: xtables
    hostPath:
      path: /run/xtables.lock
      type: FileOrCreate
  - name: cgroup
    hostPath:
      path: /sys/fs/cgroup
      type: Directory
{{- end -}}

{{/* The DaemonSet. Takes a dict: root, name, task, annotations, line (of shell) and arguments (YAML). */}}
{{- define "kiam.nodeTask.daemonSet" -}}
{{- $root := .root -}}
apiVersion: apps/v1
kind: DaemonSet
metadata:
  name: {{ .name }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "kiam.labels" (list $root .task) | nindent 4 }}
  annotations:
    {{- toYaml .annotations | nindent 4 }}
spec:
  selector:
    matchLabels:
      {{- include "kiam.selector" (list $root .task) | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "kiam.selector" (list $root .task) | nindent 8 }}
    spec:
      {{- with $root.Values.agent.nodeSelector }}
      nodeSelector:
        {{- include "kiam.texts" . | nindent 8 }}
      {{- end }}
      {{- with $root.Values.agent.affinity }}
      affinity:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- $command := list "sh" "-c" (printf "%s \"$@\"; code=$?; echo $code >/dev/termination-log" .line) "sh" -}}
      {{- include "kiam.nodeTask.pod" (dict "root" $root "task" .task "container" "initContainers" "command" $command "arguments" .arguments) | nindent 6 }}
{{- end -}}

{{/* The pod that waits; takes the same dict. */}}
{{- define "kiam.nodeTask.collector" -}}
{{- $root := .root -}}
apiVersion: v1
kind: Pod
metadata:
  name: {{ .name }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "kiam.labels" (list $root (printf "%s-collector" .task)) | nindent 4 }}
  annotations:
    {{- toYaml .annotations | nindent 4 }}
spec:
  restartPolicy: Never
  serviceAccountName: {{ .name }}
  {{- include "kiam.imagePullSecrets" $root | nindent 2 }}
  securityContext:
    seccompProfile:
      type: RuntimeDefault
  {{- include "kiam.tolerations" (list $root $root.Values.server.tolerations) | nindent 2 }}
  {{- with $root.Values.server.nodeSelector }}
  nodeSelector:
    {{- include "kiam.texts" . | nindent 4 }}
  {{- end }}
  containers:
    - name: collect
      image: {{ include "kiam.image" (list $root "server") | quote }}
      imagePullPolicy: {{ $root.Values.server.image.pullPolicy }}
      command:
        - /kiam
        - collect
      args:
        - --namespace={{ $root.Release.Namespace }}
        - --daemonset={{ .name }}
        - --selector=app={{ include "kiam.name" $root }},component={{ .task }},release={{ $root.Release.Name }}
        - --container={{ .task }}
        - --timeout={{ $root.Values.test.timeout }}
      securityContext:
        {{- include "kiam.securityContext" dict | nindent 8 }}
      {{- include "kiam.resources" (list "untaint" "" dict) | nindent 6 }}
      volumeMounts:
        - name: tmp
          mountPath: /tmp
  volumes:
    - name: tmp
      emptyDir:
        medium: Memory
        sizeLimit: 64Mi
{{- end -}}

{{/* The rights of that pod: to see its DaemonSet and pods, to read what they printed, to take the DaemonSet away. Same dict. */}}
{{- define "kiam.nodeTask.rights" -}}
{{- $root := .root -}}
{{- $given := . -}}
{{- $rules := list (dict "apiGroups" (list "") "resources" (list "pods") "verbs" (list "list")) (dict "apiGroups" (list "") "resources" (list "pods/log") "verbs" (list "get")) (dict "apiGroups" (list "apps") "resources" (list "daemonsets") "resourceNames" (list .name) "verbs" (list "get" "delete")) -}}
{{- $roleRef := dict "apiGroup" "rbac.authorization.k8s.io" "kind" "Role" "name" .name -}}
{{- $subjects := list (dict "kind" "ServiceAccount" "name" .name "namespace" $root.Release.Namespace) -}}
{{- $kinds := list (dict "apiVersion" "v1" "kind" "ServiceAccount") -}}
{{- if $root.Values.rbac.create -}}
{{- $kinds = concat $kinds (list (dict "apiVersion" "rbac.authorization.k8s.io/v1" "kind" "Role" "rules" $rules) (dict "apiVersion" "rbac.authorization.k8s.io/v1" "kind" "RoleBinding" "roleRef" $roleRef "subjects" $subjects)) -}}
{{- end -}}
{{- range $object := $kinds }}
apiVersion: {{ $object.apiVersion }}
kind: {{ $object.kind }}
metadata:
  name: {{ $given.name }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "kiam.labels" (list $root $given.task) | nindent 4 }}
  {{- with $given.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{ omit $object "apiVersion" "kind" | toYaml | trimPrefix "{}" }}
---
{{- end }}
{{- end -}}
