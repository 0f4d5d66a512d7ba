{{/* The wanted state, for the agent and for the init container that installs the dataplane before it. */}}
{{- define "kiam.dataplane.args" -}}
{{- $dataplane := include "kiam.dataplane" . -}}
- --dataplane={{ $dataplane }}
- {{ printf "--host=%s" .Values.agent.host.ip | quote }}
- {{ printf "--host-interface=%s" .Values.agent.host.interface | quote }}
- --port={{ .Values.agent.host.port }}
{{- with .Values.agent.host.ip6 }}
- {{ printf "--host6=%s" . | quote }}
{{- end }}
{{- if .Values.agent.keepOtherDataplanes }}
- --keep-others
{{- end }}
{{- if ne .Values.agent.iptablesBackend "auto" }}
- --iptables-backend={{ .Values.agent.iptablesBackend }}
{{- end }}
{{- if or (ne $dataplane "none") (ne .Values.agent.hostNetworkPods "ignore") }}
- --host-network={{ .Values.agent.hostNetworkPods }}
{{- end }}
{{- if ne .Values.agent.forwardMetadata "drop" }}
- {{ printf "--forward-metadata=%s" .Values.agent.forwardMetadata | quote }}
{{- end }}
{{- end -}}

{{/* Where the pod is; the agent reads both. */}}
{{- define "kiam.agent.env" -}}
- name: HOST_IP
  valueFrom:
    fieldRef:
      fieldPath: status.hostIP
- name: NODE_NAME
  valueFrom:
    fieldRef:
      fieldPath: spec.nodeName
{{- end -}}

{{/* The root file system is read-only: /tmp is what a process may write to. eBPF needs no bpffs: its programs stay attached
     to the cgroup. */}}
{{- define "kiam.dataplane.mounts" -}}
- name: tmp
  mountPath: /tmp
{{- $dataplane := include "kiam.dataplane" . }}
{{- if eq $dataplane "iptables" }}
- name: xtables
  mountPath: /run/xtables.lock
{{- end }}
{{- if include "kiam.needsCgroups" . }}
- name: cgroup
  mountPath: /sys/fs/cgroup
  readOnly: true
  mountPropagation: HostToContainer
{{- end }}
{{- end -}}

{{- define "kiam.dataplane.volumes" -}}
- name: tmp
  emptyDir:
    medium: Memory
    sizeLimit: 64Mi
{{- $dataplane := include "kiam.dataplane" . }}
{{- if eq $dataplane "iptables" }}
- name: xtables
  hostPath:
    path: /run/xtables.lock
    type: FileOrCreate
{{- end }}
{{- if include "kiam.needsCgroups" . }}
- name: cgroup
  hostPath:
    path: /sys/fs/cgroup
    type: Directory
{{- end }}
{{- if ne (include "kiam.podUid" .) "off" }}
- name: netns
  hostPath:
    path: /run/netns
    type: DirectoryOrCreate
{{- end }}
{{- end -}}
