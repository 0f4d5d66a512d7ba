"""Values files of the shapes that people published for conventional kiam's chart mean here what they meant there.

The files are our own, one for each kind found. What the old chart made of them is worked out below from its document.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml

from tests.deploy.cases import CASES
from tests.deploy.chart import CHART, GIVEN_CERTIFICATES, Manifest, Values, at, changes, manifests, merged
from tests.deploy.test_commands import commands, parsed
from tests.deploy.test_parameters import documented

FILES = sorted((Path(__file__).parent / "published").glob("*.yaml"))
NEW_NAMES = {"whitelist-route-regexp": "allow-route-regexp"}


def old_defaults() -> Values:
    """The document's table, as a values tree."""
    listed = [at(name, yaml.safe_load(default)) for name, default in documented().items() if "{{" not in default]
    tls = at("tlsCerts", {"certFileName": "cert", "keyFileName": "key", "caFileName": "ca"})
    unlisted = {"agent": tls, "server": merged(tls, at("deployment.enabled", False), at("keepaliveParams", {}))}
    return merged(*listed, unlisted)


def truth(value: object) -> bool:
    """A boolean that may be in quotes; the old templates took "false" for true, which no file here relies on."""
    return value in (True, "true")


def extra(arguments: Any) -> Iterator[str]:
    """``extraArgs`` as flags: of a map as the old chart rendered it, of a list as it can only have been meant."""
    if isinstance(arguments, list):
        yield from (word.removeprefix("--") for word in arguments)
        return
    for name, value in (arguments or {}).items():
        yield NEW_NAMES.get(name, name) + (f"={value}" if value else "")


def of_both(values: Values) -> Iterator[str]:
    """The flags that agent and server had alike."""
    if truth(values["log"]["jsonOutput"]):
        yield "json-log"
    yield f"level={values['log']['level']}"
    yield from (f"{flag}=/etc/kiam/tls/{values['tlsCerts'][f'{flag}FileName']}" for flag in ("cert", "key", "ca"))
    if truth(values["prometheus"]["scrape"]):
        yield f"prometheus-listen-addr=0.0.0.0:{values['prometheus']['port']}"
        yield f"prometheus-sync-interval={values['prometheus']['syncInterval']}"
    for name in ("time", "timeout"):
        if values["keepaliveParams"].get(name):
            yield f"grpc-keepalive-{'time' if name == 'time' else 'timeout'}-duration={values['keepaliveParams'][name]}"


def agent_flags(values: Values) -> set[str]:
    """What the old chart started an agent with, in the words of kiam 4."""
    agent = values["agent"]
    flags = {*of_both(agent), *extra(agent["extraArgs"])}
    flags |= {
        f"dataplane={'iptables' if truth(agent['host']['iptables']) else 'none'}",
        f"host-interface={agent['host']['interface']}",
        f"port={agent['host']['port']}",
        f"server-address=kiam-server:{values['server']['service']['port']}",
        f"gateway-timeout-creation={agent['gatewayTimeoutCreation']}",
    }
    routes = agent["allowRouteRegexp"] or agent.get("whiteListRouteRegexp")
    flags |= {f"allow-route-regexp={routes}"} if routes else set()
    permitted = [agent["keepaliveParams"].get(name) for name in ("permitWithoutStream", "PermitWithoutStream")]
    return flags | ({"grpc-keepalive-permit-without-stream"} if any(map(truth, permitted)) else set())


def server_flags(values: Values) -> set[str]:
    """The same of a server."""
    server = values["server"]
    flags = {*of_both(server), *extra(server["extraArgs"])}
    flags |= {
        f"bind=0.0.0.0:{server['service']['targetPort']}",
        f"session-duration={server['sessionDuration']}",
        f"sync={server['cache']['syncInterval']}",
        f"role-base-arn={server['roleBaseArn']}" if server["roleBaseArn"] else "role-base-arn-autodetect",
    }
    flags |= {f"assume-role-arn={server['assumeRoleArn']}"} if server["assumeRoleArn"] else set()
    for name, flag in (("maxConnectionAge", "age"), ("maxConnectionIdle", "idle")):
        if server["keepaliveParams"].get(name):
            flags.add(f"grpc-max-connection-{flag}-duration={server['keepaliveParams'][name]}")
    return flags


def texts(given: Values) -> Values:
    """A map of labels, selectors or annotations: texts, whatever was written without quotes."""
    return {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in given.items()}


def pod_of(objects: list[Manifest], half: str) -> Manifest:
    (workload,) = [
        o for o in objects if o["kind"] in ("DaemonSet", "Deployment") and o["metadata"]["name"] == f"kiam-{half}"
    ]
    pod: Manifest = workload["spec"]["template"]["spec"]
    return pod


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def values(request: pytest.FixtureRequest) -> Values:
    given: Values = yaml.safe_load(request.param.read_text())
    return given


@pytest.mark.parametrize("half", ["agent", "server"])
def test_the_same_flags(values: Values, half: str, tmp_path: Path) -> None:
    old = merged(old_defaults(), values)
    container = pod_of(manifests(values), half)["containers"][0]
    found = {word.removeprefix("--") for word in container["args"]}
    assert (agent_flags if half == "agent" else server_flags)(old) <= found
    for line in commands(container):
        parsed(line, tmp_path)


@pytest.mark.parametrize("half", ["agent", "server"])
def test_the_same_pod(values: Values, half: str) -> None:
    old = merged(old_defaults(), values)[half]
    objects = manifests(values)
    pod = pod_of(objects, half)
    container = pod["containers"][0]
    assert pod["hostNetwork"] is (half == "agent" or truth(old["useHostNetwork"]))
    assert pod.get("nodeSelector", {}) == texts(old["nodeSelector"])
    assert pod.get("tolerations", []) == (old["tolerations"] or [])
    assert pod.get("priorityClassName", "") == old["priorityClassName"]
    assert pod.get("dnsConfig", {}) == old.get("dnsConfig", {})
    assert container["livenessProbe"]["timeoutSeconds"] == int(old["livenessProbe"]["timeoutSeconds"])
    if old["resources"]:
        assert container["resources"] == old["resources"]
    names = [variable["name"] for variable in container.get("env", ())]
    wanted = old["extraEnv"] if isinstance(old["extraEnv"], list) else [{"name": name} for name in old["extraEnv"]]
    assert {variable["name"] for variable in wanted} <= set(names)
    assert len(names) == len(set(names))


@pytest.mark.parametrize("half", ["agent", "server"])
def test_what_they_mount_is_mounted_once(values: Values, half: str) -> None:
    old = merged(old_defaults(), values)[half]
    pod = pod_of(manifests(values), half)
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert len(volumes) == len(pod["volumes"])
    mounted = {mount["mountPath"].rstrip("/"): volumes[mount["name"]] for mount in pod["containers"][0]["volumeMounts"]}
    assert len(mounted) == len(pod["containers"][0]["volumeMounts"])
    mounts = old["extraHostPathMounts"]
    for mount in mounts.values() if isinstance(mounts, dict) else mounts:
        assert mounted[mount["mountPath"].rstrip("/")]["hostPath"]["path"] == mount["hostPath"]
    assert "/etc/ssl/certs" in mounted or half == "agent"


QUOTED = {
    parameter: case
    for parameter, case in CASES.items()
    if isinstance(case.value, bool | int) and parameter != "agent.host.iptables"
}


@pytest.mark.parametrize("parameter", QUOTED)
def test_a_boolean_or_number_in_quotes_is_what_it_says(parameter: str) -> None:
    case = QUOTED[parameter]
    written = str(case.value).lower() if isinstance(case.value, bool) else str(case.value)
    plain = manifests(GIVEN_CERTIFICATES, case.context, at(parameter, case.value))
    assert changes(plain, manifests(GIVEN_CERTIFICATES, case.context, at(parameter, written))) == {}


def test_every_boolean_and_number_may_be_in_quotes() -> None:
    def leaves(node: Any, path: str) -> Iterator[tuple[str, Any]]:
        if isinstance(node, dict):
            for key, value in node.items():
                yield from leaves(value, f"{path}.{key}" if path else key)
        elif isinstance(node, bool | int) and not path.startswith(
            ("server.deployment.strategy", "server.deployment.pod")
        ):
            yield path, node

    defaults = dict(leaves(yaml.safe_load((CHART / "values.yaml").read_text()), ""))
    quoted = [at(path, str(value).lower()) for path, value in defaults.items() if path != "agent.host.iptables"]
    plain = merged(GIVEN_CERTIFICATES, at("test.enabled", True))
    assert changes(manifests(plain), manifests(plain, *quoted)) == {}


def test_iptables_false_in_quotes_is_refused() -> None:
    """The old chart redirected pods then; read as written they would have the node's role after the upgrade."""
    with pytest.raises(
        helm_python.HelmError, match=r'agent.host.iptables is "false" in quotes, which .* took for true'
    ):
        manifests(at("agent.host.iptables", "false"))


@pytest.mark.parametrize(
    ("parameter", "limit", "least"),
    [
        ("agent.resources", "50Mi", "96Mi"),
        ("agent.resources", "0.05Gi", "96Mi"),
        ("agent.resources", "64M", "96Mi"),
        ("agent.resources", "65000000", "96Mi"),
        ("agent.resources", "64000k", "96Mi"),
        ("server.resources", "100Mi", "128Mi"),
        ("agent.dataplaneResources", "32Mi", "96Mi"),
    ],
)
def test_a_memory_limit_that_kills_is_refused(parameter: str, limit: str, least: str) -> None:
    values = merged(at("agent.dataplane", "nftables"), at(parameter, {"limits": {"memory": limit}}))
    with pytest.raises(
        helm_python.HelmError, match=rf"{parameter}\.limits\.memory is {limit}, and kiam's \w+ needs {least}"
    ):
        manifests(GIVEN_CERTIFICATES, values)


@pytest.mark.parametrize("limit", ["96Mi", "0.1Gi", "128M", "1e9", "134217728", "200000000000m", 134217728])
def test_a_memory_limit_that_is_enough_stays_as_it_is(limit: object) -> None:
    agent = pod_of(manifests(GIVEN_CERTIFICATES, at("agent.resources", {"limits": {"memory": limit}})), "agent")
    assert agent["containers"][0]["resources"] == {"limits": {"memory": limit}}


def test_every_container_has_a_memory_request_and_limit() -> None:
    objects = manifests(GIVEN_CERTIFICATES, at("agent.dataplane", "nftables"), at("agent.startupTaint.enabled", True))
    pods = [o["spec"]["template"]["spec"] for o in objects if o["kind"] in ("DaemonSet", "Deployment")]
    found = [c["resources"] for pod in pods for c in [*pod.get("initContainers", ()), *pod["containers"]]]
    assert len(found) == 4
    for resources in found:
        assert resources["requests"].keys() == resources["limits"].keys() == {"memory"}
