"""The nftables dataplane's table, as plain functions of the wanted state.

One table, ``inet kiam``, so that nothing of anybody else's is touched:

- ``pods-redirect`` (nat, prerouting) and ``host-pods-redirect`` (nat, output) lead to the agent. Of several nat chains
  on one hook the one of the lowest priority number is asked first, and the first that translates decides
  (net/netfilter/nf_nat_core.c), so theirs is lower than dstnat (-100), where iptables' and kube-proxy's chains are.
- ``pods-guard`` (filter, prerouting) comes after all translation: what comes in that still carries a metadata address
  then got past the redirect and is dropped. On every interface but ``lo``: a pod's packet may come out of a tunnel's,
  or of one that the pattern doesn't match. ``answers-guard`` (filter, forward) drops what the real service answers
  anybody but the host, to a request that left the node by a route nobody thought of. ``host-pods-guard`` (filter,
  output) is the same for pods on the host network. An accept in somebody else's chain doesn't skip these.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

from kiam.dataplane.cgroups import Cgroup, HostPods
from kiam.dataplane.contract import HostNetwork, WantedState
from kiam.metadata import METADATA_IPV4, METADATA_IPV6, METADATA_PORT
from kiam.netfilter.interfaces import InterfacePattern
from kiam.netfilter.model import Chain, Rule
from kiam.netfilter.nft import Json
from kiam.netfilter.nft_listing import parse_rule

FAMILY = "inet"
TABLE = "kiam"

REDIRECT_PRIORITY = -110
"""Ahead of dstnat (-100), behind conntrack (-200), without which there is no translation."""
GUARD_PRIORITY = -90
"""Behind all translation, which happens at -100 whatever a nat chain's own priority is."""

REDIRECTS = "redirects"
DROP_REASONS = ("bypass", "other-port", "other-protocol", "other-interface", "ipv6", "host-network")
COUNTERS = (REDIRECTS, *DROP_REASONS)

NFT_CGROUP_ROOT = Path("/sys/fs/cgroup")
"""What nft puts before a cgroup's path to find its number (src/datatype.c, SYSFS_CGROUPSV2_PATH)."""


@dataclass(frozen=True, slots=True)
class Part:
    """One expression of a rule: as nft lists it in JSON, and as it is written."""

    json: Json
    text: str


@dataclass(frozen=True, slots=True)
class Draft:
    """One rule before it is in a chain. The comment says what the parts can't, such as a cgroup's level."""

    parts: tuple[Part, ...]
    comment: str = ""

    @property
    def text(self) -> str:
        """The rule as ``nft list`` prints it."""
        words = [part.text for part in self.parts]
        return " ".join([*words, f'comment "{self.comment}"'] if self.comment else words)


def _chain(name: str, kind: str, hook: str, priority: int, rules: Iterable[Draft]) -> Chain:
    return Chain(name, tuple(_rule(name, draft) for draft in rules), hook, kind, priority)


def _rule(chain: str, draft: Draft) -> Rule:
    # Read as a listing's rules are, so that the two can be compared; written in nft's own language, as its JSON knows
    # no "socket cgroupv2".
    (rule,) = parse_rule({"chain": chain, "expr": [part.json for part in draft.parts], "comment": draft.comment}, {})
    return replace(rule, text=draft.text)


def _match(left: Json, right: Any, text: str, operator: str = "==") -> Part:
    return Part({"match": {"op": operator, "left": left, "right": right}}, text)


def _interface(key: str, pattern: InterfacePattern) -> tuple[Part, ...]:
    if not pattern.name:
        return ()
    operator = "!=" if pattern.inverted else "=="
    text = f'{key} {"!= " if pattern.inverted else ""}"{pattern.nft_name}"'
    return (_match({"meta": {"key": key}}, pattern.nft_name, text, operator),)


def _address(field: str, ipv6: bool) -> Part:
    protocol, address = ("ip6", METADATA_IPV6) if ipv6 else ("ip", METADATA_IPV4)
    payload = {"payload": {"protocol": protocol, "field": field}}
    return _match(payload, str(address), f"{protocol} {field} {address}")


_HTTP = _match({"payload": {"protocol": "tcp", "field": "dport"}}, METADATA_PORT, f"tcp dport {METADATA_PORT}")
_TCP = _match({"meta": {"key": "l4proto"}}, "tcp", "meta l4proto tcp")
_DROP = Part({"drop": None}, "drop")
_RETURN = Part({"return": None}, "return")
_RESET = Part({"reject": {"type": "tcp reset"}}, "reject with tcp reset")


def _count(name: str) -> Part:
    return Part({"counter": name}, f'counter name "{name}"')


def _translate(address: IPv4Address | IPv6Address, port: int) -> Part:
    family, place = ("ip6", f"[{address}]:{port}") if address.version == 6 else ("ip", f"{address}:{port}")
    json = {"dnat": {"family": family, "addr": str(address), "port": port}}
    return Part(json, f"dnat {family} to {place}")


def _in_cgroup(cgroup: Cgroup) -> Part:
    path = os.path.relpath(cgroup.path, NFT_CGROUP_ROOT)
    match = {"match": {"op": "==", "left": {"socket": {"key": "cgroupv2"}}, "right": path}}
    return Part(match, f'socket cgroupv2 level {cgroup.level} "{path}"')


def _cgroup_comment(cgroup: Cgroup) -> str:
    # The kernel keeps number and level, and the JSON listing shows neither for certain; with them in the comment, a
    # cgroup that was made anew (kubelet's, the agent's next pod) is seen to differ.
    return f"cgroup {cgroup.cgroup_id} level {cgroup.level}"


_FROM_OUTSIDE = _match({"meta": {"key": "iifname"}}, "lo", 'iifname != "lo"', "!=")
"""What comes in on lo is the host's own."""


def _allowed(key: str, wanted: WantedState) -> tuple[Draft, ...]:
    return () if wanted.forward_from is None else (Draft((*_interface(key, wanted.forward_from), _RETURN)),)


def _not_of_pods(pods: InterfacePattern, to: Part) -> tuple[Draft, ...]:
    if not pods.name:
        return ()
    others = _interface("iifname", replace(pods, inverted=not pods.inverted))
    return (Draft((_FROM_OUTSIDE, *others, to, _count("other-interface"), _DROP)),)


def _agent_address(wanted: WantedState, ipv6: bool) -> IPv4Address | IPv6Address | None:
    return wanted.host_address6 if ipv6 else wanted.host_address


def _redirect_chain(wanted: WantedState) -> Chain:
    rules = (*_allowed("iifname", wanted), *_redirects(wanted))
    return _chain("pods-redirect", "nat", "prerouting", REDIRECT_PRIORITY, rules)


def _redirects(wanted: WantedState) -> Iterator[Draft]:
    for ipv6 in (False, True):
        if (address := _agent_address(wanted, ipv6)) is not None:
            yield Draft(
                (
                    *_interface("iifname", wanted.interface),
                    _address("daddr", ipv6),
                    _HTTP,
                    _count(REDIRECTS),
                    _translate(address, wanted.port),
                )
            )


def _guard_chain(wanted: WantedState) -> Chain:
    rules = list(_allowed("iifname", wanted))
    for ipv6 in (False, True):
        to = _address("daddr", ipv6)
        rules += _not_of_pods(wanted.interface, to)
        pod = (_FROM_OUTSIDE, to)
        if _agent_address(wanted, ipv6) is None:
            # Refused at once, so that a program that prefers IPv6 falls back to IPv4 without waiting.
            rules.append(Draft((*pod, _HTTP, _count("ipv6"), _RESET)))
            rules.append(Draft((*pod, _count("ipv6"), _DROP)))
        else:
            rules.append(Draft((*pod, _HTTP, _count("bypass"), _DROP)))
            rules.append(Draft((*pod, _TCP, _count("other-port"), _DROP)))
            rules.append(Draft((*pod, _count("other-protocol"), _DROP)))
    return _chain("pods-guard", "filter", "prerouting", GUARD_PRIORITY, rules)


def _answers_chain(wanted: WantedState) -> Chain:
    # Requests once more: a packet socket of the host's can have one come in on lo, for the host to forward.
    rules = [
        Draft((_address(field, ipv6), _count("bypass"), _DROP))
        for field in ("saddr", "daddr")
        for ipv6 in (False, True)
    ]
    allowed = (*_allowed("oifname", wanted), *_allowed("iifname", wanted))
    return _chain("answers-guard", "filter", "forward", GUARD_PRIORITY, (*allowed, *rules))


def _agent_passes(host_pods: HostPods) -> tuple[Draft, ...]:
    if host_pods.agent is None:
        return ()
    return (Draft((_in_cgroup(host_pods.agent), _RETURN), _cgroup_comment(host_pods.agent)),)


def _host_network_chains(wanted: WantedState, host_pods: HostPods) -> Iterable[Chain]:
    agent = _agent_passes(host_pods)
    redirects: list[Draft] = []
    drops: list[Draft] = []
    for pods in host_pods.pods:
        comment = _cgroup_comment(pods)
        for ipv6 in (False, True):
            to = _address("daddr", ipv6)
            address = _agent_address(wanted, ipv6)
            if wanted.host_network is HostNetwork.REDIRECT and address is not None:
                parts = (to, _HTTP, _in_cgroup(pods), _count(REDIRECTS), _translate(address, wanted.port))
                redirects.append(Draft(parts, comment))
            # A reset, so that the program is told at once.
            drops.append(Draft((to, _TCP, _in_cgroup(pods), _count("host-network"), _RESET), comment))
            drops.append(Draft((to, _in_cgroup(pods), _count("host-network"), _DROP), comment))
    if redirects:
        yield _chain("host-pods-redirect", "nat", "output", REDIRECT_PRIORITY, (*agent, *redirects))
    yield _chain("host-pods-guard", "filter", "output", GUARD_PRIORITY, (*agent, *drops))


def wanted_chains(wanted: WantedState, host_pods: HostPods) -> tuple[Chain, ...]:
    """What the table has to hold."""
    chains = [_redirect_chain(wanted), _guard_chain(wanted), _answers_chain(wanted)]
    if wanted.host_network is not HostNetwork.IGNORE:
        chains += _host_network_chains(wanted, host_pods)
    return tuple(chains)
