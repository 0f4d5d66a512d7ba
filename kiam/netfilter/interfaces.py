"""Which interfaces a rule is for, and in which of iptables' two rule stores it stands."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace


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

    def iptables_words(self, flag: str = "-i") -> tuple[str, ...]:
        """``-i cali+`` or ``! -i eth0``; nothing for a pattern that is any interface, as iptables -S leaves it out."""
        name = self.name + ("+" if self.wildcard else "")
        return ("!",) * self.inverted + (flag, name) if self.name else ()

    @property
    def nft_name(self) -> str:
        """``cali*``, as nft takes it; whether it is inverted is the operator's to say."""
        return self.name + ("*" if self.wildcard else "")

    def __str__(self) -> str:
        return ("!" if self.inverted else "") + self.name + ("+" if self.wildcard else "")

    def overlaps(self, other: InterfacePattern) -> bool:
        """Whether some interface name fits both patterns."""
        if self.inverted and other.inverted:
            return True
        if self.inverted or other.inverted:
            inside, outside = (other, self) if self.inverted else (self, other)
            return not _within(inside, outside)
        return _within(self, other) or _within(other, self)

    def covers(self, other: InterfacePattern) -> bool:
        """Whether every interface name that fits the other pattern fits this one."""
        if self.wildcard and not self.name:
            return not self.inverted
        return not replace(self, inverted=not self.inverted).overlaps(other)

    @property
    def single(self) -> str | None:
        """The one interface it is for; None where there may be several."""
        return None if self.wildcard or self.inverted else self.name


EVERY_INTERFACE = InterfacePattern("", wildcard=True)
"""``+`` on the command line; rules for it name no interface."""


def _within(one: InterfacePattern, other: InterfacePattern) -> bool:
    # Both taken without their "!": whether every interface of one is among the other's.
    return one.name.startswith(other.name) if other.wildcard else not one.wildcard and one.name == other.name


def parse_forward_metadata(text: str) -> InterfacePattern | None:
    """Read ``drop`` (None) or ``allow:<interface>``. Raises ValueError with a line that says what is wrong.

    Neither an inverted pattern nor every interface: one forgotten interface of pods, and they have the node's role.
    """
    if text == "drop":
        return None
    verb, colon, interface = text.partition(":")
    if verb != "allow" or not colon:
        raise ValueError(f"'{text}' is neither drop nor allow:<interface>; write it like allow:virbr0")
    pattern = InterfacePattern.parse(interface)
    if pattern.inverted or not pattern.name:
        raise ValueError(f"'{interface}' would forward for interfaces you can't name; write it like allow:virbr0")
    return pattern
