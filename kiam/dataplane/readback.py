"""What dataplanes that keep netfilter rules read alike from their own."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address

from kiam.dataplane.contract import WantedState
from kiam.netfilter.interfaces import EVERY_INTERFACE, InterfacePattern
from kiam.netfilter.model import Action, Rule


def redirected_to(rules: Iterable[Rule]) -> WantedState | None:
    """Where these rules redirect, and for which interfaces. IPv4's makes it; IPv6's only adds the agent's address."""
    redirects = {type(rule.to_address): rule for rule in rules if rule.action is Action.DNAT}
    redirect, redirect6 = redirects.get(IPv4Address), redirects.get(IPv6Address)
    if redirect is None or not isinstance(redirect.to_address, IPv4Address) or redirect.to_port is None:
        return None
    address6 = None if redirect6 is None else redirect6.to_address
    return WantedState(
        host_address=redirect.to_address,
        port=redirect.to_port,
        interface=redirect.interface or EVERY_INTERFACE,
        host_address6=address6 if isinstance(address6, IPv6Address) else None,
    )


def passing_interface(guard: Iterable[Rule]) -> InterfacePattern | None:
    """The interface whose packets a guard's rules leave alone (``--forward-metadata=allow:``)."""
    passing = (rule.interface for rule in guard if rule.action is Action.RETURN)
    # An older version of ours let lo pass there.
    return next((interface for interface in passing if interface is not None and interface.name != "lo"), None)
