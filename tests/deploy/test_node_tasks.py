"""``helm test``, and the removal on uninstall: a command on every node, and a pod that collects what it said."""

from __future__ import annotations

from typing import Any

import kubernetes_validate
import pytest

from kiam.cli import build_parser
from tests.deploy.chart import GIVEN_CERTIFICATES, Manifest, Values, at, find, identity, manifests, merged

HOOK = "helm.sh/hook"
DATAPLANES = ("iptables", "nftables", "ebpf")


def rendered(*values: Values) -> list[Manifest]:
    return manifests(GIVEN_CERTIFICATES, at("test.enabled", True), *values)


def of(task: str, objects: list[Manifest]) -> list[Manifest]:
    return [o for o in objects if o["metadata"]["name"] == f"kiam-{task}"]


def parse(words: list[str]) -> Any:
    words = [word.replace("$(HOST_IP)", "10.0.0.1") for word in words]
    return build_parser(words[0]).parse_args(words)


@pytest.mark.parametrize("dataplane", DATAPLANES)
def test_every_node_is_asked_what_its_agent_was_told(dataplane: str) -> None:
    objects = rendered(at("agent.dataplane", dataplane), at("agent.host.port", 3100))
    agent = find(objects, "DaemonSet/kiam-agent")["spec"]["template"]["spec"]
    test = find(objects, "DaemonSet/kiam-test")["spec"]["template"]["spec"]
    (proof,) = test["initContainers"]
    assert proof["args"] == agent["initContainers"][0]["args"]
    shell, option, line, name = proof["command"]
    assert (shell, option, name) == ("sh", "-c", "sh")
    assert line == '/kiam dataplane verify --live "$@"; code=$?; echo $code >/dev/termination-log'
    asked = parse(["dataplane", "verify", "--live", *proof["args"]])
    assert (asked.dataplane, asked.port, asked.live) == (dataplane, 3100, True)


def test_it_runs_where_agents_run() -> None:
    where = merged(
        at("agent.nodeSelector", {"role": "node"}),
        at("agent.tolerations", [{"operator": "Exists"}]),
        at("agent.affinity", {"nodeAffinity": {}}),
    )
    objects = rendered(where)
    agent, test = (find(objects, f"DaemonSet/kiam-{name}")["spec"]["template"]["spec"] for name in ("agent", "test"))
    for field in ("nodeSelector", "tolerations", "affinity"):
        assert test[field] == agent[field]


@pytest.mark.parametrize("treatment", ["ignore", "deny"])
def test_it_has_the_rights_the_proof_needs_and_no_others(treatment: str) -> None:
    objects = rendered(at("agent.dataplane", "nftables"), at("agent.hostNetworkPods", treatment))
    pod = find(objects, "DaemonSet/kiam-test")["spec"]["template"]["spec"]
    proof, wait = pod["initContainers"][0]["securityContext"], pod["containers"][0]["securityContext"]
    more = [] if treatment == "ignore" else ["SYS_PTRACE"]
    assert proof["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW", "SYS_ADMIN", *more]}
    assert proof["allowPrivilegeEscalation"] is False
    assert proof["readOnlyRootFilesystem"] is True
    assert wait["capabilities"] == {"drop": ["ALL"]}
    assert wait["runAsNonRoot"] is True
    assert pod.get("hostPID", False) is (treatment == "deny")
    assert pod["automountServiceAccountToken"] is False
    hostpaths = {volume["hostPath"]["path"] for volume in pod["volumes"] if "hostPath" in volume}
    assert hostpaths == {"/run/xtables.lock", "/sys/fs/cgroup"}


@pytest.mark.parametrize("task", ["test", "uninstall"])
def test_the_collector_waits_for_the_daemonset_and_may_do_no_more(task: str) -> None:
    objects = of(task, rendered(at("agent.removeOnUninstall", True), at("test.timeout", "90s")))
    kinds = {o["kind"]: o for o in objects}
    assert kinds.keys() == {"DaemonSet", "Pod", "ServiceAccount", "Role", "RoleBinding"}
    (container,) = kinds["Pod"]["spec"]["containers"]
    assert container["command"] == ["/kiam", "collect"]
    asked = parse(["collect", *container["args"]])
    labels = kinds["DaemonSet"]["spec"]["template"]["metadata"]["labels"]
    assert asked.selector == labels == kinds["DaemonSet"]["spec"]["selector"]["matchLabels"]
    assert labels != kinds["Pod"]["metadata"]["labels"]
    assert (asked.daemonset, asked.container) == (f"kiam-{task}", task)
    assert asked.timeout.total_seconds() == 90
    assert kinds["DaemonSet"]["spec"]["template"]["spec"]["initContainers"][0]["name"] == task
    rights = [(r["resources"], r["verbs"], r.get("resourceNames")) for r in kinds["Role"]["rules"]]
    assert rights == [
        (["pods"], ["list"], None),
        (["pods/log"], ["get"], None),
        (["daemonsets"], ["get", "delete"], [f"kiam-{task}"]),
    ]
    assert kinds["Pod"]["spec"]["serviceAccountName"] == f"kiam-{task}"
    assert container["image"].startswith("kiam-server:")


def test_one_node_by_name_takes_one_pod_and_no_right_to_the_api() -> None:
    objects = of("test", rendered(at("agent.dataplane", "ebpf"), at("test.node", "ip-10-0-0-1")))
    (pod,) = objects
    assert pod["kind"] == "Pod"
    assert pod["spec"]["nodeName"] == "ip-10-0-0-1"
    (container,) = pod["spec"]["containers"]
    assert container["command"] == ["/kiam", "dataplane", "verify", "--live"]
    assert pod["spec"]["automountServiceAccountToken"] is False
    assert "serviceAccountName" not in pod["spec"]
    assert parse([*container["command"][1:], *container["args"]]).dataplane == "ebpf"


def test_hooks_are_hooks_of_the_right_moment_in_the_right_order() -> None:
    objects = rendered(at("agent.removeOnUninstall", True))
    moments: dict[str, list[tuple[str, int]]] = {}
    for o in objects:
        annotations = o["metadata"].get("annotations", {})
        if HOOK in annotations:
            moments.setdefault(annotations[HOOK], []).append((o["kind"], int(annotations["helm.sh/hook-weight"])))
    assert sorted(moments["test"]) == [("DaemonSet", 0), ("Pod", 1)]
    assert sorted(moments["post-delete"]) == [
        ("DaemonSet", 0),
        ("Pod", 1),
        ("Role", -1),
        ("RoleBinding", -1),
        ("ServiceAccount", -1),
    ]
    # helm test --logs asks for a pod by the name of every test hook, whatever it is.
    assert {o["metadata"]["name"] for o in objects if o["metadata"].get("annotations", {}).get(HOOK) == "test"} == {
        "kiam-test"
    }


def test_everything_is_taken_off_after_the_agents_have_gone() -> None:
    objects = rendered(at("agent.removeOnUninstall", True))
    (container,) = find(objects, "DaemonSet/kiam-uninstall")["spec"]["template"]["spec"]["initContainers"]
    assert container["command"][2].startswith('/kiam dataplane remove "$@"; ')
    parse(["dataplane", "remove", *container["args"]])
    assert container["args"] == ["--all"]


def test_nothing_is_taken_off_unless_asked_for() -> None:
    """Pods would have the node's role."""
    assert not of("uninstall", rendered())


@pytest.mark.parametrize(
    "values",
    [
        at("agent.removeOnUninstall", True),
        at("test.node", "n"),
        merged(
            at("agent.dataplane", "nftables"),
            at("agent.hostNetworkPods", "deny"),
            at("imagePullSecrets", "x"),
            at("agent.priorityClassName", "p"),
            at("server.nodeSelector", {"a": "b"}),
            at("server.tolerations", [{"operator": "Exists"}]),
        ),
    ],
)
def test_the_api_takes_them(values: Values) -> None:
    found = [o for o in rendered(values) if identity(o).rpartition("/")[2] in ("kiam-test", "kiam-uninstall")]
    assert found
    for manifest in found:
        kubernetes_validate.validate(manifest, "1.37", strict=True)
