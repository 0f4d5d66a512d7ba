"""What our rules in a listing were installed for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address

from kiam.dataplane.contract import HostNetwork, WantedState
from kiam.dataplane.iptables.rules import HOST_NETWORK, TO_METADATA, own_hooks
from kiam.netfilter.interfaces import EVERY_INTERFACE, InterfacePattern, IptablesBackend
from kiam.netfilter.xtables import Rule, Ruleset

_DESTINATION = re.compile(r"\[?(?P<address>[0-9a-fA-F.:]+?)\]?:(?P<port>\d+)")


def read_back(rulesets: Mapping[tuple[IptablesBackend, bool], Ruleset]) -> WantedState | None:
    """The wanted state behind what is there of ours, by backend and whether it is IPv6's.

    IPv4's redirect makes it; IPv6's only adds the agent's address. None where no redirect of ours is there.
    """
    for (backend, ipv6), ruleset in rulesets.items():
        redirect = None if ipv6 else _redirect(ruleset)
        if redirect is None:
            continue
        address, port = _destination(redirect)
        if not isinstance(address, IPv4Address):
            return None
        redirect6 = _redirect(rulesets.get((backend, True), {}))
        address6 = None if redirect6 is None else _destination(redirect6)[0]
        return WantedState(
            host_address=address,
            port=port,
            interface=_interface(redirect),
            host_address6=address6 if isinstance(address6, IPv6Address) else None,
            host_network=_host_network(ruleset),
            agent_cgroup=_agent_cgroup(ruleset),
            iptables_backend=backend,
            forward_from=_forward_from(ruleset),
        )
    return None


def _redirect(ruleset: Ruleset) -> Rule | None:
    hooks = own_hooks(ruleset.get("nat", {}))
    return next((rule for rule in hooks if rule.chain == "PREROUTING" and rule.target == "DNAT"), None)


def _destination(rule: Rule) -> tuple[IPv4Address | IPv6Address | None, int]:
    found = _DESTINATION.fullmatch(rule.value("--to-destination") or "")
    if found is None:
        return None, 0
    text = found["address"]
    return (IPv6Address(text) if ":" in text else IPv4Address(text)), int(found["port"])


def _interface(rule: Rule) -> InterfacePattern:
    name = rule.value("-i")
    if name is None:
        return EVERY_INTERFACE
    place = rule.words.index("-i")
    inverted = place > 0 and rule.words[place - 1] == "!"
    return InterfacePattern(name.removesuffix("+"), name.endswith("+"), inverted)


def _forward_from(ruleset: Ruleset) -> InterfacePattern | None:
    chain = ruleset.get("mangle", {}).get(TO_METADATA, ())
    # An older version of ours let lo pass there.
    passing = (_interface(rule) for rule in chain if rule.target == "RETURN")
    return next((interface for interface in passing if interface.name != "lo"), None)


def _host_network(ruleset: Ruleset) -> HostNetwork:
    if HOST_NETWORK in ruleset.get("nat", {}):
        return HostNetwork.REDIRECT
    return HostNetwork.DENY if HOST_NETWORK in ruleset.get("mangle", {}) else HostNetwork.IGNORE


def _agent_cgroup(ruleset: Ruleset) -> str | None:
    for rule in ruleset.get("mangle", {}).get(HOST_NETWORK, ()):
        if rule.target == "RETURN":
            return rule.value("--path")
    return None
