"""What iptables-save, iptables -S and nft print, as verify and the dataplanes read it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable

from kiam.netfilter.interfaces import InterfacePattern
from kiam.netfilter.iptables_listing import parse_iptables_save
from kiam.netfilter.model import Table
from kiam.netfilter.nft_listing import parse_nft_ruleset
from kiam.netfilter.packets import metadata_packet
from kiam.netfilter.walk import hits_at
from kiam.netfilter.xtables import parse_list, parse_save

PACKET = metadata_packet(InterfacePattern.parse("cali+"))
HOOKS = ("prerouting", "input", "forward", "output")


def listing(data: bytes) -> None:
    """A listing, whatever stands in it (comments and names are anybody's): it is read, or refused with ValueError; and
    a packet's way through it comes to an end."""
    text = data.decode(errors="replace")
    for rules in (*parse_save(text).values(), parse_list(text)):
        for chain in rules.values():
            _read(chain.__getitem__, slice(None))
    _read(_follow, parse_iptables_save, text, "iptables-nft")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return
    if isinstance(document, dict):
        _read(_follow, parse_nft_ruleset, document)


def _read(step: Callable[..., object], *arguments: object) -> None:
    with contextlib.suppress(ValueError):
        step(*arguments)


def _follow(parse: Callable[..., list[Table]], *arguments: object) -> None:
    tables = parse(*arguments)
    for hook in HOOKS:
        for hit in hits_at(tables, PACKET, hook):
            assert isinstance(hit.rule.text, str)
