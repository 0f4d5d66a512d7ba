"""What a dataplane is: the part of the node that steers pods' metadata traffic to the agent.

Every dataplane works from one immutable :class:`WantedState` and gives pods the same behaviour:

- TCP to 169.254.169.254:80 lands on the agent, with the pod's own source address;
- everything else from a pod to a metadata address is dropped, so that nothing reaches the node's credentials;
- whatever the node forwards to or from a metadata address is dropped, on every interface and after decapsulation: the
  addresses are link-local, and nobody forwards those (RFC 3927, section 2.7). So an interface pattern that matches no
  pod means refused, never the node's role;
- the host's own traffic, the agent's first of all, is left alone.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

from kiam.netfilter.interfaces import InterfacePattern, IptablesBackend

if TYPE_CHECKING:  # the agent needs no rules
    from kiam.netfilter.model import Rule


class HostNetwork(enum.StrEnum):
    """What happens to pods that share the node's own network namespace."""

    IGNORE = "ignore"
    DENY = "deny"
    REDIRECT = "redirect"


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
    forward_from: InterfacePattern | None = None
    """The interface of something that isn't a pod (a virtual machine, say) for which the node does forward metadata
    traffic, and which isn't redirected. None: nothing is forwarded. Never inverted, never every interface.
    """


class Condition(enum.StrEnum):
    """How what the kernel holds compares with the wanted state."""

    INSTALLED = "installed"
    ABSENT = "absent"
    DIFFERENT = "different"


class OwnRule(NamedTuple):
    """A rule of ours, told from everybody else's by where it stands and how it reads."""

    tool: str
    table: str
    rule: Rule


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a dataplane found in the kernel."""

    condition: Condition
    found: Sequence[str] = ()
    """Ours, as the tool of the trade prints it (``iptables -S``, ``nft list``, ``bpftool``), one line each."""
    problems: Sequence[str] = ()
    """What differs from the wanted state, one line each."""
    installed: WantedState | None = None
    """The wanted state it was installed for, as read back from the kernel; None where that can't be told (nothing is
    there, another version of ours, or half of it is missing). Where a dataplane doesn't go by the interface pattern,
    that is every interface.
    """
    rules: Collection[OwnRule] = frozenset()
    """Ours among the rules of netfilter's tools, for who reads their listings too."""


@dataclass(frozen=True, slots=True)
class Counters:
    """Connections and packets the kernel counted since the dataplane was installed."""

    redirects: int = 0
    drops: Mapping[str, int] | None = None
    """By reason: ``other-port``, ``other-protocol``, ``other-interface``, ``ipv6``, ``host-network``, ``bypass``."""


@dataclass(frozen=True, slots=True)
class Traits:
    """What everybody else goes by, so that nobody has to know a dataplane by its name."""

    tells_pods_by: str
    needs: str
    """On the node or in the image, for people."""
    rights: str
    """For people too."""
    oldest_kernel: tuple[int, int]
    oldest_kernel_for_host_network: tuple[int, int]
    """With ``--host-network`` other than ignore."""
    why_these_kernels: str
    by_interface: bool = True
    """Whether the interface pattern decides who is redirected."""
    host_network: frozenset[HostNetwork] = frozenset(HostNetwork)
    """How it can treat pods on the host network."""
    documented_rule: bool = False
    """Whether it makes the rule of conventional kiam's documentation, and so goes on from one made by hand."""
    rank: int = 0
    """The higher, the sooner it is recommended; 0 only where something speaks against the others."""

    def needed_kernel(self, host_network: HostNetwork) -> tuple[int, int]:
        """The oldest Linux for what is wanted of pods on the host network."""
        return self.oldest_kernel if host_network is HostNetwork.IGNORE else self.oldest_kernel_for_host_network


def kernel_words(version: tuple[int, int]) -> str:
    """A version as people write it."""
    return ".".join(map(str, version))


class Dataplane(Protocol):
    """One mechanism of redirecting. Methods block (they run programs or talk netlink): call them off the event loop.

    All raise :class:`kiam.errors.UserError` with one line that says what the node lacks and what to do.
    """

    name: str
    traits: ClassVar[Traits]

    def install(self, wanted: WantedState) -> None:
        """Bring the kernel to the wanted state: atomic, idempotent, and never without redirect in between."""

    def remove(self) -> None:
        """Take out all that is ours, whichever wanted state it was installed with; nothing there is fine."""

    def inspect(self, wanted: WantedState | None = None) -> Inspection:
        """Compare the kernel with the wanted state; changes nothing. None: only tell what of ours is there."""

    def counters(self) -> Counters:
        """Read the counters; zeros where nothing is installed."""
