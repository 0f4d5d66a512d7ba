"""What the chart starts is what our own command line accepts."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

import pytest

from kiam.cli import build_parser
from tests.deploy.cases import CASES, Case
from tests.deploy.chart import GIVEN_CERTIFICATES, Manifest, Values, at, containers, find, manifests, merged, notes

TLS_FOLDER = "/etc/kiam/tls/"


def commands(container: Manifest) -> list[list[str]]:
    """Every kiam command line of a container: its own, and its probes'."""
    lines = [container["command"] + container.get("args", [])] if "command" in container else []
    lines += [
        container[probe]["exec"]["command"]
        for probe in ("livenessProbe", "readinessProbe")
        if "exec" in container.get(probe, {})
    ]
    return [line for line in lines if line[0] == "/kiam"]


def parsed(line: list[str], folder: Path) -> argparse.Namespace:
    """One command line, as kiam parses it on a node. Raises SystemExit where it would refuse."""
    words = []
    for word in line[1:]:
        flag, sign, value = word.replace("$(HOST_IP)", "10.0.0.1").partition("=")
        if value.startswith(TLS_FOLDER):
            path = folder / value.removeprefix(TLS_FOLDER)
            path.touch()
            value = str(path)
        words.append(flag + sign + value)
    return build_parser(line[1]).parse_args(words)


def all_commands(*values: Values) -> list[list[str]]:
    return [
        line
        for manifest in manifests(GIVEN_CERTIFICATES, *values)
        for container in containers(manifest)
        for line in commands(container)
    ]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_rendering_can_be_started(case: Case, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    parameter = request.node.callspec.id
    for line in all_commands(case.context, at(parameter, case.value)):
        parsed(line, tmp_path)


@pytest.mark.parametrize("treatment", ["ignore", "deny", "redirect"])
@pytest.mark.parametrize("dataplane", ["none", "iptables", "nftables", "ebpf"])
def test_every_dataplane_can_be_started(dataplane: str, treatment: str, tmp_path: Path) -> None:
    values = merged(at("agent.dataplane", dataplane), at("agent.hostNetworkPods", treatment))
    lines = [parsed(line, tmp_path) for line in all_commands(values)]
    wanting = [line for line in lines if line.command in ("agent", "dataplane")]
    assert len(wanting) == (1 if dataplane == "none" else 2)
    for line in wanting:
        assert line.dataplane == dataplane
        assert line.port == 8181
        assert str(line.host) == "10.0.0.1"
        assert str(line.host_interface) == "cali+"
    if dataplane != "none":
        assert {line.host_network for line in wanting} == {treatment}


def test_a_flag_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    """The check above can fail."""
    (line,) = [line for line in all_commands(at("agent.extraArgs", {"no-such-flag": ""})) if line[1] == "agent"]
    with pytest.raises(SystemExit):
        parsed(line, tmp_path)


def test_extra_arguments_are_written_as_flags(tmp_path: Path) -> None:
    extra: dict[str, Any] = {
        "fetchers": 16,
        "session": "prod",
        "json-log": False,
        "disable-strict-namespace-regexp": "",
    }
    lines = all_commands(at("server.extraArgs", extra), at("server.log.jsonOutput", False))
    (server,) = [parsed(line, tmp_path) for line in lines if line[1] == "server"]
    assert server.fetchers == 16
    assert server.session == "prod"
    assert server.json_log is False
    assert server.disable_strict_namespace_regexp is True


def test_environment_may_be_a_map_or_a_list() -> None:
    secret = {"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}
    for given, wanted in (({"A": True}, {"name": "A", "value": "true"}), ([secret], secret)):
        server = find(manifests(GIVEN_CERTIFICATES, at("server.extraEnv", given)), "DaemonSet/kiam-server")
        own = ["POD_NAME", "POD_NAMESPACE"]
        environment = server["spec"]["template"]["spec"]["containers"][0]["env"]
        assert [one for one in environment if one["name"] not in own] == [wanted]


def test_only_the_liveness_probe_takes_any_answer(tmp_path: Path) -> None:
    """A server that waits for STS would otherwise be restarted for ever."""
    server = find(manifests(GIVEN_CERTIFICATES), "DaemonSet/kiam-server")["spec"]["template"]["spec"]["containers"][0]
    live = {
        name: parsed(server[name]["exec"]["command"], tmp_path).live for name in ("livenessProbe", "readinessProbe")
    }
    assert live == {"livenessProbe": True, "readinessProbe": False}


def test_the_agent_is_ready_when_it_serves_its_port_itself() -> None:
    """Not when whoever answers on that port does: while an upgrade overlaps, that may be the old agent."""
    agent = find(manifests(GIVEN_CERTIFICATES), "DaemonSet/kiam-agent")["spec"]["template"]["spec"]["containers"][0]
    assert agent["readinessProbe"]["exec"]["command"] == ["test", "-e", "/tmp/ready"]
    assert "--ready-file=/tmp/ready" in agent["args"]
    assert {"name": "tmp", "mountPath": "/tmp"} in agent["volumeMounts"]


@pytest.mark.parametrize("dataplane", ["none", "nftables"])
def test_the_command_in_the_notes_can_be_started(dataplane: str) -> None:
    text = notes(GIVEN_CERTIFICATES, at("agent.dataplane", dataplane))
    (line,) = [line for line in text.splitlines() if "kiam dataplane verify" in line]
    words = shlex.split(line[line.index("kiam dataplane") :].replace("NODE-IP", "10.0.0.1"))
    asked = build_parser("dataplane").parse_args(words[1:])
    assert (asked.action, asked.port, str(asked.host_interface)) == ("verify", 8181, "cali+")
