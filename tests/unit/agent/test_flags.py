"""The agent's command line."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from kiam.agent.settings import AgentSettings
from kiam.cli import build_parser
from kiam.cli.agent import settings_from
from kiam.errors import UserError
from kiam.netfilter.interfaces import InterfacePattern


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOST_IP", raising=False)
    monkeypatch.delenv("NODE_NAME", raising=False)


@pytest.fixture
def tls(tmp_path: Path) -> list[str]:
    for name in ("cert", "key", "ca"):
        (tmp_path / name).touch()
    return [f"--{name}={tmp_path / name}" for name in ("cert", "key", "ca")]


def settings(tls: Sequence[str], *flags: str) -> AgentSettings:
    return settings_from(build_parser("agent").parse_args(["agent", *tls, *flags]))


def test_conventional_defaults(tls: Sequence[str]) -> None:
    made = settings(tls, "--host=10.0.0.1")
    assert (made.port, made.host, made.node_name) == (3100, IPv4Address("10.0.0.1"), "")
    assert (made.allow_ip_query, made.allow_route_regexp, made.dataplane) == (False, "^$", None)
    assert made.server.address == "localhost:9610"
    assert made.server.creation_timeout == timedelta(seconds=1)
    assert (made.server.keepalive_time, made.server.keepalive_timeout) == (timedelta(seconds=10), timedelta(seconds=2))
    assert not made.server.keepalive_without_calls
    assert (made.prometheus_listen_addr, made.pprof_listen_addr) == (None, None)


def test_v3_name_of_the_route_expression(tls: Sequence[str]) -> None:
    assert settings(tls, "--host=10.0.0.1", "--whitelist-route-regexp=^/x$").allow_route_regexp == "^/x$"


def test_environment_says_who_the_node_is(tls: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOST_IP", "10.0.0.2")
    monkeypatch.setenv("NODE_NAME", "node-1")
    made = settings(tls)
    assert (made.host, made.node_name) == (IPv4Address("10.0.0.2"), "node-1")
    made = settings(tls, "--host=10.0.0.3", "--node-name=node-2")
    assert (made.host, made.node_name) == (IPv4Address("10.0.0.3"), "node-2")


@pytest.mark.parametrize(
    ("flags", "name", "remove"),
    [
        (["--iptables"], "iptables", True),
        (["--iptables", "--no-iptables-remove"], "iptables", False),
        (["--iptables", "--dataplane=iptables"], "iptables", True),
        (["--dataplane=iptables"], "iptables", False),
        (["--dataplane=nftables", "--dataplane-remove"], "nftables", True),
        (["--dataplane=ebpf"], "ebpf", False),
    ],
)
def test_dataplane_by_name_stays_and_iptables_cleans_up(
    tls: Sequence[str], flags: Sequence[str], name: str, remove: bool
) -> None:
    dataplane = settings(tls, "--host=10.0.0.1", "--host-interface=cali+", *flags).dataplane
    assert dataplane is not None
    assert (dataplane.name, dataplane.remove_at_exit) == (name, remove)
    assert dataplane.interface == InterfacePattern.parse("cali+")


@pytest.mark.parametrize("flags", [["--no-iptables"], ["--dataplane=none"], ["--no-iptables", "--iptables-remove"]])
def test_nothing_is_installed_unless_asked_for(tls: Sequence[str], flags: Sequence[str]) -> None:
    assert settings(tls, "--host=10.0.0.1", *flags).dataplane is None


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--host="], "is not an IP address"),
        (["--host=node-1"], "'node-1' is not an IP address"),
        (["--host=0.0.0.0"], "is no address of a node"),
        (["--host=10.0.0.1", "--port=0"], "'0' is not a port"),
        (["--host=10.0.0.1", "--port=70000"], "'70000' is not a port"),
        (["--host=10.0.0.1", "--host-interface=!"], "names no interface"),
        (["--host=10.0.0.1", "--gateway-timeout-creation=1"], "not a duration"),
        (["--host=10.0.0.1", "--cert=/nowhere"], "no file at '/nowhere'"),
        (["--host=10.0.0.1", "--dataplane=magic"], "magic"),
    ],
)
def test_bad_flag_is_one_clear_line(
    tls: Sequence[str], flags: Sequence[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        settings(tls, *flags)
    assert ended.value.code == 2
    assert line in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("flags", "host_ip", "line"),
    [
        ([], "", "--host is missing"),
        ([], "x", "HOST_IP: 'x' is not an IP address"),
        (["--host=10.0.0.1", "--iptables", "--dataplane=ebpf"], "", "contradict"),
    ],
)
def test_bad_combination_is_one_clear_line(
    tls: Sequence[str], flags: Sequence[str], host_ip: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOST_IP", host_ip)
    with pytest.raises(UserError, match=line):
        settings(tls, *flags)
