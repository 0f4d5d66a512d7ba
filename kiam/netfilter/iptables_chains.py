"""The built-in chains of iptables-nft, which are ordinary objects of nftables that iptables makes on first use.

iptables leaves them behind, and a node is to be left as it was; so what a first rule of ours brought into being is
remembered and deleted. Talks netlink, because only there a delete can be told to refuse if anything is left inside
(``NLM_F_NONREC``): a rule that another program adds in the same moment stays, and so does its chain.
"""

from __future__ import annotations

import contextlib
import errno
import socket

from pyroute2.netlink import NLM_F_ACK, NLM_F_REQUEST, NetlinkError
from pyroute2.netlink.nfnetlink.nftsocket import (
    NFT_MSG_GETCHAIN,
    NFT_MSG_GETTABLE,
    nft_chain_msg,
    nft_table_msg,
)
from pyroute2.nftables.main import NFTables

TABLE = "table"
"""Stands for the table itself among the names of its built-in chains."""
NLM_F_NONREC = 0x100
"""linux/netlink.h: do not delete recursively."""


def _open(ipv6: bool) -> NFTables:
    return NFTables(nfgen_family=int(socket.AF_INET6 if ipv6 else socket.AF_INET))


def _exists(netlink: NFTables, table: str, name: str) -> bool:
    # Asked for by name: listing all takes seconds on a node with thousands of kube-proxy's chains.
    if name == TABLE:
        message, kind = nft_table_msg(), NFT_MSG_GETTABLE
        message["attrs"] = [("NFTA_TABLE_NAME", table)]
    else:
        message, kind = nft_chain_msg(), NFT_MSG_GETCHAIN
        message["attrs"] = [("NFTA_CHAIN_TABLE", table), ("NFTA_CHAIN_NAME", name)]
    try:
        netlink.request_get(message, kind, NLM_F_REQUEST)
    except NetlinkError as error:
        if error.code == errno.ENOENT:
            return False
        raise
    return True


def missing(table: str, names: frozenset[str], ipv6: bool) -> frozenset[str]:
    """Those of an iptables-nft table's named built-in chains that aren't there, and ``table`` if it isn't itself."""
    with _open(ipv6) as netlink:
        return frozenset(name for name in {TABLE, *names} if not _exists(netlink, table, name))


def delete_if_empty(table: str, names: tuple[str, ...], ipv6: bool) -> None:
    """Delete those of the named chains that hold no rule, and then the table if it is named and empty."""
    with _open(ipv6) as netlink:
        for name in names:
            if name != TABLE:
                # EBUSY: somebody has rules in it by now; ENOENT: it is gone already.
                with contextlib.suppress(NetlinkError):
                    netlink.chain("del", table=table, name=name, flags=NLM_F_ACK | NLM_F_NONREC)
        if TABLE in names:
            with contextlib.suppress(NetlinkError):
                netlink.table("del", name=table, flags=NLM_F_ACK | NLM_F_NONREC)
