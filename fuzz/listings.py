"""What iptables-save, iptables -S and nft print, as verify and the dataplanes read it."""

from __future__ import annotations

import contextlib
import json

from kiam.netfilter.interfaces import InterfacePattern
from kiam.netfilter.iptables_listing import parse_tables
from kiam.netfilter.model import Table
from kiam.netfilter.nft_listing import parse_nft_ruleset
from kiam.netfilter.packets import Packet, metadata_packet
from kiam.netfilter.walk import hits_at

PACKET = metadata_packet(InterfacePattern.parse("cali+"))
ANY_PACKET = Packet(InterfacePattern.parse("!eth0"), PACKET.destination, ordinary=False)
HOOKS = ("prerouting", "input", "forward", "output")


def listing(data: bytes) -> None:
    """A listing, whatever stands in it (comments and names are anybody's): it is read, or, if it is nft's, refused with
    ValueError; and a packet's route through it comes to an end."""
    text = data.decode(errors="replace")
    for table in ("", "nat"):
        tables = list(parse_tables(text, "iptables-nft", table).values())
        for chain in (chain for one in tables for chain in one.chains.values()):
            assert len(list(chain.rules)) == len(chain.rules)
        _follow(tables)
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return
    if isinstance(document, dict):
        with contextlib.suppress(ValueError):
            _follow(parse_nft_ruleset(document))


def _follow(tables: list[Table]) -> None:
    for packet in (PACKET, ANY_PACKET):
        for hook in HOOKS:
            for hit in hits_at(tables, packet, hook):
                assert isinstance(hit.rule.text, str)
