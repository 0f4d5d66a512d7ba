{{/* What each container was measured to need, in MiB (docs/chart.md#memory): requests, limits, and the least limit that it
     can live with. */}}
{{- define "kiam.measuredMemory" -}}
agent: {request: 64, limit: 256, least: 96}
dataplane: {request: 32, limit: 192, least: 96}
server: {request: 128, limit: 1024, least: 128}
untaint: {request: 64, limit: 256, least: 96}
{{- end -}}

{{/* A container's resources: the values', or what was measured. Fails if they are less than it can live with. Takes a list:
     what it is, the values' name, and the values. */}}
{{- define "kiam.resources" -}}
{{- $what := index . 0 -}}
{{- $memory := get (include "kiam.measuredMemory" . | fromYaml) $what -}}
{{- with index . 2 -}}
{{- $limit := (.limits | default dict).memory -}}
{{- if and $limit (lt (include "kiam.bytes" $limit | float64) (mulf $memory.least 1048576)) -}}
{{- fail (printf "%s.limits.memory is %v, and kiam's %s needs %vMi: with less the kernel kills it and pods get errors; raise the limit or leave %s out" (index $ 1) $limit $what $memory.least (index $ 1)) -}}
{{- end -}}
resources:
{{- toYaml . | nindent 2 }}
{{- else -}}
resources:
  requests:
    memory: {{ $memory.request }}Mi
  limits:
    memory: {{ $memory.limit }}Mi
{{- end -}}
{{- end -}}

{{/* A quantity of Kubernetes', such as 50Mi, 0.1Gi or 64000k, in bytes. */}}
{{- define "kiam.bytes" -}}
{{- $quantity := toString . -}}
{{- $unit := regexFind "[A-Za-z]+$" $quantity -}}
{{- $factors := dict "" 1.0 "m" 0.001 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 -}}
{{- mulf (trimSuffix $unit $quantity | float64) (get $factors $unit | default 1e18) -}}
{{- end -}}
