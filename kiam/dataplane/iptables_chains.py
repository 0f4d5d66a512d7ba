"""The built-in chains of iptables-nft, which are ordinary objects of nftables that iptables makes on first use.

iptables leaves them behind, and a node is to be left as it was; so what a first rule of ours brought into being is
remembered and deleted. Talks netlink, because only there a delete can be told to refuse if anything is left inside
(``NLM_F_NONREC``): a rule that another program adds in the same moment stays, and so does its chain.
"""

from __future__ import annotations

import contextlib
import socket

from pyroute2.netlink import NLM_F_ACK, NetlinkError
from pyroute2.nftables.main import NFTables

TABLE = "table"
"""Stands for the table itself among the names of its built-in chains."""
NLM_F_NONREC = 0x100
"""linux/netlink.h: do not delete recursively."""


def _family(ipv6: bool) -> int:
    return int(socket.AF_INET6 if ipv6 else socket.AF_INET)


def existing(table: str, ipv6: bool) -> frozenset[str]:
    """The built-in chains of an iptables-nft table that are there, and ``table`` for the table itself."""
    family = _family(ipv6)
    with NFTables(nfgen_family=family) as netlink:
        tables = {message.get_attr("NFTA_TABLE_NAME") for message in netlink.get_tables()}
        chains = {
            message.get_attr("NFTA_CHAIN_NAME")
            for message in netlink.get_chains()
            if message.get_attr("NFTA_CHAIN_TABLE") == table and message.get_attr("NFTA_CHAIN_HOOK") is not None
        }
    return frozenset(chains | ({TABLE} if table in tables else set()))


def delete_if_empty(table: str, names: tuple[str, ...], ipv6: bool) -> None:
    """Delete those of the named chains that hold no rule, and then the table if it is named and empty."""
    with NFTables(nfgen_family=_family(ipv6)) as netlink:
        for name in names:
            if name != TABLE:
                # EBUSY: somebody has rules in it by now; ENOENT: it is gone already.
                with contextlib.suppress(NetlinkError):
                    netlink.chain("del", table=table, name=name, flags=NLM_F_ACK | NLM_F_NONREC)
        if TABLE in names:
            with contextlib.suppress(NetlinkError):
                netlink.table("del", name=table, flags=NLM_F_ACK | NLM_F_NONREC)
