"""What there is to verify on this node: read from what is installed, with the flags a person gave put over it.

Asking about something else than what is installed must not end in commands that bring the node to what was asked: a
forgotten ``--port`` would then cut every pod off. So a difference is said, and what is installed is verified.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from typing import Any

from kiam.dataplane.cgroups import GONE
from kiam.dataplane.contract import WantedState
from kiam.dataplane.registry import DATAPLANES, load_dataplane, recommended, traits_of
from kiam.errors import UserError
from kiam.netfilter.interfaces import EVERY_INTERFACE, InterfacePattern, IptablesBackend
from kiam.netfilter.model import Table
from kiam.verify.checks.interfaces import Interface, guess_cni, recommended_pattern
from kiam.verify.checks.redirects import made_by_hand
from kiam.verify.fixes import BY_HAND
from kiam.verify.node import own_address, own_address6, usable
from kiam.verify.subject import Asked, Subject

AUTO = "auto"
"""Verify the dataplane that is found, or the rule made by hand where none is."""
PORTS = (8181, 3100)
"""Where an agent listens unless told otherwise: the chart's default, and the flag's."""

Given = Mapping[str, Any]
"""The flags a person gave, by the names of WantedState's fields; those not given are not there."""
Pong = Callable[[IPv4Address, int], bool]
"""Whether a kiam agent answers there."""


def by_interface(name: str) -> bool:
    """Whether the interface pattern plays a part for that dataplane, or for a rule made by hand."""
    return name not in DATAPLANES or traits_of(name).by_interface


@dataclass(frozen=True, slots=True)
class Node:
    """What of the node the decision needs."""

    tables: Sequence[Table]
    interfaces: Sequence[Interface]
    uplinks: Sequence[str]
    backend: IptablesBackend
    """Where the node's iptables rules are."""
    host: IPv4Address | None = None
    """The node's address as the environment says (HOST_IP), for where nothing else tells."""


def ask_all() -> dict[str, Asked]:
    """Have every dataplane there is say what of it is installed, and for what."""
    return {name: ask(name) for name in DATAPLANES}


def ask(name: str, wanted: WantedState | None = None) -> Asked:
    """Inspect with one dataplane."""
    try:
        return Asked(load_dataplane(name).inspect(wanted))
    except (UserError, ImportError) as error:
        return Asked(error=str(error))


def discover(requested: str, given: Given, asked: Mapping[str, Asked], node: Node, pong: Pong) -> Subject:
    """Decide what to verify. Raises UserError where not even the node's address can be told."""
    given = {name: value for name, value in given.items() if value not in (None, IptablesBackend.AUTO)}
    present = sorted((name for name in asked if asked[name].present), key=lambda name: _preference(name, asked, pong))
    if present:
        return _installed(requested, given, present, asked, node, pong)
    by_hand = made_by_hand(node.tables) if requested in (AUTO, BY_HAND) else None
    name = requested
    if requested == AUTO:
        name = BY_HAND if by_hand is not None else _recommended(asked)
    base = _guess(given, node, pong)
    if by_hand is not None:
        address, port, pattern = by_hand
        # A rule for interfaces on which no pod is isn't the one to keep: it is then a near miss.
        pattern = recommended_pattern(node.interfaces, pattern, node.uplinks)
        base = replace(base, host_address=address, port=port, interface=pattern)
    wanted = replace(base, **given)
    return Subject(name, wanted, _target(wanted, name, node), present=False)


def _preference(name: str, asked: Mapping[str, Asked], pong: Pong) -> tuple[bool, int]:
    """Where an agent answers comes first, then what takes the packets: the later registered, the sooner it acts."""
    state = asked[name].installed
    reached = state is not None and pong(state.host_address, state.port)
    return not reached, -list(DATAPLANES).index(name)


def _installed(
    requested: str, given: Given, present: Sequence[str], asked: Mapping[str, Asked], node: Node, pong: Pong
) -> Subject:
    name = requested if requested in present else present[0]
    installed = asked[name].installed
    if installed is None:
        # Another version's, or half of it is missing: only the person and the node itself can say what for.
        wanted = replace(_guess(given, node, pong), **given)
        return Subject(name, wanted, _target(wanted, name, node), present=True)
    if installed.iptables_backend is node.backend:
        installed = replace(installed, iptables_backend=IptablesBackend.AUTO)
    wanted = replace(installed, **{**given, **({"interface": EVERY_INTERFACE} if not by_interface(name) else {})})
    if requested not in (AUTO, name):
        difference = f"{name} is installed, you asked about {_called(requested)}"
        return Subject(name, installed, _target(installed, name, node), present=True, difference=difference)
    if wanted == installed or _same_backend(wanted, installed, node):
        return Subject(name, installed, _target(installed, name, node), present=True)
    difference = f"{name} is {_difference(installed, wanted)}"
    place, asked_place = (installed.host_address, installed.port), (wanted.host_address, wanted.port)
    if place != asked_place and pong(*asked_place) and not pong(*place):
        target = _target(wanted, name, node)
        return Subject(name, wanted, target, present=True, difference=difference, stale=True)
    return Subject(name, installed, _target(installed, name, node), present=True, difference=difference)


def _called(requested: str) -> str:
    return "a rule made by hand" if requested == BY_HAND else requested


def _same_backend(wanted: WantedState, installed: WantedState, node: Node) -> bool:
    return replace(wanted, iptables_backend=IptablesBackend.AUTO) == installed and wanted.iptables_backend in (
        node.backend,
        IptablesBackend.AUTO,
    )


def _difference(installed: WantedState, asked: WantedState) -> str:
    """``installed for :8181, you asked about :3100``: the fields that differ, and no others."""
    fields = {name for name in WantedState.__dataclass_fields__ if getattr(installed, name) != getattr(asked, name)}
    return f"installed for {_named(installed, fields)}, you asked about {_named(asked, fields)}"


def _named(state: WantedState, fields: set[str]) -> str:
    words = []
    if fields & {"host_address", "port"}:
        host = state.host_address if "host_address" in fields else ""
        words.append(f"{host}:{state.port}" if "port" in fields else f"{host}")
    for name, label in (
        ("interface", "interface"),
        ("host_address6", "IPv6 address"),
        ("host_network", "host network"),
        ("agent_cgroup", "agent's cgroup"),
        ("iptables_backend", "iptables backend"),
        ("forward_from", "metadata forwarded for"),
    ):
        if name in fields:
            words.append(f"{label} {getattr(state, name) or 'none'}")
    return ", ".join(words)


def _recommended(asked: Mapping[str, Asked]) -> str:
    # What docs/dataplanes.md says to take, the first that works here.
    names = recommended()
    return next((name for name in names if name in asked and not asked[name].error), names[0])


def _guess(given: Given, node: Node, pong: Pong) -> WantedState:
    """What somebody who installs here would most likely want. Raises UserError without an address."""
    host = given.get("host_address") or node.host or own_address()
    if host is None:
        raise UserError(
            "--host is missing", "give the node's IP address, or set HOST_IP (status.hostIP) in the pod spec"
        )
    port = given.get("port") or next((port for port in PORTS if pong(host, port)), PORTS[0])
    found = guess_cni(node.interfaces, node.uplinks)
    pattern = InterfacePattern.parse(found[1] if found is not None else "docker0")
    return WantedState(host, port, pattern)


def _target(wanted: WantedState, name: str, node: Node) -> WantedState:
    """The wanted state without what no node can be brought to, and with a pattern that finds the pods there are."""
    host, host6 = wanted.host_address, wanted.host_address6
    if not usable(host):
        host = own_address() or host
    if host6 is not None and not usable(host6):
        host6 = own_address6()
    pattern = wanted.interface
    if by_interface(name):
        pattern = recommended_pattern(node.interfaces, pattern, node.uplinks)
    agent = None if wanted.agent_cgroup == GONE else wanted.agent_cgroup
    return replace(wanted, host_address=host, host_address6=host6, interface=pattern, agent_cgroup=agent)
