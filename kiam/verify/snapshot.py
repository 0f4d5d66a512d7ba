"""Reads what the checks look at: rules, interfaces, routes. Changes nothing."""

from __future__ import annotations

import contextlib
import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from kiam.errors import ErrorKind, UserError
from kiam.metadata import METADATA_IPV4, METADATA_IPV6
from kiam.netfilter import nft
from kiam.netfilter.interfaces import IptablesBackend
from kiam.netfilter.iptables import PACKAGE, has_legacy_tables, require_programs, tool_name
from kiam.netfilter.iptables_listing import parse_tables
from kiam.netfilter.model import Table
from kiam.netfilter.nft import Json
from kiam.netfilter.nft_listing import parse_nft_ruleset
from kiam.verify.checks.interfaces import Interface

CAP_NET_ADMIN = 12
"""linux/capability.h."""
IFF_LOWER_UP = 0x10000
"""The interface has a carrier, linux/if.h."""


@dataclass(frozen=True, slots=True)
class Unread:
    """A tool that is missing or failed: its rules, if there are any, were not looked at."""

    tool: str
    reason: str
    package: str
    """The Debian package it comes in."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the node's network namespace holds at one moment."""

    tables: Sequence[Table]
    interfaces: Sequence[Interface]
    uplinks: Sequence[str]
    """The interfaces of the default routes and of the routes to the metadata addresses: no pod is behind those."""
    unread: Sequence[Unread] = ()
    best_uplink: str = ""
    """The interface of the best default route that works: the one with a carrier and the lowest metric."""


def require_net_admin() -> None:
    """Without it the kernel shows no rules, which would look as if there were none. Raises UserError."""
    status = Path("/proc/thread-self/status").read_text()
    effective = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:"))
    if not effective >> CAP_NET_ADMIN & 1:
        raise UserError(
            "reading the node's rules needs root and the capability NET_ADMIN",
            "use sudo, or add NET_ADMIN",
            ErrorKind.RIGHTS,
        )


def take_snapshot() -> Snapshot:
    """Read everything. Raises UserError without CAP_NET_ADMIN."""
    require_net_admin()
    tables: list[Table] = []
    unread: list[Unread] = []
    for backend in (IptablesBackend.NFT, IptablesBackend.LEGACY):
        for ipv6 in (False, True):
            # Asking iptables-legacy would load its modules where they aren't; without them it can hold no rules.
            if backend is IptablesBackend.LEGACY and not has_legacy_tables(ipv6):
                continue
            tool = tool_name(backend, ipv6)
            try:
                tables += parse_tables(require_programs(backend, ipv6).save_text(), tool).values()
            except UserError as error:
                unread.append(Unread(tool, str(error), PACKAGE))
    try:
        tables += parse_nft_ruleset(_nft_ruleset())
    except (UserError, ValueError) as error:
        unread.append(Unread("nft", str(error), nft.PACKAGE))
    interfaces, uplinks, best_uplink = read_interfaces()
    return Snapshot(tables, interfaces, uplinks, unread, best_uplink)


def _nft_ruleset() -> Json:
    answer = nft.list_ruleset()
    if answer.status:
        raise UserError(f"nft ended with {answer.status}: {answer.complaint}")
    return answer.output


def read_interfaces() -> tuple[list[Interface], list[str], str]:
    """The interfaces of this network namespace, those its routes lead out through, and the best of these."""
    with IPRoute(groups=0) as netlink:
        links = list(netlink.get_links())
        names = {link["index"]: link.get("ifname") for link in links}
        default = netlink.get_default_routes(family=socket.AF_INET)
        routes = [*default, *_to_metadata(netlink)]
        uplinks = {names.get(route.get("oif"), "") for route in routes}
    ports = Counter(link.get("master") for link in links if link.get("master") and _kind(link) == "veth")
    interfaces = [
        Interface(
            name=link.get("ifname"),
            kind=_kind(link),
            master=names.get(link.get("master"), "") or "",
            other_namespace=link.get("link_netnsid") is not None,
            ports=ports[link["index"]],
        )
        for link in links
    ]
    carried = {link["index"] for link in links if link["flags"] & IFF_LOWER_UP}
    alive = sorted(
        (route for route in default if route.get("oif") in carried), key=lambda one: one.get("priority") or 0
    )
    best_uplink = names.get(alive[0].get("oif"), "") if alive else ""
    return interfaces, sorted(uplinks - {"", "lo"}), best_uplink


def _to_metadata(netlink: Any) -> Iterator[Any]:
    for address in (METADATA_IPV4, METADATA_IPV6):
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        with contextlib.suppress(NetlinkError):
            yield from netlink.route("get", dst=str(address), family=family)


def _kind(link: Any) -> str:
    return str((link.get("linkinfo") or {}).get("kind") or "")
