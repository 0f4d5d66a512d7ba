{{/* Brings values into one form, in place; every template begins with it. Tools that write values files quote booleans and
     numbers, and conventional kiam's users gave lists where it documents maps and the other way round. */}}
{{- define "kiam.values" -}}
{{- /* Conventional kiam's templates took any text for true. Read as it's written, this one would leave pods with the
       node's role where they had been redirected. */ -}}
{{- if and (kindIs "string" .Values.agent.host.iptables) (eq (toString .Values.agent.host.iptables) "false") -}}
{{- fail "agent.host.iptables is \"false\" in quotes, which conventional kiam's chart took for true: write true to go on redirecting pods, or false without quotes" -}}
{{- end -}}
{{- range $path := include "kiam.values.booleans" . | fromYamlArray -}}
{{- include "kiam.values.convert" (list $.Values $path) -}}
{{- end -}}
{{- range $path := include "kiam.values.numbers" . | fromYamlArray -}}
{{- include "kiam.values.convert" (list $.Values $path) -}}
{{- end -}}
{{- range $half := list .Values.agent .Values.server -}}
{{- $_ := set $half "tolerations" ($half.tolerations | default list) -}}
{{- $_ := set $half "initContainers" ($half.initContainers | default list) -}}
{{- $_ := set $half "extraHostPathMounts" (include "kiam.values.mounts" $half.extraHostPathMounts | fromJsonArray) -}}
{{- end -}}
{{- $keepalive := .Values.agent.keepaliveParams -}}
{{- $_ := set $keepalive "permitWithoutStream" (or $keepalive.permitWithoutStream (eq (toString $keepalive.PermitWithoutStream) "true")) -}}
{{- end -}}

{{/* One value that may be in quotes, as what it says. Takes a list: the values, and the path to one. */}}
{{- define "kiam.values.convert" -}}
{{- $node := index . 0 -}}
{{- $keys := splitList "." (index . 1) -}}
{{- range initial $keys -}}
{{- $node = get $node . | default dict -}}
{{- end -}}
{{- $value := get $node (last $keys) -}}
{{- if and (kindIs "string" $value) (hasKey $node (last $keys)) -}}
{{- if has $value (list "true" "false") -}}
{{- $_ := set $node (last $keys) (eq $value "true") -}}
{{- else if regexMatch "^[0-9]+$" $value -}}
{{- $_ := set $node (last $keys) (int $value) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Host path mounts, a list or a map by name, as a JSON list without repetitions. */}}
{{- define "kiam.values.mounts" -}}
{{- $mounts := list -}}
{{- if kindIs "map" . -}}
{{- range $name, $mount := . -}}
{{- $mounts = append $mounts (merge (dict) $mount (dict "name" $name)) -}}
{{- end -}}
{{- else -}}
{{- $mounts = . | default list -}}
{{- end -}}
{{- $result := list -}}
{{- range $mounts -}}
{{- $result = append $result (set . "readOnly" (ne (toString (dig "readOnly" true .)) "false")) -}}
{{- end -}}
{{- $result | uniq | toJson -}}
{{- end -}}

{{- define "kiam.values.booleans" -}}
- agent.enabled
- agent.keepaliveParams.permitWithoutStream
- agent.host.iptables
- agent.host.iptablesRemoveOnShutdown
- agent.startupTaint.enabled
- agent.log.jsonOutput
- agent.deepLivenessProbe
- agent.keepOtherDataplanes
- agent.removeOnUninstall
- test.enabled
- agent.prometheus.scrape
- agent.prometheus.servicemonitor.enabled
- server.enabled
- server.deployment.enabled
- server.nodeAuthorization
- server.disableStrictNamespaceRegexp
- server.sessionTagsTransitive
- server.kube2iamAnnotations
- server.log.jsonOutput
- server.prometheus.scrape
- server.prometheus.servicemonitor.enabled
- server.useHostNetwork
- containerCredentials.enabled
- containerCredentials.webhook.enabled
- rbac.create
- psp.create
- serviceAccounts.agent.create
- serviceAccounts.server.create
- certManager.enabled
- selfSigned.cronJob.enabled
- prometheusRule.enabled
- prometheusRule.standard
{{- end -}}

{{- define "kiam.values.numbers" -}}
- agent.host.port
- containerCredentials.webhook.port
- server.deployment.replicas
- server.service.port
- server.service.targetPort
- selfSigned.validityDays
- selfSigned.renewBeforeDays
{{- range $half := list "agent" "server" }}
- {{ $half }}.prometheus.port
{{- range $probe := list "livenessProbe" "readinessProbe" }}
{{- range $time := list "initialDelaySeconds" "periodSeconds" "timeoutSeconds" "successThreshold" "failureThreshold" }}
- {{ $half }}.{{ $probe }}.{{ $time }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}
