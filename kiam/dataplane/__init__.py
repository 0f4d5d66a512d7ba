"""What a dataplane is: the part of the node that steers pods' metadata traffic to the agent.

Every dataplane works from one immutable :class:`WantedState` and gives pods the same behaviour:

- TCP to 169.254.169.254:80 lands on the agent, with the pod's own source address;
- everything else from a pod to a metadata address is dropped, so that nothing reaches the node's credentials;
- the host's own traffic, the agent's first of all, is left alone.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Protocol

METADATA_IPV4 = IPv4Address("169.254.169.254")
"""Instance metadata over IPv4 (Amazon EC2 user guide, "Use the Instance Metadata Service")."""
METADATA_IPV6 = IPv6Address("fd00:ec2::254")
"""Instance metadata over IPv6, on Nitro instances only (same document)."""
METADATA_PORT = 80


class HostNetwork(enum.StrEnum):
    """What happens to pods that share the node's own network namespace."""

    IGNORE = "ignore"
    DENY = "deny"
    REDIRECT = "redirect"


class IptablesBackend(enum.StrEnum):
    """Which of the kernel's two rule stores iptables writes to; each is invisible to the other's programs."""

    AUTO = "auto"
    """Where the host's rules are, as kube-proxy's iptables-wrappers find it."""
    NFT = "nft"
    LEGACY = "legacy"


@dataclass(frozen=True, slots=True)
class InterfacePattern:
    """The interfaces pods come in on, in iptables' words: a trailing ``+`` is a wildcard, a leading ``!`` inverts."""

    name: str
    wildcard: bool = False
    inverted: bool = False

    @classmethod
    def parse(cls, text: str) -> InterfacePattern:
        """Read ``cali+`` or ``!eth0``. Raises ValueError with a line that says what is wrong."""
        inverted = text.startswith("!")
        name = text[1:].strip() if inverted else text
        wildcard = name.endswith("+")
        name = name.removesuffix("+")
        if not name and not wildcard:
            raise ValueError(f"'{text}' names no interface; write it like cali+, eth0 or !eth0")
        if name.endswith("*"):
            raise ValueError(f"'{text}': the wildcard is a plus sign; write it like cali+, eth0 or !eth0")
        if not name and inverted:
            raise ValueError(f"'{text}' matches no interface at all; write it like cali+, eth0 or !eth0")
        # IFNAMSIZ is 16 with the terminating NUL (linux/if.h); '/' and white space can't be in a name (dev_valid_name).
        if len(name.encode()) > 15 or any(c.isspace() or c in '/:!+*\\\0"' for c in name) or not name.isascii():
            raise ValueError(f"'{text}' can't be an interface name; write it like cali+, eth0 or !eth0")
        return cls(name, wildcard, inverted)

    def matches(self, interface: str) -> bool:
        """Whether an interface of that name is one pods come in on."""
        hit = interface.startswith(self.name) if self.wildcard else interface == self.name
        return hit is not self.inverted

    def __str__(self) -> str:
        return ("!" if self.inverted else "") + self.name + ("+" if self.wildcard else "")


@dataclass(frozen=True, slots=True)
class WantedState:
    """Where metadata traffic of pods has to go. Everything a dataplane installs follows from this alone."""

    host_address: IPv4Address
    port: int
    interface: InterfacePattern
    host_address6: IPv6Address | None = None
    """The agent's IPv6 address; None: IPv6 metadata traffic of pods is refused rather than redirected."""
    host_network: HostNetwork = HostNetwork.IGNORE
    agent_cgroup: str | None = None
    """With host_network other than ignore: the cgroup, as a path from the cgroup2 root, whose processes reach the real
    service all the same, because the agent is one of them. None: the pod of the process that installs, if it is in one.
    """
    iptables_backend: IptablesBackend = IptablesBackend.AUTO
    """Only the iptables dataplane reads it."""


class Condition(enum.StrEnum):
    """How what the kernel holds compares with the wanted state."""

    INSTALLED = "installed"
    ABSENT = "absent"
    DIFFERENT = "different"


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a dataplane found in the kernel."""

    condition: Condition
    found: Sequence[str] = ()
    """Ours, as the tool of the trade prints it (``iptables -S``, ``nft list``, ``bpftool``), one line each."""
    problems: Sequence[str] = ()
    """What differs from the wanted state, one line each."""


@dataclass(frozen=True, slots=True)
class Counters:
    """Connections and packets the kernel counted since the dataplane was installed."""

    redirects: int = 0
    drops: Mapping[str, int] | None = None
    """By reason, such as ``other-port``, ``other-protocol``, ``ipv6``, ``host-network``, ``bypass``."""


class Dataplane(Protocol):
    """One way to redirect. Methods block (they run programs or talk netlink): call them off the event loop.

    All raise :class:`kiam.errors.UserError` with one line that says what the node lacks and what to do.
    """

    name: str

    def install(self, wanted: WantedState) -> None:
        """Bring the kernel to the wanted state: atomic, idempotent, and never without redirect in between."""

    def remove(self) -> None:
        """Take out all that is ours, whichever wanted state it was installed with; nothing there is fine."""

    def inspect(self, wanted: WantedState | None = None) -> Inspection:
        """Compare the kernel with the wanted state; changes nothing. None: only tell what of ours is there."""

    def counters(self) -> Counters:
        """Read the counters; zeros where nothing is installed."""
