"""Rule listings as the tools print them, and what is asked of them."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address

from kiam.dataplane.contract import WantedState
from kiam.netfilter.interfaces import InterfacePattern
from kiam.netfilter.iptables_listing import parse_tables
from kiam.netfilter.model import Table
from kiam.netfilter.packets import Packet, metadata_packet
from kiam.verify.fixes import BY_HAND, Fixes

HOST = IPv4Address("10.0.0.1")
WANTED = WantedState(HOST, 8181, InterfacePattern.parse("cali+"))
FIXES = Fixes(WANTED, BY_HAND, "iptables-nft")
RULE = "-A PREROUTING -d 169.254.169.254/32 -i cali+ -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.1:8181"
PACKETS = [metadata_packet(WANTED.interface)]


def save(*rules: str, table: str = "nat", chains: Sequence[str] = (), policy: str = "ACCEPT") -> str:
    """What iptables-save prints for one table with these rules."""
    builtin = {
        "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
        "filter": ("INPUT", "FORWARD", "OUTPUT"),
        "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
        "raw": ("PREROUTING", "OUTPUT"),
    }[table]
    lines = [
        f"*{table}",
        *(f":{chain} {policy} [0:0]" for chain in builtin),
        *(f":{chain} - [0:0]" for chain in chains),
    ]
    return "\n".join([*lines, *rules, "COMMIT", ""])


def tables(*saves: str, tool: str = "iptables-nft") -> list[Table]:
    """Those listings, parsed."""
    return [table for text in saves for table in parse_tables(text, tool).values()]


def nat(*rules: str, chains: Sequence[str] = (), tool: str = "iptables-nft") -> list[Table]:
    """A nat table with these rules."""
    return tables(save(*rules, chains=chains), tool=tool)


def packet(**changes: object) -> Packet:
    """A pod's first packet to the metadata service, with changes."""
    fields: dict[str, object] = {
        "interface": InterfacePattern("cali0"),
        "destination": IPv4Address("169.254.169.254"),
    } | changes
    return Packet(**fields)  # type: ignore[arg-type]  # the fields' types differ
