"""What the iptables dataplane writes, as plain functions of the wanted state and of what is there.

Three kinds of rules, for each address family:

- ``nat PREROUTING``: the documented redirect, its text exactly the documentation's, so no comment marks it as ours.
  What makes it ours is a copy of it in the chain ``KIAM-INSTALLED``, which no packet ever visits.
- ``mangle FORWARD`` and ``mangle INPUT``: after the nat table a packet that was redirected carries the agent's address,
  so whatever still carries the metadata address has got past the redirect, and is dropped: other
  ports and protocols, packets that conntrack calls INVALID or doesn't track (nat never sees those), connections older
  than the redirect. On every interface: a pod's packet may come out of a tunnel's, or of one that the pattern doesn't
  match. mangle and not filter, because CNI plugins keep accepting rules on top of filter.
- ``mangle POSTROUTING`` and ``nat OUTPUT``: pods on the host network, when they are to be denied or redirected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from kiam.dataplane.cgroups import HostPods
from kiam.dataplane.contract import HostNetwork, WantedState
from kiam.metadata import METADATA_IPV4, METADATA_IPV6, METADATA_PORT
from kiam.netfilter.interfaces import InterfacePattern
from kiam.netfilter.iptables_listing import make_rule
from kiam.netfilter.model import Rule

PREFIX = "KIAM-"
INSTALLED = "KIAM-INSTALLED"
"""Holds a copy of each of our rules that stands in a built-in chain without naming a chain of ours."""
TO_METADATA = "KIAM-TO-METADATA"
FROM_METADATA = "KIAM-FROM-METADATA"
HOST_NETWORK = "KIAM-HOST-NETWORK"
MADE = "made:"
"""Starts the comment in INSTALLED that lists what iptables-nft made of the table so that we could use it."""

BUILT_IN = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
CLOSED_PORT = 1
"""A port of the node on which nobody listens (tcpmux, RFC 1078): the kernel answers with a reset."""

TABLES = ("mangle", "nat")
"""In the order of installing: pods are kept from the real service before they are led to the agent."""


@dataclass(frozen=True, slots=True)
class TableRules:
    """What one table has to hold of ours."""

    chains: Mapping[str, tuple[Rule, ...]]
    """Our own chains."""
    hooks: tuple[Rule, ...]
    """Our rules in the built-in chains, where they have to be reached first."""

    @property
    def hooks_in(self) -> frozenset[str]:
        """The built-in chains that hold a rule of ours."""
        return frozenset(rule.chain for rule in self.hooks)


def _metadata(ipv6: bool) -> str:
    return f"{METADATA_IPV6}/128" if ipv6 else f"{METADATA_IPV4}/32"


_HTTP = ("-p", "tcp", "-m", "tcp", "--dport", str(METADATA_PORT))


def _to_agent(wanted: WantedState, ipv6: bool) -> tuple[str, ...]:
    if not ipv6:
        return ("-j", "DNAT", "--to-destination", f"{wanted.host_address}:{wanted.port}")
    if wanted.host_address6 is not None:
        return ("-j", "DNAT", "--to-destination", f"[{wanted.host_address6}]:{wanted.port}")
    # Refused at once, so that a program that prefers IPv6 falls back to IPv4 without waiting. (REJECT can't be used: it
    # is for the filter table alone, where others' ACCEPT may come first.)
    return ("-j", "REDIRECT", "--to-ports", str(CLOSED_PORT))


def redirect_rule(wanted: WantedState, ipv6: bool = False) -> Rule:
    """The documented rule. IPv4, cali+: ``-d 169.254.169.254/32 -i cali+ -p tcp -m tcp --dport 80 -j DNAT ...``."""
    interface = wanted.interface.iptables_words()
    return make_rule("PREROUTING", "-d", _metadata(ipv6), *interface, *_HTTP, *_to_agent(wanted, ipv6))


def _reason(chain: str, reason: str, *match: str) -> Rule:
    return make_rule(chain, *match, "-m", "comment", "--comment", reason, "-j", "DROP")


def _allowed(chain: str, flag: str, wanted: WantedState) -> tuple[Rule, ...]:
    if wanted.forward_from is None:
        return ()
    return (make_rule(chain, *wanted.forward_from.iptables_words(flag), "-j", "RETURN"),)


def _not_of_pods(chain: str, pods: InterfacePattern) -> tuple[Rule, ...]:
    if not pods.name:
        return ()
    return (_reason(chain, "other-interface", *replace(pods, inverted=not pods.inverted).iptables_words()),)


def _from_pod_pods(cgroups: HostPods, chain: str, match: Sequence[str]) -> tuple[Rule, ...]:
    return tuple(
        make_rule(chain, *match, "-m", "cgroup", "--path", pods.name, "-j", HOST_NETWORK) for pods in cgroups.pods
    )


def _agent_passes(cgroups: HostPods) -> tuple[Rule, ...]:
    if cgroups.agent is None:
        return ()
    return (make_rule(HOST_NETWORK, "-m", "cgroup", "--path", cgroups.agent.name, "-j", "RETURN"),)


def nat_rules(wanted: WantedState, host_pods: HostPods, ipv6: bool) -> TableRules:
    """What the nat table has to hold."""
    hooks: tuple[Rule, ...] = (redirect_rule(wanted, ipv6),)
    if wanted.forward_from is not None:
        # The documented rule's text stays, so what it isn't for has to leave ahead of it.
        interface = wanted.forward_from.iptables_words()
        hooks = (make_rule("PREROUTING", "-d", _metadata(ipv6), *interface, "-j", "ACCEPT"), *hooks)
    chains: dict[str, tuple[Rule, ...]] = {INSTALLED: tuple(make_rule(INSTALLED, *rule.parts) for rule in hooks)}
    if wanted.host_network is HostNetwork.REDIRECT and (not ipv6 or wanted.host_address6 is not None):
        chains[HOST_NETWORK] = (*_agent_passes(host_pods), make_rule(HOST_NETWORK, *_HTTP, *_to_agent(wanted, ipv6)))
        hooks += _from_pod_pods(host_pods, "OUTPUT", ("-d", _metadata(ipv6), *_HTTP))
    return TableRules(chains, hooks)


def mangle_rules(wanted: WantedState, host_pods: HostPods, ipv6: bool) -> TableRules:
    """What the mangle table has to hold."""
    address = _metadata(ipv6)
    refused = ipv6 and wanted.host_address6 is None
    chains: dict[str, tuple[Rule, ...]] = {
        INSTALLED: (),
        TO_METADATA: (
            *_allowed(TO_METADATA, "-i", wanted),
            *_not_of_pods(TO_METADATA, wanted.interface),
            _reason(TO_METADATA, "ipv6" if refused else "bypass", *_HTTP),
            _reason(TO_METADATA, "ipv6" if refused else "other-port", "-p", "tcp"),
            _reason(TO_METADATA, "ipv6" if refused else "other-protocol"),
        ),
        # What the real service answers: to a request that left the node by a route nobody thought of.
        FROM_METADATA: (*_allowed(FROM_METADATA, "-o", wanted), _reason(FROM_METADATA, "bypass")),
    }
    hooks: tuple[Rule, ...] = (
        make_rule("FORWARD", "-d", address, "-j", TO_METADATA),
        make_rule("FORWARD", "-s", address, "-j", FROM_METADATA),
        # A node may have the address itself. What comes in on lo is the host's own.
        make_rule("INPUT", "-d", address, "!", "-i", "lo", "-j", TO_METADATA),
    )
    if wanted.host_network is not HostNetwork.IGNORE:
        # After the OUTPUT hooks, so that what nat OUTPUT redirected doesn't carry this address any more.
        chains[HOST_NETWORK] = (*_agent_passes(host_pods), _reason(HOST_NETWORK, "host-network"))
        hooks += _from_pod_pods(host_pods, "POSTROUTING", ("-d", address))
    return TableRules(chains, hooks)


def table_rules(table: str, wanted: WantedState, host_pods: HostPods, ipv6: bool) -> TableRules:
    """What that table has to hold."""
    return (nat_rules if table == "nat" else mangle_rules)(wanted, host_pods, ipv6)
