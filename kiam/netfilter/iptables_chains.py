"""The built-in chains of iptables-nft, which are ordinary objects of nftables that iptables makes on first use.

iptables leaves them behind, and a node is to be left as it was; so what a first rule of ours brought into being is
remembered and deleted. Talks netlink, because only there a delete can be told to refuse if anything is left inside
(``NLM_F_NONREC``): a rule that another program adds in the same moment stays, and so does its chain.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct

from kiam.netlink import NLM_F_ACK, NLM_F_REQUEST, Attributes, Conversation, RefusedError

TABLE = "table"
"""Stands for the table itself among the names of its built-in chains."""
NLM_F_NONREC = 0x100
"""linux/netlink.h: do not delete recursively."""
# linux/netfilter/nfnetlink.h
_NETLINK_NETFILTER = 12
_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_NFGENMSG = struct.Struct("!BBH")
"""family, version, resource: for a batch the subsystem."""
# linux/netfilter/nf_tables.h
_GETTABLE, _DELTABLE, _GETCHAIN, _DELCHAIN = (_SUBSYSTEM << 8 | kind for kind in (1, 2, 4, 5))
_TABLE_NAME, _CHAIN_TABLE, _CHAIN_NAME = 1, 1, 3


def _named(table: str, name: str) -> Attributes:
    """The attributes that say which chain, or that it is the table itself."""
    if name == TABLE:
        return {_TABLE_NAME: _text(table)}
    return {_CHAIN_TABLE: _text(table), _CHAIN_NAME: _text(name)}


def _text(value: str) -> bytes:
    return value.encode() + b"\0"


def _head(ipv6: bool) -> bytes:
    return _NFGENMSG.pack(socket.AF_INET6 if ipv6 else socket.AF_INET, 0, 0)


def _exists(kernel: Conversation, table: str, name: str, ipv6: bool) -> bool:
    # Asked for by name: listing all takes seconds on a node with thousands of kube-proxy's chains.
    try:
        kernel.ask(_GETTABLE if name == TABLE else _GETCHAIN, 0, _head(ipv6), _named(table, name))
    except RefusedError as error:
        if error.errno == errno.ENOENT:
            return False
        raise
    return True


def missing(table: str, names: frozenset[str], ipv6: bool) -> frozenset[str]:
    """Those of an iptables-nft table's named built-in chains that aren't there, and ``table`` if it isn't itself."""
    with Conversation(_NETLINK_NETFILTER) as kernel:
        return frozenset(name for name in {TABLE, *names} if not _exists(kernel, table, name, ipv6))


def delete_if_empty(table: str, names: tuple[str, ...], ipv6: bool) -> None:
    """Delete those of the named chains that hold no rule, and then the table if it is named and empty."""
    with Conversation(_NETLINK_NETFILTER) as kernel:
        for name in sorted(names, key=lambda name: name == TABLE):
            # EBUSY: somebody has rules in it by now; ENOENT: it is gone already.
            with contextlib.suppress(RefusedError):
                _delete(kernel, table, name, ipv6)


def _delete(kernel: Conversation, table: str, name: str, ipv6: bool) -> None:
    batch = _NFGENMSG.pack(socket.AF_UNSPEC, 0, _SUBSYSTEM)
    kernel.ask_together(
        (_BATCH_BEGIN, NLM_F_REQUEST, batch, {}),
        (
            _DELTABLE if name == TABLE else _DELCHAIN,
            NLM_F_REQUEST | NLM_F_ACK | NLM_F_NONREC,
            _head(ipv6),
            _named(table, name),
        ),
        (_BATCH_END, NLM_F_REQUEST, batch, {}),
    )
