"""For each of the chart's parameters: a value other than its default, and the fields that must follow it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.deploy.chart import Values, at, merged


@dataclass(frozen=True, slots=True)
class Case:
    """One parameter set to another value."""

    value: object
    fields: Mapping[str, object]
    """Exactly what must differ from the rendering without it, as :func:`tests.deploy.chart.changes` names it."""
    context: Values = field(default_factory=dict)
    """Values both renderings have, for a parameter that means something only together with others."""


AGENT = "DaemonSet/kiam-agent"
SERVER = "DaemonSet/kiam-server"
AGENT_POD = f"{AGENT} spec.template.spec"
SERVER_POD = f"{SERVER} spec.template.spec"
AGENT_CONTAINER = f"{AGENT_POD}.containers[kiam-agent]"
SERVER_CONTAINER = f"{SERVER_POD}.containers[kiam-server]"
INIT_CONTAINER = f"{AGENT_POD}.initContainers[kiam-dataplane]"
PEM = "LS0tLS1CRUdJTiBURVNUCg=="


def _args(container: str, flag: str, value: str, gone: tuple[str, ...]) -> dict[str, object]:
    fields: dict[str, object] = {f"{container}.args[--{name}]": None for name in gone}
    return fields | {f"{container}.args[--{flag}]": value}


def _agent_arg(flag: str, value: str, *gone: str) -> dict[str, object]:
    return _args(AGENT_CONTAINER, flag, value, gone)


def _server_arg(flag: str, value: str, *gone: str) -> dict[str, object]:
    return _args(SERVER_CONTAINER, flag, value, gone)


def _probe(container: str, probe: str, parameter: str, value: int) -> dict[str, Case]:
    half = "agent" if container == AGENT_CONTAINER else "server"
    return {f"{half}.{probe}.{parameter}": Case(value, {f"{container}.{probe}.{parameter}": value})}


def _health(flag: str, value: str) -> dict[str, object]:
    return {
        f"{SERVER_CONTAINER}.{probe}.exec.command[--{flag}]": value for probe in ("livenessProbe", "readinessProbe")
    }


def _bound_to(half: str, account: str) -> dict[str, object]:
    """The role bindings' subjects when the service account's name changes. Agents have no rights at all."""
    fields: dict[str, object] = {}
    for binding in ("ClusterRoleBinding/kiam-read", "ClusterRoleBinding/kiam-write") if half == "server" else ():
        subject = {"kind": "ServiceAccount", "name": account, "namespace": "kube-system"}
        fields |= {f"{binding} subjects[{account}].{key}": value for key, value in subject.items()}
        fields |= {f"{binding} subjects[kiam-server].{key}": None for key in subject}
    return fields


def _of_both(half: str) -> dict[str, Case]:
    """The parameters that agent and server have alike."""
    workload, pod, container = {
        "agent": (AGENT, AGENT_POD, AGENT_CONTAINER),
        "server": (SERVER, SERVER_POD, SERVER_CONTAINER),
    }[half]
    service, monitor = f"Service/kiam-{half}", f"ServiceMonitor/kiam-{half}"
    monitored = at(f"{half}.prometheus.servicemonitor.enabled", True)
    mount: dict[str, Any] = {"name": "extra", "hostPath": "/srv/x", "mountPath": "/x", "readOnly": False}
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    rollout = {
        f"{workload} spec.updateStrategy.{name}": value
        for name, value in (
            ("type", "RollingUpdate"),
            ("rollingUpdate.maxSurge", 1),
            ("rollingUpdate.maxUnavailable", 0),
        )
    }
    account = f"{pod}.serviceAccountName"
    given = {"ca": PEM, "cert": PEM, "key": PEM}
    from_files = merged(at(f"{half}.tlsSecret", None), at(f"{half}.tlsFiles", given))
    cases = {
        "image.pullPolicy": Case("Never", {f"{container}.imagePullPolicy": "Never"}),
        "image.repository": Case("registry.test/kiam", {f"{container}.image": "registry.test/kiam:5.0.0"}),
        "image.tag": Case("5.1", {f"{container}.image": f"kiam-{half}:5.1"}),
        "extraArgs": Case(
            {"pprof-listen-addr": "127.0.0.1:1", "json-log": False},
            {f"{container}.args[--pprof-listen-addr]": "127.0.0.1:1", f"{container}.args[--no-json-log]": ""},
        ),
        "extraEnv": Case({"A": 1}, {f"{container}.env[A].name": "A", f"{container}.env[A].value": "1"}),
        "extraHostPathMounts": Case(
            [mount],
            {
                f"{container}.volumeMounts[extra].name": "extra",
                f"{container}.volumeMounts[extra].mountPath": "/x",
                f"{container}.volumeMounts[extra].readOnly": False,
                f"{pod}.volumes[extra].name": "extra",
                f"{pod}.volumes[extra].hostPath.path": "/srv/x",
            },
        ),
        "initContainers": Case(
            [{"name": "first", "image": "busybox"}],
            {f"{pod}.initContainers[first].name": "first", f"{pod}.initContainers[first].image": "busybox"},
        ),
        "log.jsonOutput": Case(False, {f"{container}.args[--json-log]": None}),
        "log.level": Case("debug", {f"{container}.args[--level]": "debug"}),
        "nodeSelector": Case({"role": "node"}, {f"{pod}.nodeSelector.role": "node"}),
        "prometheus.port": Case(
            9999,
            {
                f"{container}.args[--prometheus-listen-addr]": "0.0.0.0:9999",
                f"{service} metadata.annotations.prometheus.io/port": "9999",
                f"{service} spec.ports[metrics].port": 9999,
                f"{service} spec.ports[metrics].targetPort": 9999,
            },
        ),
        "prometheus.scrape": Case(
            False,
            {
                f"{container}.args[--prometheus-listen-addr]": None,
                f"{container}.args[--prometheus-sync-interval]": None,
            }
            | (
                {service: None}
                if half == "agent"
                else {
                    f"{service} metadata.annotations.prometheus.io/port": None,
                    f"{service} metadata.annotations.prometheus.io/scrape": None,
                    f"{service} spec.ports[metrics].name": None,
                    f"{service} spec.ports[metrics].port": None,
                    f"{service} spec.ports[metrics].protocol": None,
                    f"{service} spec.ports[metrics].targetPort": None,
                }
            ),
        ),
        "prometheus.syncInterval": Case("9s", {f"{container}.args[--prometheus-sync-interval]": "9s"}),
        "prometheus.servicemonitor.enabled": Case(True, {monitor: True}),
        "prometheus.servicemonitor.path": Case("/m", {f"{monitor} spec.endpoints[0].path": "/m"}, monitored),
        "prometheus.servicemonitor.interval": Case("9s", {f"{monitor} spec.endpoints[0].interval": "9s"}, monitored),
        "prometheus.servicemonitor.labels": Case({"team": "x"}, {f"{monitor} metadata.labels.team": "x"}, monitored),
        "prometheus.servicemonitor.namespace": Case(
            "monitoring", {monitor: None, f"ServiceMonitor/monitoring/kiam-{half}": True}, monitored
        ),
        "podAnnotations": Case({"a": "b"}, {f"{workload} spec.template.metadata.annotations.a": "b"}),
        "podLabels": Case(
            {"team": "x"},
            {f"{workload} spec.template.metadata.labels.team": "x"}
            | ({f"{workload} spec.selector.matchLabels.team": "x"} if half == "agent" else {}),
        ),
        "priorityClassName": Case("system-node-critical", {f"{pod}.priorityClassName": "system-node-critical"}),
        "resources": Case(
            {"limits": {"memory": "2Gi"}},
            {f"{container}.resources.limits.memory": "2Gi", f"{container}.resources.requests.memory": None},
        ),
        "dnsConfig": Case({"options": [{"name": "ndots"}]}, {f"{pod}.dnsConfig.options[ndots].name": "ndots"}),
        "seLinuxOptions": Case({"type": "spc_t"}, {f"{container}.securityContext.seLinuxOptions.type": "spc_t"}),
        "serviceAnnotations": Case({"a": "b"}, {f"{service} metadata.annotations.a": "b"}),
        "serviceLabels": Case({"team": "x"}, {f"{service} metadata.labels.team": "x"}),
        "tlsSecret": Case("mine", {f"{pod}.volumes[tls].secret.secretName": "mine"}),
        "tlsFiles.ca": Case("Y2E=", {f"Secret/kiam-{half} data.ca": "Y2E="}, from_files),
        "tlsFiles.cert": Case("Y2VydA==", {f"Secret/kiam-{half} data.cert": "Y2VydA=="}, from_files),
        "tlsFiles.key": Case("a2V5", {f"Secret/kiam-{half} data.key": "a2V5"}, from_files),
        "tlsCerts.caFileName": Case("ca.pem", {f"{container}.args[--ca]": "/etc/kiam/tls/ca.pem"}),
        "tlsCerts.certFileName": Case("x.pem", {f"{container}.args[--cert]": "/etc/kiam/tls/x.pem"}),
        "tlsCerts.keyFileName": Case("x.pem", {f"{container}.args[--key]": "/etc/kiam/tls/x.pem"}),
        "tolerations": Case([{"operator": "Exists"}], {f"{pod}.tolerations[0].operator": "Exists"}),
        "affinity": Case({"nodeAffinity": {"a": "b"}}, {f"{pod}.affinity.nodeAffinity.a": "b"}),
        "updateStrategy": Case(strategy, rollout),
    }
    if half == "agent":
        del cases["image.pullPolicy"], cases["image.repository"], cases["image.tag"]
        del cases["seLinuxOptions"]
    else:
        for name, flag in (("caFileName", "ca"), ("certFileName", "cert"), ("keyFileName", "key")):
            case = cases[f"tlsCerts.{name}"]
            cases[f"tlsCerts.{name}"] = Case(
                case.value, {**case.fields, **_health(flag, f"/etc/kiam/tls/{case.value}")}
            )
    result = {f"{half}.{name}": case for name, case in cases.items()}
    accounts = f"serviceAccounts.{half}"
    return result | {
        f"{accounts}.create": Case(
            False, {f"ServiceAccount/kiam-{half}": None, account: "default"} | _bound_to(half, "default")
        ),
        f"{accounts}.name": Case(
            "mine",
            {f"ServiceAccount/kiam-{half}": None, "ServiceAccount/mine": True, account: "mine"}
            | _bound_to(half, "mine"),
        ),
        f"{accounts}.annotations": Case({"a": "b"}, {f"ServiceAccount/kiam-{half} metadata.annotations.a": "b"}),
    }


def _renamed(half: str) -> dict[str, object]:
    """What follows a container's name: its label on every object, the selectors, and the container itself."""
    workload = AGENT if half == "agent" else SERVER
    labelled = [workload, f"Service/kiam-{half}", f"ServiceAccount/kiam-{half}"]
    if half == "server":
        labelled += [
            f"{kind}/kiam-{name}" for kind in ("ClusterRole", "ClusterRoleBinding") for name in ("read", "write")
        ]
    return {
        **{f"{name} metadata.labels.component": "other" for name in labelled},
        f"Service/kiam-{half} spec.selector.component": "other",
        f"{workload} spec.selector.matchLabels.component": "other",
        f"{workload} spec.template.metadata.labels.component": "other",
    }


CASES: dict[str, Case] = {}
"""Parameter: its case. ``agent.name`` and ``server.name`` rename a container, which test_parameters.py checks apart."""

CASES |= _of_both("agent") | _of_both("server")

_WITH_DATAPLANE = at("agent.dataplane", "nftables")
for _container in (AGENT_CONTAINER, SERVER_CONTAINER):
    for _probe_name in ("livenessProbe", "readinessProbe"):
        for _parameter in (
            "initialDelaySeconds",
            "periodSeconds",
            "timeoutSeconds",
            "successThreshold",
            "failureThreshold",
        ):
            CASES |= _probe(_container, _probe_name, _parameter, 47)

CASES |= {
    "agent.enabled": Case(False, {AGENT: None, "Service/kiam-agent": None, "ServiceAccount/kiam-agent": None}),
    "server.enabled": Case(
        False,
        dict.fromkeys(
            (
                SERVER,
                "Service/kiam-server",
                "ServiceAccount/kiam-server",
                "ClusterRole/kiam-read",
                "ClusterRole/kiam-write",
                "ClusterRoleBinding/kiam-read",
                "ClusterRoleBinding/kiam-write",
            )
        ),
    ),
    # The init container is the agent's image too.
    "agent.image.repository": Case(
        "registry.test/kiam",
        {f"{c}.image": "registry.test/kiam:5.0.0" for c in (AGENT_CONTAINER, INIT_CONTAINER)},
        _WITH_DATAPLANE,
    ),
    "agent.image.tag": Case(
        "5.1", {f"{c}.image": "kiam-agent:5.1" for c in (AGENT_CONTAINER, INIT_CONTAINER)}, _WITH_DATAPLANE
    ),
    "agent.image.pullPolicy": Case(
        "Never", {f"{c}.imagePullPolicy": "Never" for c in (AGENT_CONTAINER, INIT_CONTAINER)}, _WITH_DATAPLANE
    ),
    "agent.dataplaneResources": Case(
        {"limits": {"memory": "2Gi"}},
        {f"{INIT_CONTAINER}.resources.limits.memory": "2Gi", f"{INIT_CONTAINER}.resources.requests.memory": None},
        _WITH_DATAPLANE,
    ),
    "agent.iptablesBackend": Case(
        "legacy",
        {f"{c}.args[--iptables-backend]": "legacy" for c in (AGENT_CONTAINER, INIT_CONTAINER)},
        at("agent.dataplane", "iptables"),
    ),
    "agent.host.ip6": Case(
        "fd00::1", {f"{c}.args[--host6]": "fd00::1" for c in (AGENT_CONTAINER, INIT_CONTAINER)}, _WITH_DATAPLANE
    ),
    "agent.seLinuxOptions": Case(
        {"type": "spc_t"},
        {f"{c}.securityContext.seLinuxOptions.type": "spc_t" for c in (AGENT_CONTAINER, INIT_CONTAINER)},
        _WITH_DATAPLANE,
    ),
    "agent.dnsPolicy": Case("Default", {f"{AGENT_POD}.dnsPolicy": "Default"}),
    "agent.allowRouteRegexp": Case(
        "^/latest/meta-data/placement/", _agent_arg("allow-route-regexp", "^/latest/meta-data/placement/")
    ),
    "agent.gatewayTimeoutCreation": Case("5s", _agent_arg("gateway-timeout-creation", "5s")),
    "agent.keepaliveParams.time": Case("30s", _agent_arg("grpc-keepalive-time-duration", "30s")),
    "agent.keepaliveParams.timeout": Case("30s", _agent_arg("grpc-keepalive-timeout-duration", "30s")),
    "agent.keepaliveParams.permitWithoutStream": Case(True, _agent_arg("grpc-keepalive-permit-without-stream", "")),
    "agent.keepOtherDataplanes": Case(
        True, {f"{c}.args[--keep-others]": "" for c in (AGENT_CONTAINER, INIT_CONTAINER)}, _WITH_DATAPLANE
    ),
    "agent.outageGrace": Case("1h", _agent_arg("outage-grace", "1h")),
    "agent.imdsTokens": Case("required", _agent_arg("imds-tokens", "required")),
    "agent.host.ip": Case(
        "10.0.0.1", {f"{c}.args[--host]": "10.0.0.1" for c in (AGENT_CONTAINER, INIT_CONTAINER)}, _WITH_DATAPLANE
    ),
    "agent.host.interface": Case(
        "!eth0", {f"{c}.args[--host-interface]": "!eth0" for c in (AGENT_CONTAINER, INIT_CONTAINER)}, _WITH_DATAPLANE
    ),
    "agent.host.port": Case(
        3100,
        {f"{c}.args[--port]": "3100" for c in (AGENT_CONTAINER, INIT_CONTAINER)}
        | {f"{AGENT_CONTAINER}.livenessProbe.httpGet.port": 3100},
        _WITH_DATAPLANE,
    ),
    "agent.hostNetworkPods": Case(
        "deny",
        {f"{c}.args[--host-network]": "deny" for c in (AGENT_CONTAINER, INIT_CONTAINER)},
        at("agent.dataplane", "ebpf"),
    ),
    "agent.forwardMetadata": Case(
        "allow:virbr0",
        {f"{c}.args[--forward-metadata]": "allow:virbr0" for c in (AGENT_CONTAINER, INIT_CONTAINER)},
        _WITH_DATAPLANE,
    ),
    "agent.host.iptablesRemoveOnShutdown": Case(True, _agent_arg("dataplane-remove", ""), _WITH_DATAPLANE),
    "agent.deepLivenessProbe": Case(True, {f"{AGENT_CONTAINER}.livenessProbe.httpGet.path": "/health?deep=1"}),
    "server.gatewayTimeoutCreation": Case("5s", _health("gateway-timeout-creation", "5s")),
    "server.assumeRoleArn": Case(
        "arn:aws:iam::123456789012:role/kiam", _server_arg("assume-role-arn", "arn:aws:iam::123456789012:role/kiam")
    ),
    "server.roleBaseArn": Case(
        "arn:aws:iam::123456789012:role/",
        _server_arg("role-base-arn", "arn:aws:iam::123456789012:role/", "role-base-arn-autodetect"),
    ),
    "server.region": Case("eu-west-1", _server_arg("region", "eu-west-1")),
    "server.cache.syncInterval": Case("5m", _server_arg("sync", "5m")),
    "server.staleAfter": Case("10m", _server_arg("stale-after", "10m")),
    "server.sessionDuration": Case("1h", _server_arg("session-duration", "1h")),
    "server.sessionRefresh": Case("25m", _server_arg("session-refresh", "25m")),
    "server.session": Case("{namespace}.{pod}", _server_arg("session", "{namespace}.{pod}")),
    "server.clusterName": Case("prod eu", _server_arg("cluster-name", "prod eu")),
    "server.sessionTags": Case("pod", _server_arg("session-tags", "pod")),
    "server.sessionTagsTransitive": Case(True, _server_arg("session-tags-transitive", "")),
    "server.sourceIdentity": Case("{namespace}.{pod}", _server_arg("source-identity", "{namespace}.{pod}")),
    "server.defaultPermitted": Case(
        r"arn:aws:iam::\d+:role/x: y", _server_arg("default-permitted", r"arn:aws:iam::\d+:role/x: y")
    ),
    "server.kube2iamAnnotations": Case(True, _server_arg("kube2iam-annotations", "")),
    "server.namespaceRestrictionFormat": Case("regexp", _server_arg("namespace-restriction-format", "regexp")),
    "server.nodeAuthorization": Case(True, _server_arg("node-authorization", "")),
    "server.disableStrictNamespaceRegexp": Case(True, _server_arg("disable-strict-namespace-regexp", "")),
    "server.keepaliveParams.time": Case("30s", _server_arg("grpc-keepalive-time-duration", "30s")),
    "server.keepaliveParams.timeout": Case("30s", _server_arg("grpc-keepalive-timeout-duration", "30s")),
    "server.keepaliveParams.maxConnectionIdle": Case("1h", _server_arg("grpc-max-connection-idle-duration", "1h")),
    "server.keepaliveParams.maxConnectionAge": Case("1h", _server_arg("grpc-max-connection-age-duration", "1h")),
    "server.keepaliveParams.maxConnectionAgeGrace": Case(
        "1h", _server_arg("grpc-max-connection-age-grace-duration", "1h")
    ),
    "server.sslCertHostPath": Case(
        "/etc/pki/ca-trust/extracted/pem",
        {f"{SERVER_POD}.volumes[ssl-certs].hostPath.path": "/etc/pki/ca-trust/extracted/pem"},
    ),
    "server.probes.serverAddress": Case("localhost", _health("server-address", "localhost:443")),
    "server.service.port": Case(
        9610, {"Service/kiam-server spec.ports[grpclb].port": 9610} | _agent_arg("server-address", "kiam-server:9610")
    ),
    "server.service.targetPort": Case(
        9610,
        {
            "Service/kiam-server spec.ports[grpclb].targetPort": 9610,
            f"{SERVER_POD}.securityContext.sysctls[net.ipv4.ip_unprivileged_port_start].name": None,
            f"{SERVER_POD}.securityContext.sysctls[net.ipv4.ip_unprivileged_port_start].value": None,
        }
        | _server_arg("bind", "0.0.0.0:9610")
        | _health("server-address", "127.0.0.1:9610"),
    ),
    "server.service.name": Case(
        "grpc",
        {
            f"Service/kiam-server spec.ports[{name}].{key}": value if name == "grpc" else None
            for name in ("grpc", "grpclb")
            for key, value in (("name", "grpc"), ("port", 443), ("targetPort", 443), ("protocol", "TCP"))
        },
    ),
    "server.useHostNetwork": Case(True, {f"{SERVER_POD}.hostNetwork": True}, at("server.service.targetPort", 9610)),
    "server.deployment.enabled": Case(
        True, {SERVER: None, "Deployment/kiam-server": True, "PodDisruptionBudget/kiam-server": True}
    ),
    "server.deployment.replicas": Case(
        5, {"Deployment/kiam-server spec.replicas": 5}, at("server.deployment.enabled", True)
    ),
    "server.deployment.strategy": Case(
        {"rollingUpdate": {"maxSurge": 1}},
        {"Deployment/kiam-server spec.strategy.rollingUpdate.maxSurge": 1},
        at("server.deployment.enabled", True),
    ),
    "server.deployment.podDisruptionBudget": Case(
        {"maxUnavailable": 2},
        {"PodDisruptionBudget/kiam-server spec.maxUnavailable": 2},
        at("server.deployment.enabled", True),
    ),
    "rbac.create": Case(
        False,
        {f"{kind}/kiam-{name}": None for kind in ("ClusterRole", "ClusterRoleBinding") for name in ("read", "write")},
    ),
    "imagePullSecrets": Case(
        "registry", {f"{pod}.imagePullSecrets[registry].name": "registry" for pod in (AGENT_POD, SERVER_POD)}
    ),
    "agent.startupTaint.enabled": Case(
        True,
        {
            "Deployment/kiam-untaint": True,
            "ServiceAccount/kiam-untaint": True,
            "Role/kiam-untaint": True,
            "RoleBinding/kiam-untaint": True,
            "ClusterRole/kiam-untaint": True,
            "ClusterRoleBinding/kiam-untaint": True,
        }
        | {
            f"{pod}.tolerations[0].{key}": value
            for pod in (AGENT_POD, SERVER_POD)
            for key, value in (("key", "kiam.io/agent-not-ready"), ("operator", "Exists"))
        },
    ),
    "agent.startupTaint.key": Case(
        "x/y",
        {
            f"{pod}.tolerations[0].key": "x/y"
            for pod in (AGENT_POD, SERVER_POD, "Deployment/kiam-untaint spec.template.spec")
        }
        | {"Deployment/kiam-untaint spec.template.spec.containers[kiam-untaint].args[--taint]": "x/y"},
        at("agent.startupTaint.enabled", True),
    ),
    "agent.tlsHostPath": Case(
        "/etc/kiam",
        {
            f"{AGENT_POD}.volumes[tls].secret.secretName": None,
            f"{AGENT_POD}.volumes[tls].secret.defaultMode": None,
            f"{AGENT_POD}.volumes[tls].hostPath.path": "/etc/kiam",
            f"{AGENT_POD}.volumes[tls].hostPath.type": "Directory",
        },
        _WITH_DATAPLANE,
    ),
    "certManager.enabled": Case(
        True,
        {
            "Certificate/kiam-ca": True,
            "Certificate/kiam-agent": True,
            "Issuer/kiam-selfsigned": True,
            "Issuer/kiam-ca": True,
            "Secret/kiam-agent": None,
            "Secret/kiam-next-certificates": None,
            f"{AGENT_POD}.volumes[tls].secret.secretName": "kiam-agent-tls",
        }
        | {
            f"{AGENT_POD}.volumes[tls].secret.items[{index}].{field}": value
            for index, (key, path) in enumerate((("tls.crt", "cert"), ("tls.key", "key"), ("ca.crt", "ca")))
            for field, value in (("key", key), ("path", path))
        },
        at("agent.tlsSecret", None),
    ),
    "certManager.duration": Case(
        "48h",
        {f"Certificate/kiam-{half} spec.duration": "48h" for half in ("agent", "server")},
        merged(at("certManager.enabled", True), at("agent.tlsSecret", None), at("server.tlsSecret", None)),
    ),
    "certManager.renewBefore": Case(
        "48h",
        {f"Certificate/kiam-{half} spec.renewBefore": "48h" for half in ("agent", "server")},
        merged(at("certManager.enabled", True), at("agent.tlsSecret", None), at("server.tlsSecret", None)),
    ),
    "certManager.issuerRef": Case(
        {"name": "vault", "kind": "ClusterIssuer"},
        {"Certificate/kiam-ca": None, "Issuer/kiam-selfsigned": None, "Issuer/kiam-ca": None}
        | {
            f"Certificate/kiam-{half} spec.issuerRef.{key}": value
            for half in ("agent", "server")
            for key, value in (("name", "vault"), ("kind", "ClusterIssuer"), ("group", None))
        },
        merged(at("certManager.enabled", True), at("agent.tlsSecret", None), at("server.tlsSecret", None)),
    ),
    "prometheusRule.enabled": Case(True, {"PrometheusRule/kiam": True}),
    "prometheusRule.namespace": Case(
        "monitoring",
        {"PrometheusRule/kiam": None, "PrometheusRule/monitoring/kiam": True},
        at("prometheusRule.enabled", True),
    ),
    "prometheusRule.additionalLabels": Case(
        {"team": "x"}, {"PrometheusRule/kiam metadata.labels.team": "x"}, at("prometheusRule.enabled", True)
    ),
    "prometheusRule.rules": Case(
        [{"alert": "Down"}],
        {
            "PrometheusRule/kiam spec.groups[kiam].rules[0].alert": "Down",
            "PrometheusRule/kiam spec.groups[kiam].rules": None,
        },
        merged(at("prometheusRule.enabled", True), at("prometheusRule.standard", False)),
    ),
}
RENAMED = {half: _renamed(half) for half in ("agent", "server")}
