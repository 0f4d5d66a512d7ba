"""What fixes what a check found, as data: every kind there is, so that a test can try each."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Place(enum.StrEnum):
    """Where a command is to be run."""

    NODE = "node"
    """A root shell on the node, or a container with the same rights there."""
    CLUSTER = "cluster"
    """Where kubectl and helm are set up."""
    AWS = "aws"
    """Where the AWS command line has rights over the instance."""


class FixKind(enum.StrEnum):
    """Every kind of fix that a check can print."""

    ADVICE = "advice"
    """Words only."""

    INSTALL = "install"
    INSERT_RULE = "insert-rule"
    DELETE_RULE = "delete-rule"
    REPLACE_RULE = "replace-rule"
    MOVE_RULE = "move-rule"
    REMOVE_DATAPLANE = "remove-dataplane"
    LET_PASS = "let-pass"  # noqa: S105 - lets a packet pass
    OPEN_FIREWALL = "open-firewall"
    ENABLE_FORWARDING = "enable-forwarding"
    MOUNT_CGROUP2 = "mount-cgroup2"
    MOUNT_BPFFS = "mount-bpffs"
    START_KUBELET = "start-kubelet"
    RESTART_AGENT = "restart-agent"
    ROUTE_TO_METADATA = "route-to-metadata"
    ENABLE_METADATA = "enable-metadata"
    INSTALL_PACKAGE = "install-package"

    VERIFY_AGAIN = "verify-again"
    VERIFY_FROM_POD = "verify-from-pod"
    VERIFY_WITH_RIGHTS = "verify-with-rights"
    VERIFY_BY_HELM = "verify-by-helm"

    SHOW_PROGRAM = "show-program"
    SHOW_CLASSIFIERS = "show-classifiers"
    SHOW_POLICIES = "show-policies"
    SHOW_LISTENER = "show-listener"
    SHOW_ROUTE = "show-route"
    SHOW_ADDRESSES = "show-addresses"
    SHOW_FORWARDING = "show-forwarding"

    @property
    def changes(self) -> bool:
        """Whether its command changes anything; the others only show or verify."""
        return self is not FixKind.ADVICE and not self.value.startswith(("show-", "verify-"))

    @property
    def place(self) -> Place:
        """Where its command is to be run."""
        return _ELSEWHERE.get(self, Place.NODE)


_ELSEWHERE = {
    FixKind.RESTART_AGENT: Place.CLUSTER,
    FixKind.SHOW_POLICIES: Place.CLUSTER,
    FixKind.VERIFY_BY_HELM: Place.CLUSTER,
    FixKind.ENABLE_METADATA: Place.AWS,
}


@dataclass(frozen=True, slots=True)
class Fix:
    """What to do about one finding."""

    kind: FixKind
    command: str = ""
    """One line for a shell, to be run as it is; empty for advice."""
    note: str = ""
    """What a person should know beside the command, or instead of one."""

    def __post_init__(self) -> None:
        if not (self.command if self.kind is not FixKind.ADVICE else self.note):
            raise ValueError(f"{self.kind}: nothing to do")
        if "\n" in self.command:
            raise ValueError(f"{self.kind}: a command is one line")

    @property
    def text(self) -> str:
        """The command, or the advice."""
        return self.command or self.note


def advice(note: str) -> Fix:
    """Words for a person; no command would be right for everybody."""
    return Fix(FixKind.ADVICE, note=note)


def both(*commands: str) -> str:
    """One line that runs all and stops at the first that fails."""
    return " && ".join(command for command in commands if command)
