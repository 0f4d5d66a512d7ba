"""The commands that mend what a check found, exactly as a person can paste them into a root shell on the node."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address

from kiam.dataplane.contract import HostNetwork, WantedState
from kiam.metadata import METADATA_IPV4, METADATA_PORT
from kiam.netfilter.interfaces import InterfacePattern, IptablesBackend
from kiam.netfilter.model import Rule, Table, drop_table_option

BY_HAND = "none"
"""The dataplane's name where the redirect is a rule somebody else installs, as the documentation shows it."""


def interface_words(pattern: InterfacePattern) -> list[str]:
    """``-i cali+`` or ``! -i eth0``; nothing for a pattern that is any interface."""
    if not pattern.name:
        return []
    plain = pattern.name + ("+" if pattern.wildcard else "")
    return ["!"] * pattern.inverted + ["-i", plain]


def conventional_rule(wanted: WantedState) -> str:
    """The documented rule's specification, the text ``iptables -S`` prints behind ``-A PREROUTING``."""
    words = [
        *("-d", f"{METADATA_IPV4}/32", *interface_words(wanted.interface), "-p", "tcp", "-m", "tcp"),
        *("--dport", str(METADATA_PORT), "-j", "DNAT", "--to-destination", f"{wanted.host_address}:{wanted.port}"),
    ]
    return " ".join(words)


def in_shell(specification: str) -> str:
    """A rule's words safe to paste: an exclamation mark is history to an interactive bash."""
    return " ".join("'!'" if word == "!" else word for word in specification.split(" "))


@dataclass(frozen=True, slots=True)
class Mends:
    """Commands for one wanted state."""

    wanted: WantedState
    dataplane: str
    """A name of the registry, or BY_HAND."""
    iptables: str = "iptables"
    """The command of the iptables backend rules belong to on this node."""

    def flags(self) -> str:
        """The flags all ``kiam dataplane`` commands need for this wanted state."""
        wanted = self.wanted
        words = [
            f"--host={wanted.host_address}",
            f"--port={wanted.port}",
            f"--host-interface={wanted.interface}",
        ]
        if wanted.host_address6 is not None:
            words.append(f"--host6={wanted.host_address6}")
        if wanted.host_network is not HostNetwork.IGNORE:
            words.append(f"--host-network={wanted.host_network}")
        if wanted.agent_cgroup is not None:
            words.append(f"--agent-cgroup={wanted.agent_cgroup}")
        if wanted.iptables_backend is not IptablesBackend.AUTO:
            words.append(f"--iptables-backend={wanted.iptables_backend}")
        if wanted.forward_from is not None:
            words.append(f"--forward-metadata=allow:{wanted.forward_from}")
        return shlex.join(words)

    def for_interface(self, pattern: InterfacePattern) -> str:
        """Redirect another pattern's interfaces instead."""
        return replace(self, wanted=replace(self.wanted, interface=pattern)).install()

    def for_host(self, address: IPv4Address) -> str:
        """Redirect to another address instead."""
        return replace(self, wanted=replace(self.wanted, host_address=address)).install()

    def with_dataplane(self, dataplane: str) -> Mends:
        """The same for another dataplane."""
        return replace(self, dataplane=dataplane)

    def install(self) -> str:
        """Bring the kernel to the wanted state."""
        if self.dataplane == BY_HAND:
            return self.insert_rule()
        return f"kiam dataplane install --dataplane={self.dataplane} {self.flags()}"

    def install_with_drops(self) -> str:
        """As install; where the rule was made by hand, the dataplane that adds the drops to it."""
        dataplane = "iptables" if self.dataplane == BY_HAND else self.dataplane
        return f"kiam dataplane install --dataplane={dataplane} {self.flags()}"

    def remove(self, dataplane: str) -> str:
        """Take a dataplane out."""
        return f"kiam dataplane remove --dataplane={dataplane}"

    def verify(self, *more: str) -> str:
        """Ask again, perhaps with other flags."""
        return " ".join(["kiam dataplane verify", f"--dataplane={self.dataplane}", self.flags(), *more])

    def insert_rule(self, tool: str | None = None) -> str:
        """Put the documented rule at the head of PREROUTING."""
        return f"{tool or self.iptables} -t nat -I PREROUTING 1 {in_shell(conventional_rule(self.wanted))}"


def delete_rule(table: Table, rule: Rule) -> str:
    """Take one rule out, with the tool it was listed by."""
    if table.tool == "nft":
        return f"nft delete rule {table.family} {table.name} {rule.chain} handle {rule.position}"
    return f"{table.tool} -t {table.name} -D {rule.chain} {in_shell(drop_table_option(rule.text))}"


def both(commands: Sequence[str]) -> str:
    """One line that runs all and stops at the first that fails."""
    return " && ".join(commands)
