"""A pod's request as it stands in the log."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address
from typing import Any

_LONGEST = 200
"""Characters of a target or a header's value: the log is the node's, and pods write it."""
_MOST_HEADERS = 32
_SECRET = frozenset({"authorization", "cookie", "proxy-authorization", "x-aws-ec2-metadata-token"})
_VISIBLE = {code: f"\\x{code:02x}" for code in (*range(0x20), 0x7F)}


def printable(text: str) -> str:
    """Text from a pod as it may stand in a log: on one line, and not endless."""
    return text[:_LONGEST].encode("ascii", "backslashreplace").decode().translate(_VISIBLE)


def request_fields(
    peer: Any, method: str, target: str, headers: Iterable[tuple[str, str]], status: int
) -> dict[str, object]:
    """The fields that conventional kiam logs of a request, with its names; ``peer`` is the socket's peername.

    Header values that are worth something to a reader of the log (tokens) are left out.
    """
    shown: dict[str, list[str]] = {}
    for name, value in list(headers)[:_MOST_HEADERS]:
        shown.setdefault(printable(name), []).append("***" if name.casefold() in _SECRET else printable(value))
    return {
        "addr": _host_and_port(peer),
        "method": printable(method),
        "path": printable(target.partition("?")[0]),
        "status": status,
        "headers": shown,
    }


def _host_and_port(peer: Any) -> str:
    """As Go writes a remote address: the host in brackets if it is an IPv6 one."""
    if not peer:
        return ""
    address = ip_address(peer[0].partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    host = str(mapped or address)
    return f"[{host}]:{peer[1]}" if ":" in host else f"{host}:{peer[1]}"
