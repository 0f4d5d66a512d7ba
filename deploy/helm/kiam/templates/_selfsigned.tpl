{{/* Certificates that the chart makes. With each pair goes the next one, signed by another authority, which both halves are
     told to trust long before it is used: whoever takes over the new pair first, nobody refuses anybody. No authority's key is
     stored. A certificate found from conventional kiam's release is given a successor in the same way. */}}

{{/* The secret that holds the next pair. */}}
{{- define "kiam.selfSigned.nextName" -}}
{{- include "kiam.fullname" . }}-next-certificates
{{- end -}}

{{/* The halves whose certificates the chart makes, as a JSON list. */}}
{{- define "kiam.selfSigned.halves" -}}
{{- $halves := list -}}
{{- range $half := list "agent" "server" -}}
{{- if and (get $.Values $half).enabled (eq (include "kiam.tls.source" (list $ $half)) "selfSigned") -}}
{{- $halves = append $halves $half -}}
{{- end -}}
{{- end -}}
{{- $halves | toJson -}}
{{- end -}}

{{/* The CronJob's name, which is to be 52 characters long at most. */}}
{{- define "kiam.selfSigned.renewalName" -}}
{{- include "kiam.fullname" . | trunc 44 | trimSuffix "-" }}-renewal
{{- end -}}

{{/* Whether a CronJob renews them: it takes both halves, and rights. */}}
{{- define "kiam.selfSigned.isRenewed" -}}
{{- if and .Values.selfSigned.cronJob.enabled .Values.rbac.create (eq (include "kiam.selfSigned.halves" . | fromJsonArray | len) 2) -}}
yes
{{- end -}}
{{- end -}}

{{/* When a certificate ends, in Unix time; nothing if it can't be read. Takes its PEM in base64. Templates can't parse X.509, but
     the two times of a certificate's validity stand next to each other in its DER, each as digits with its own tag. */}}
{{- define "kiam.certificate.end" -}}
{{- $pem := regexFind "(?s)-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----" (b64dec .) -}}
{{- $der := regexReplaceAll "-----[A-Z ]+-----|\\s" $pem "" | b64dec -}}
{{- $times := regexFind "\\x17\\x0d[0-9]{12}Z(\\x17\\x0d[0-9]{12}|\\x18\\x0f[0-9]{14})Z" $der -}}
{{- with regexFind "[0-9]+Z$" $times | trimSuffix "Z" -}}
{{- toDate (eq (len .) 12 | ternary "060102150405MST" "20060102150405MST") (printf "%sUTC" .) | unixEpoch -}}
{{- end -}}
{{- end -}}

{{/* What is to be done about the certificates, as JSON: `action` is make (there are none, or they have ended), renew (the next
     pair takes over), introduce (they have no successor yet) or keep; `ends` has when each half's ends, in Unix time, `held` each
     half's secret and `next` the next pair's. */}}
{{- define "kiam.selfSigned.plan" -}}
{{- $halves := include "kiam.selfSigned.halves" . | fromJsonArray -}}
{{- $now := now | unixEpoch | int64 -}}
{{- $held := dict -}}
{{- $ends := dict -}}
{{- $first := 9999999999 | int64 -}}
{{- range $half := $halves -}}
{{- $names := (get $.Values $half).tlsCerts -}}
{{- $data := (lookup "v1" "Secret" $.Release.Namespace (include "kiam.tls.secretName" (list $ $half))).data | default dict -}}
{{- if and (hasKey $data $names.caFileName) (hasKey $data $names.certFileName) (hasKey $data $names.keyFileName) -}}
{{- $_ := set $held $half $data -}}
{{- with include "kiam.certificate.end" (get $data $names.certFileName) -}}
{{- $_ := set $ends $half (int64 .) -}}
{{- $first = min $first (int64 .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $secret := lookup "v1" "Secret" $.Release.Namespace (include "kiam.selfSigned.nextName" .) -}}
{{- $next := $secret.data | default dict -}}
{{- $whole := hasKey $next "ca" -}}
{{- range $half := $halves -}}
{{- $whole = and $whole (hasKey $next (printf "%s-cert" $half)) (hasKey $next (printf "%s-key" $half)) -}}
{{- end -}}
{{- $trusted := $whole -}}
{{- range $half, $data := $held -}}
{{- $bundle := get $data (get $.Values $half).tlsCerts.caFileName | b64dec -}}
{{- $trusted = and $trusted (contains (get $next "ca" | default "" | b64dec | trim) $bundle) -}}
{{- end -}}
{{- $since := dig "metadata" "annotations" "kiam.io/trusted-since" "0" $secret | int64 -}}
{{- $days := div (sub $first $now) 86400 -}}
{{- $action := "keep" -}}
{{- if or (lt (len $held) (len $halves)) (le $first $now) -}}
{{- $action = "make" -}}
{{- else if lt (len $ends) (len $halves) -}}
{{- /* Something else made these, in a form of its own. */ -}}
{{- $action = "keep" -}}
{{- else if not $trusted -}}
{{- $action = "introduce" -}}
{{- else if and (lt $days (int64 .Values.selfSigned.renewBeforeDays)) (gt (sub $now $since) 3600) -}}
{{- $action = "renew" -}}
{{- end -}}
{{- dict "action" $action "ends" $ends "held" $held "next" $next "since" $since | toJson -}}
{{- end -}}

{{/* One authority's certificate and a pair signed by it, as JSON with ca and each half's cert and key, in base64. */}}
{{- define "kiam.selfSigned.pair" -}}
{{- $days := int .Values.selfSigned.validityDays -}}
{{- /* A name of its own: the authority before and after are in one bundle with it. */ -}}
{{- $ca := genCA (printf "%s-ca %s %s" (include "kiam.fullname" .) (now | date "2006-01-02") (randAlphaNum 6 | lower)) $days -}}
{{- $reachedBy := include "kiam.tls.serverNames" . | fromJson -}}
{{- $server := genSignedCert "kiam-server" $reachedBy.ips $reachedBy.dns $days $ca -}}
{{- $agent := genSignedCert "kiam-agent" nil (list "kiam-agent") $days $ca -}}
{{- dict "ca" (b64enc $ca.Cert) "server-cert" (b64enc $server.Cert) "server-key" (b64enc $server.Key) "agent-cert" (b64enc $agent.Cert) "agent-key" (b64enc $agent.Key) | toJson -}}
{{- end -}}

{{/* The last two authorities of a bundle and another one, all in base64. Takes a list: the bundle, the other one. */}}
{{- define "kiam.selfSigned.bundle" -}}
{{- $known := regexFindAll "(?s)-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----" (index . 0 | b64dec) -1 -}}
{{- if gt (len $known) 2 -}}
{{- $known = slice $known (sub (len $known) 2) -}}
{{- end -}}
{{- append $known (index . 1 | b64dec | trim) | join "\n" | printf "%s\n" | b64enc -}}
{{- end -}}
