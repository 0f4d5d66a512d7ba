"""What our rules in a listing were installed for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from kiam.dataplane.contract import HostNetwork, WantedState
from kiam.dataplane.iptables.ours import own_hooks
from kiam.dataplane.iptables.rules import HOST_NETWORK, TO_METADATA
from kiam.dataplane.readback import passing_interface, redirected_to
from kiam.netfilter.interfaces import IptablesBackend
from kiam.netfilter.iptables_listing import option
from kiam.netfilter.model import NO_TABLE, Action, Rule, Ruleset


def read_back(rulesets: Mapping[tuple[IptablesBackend, bool], Ruleset]) -> WantedState | None:
    """The wanted state behind what is there of ours, by backend and whether it is IPv6's.

    IPv4's redirect makes it; IPv6's only adds the agent's address. None where no redirect of ours is there.
    """
    for (backend, ipv6), ruleset in rulesets.items():
        redirects = [*_redirects(ruleset), *_redirects(rulesets.get((backend, True), {}))]
        redirected = None if ipv6 else redirected_to(redirects)
        if redirected is not None:
            return replace(
                redirected,
                host_network=_host_network(ruleset),
                agent_cgroup=_agent_cgroup(ruleset),
                iptables_backend=backend,
                forward_from=passing_interface(ruleset.get("mangle", NO_TABLE).rules(TO_METADATA)),
            )
    return None


def _redirects(ruleset: Ruleset) -> list[Rule]:
    return [rule for rule in own_hooks(ruleset.get("nat", NO_TABLE)) if rule.chain == "PREROUTING"]


def _host_network(ruleset: Ruleset) -> HostNetwork:
    if HOST_NETWORK in ruleset.get("nat", NO_TABLE).chains:
        return HostNetwork.REDIRECT
    return HostNetwork.DENY if HOST_NETWORK in ruleset.get("mangle", NO_TABLE).chains else HostNetwork.IGNORE


def _agent_cgroup(ruleset: Ruleset) -> str | None:
    for rule in ruleset.get("mangle", NO_TABLE).rules(HOST_NETWORK):
        if rule.action is Action.RETURN:
            return option(rule, "--path")
    return None
