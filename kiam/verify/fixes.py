"""The commands that fix what a check found, exactly as a person can paste them into a root shell on the node."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, replace
from pathlib import Path

from kiam.dataplane.contract import HostNetwork, WantedState
from kiam.dataplane.iptables.rules import redirect_rule
from kiam.dataplane.registry import documented
from kiam.metadata import METADATA_IPV4, METADATA_PORT
from kiam.netfilter.interfaces import InterfacePattern, IptablesBackend
from kiam.netfilter.iptables_listing import specification
from kiam.netfilter.model import Rule, Table
from kiam.verify.fix import Fix, FixKind, both

BY_HAND = "none"
"""The dataplane's name where the redirect is a rule somebody else installs, as the documentation shows it."""
SAME_FOR_THE_AGENT = "then give the agent the same (chart: agent.host); its next start would bring its own back"


def in_shell(words: str) -> str:
    """A rule's words safe to paste: an exclamation mark is history to an interactive bash."""
    return " ".join("'!'" if word == "!" else word for word in words.split(" "))


@dataclass(frozen=True, slots=True)
class Fixes:
    """Makes the fixes of one verification, all towards the same state."""

    target: WantedState
    """What the node should be brought to: what is verified, with what is wrong about it put right."""
    dataplane: str
    """A name of the registry, or BY_HAND."""
    iptables: str = "iptables"
    """The command of the iptables backend that the node's rules are in."""
    agent_keeps: bool = False
    """Whether an agent on this node may bring its own state back."""

    def flags(self) -> str:
        """The flags ``kiam dataplane install`` needs for the target."""
        target = self.target
        words = [f"--host={target.host_address}", f"--port={target.port}", f"--host-interface={target.interface}"]
        if target.host_address6 is not None:
            words.append(f"--host6={target.host_address6}")
        if target.host_network is not HostNetwork.IGNORE:
            words.append(f"--host-network={target.host_network}")
        if target.agent_cgroup is not None:
            words.append(f"--agent-cgroup={target.agent_cgroup}")
        if target.iptables_backend is not IptablesBackend.AUTO:
            words.append(f"--iptables-backend={target.iptables_backend}")
        if target.forward_from is not None:
            words.append(f"--forward-metadata=allow:{target.forward_from}")
        return shlex.join(words)

    def with_dataplane(self, dataplane: str) -> Fixes:
        """The same for another dataplane."""
        return replace(self, dataplane=dataplane)

    @property
    def install_command(self) -> str:
        """Brings the kernel to the target."""
        if self.dataplane == BY_HAND:
            return self.insert_command()
        return f"kiam dataplane install --dataplane={self.dataplane} {self.flags()}"

    def install(self, note: str = "") -> Fix:
        """Bring the kernel to the target."""
        kind = FixKind.INSERT_RULE if self.dataplane == BY_HAND else FixKind.INSTALL
        return Fix(kind, self.install_command, note)

    def install_changed(self) -> Fix:
        """As install, where an agent may want something else."""
        return self.install(SAME_FOR_THE_AGENT if self.agent_keeps and self.dataplane != BY_HAND else "")

    def install_with_drops(self) -> Fix:
        """As install; where the rule was made by hand, the dataplane that adds the drops to it."""
        return self.with_dataplane(documented()).install() if self.dataplane == BY_HAND else self.install()

    def insert_command(self) -> str:
        """Puts the documented rule at the head of PREROUTING."""
        return f"{self.iptables} -t nat -I PREROUTING 1 {in_shell(specification(redirect_rule(self.target)))}"

    def replace_rule(self, *deletions: str) -> Fix:
        """The right rule first, so that at no moment there is none; then the wrong ones go."""
        return Fix(FixKind.REPLACE_RULE, both(self.install_command, *deletions))

    def move_rule(self, insert: bool, *deletions: str) -> Fix:
        """From the other backend's store into the node's."""
        return Fix(FixKind.MOVE_RULE, both(self.insert_command() if insert else "", *deletions))

    def remove_dataplane(self, other: str, kept_is_right: bool) -> Fix:
        """Take another dataplane out, the one that stays being right first."""
        remove = f"kiam dataplane remove --dataplane={other}"
        command = remove if kept_is_right else both(self.install_command, remove)
        return Fix(FixKind.REMOVE_DATAPLANE, command, "unless the agent of this node is to use it from now on")

    def let_pass(self, table: Table, rule: Rule, *, from_pods: bool) -> Fix:
        """Leave metadata traffic out of what a rule of somebody else does, and the rule itself as it is."""
        return Fix(FixKind.LET_PASS, self._accept_before(table, rule, from_pods))

    def _accept_before(self, table: Table, rule: Rule, from_pods: bool) -> str:
        pattern = self.target.interface
        if table.tool == "nft":
            interface = f"{nft_interface(pattern)} " if from_pods and pattern.name else ""
            words = f"{interface}ip daddr {METADATA_IPV4} tcp dport {METADATA_PORT} accept"
            return f"nft insert rule {table.family} {table.name} {rule.chain} handle {rule.position} '{words}'"
        words = " ".join(
            [
                *("-d", f"{METADATA_IPV4}/32", *(pattern.iptables_words() if from_pods else ())),
                *("-p", "tcp", "-m", "tcp", "--dport", str(METADATA_PORT), "-j", "ACCEPT"),
            ]
        )
        return f"{table.tool} -t {table.name} -I {rule.chain} {rule.position} {in_shell(words)}"


def verify_again(note: str = "", *flags: str) -> Fix:
    """Ask again, perhaps with flags; all else is read from the node."""
    return Fix(FixKind.VERIFY_AGAIN, shlex.join(["kiam", "dataplane", "verify", *flags]), note)


def verify_with_rights() -> Fix:
    """Ask again with the rights that are missing here: as root on the node, or by the chart's own test in a pod."""
    account = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
    if os.geteuid() != 0:
        return Fix(FixKind.VERIFY_WITH_RIGHTS, "sudo kiam dataplane verify")
    namespace = os.environ.get("POD_NAMESPACE") or (account.read_text() if account.exists() else "kube-system")
    command = shlex.join(["helm", "test", "kiam", "--namespace", namespace.strip(), "--logs"])
    return Fix(FixKind.VERIFY_BY_HELM, command, "or on the node itself, as root: kiam dataplane verify")


def nft_interface(pattern: InterfacePattern) -> str:
    """``iifname "cali*"``."""
    return f'iifname {"!= " * pattern.inverted}"{pattern.nft_name}"'


def delete_rule(table: Table, rule: Rule) -> str:
    """Takes one rule out, with the tool it was listed by."""
    if table.tool == "nft":
        return f"nft delete rule {table.family} {table.name} {rule.chain} handle {rule.position}"
    return f"{table.tool} -t {table.name} -D {rule.chain} {in_shell(rule.text.removeprefix(f'-A {rule.chain} '))}"
