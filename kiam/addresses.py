"""Addresses as text: one spelling for each, so that no odd spelling finds another pod, or none."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address


def canonical_address(text: str) -> str:
    """The canonical spelling of an IP address; an IPv4-mapped IPv6 address is the IPv4 address.

    Raises ValueError with a line that says what is wrong.
    """
    try:
        address = ip_address(text)
    except ValueError:
        raise ValueError(f"'{text[:64]}' is not an IP address") from None
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            raise ValueError(f"'{text[:64]}' has a zone, which no pod's address has")
        if address.ipv4_mapped is not None:
            address = address.ipv4_mapped
    return str(address)


def unmapped(text: str) -> IPv4Address | IPv6Address:
    """A socket's address without its zone; an IPv4-mapped one as IPv4. Raises ValueError."""
    address = ip_address(text.partition("%")[0])
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def parse_listen_address(text: str) -> tuple[str, int]:
    """Split HOST:PORT, [IPv6]:PORT or :PORT (every address) as Go's net.Listen takes them.

    Raises ValueError with a line that names the form.
    """
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(
            f"'{text}' is not an address to listen on; write it like localhost:9620, 0.0.0.0:9620 or :9620"
        )
    return host, int(port)
