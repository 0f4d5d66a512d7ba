"""What our table in a listing was installed for."""

from __future__ import annotations

import re
from dataclasses import replace

from kiam.dataplane.cgroups import GONE, cgroup_of_id, find_cgroup2_root
from kiam.dataplane.contract import HostNetwork, WantedState
from kiam.dataplane.readback import passing_interface, redirected_to
from kiam.netfilter.model import Action, Table

_CGROUP = re.compile(r"cgroup (?P<id>\d+) level (?P<level>\d+)")


def read_back(table: Table) -> WantedState | None:
    """The wanted state behind the table's chains; None where no redirect is in them."""
    redirected = redirected_to(table.rules("pods-redirect"))
    if redirected is None:
        return None
    return replace(
        redirected,
        host_network=_host_network(table),
        agent_cgroup=_agent_cgroup(table),
        forward_from=passing_interface(table.rules("pods-guard")),
    )


def _host_network(table: Table) -> HostNetwork:
    if "host-pods-redirect" in table.chains:
        return HostNetwork.REDIRECT
    return HostNetwork.DENY if "host-pods-guard" in table.chains else HostNetwork.IGNORE


def _agent_cgroup(table: Table) -> str | None:
    """By its number, which the rule's comment repeats: how a path is listed depends on who asks."""
    for rule in table.rules("host-pods-guard"):
        found = _CGROUP.fullmatch(rule.comment)
        if found is not None and rule.action is Action.RETURN:
            alive = cgroup_of_id(find_cgroup2_root(), int(found["id"]), int(found["level"]))
            return GONE if alive is None else alive.name
    return None
