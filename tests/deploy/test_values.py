"""Values: old files go on working, and a mistake is an error that names it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import helm_python
import pytest
import yaml

from kiam import __version__
from kiam.server.kubernetes.own_pod import own_pod
from kiam.server.kubernetes.store import PodStore
from tests.deploy.chart import CHART, GIVEN_CERTIFICATES, Values, at, chart, containers, find, manifests, merged, notes
from tests.deploy.test_parameters import parameters
from tests.unit.server.test_events import make

HALF: Values = {
    "affinity": {},
    "enabled": True,
    "extraArgs": {},
    "extraEnv": [],
    "extraHostPathMounts": [],
    "gatewayTimeoutCreation": "1s",
    "image": {"pullPolicy": "IfNotPresent"},
    "initContainers": [],
    "log": {"jsonOutput": True, "level": "info"},
    "nodeSelector": {},
    "podAnnotations": {},
    "podLabels": {},
    "priorityClassName": "",
    "prometheus": {
        "port": 9620,
        "scrape": True,
        "syncInterval": "5s",
        "servicemonitor": {"enabled": False, "path": "/metrics", "interval": "10s", "labels": {}},
    },
    "resources": {},
    "seLinuxOptions": {},
    "serviceAnnotations": {},
    "serviceLabels": {},
    "tlsFiles": {"ca": None, "cert": None, "key": None},
    "tlsSecret": None,
    "tlsCerts": {"certFileName": "cert", "keyFileName": "key", "caFileName": "ca"},
    "tolerations": [],
    "updateStrategy": "OnDelete",
}
CONVENTIONAL: Values = {
    "extraArgs": {},
    "imagePullSecrets": {},
    "agent": merged(
        HALF,
        {
            "name": "agent",
            "dnsPolicy": "ClusterFirstWithHostNet",
            "deepLivenessProbe": False,
            "allowRouteRegexp": {},
            "host": {"iptables": True, "iptablesRemoveOnShutdown": False, "port": 8181, "interface": "eni+"},
            "keepaliveParams": {"time": None, "timeout": None},
        },
    ),
    "server": merged(
        HALF,
        {
            "name": "server",
            "deployment": {"enabled": False, "replicas": 3},
            "sslCertHostPath": "/etc/pki/ca-trust/extracted/pem",
            "service": {"port": 443, "targetPort": 443},
            "probes": {"serverAddress": "127.0.0.1"},
            "roleBaseArn": None,
            "cache": {"syncInterval": "1m"},
            "assumeRoleArn": "arn:aws:iam::123456789012:role/kiam-server",
            "sessionDuration": "15m",
            "useHostNetwork": True,
        },
    ),
    "rbac": {"create": True},
    "psp": {"create": False},
    "serviceAccounts": {
        "agent": {"create": True, "name": None, "annotations": {}},
        "server": {"create": True, "name": None, "annotations": {}},
    },
}
"""A values file as conventional kiam's chart shipped it, with what most of its users changed, but for the image."""


def test_a_conventional_values_file_still_works() -> None:
    objects = manifests(GIVEN_CERTIFICATES, CONVENTIONAL, GIVEN_CERTIFICATES)
    agent = find(objects, "DaemonSet/kiam-agent")["spec"]["template"]["spec"]
    assert "--dataplane=iptables" in agent["containers"][0]["args"]
    assert "--dataplane-remove" not in agent["containers"][0]["args"]
    assert not [word for word in agent["containers"][0]["args"] if word.startswith("--grpc-keepalive")]
    server = find(objects, "DaemonSet/kiam-server")["spec"]["template"]["spec"]
    assert server["hostNetwork"] is True
    assert "--assume-role-arn=arn:aws:iam::123456789012:role/kiam-server" in server["containers"][0]["args"]


def test_the_objects_of_a_conventional_release_are_found_again() -> None:
    """Names, selectors and the secrets' names and keys: what differed, an upgrade would make beside the old."""
    objects = manifests(CONVENTIONAL)
    for half in ("agent", "server"):
        workload = find(objects, f"DaemonSet/kiam-{half}")
        assert workload["spec"]["selector"]["matchLabels"] == {"app": "kiam", "component": half, "release": "kiam"}
        assert find(objects, f"Service/kiam-{half}")["spec"]["clusterIP"] == "None"
        assert find(objects, f"ServiceAccount/kiam-{half}")
        assert find(objects, f"Secret/kiam-{half}")["data"].keys() == {"ca", "cert", "key"}


@pytest.mark.parametrize(
    ("release", "values", "name"),
    [
        ("kiam", {}, "kiam"),
        ("my-release", {}, "my-release-kiam"),
        ("prod-kiam", {}, "prod-kiam"),
        ("my-release", {"nameOverride": "roles"}, "my-release-roles"),
        ("my-release", {"fullnameOverride": "roles"}, "roles"),
    ],
)
def test_names_follow_the_release(release: str, values: Values, name: str) -> None:
    objects = manifests(GIVEN_CERTIFICATES, values, release=release)
    agent = find(objects, f"DaemonSet/{name}-agent")
    assert f"--server-address={name}-server:443" in agent["spec"]["template"]["spec"]["containers"][0]["args"]
    assert find(objects, f"Service/{name}-server")


@pytest.mark.parametrize("half", ["agent", "server"])
@pytest.mark.parametrize(
    ("image", "shown"),
    [
        ({"repository": "quay.io/uswitch/kiam", "tag": "v4.2"}, "quay.io/uswitch/kiam:v4.2"),
        ({"repository": "quay.io/uswitch/kiam", "tag": "5.0.0"}, "quay.io/uswitch/kiam:5.0.0"),
        ({"repository": "mirror.test/hub/uswitch/kiam"}, "mirror.test/hub/uswitch/kiam"),
        ({"repository": "mirror.test/infra/kiam", "tag": "v3.6"}, "mirror.test/infra/kiam:v3.6"),
        ({"repository": "mirror.test/infra/kiam", "tag": 4.2}, "mirror.test/infra/kiam:4.2"),
        ({"repository": "mirror.test/infra/kiam-agent", "tag": "v4"}, "mirror.test/infra/kiam-agent:v4"),
        ({"repository": "docker.io/bitnami/kiam", "tag": "4.2.0-debian-11-r1"}, "bitnami/kiam:4.2.0-debian-11-r1"),
        ({"tag": "v3.0-rc1"}, ":v3.0-rc1"),
    ],
)
def test_conventional_kiams_image_is_refused_in_one_line(half: str, image: Values, shown: str) -> None:
    """Run with this chart's flags it would exit at once, on every node, after the working agents have gone."""
    with pytest.raises(helm_python.HelmError) as refused:
        manifests(GIVEN_CERTIFICATES, {half: {"image": image}})
    assert f"{half}.image is conventional kiam's (" in str(refused.value)
    assert f"{shown}), which doesn't know this chart's flags: name an image built from" in str(refused.value)
    manifests(GIVEN_CERTIFICATES, {half: {"image": image, "enabled": False}})


@pytest.mark.parametrize("tag", ["5.0.0", "v5.1", "40c1d2", "main", "2024-11-25"])
def test_images_of_our_own_are_not_taken_for_conventional_ones(tag: str) -> None:
    manifests(GIVEN_CERTIFICATES, at("agent.image", {"repository": "registry.test/kiam", "tag": tag}))


def test_an_image_may_be_named_by_its_digest() -> None:
    digest = "sha256:" + "0" * 64
    values = at("agent.image", {"repository": "registry.test/kiam", "tag": digest})
    agent = find(manifests(GIVEN_CERTIFICATES, values), "DaemonSet/kiam-agent")
    assert agent["spec"]["template"]["spec"]["containers"][0]["image"] == f"registry.test/kiam@{digest}"


def test_the_default_image_is_this_version() -> None:
    objects = manifests(GIVEN_CERTIFICATES, at("agent.startupTaint.enabled", True), at("agent.dataplane", "ebpf"))
    images = {c["name"]: c["image"] for manifest in objects for c in containers(manifest)}
    agent, server = f"kiam-agent:{__version__}", f"kiam-server:{__version__}"
    # What the API is asked with is in the server's image alone.
    assert images == {"kiam-dataplane": agent, "kiam-agent": agent, "kiam-server": server, "kiam-untaint": server}


def test_the_older_name_of_allow_route_regexp_counts() -> None:
    agent = find(manifests(GIVEN_CERTIFICATES, at("agent.whiteListRouteRegexp", "^/x$")), "DaemonSet/kiam-agent")
    assert "--allow-route-regexp=^/x$" in agent["spec"]["template"]["spec"]["containers"][0]["args"]


def typos() -> Iterator[tuple[str, Values, str]]:
    """Each parameter with one letter too many, and the words of the error."""
    for parameter, default in parameters():
        name = parameter.rpartition(".")[2]
        yield f"{parameter}x", at(f"{parameter}x", default), f"additional properties '{name}x' not allowed"


@pytest.mark.parametrize(("values", "complaint"), [pytest.param(v, c, id=i) for i, v, c in typos()])
def test_a_typo_in_a_name_is_an_error_that_names_it(values: Values, complaint: str) -> None:
    with pytest.raises(helm_python.HelmError, match=complaint):
        manifests(values)


@pytest.mark.parametrize(
    ("parameter", "value", "complaint"),
    [
        ("agent.host.port", "81x81", "/agent/host/port': '81x81' does not match pattern"),
        ("agent.host.port", "65536", "/agent/host/port': '65536' does not match pattern"),
        ("agent.host.port", 0, "/agent/host/port': minimum"),
        ("agent.host.iptables", "yes", "/agent/host/iptables': value must be one of true, false, 'true', 'false'"),
        ("agent.dataplane", "bpf", "/agent/dataplane': value must be one of 'none', 'iptables', 'nftables', 'ebpf'"),
        ("agent.hostNetworkPods", "allow", "/agent/hostNetworkPods': value must be one of"),
        ("agent.forwardMetadata", "allow:!eth0", "/agent/forwardMetadata': 'allow:!eth0' does not match pattern"),
        ("agent.log.level", "warning", "/agent/log/level': value must be one of"),
        (
            "agent.updateStrategy",
            "Recreate",
            "/agent/updateStrategy': value must be one of 'OnDelete', 'RollingUpdate'",
        ),
        ("agent.allowRouteRegexp", {"a": 1}, "/agent/allowRouteRegexp': maxProperties"),
        ("agent.tlsFiles.key", "-----BEGIN PRIVATE KEY-----", "/agent/tlsFiles/key'.* does not match pattern"),
        ("server.sessionDuration", "15", "/server/sessionDuration': '15' does not match pattern"),
        ("server.roleBaseArn", "123456789012", "/server/roleBaseArn': '123456789012' does not match pattern"),
        ("server.extraArgs", {"--session": "x"}, "/server/extraArgs': additional properties '--session' not allowed"),
        ("server.deployment.replicas", -1, "/server/deployment/replicas': minimum"),
        # The document's own --set example, which did nothing at all.
        ("extraArgs", {"base-role-arn": "arn:aws:iam::0123456789:role/"}, "/extraArgs': maxProperties"),
        ("host", {"iptables": True, "interface": "cbr0"}, "additional properties 'host' not allowed"),
    ],
)
def test_a_wrong_value_is_an_error_that_names_it(parameter: str, value: Any, complaint: str) -> None:
    with pytest.raises(helm_python.HelmError, match=complaint):
        manifests(at(parameter, value))


@pytest.mark.parametrize("half", ["agent", "server"])
@pytest.mark.parametrize("file", ["ca", "cert", "key"])
def test_a_third_of_the_tls_files_is_an_error(half: str, file: str) -> None:
    with pytest.raises(helm_python.HelmError, match=f"{half}.tlsFiles needs ca, cert and key together"):
        manifests(at(f"{half}.tlsFiles.{file}", "Y2E="))


def test_the_schema_knows_every_parameter_and_has_a_default_for_all_but_old_names() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())

    def leaves(node: Values, path: str) -> Iterator[str]:
        node = schema["definitions"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node
        for key, child in node.get("properties", {}).items():
            yield from leaves(child, f"{path}.{key}" if path else key)
        if "properties" not in node:
            yield path

    defaults = yaml.safe_load((CHART / "values.yaml").read_text())

    def has_default(path: str) -> bool:
        node: Any = defaults
        for key in path.split("."):
            if not isinstance(node, dict) or key not in node:
                # A map whose members are all optional, such as seLinuxOptions, has {} for a default.
                return node == {} or (isinstance(node, dict) and path.startswith("server.deployment"))
            node = node[key]
        return True

    assert {path for path in leaves(schema, "") if not has_default(path)} == {
        "global",
        "agent.whiteListRouteRegexp",
        "agent.keepaliveParams.PermitWithoutStream",
    }


def test_lint_finds_nothing_but_the_missing_icon() -> None:
    report = helm_python.lint(CHART, GIVEN_CERTIFICATES, strict=True)
    assert [message["error"] for message in report["messages"]] == ["icon is recommended"]
    assert report["errors"] == []


def test_the_chart_is_for_this_version() -> None:
    assert chart().metadata["appVersion"] == __version__
    assert chart().metadata["kubeVersion"] == ">=1.21.0-0"


def test_a_server_on_the_host_network_finds_its_own_pod_for_events() -> None:
    """Its host name is the node's there."""
    pods = PodStore()
    pods.put(make("kiam-server-x7k2p"))
    pod = find(manifests(GIVEN_CERTIFICATES, at("server.useHostNetwork", True)), "DaemonSet/kiam-server")
    (container,) = containers(pod)
    field_paths = {"metadata.name": "kiam-server-x7k2p", "metadata.namespace": "apps"}
    environment = {
        variable["name"]: field_paths[variable["valueFrom"]["fieldRef"]["fieldPath"]] for variable in container["env"]
    }
    found = own_pod(pods, environment)
    assert found is not None
    assert found.name == "kiam-server-x7k2p"


def test_an_agent_is_told_which_pod_it_is_in_for_events_about_its_certificate() -> None:
    pod = find(manifests(GIVEN_CERTIFICATES), "DaemonSet/kiam-agent")
    (agent,) = (one for one in pod["spec"]["template"]["spec"]["containers"] if one["name"] == "kiam-agent")
    paths = {one["name"]: one["valueFrom"]["fieldRef"]["fieldPath"] for one in agent["env"]}
    assert (paths["POD_NAMESPACE"], paths["POD_NAME"]) == ("metadata.namespace", "metadata.name")


def test_the_notes_tell_two_steps() -> None:
    text = notes(GIVEN_CERTIFICATES, at("agent.dataplane", "ebpf"))
    assert "1. " in text
    assert "2. " in text
    assert "3. " not in text
    assert "kiam dataplane verify" in text
    assert "pod-security.kubernetes.io/enforce=privileged" in text
    assert "WARNING" not in text
    surge = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    assert "With a surge" not in notes(GIVEN_CERTIFICATES, at("agent.updateStrategy", surge))


@pytest.mark.parametrize(
    ("values", "warning"),
    [
        ({}, "no dataplane is installed"),
        (
            merged(at("agent.dataplane", "iptables"), at("agent.host.iptablesRemoveOnShutdown", True)),
            "takes the redirect out whenever an agent stops",
        ),
        (at("agent.tlsSecret", None), "the\n  two will refuse each other"),
        (at("server.nodeAuthorization", True), "all agents share one"),
        ({}, "pods of its node are refused for some 3 seconds. With a surge none is"),
        (at("server.useHostNetwork", True), "both want port 9620 of the host"),
        (at("server.service.targetPort", 9610), "agents connect to port 443 and servers listen on 9610"),
    ],
)
def test_the_notes_warn_of_what_is_unsafe(values: Values, warning: str) -> None:
    assert warning in notes(GIVEN_CERTIFICATES, values)
