{{/* Where one half's certificate comes from: hostPath, secret, files, certManager or selfSigned. Takes a list: the root
     context and "agent" or "server". */}}
{{- define "kiam.tls.source" -}}
{{- $root := index . 0 -}}
{{- $half := index . 1 -}}
{{- $values := get $root.Values $half -}}
{{- $files := $values.tlsFiles -}}
{{- if $values.tlsHostPath -}}
hostPath
{{- else if $values.tlsSecret -}}
secret
{{- else if and $files.ca $files.cert $files.key -}}
files
{{- else if or $files.ca $files.cert $files.key -}}
{{- fail (printf "%s.tlsFiles needs ca, cert and key together; give all three or none" $half) -}}
{{- else if $root.Values.certManager.enabled -}}
certManager
{{- else -}}
selfSigned
{{- end -}}
{{- end -}}

{{/* The secret that one half's certificate is in; takes the same list. cert-manager's has a name of its own, because its
     type differs and a secret's type can't change. */}}
{{- define "kiam.tls.secretName" -}}
{{- $root := index . 0 -}}
{{- $half := index . 1 -}}
{{- $source := include "kiam.tls.source" . -}}
{{- if eq $source "secret" -}}
{{- (get $root.Values $half).tlsSecret -}}
{{- else -}}
{{- include "kiam.fullname" $root }}-{{ $half }}{{ if eq $source "certManager" }}-tls{{ end }}
{{- end -}}
{{- end -}}

{{/* The volume of one half's TLS files; takes a list: root, half, mode. cert-manager names its files in its own way. */}}
{{- define "kiam.tls.volume" -}}
{{- $root := index . 0 -}}
{{- $half := index . 1 -}}
{{- $names := (get $root.Values $half).tlsCerts -}}
{{- $source := include "kiam.tls.source" (list $root $half) -}}
- name: tls
{{- if eq $source "hostPath" }}
  hostPath:
    path: {{ (get $root.Values $half).tlsHostPath }}
    type: Directory
{{- else }}
  secret:
    secretName: {{ include "kiam.tls.secretName" (list $root $half) }}
    defaultMode: {{ index . 2 }}
    {{- if eq $source "certManager" }}
    items:
      - key: tls.crt
        path: {{ $names.certFileName }}
      - key: tls.key
        path: {{ $names.keyFileName }}
      - key: ca.crt
        path: {{ $names.caFileName }}
    {{- end }}
{{- end }}
{{- end -}}

{{/* The three TLS flags; takes the same list as kiam.tls.source. */}}
{{- define "kiam.tls.args" -}}
{{- $names := (get (index . 0).Values (index . 1)).tlsCerts -}}
- --cert=/etc/kiam/tls/{{ $names.certFileName }}
- --key=/etc/kiam/tls/{{ $names.keyFileName }}
- --ca=/etc/kiam/tls/{{ $names.caFileName }}
{{- end -}}

{{/* The names agents and probes reach the server by: JSON with the lists dns and ips. Without the port: the agent checks
     the host part of --server-address alone. */}}
{{- define "kiam.tls.serverNames" -}}
{{- $service := printf "%s-server" (include "kiam.fullname" .) -}}
{{- $dns := list $service (printf "%s.%s" $service .Release.Namespace) (printf "%s.%s.svc" $service .Release.Namespace) (printf "%s.%s.svc.cluster.local" $service .Release.Namespace) "localhost" -}}
{{- if .Values.containerCredentials.webhook.enabled -}}
{{- $dns = append $dns (printf "%s-webhook.%s.svc" (include "kiam.fullname" .) .Release.Namespace) -}}
{{- end -}}
{{- $ips := list "127.0.0.1" -}}
{{- $probed := .Values.server.probes.serverAddress | trimPrefix "[" | trimSuffix "]" -}}
{{- if regexMatch "^([0-9.]+|.*:.*)$" $probed -}}
{{- $ips = append $ips $probed | uniq -}}
{{- else -}}
{{- $dns = append $dns $probed | uniq -}}
{{- end -}}
{{- dict "dns" $dns "ips" $ips | toJson -}}
{{- end -}}
