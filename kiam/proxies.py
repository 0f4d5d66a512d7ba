"""Which proxy a URL is asked through: ``HTTPS_PROXY``, ``HTTP_PROXY`` and ``NO_PROXY``, as Go's programs read them.

The rules are those of ``ProxyFromEnvironment`` (https://pkg.go.dev/golang.org/x/net/http/httpproxy), which conventional
kiam and everything else in a cluster follows. Python's HTTP libraries each know some of them: neither aiohttp nor
urllib knows address ranges or ports.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_interface
from urllib.parse import urlsplit

from kiam.errors import UserError

Address = IPv4Address | IPv6Address

_DEFAULT_PORTS = {"http": "80", "https": "443"}
_USABLE = frozenset(_DEFAULT_PORTS)


def proxy_for(url: str, environment: Mapping[str, str] | None = None) -> str | None:
    """The URL of the proxy through which a URL is asked; None: none.

    Raises UserError when the environment names a proxy of a kind that can't be used.
    """
    variables = os.environ if environment is None else environment
    parts = urlsplit(url)
    named = _first(variables, f"{parts.scheme}_proxy")
    # The attack stopped (CVE-2016-5386): to a CGI program HTTP_PROXY is a header that the client chose.
    if parts.scheme == "http" and named and variables.get("REQUEST_METHOD"):
        return None
    if not named or not _is_proxied(url, _first(variables, "no_proxy")):
        return None
    proxy = named if "://" in named else f"http://{named}"
    try:
        scheme, host = urlsplit(proxy).scheme, urlsplit(proxy).hostname
    except ValueError:
        scheme = host = ""
    if scheme not in _USABLE or not host:
        raise UserError(
            f"{parts.scheme.upper()}_PROXY names no proxy that can be used; "
            f"write it like http://proxy.example.com:3128, or list {parts.hostname} in NO_PROXY"
        )
    return proxy


def bypassed(hosts: Iterable[str], environment: Mapping[str, str]) -> str:
    """A ``NO_PROXY`` for libraries that know less: what there is, and these hosts."""
    entries = [entry.strip() for entry in _first(environment, "no_proxy").split(",") if entry.strip()]
    return ",".join(dict.fromkeys([*entries, *hosts]))


def _first(variables: Mapping[str, str], name: str) -> str:
    return variables.get(name.upper()) or variables.get(name) or ""


def _is_proxied(url: str, no_proxy: str) -> bool:
    parts = urlsplit(url)
    host = (parts.hostname or "").lower()
    port = str(parts.port or _DEFAULT_PORTS.get(parts.scheme, ""))
    address = _address(host)
    if not host or host == "localhost" or (address is not None and address.is_loopback):
        return False
    for text in no_proxy.split(","):
        entry = _parse(text.strip().lower())
        if entry is not None and entry.covers(host, port, address):
            return False
    return True


@dataclass(frozen=True, slots=True)
class _Everything:
    """``*``"""

    def covers(self, host: str, port: str, address: Address | None) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class _Range:
    """``10.0.0.0/8``"""

    network: IPv4Network | IPv6Network

    def covers(self, host: str, port: str, address: Address | None) -> bool:
        return address is not None and address in self.network


@dataclass(frozen=True, slots=True)
class _Single:
    """``10.0.0.1``, ``10.0.0.1:443``, ``[2001:db8::1]:443``"""

    address: Address
    port: str

    def covers(self, host: str, port: str, address: Address | None) -> bool:
        return address == self.address and self.port in ("", port)


@dataclass(frozen=True, slots=True)
class _Domain:
    """``example.com`` and below, ``.example.com`` or ``*.example.com`` only below it, each with or without a port."""

    suffix: str
    itself: bool
    port: str

    def covers(self, host: str, port: str, address: Address | None) -> bool:
        named = host.endswith(self.suffix) or (self.itself and host == self.suffix[1:])
        return address is None and named and self.port in ("", port)


def _parse(text: str) -> _Everything | _Range | _Single | _Domain | None:
    """One entry of ``NO_PROXY``; None: it says nothing."""
    if text == "*":
        return _Everything()
    base, slash, length = text.partition("/")
    if slash and length.isascii() and length.isdigit() and "%" not in base:
        with suppress(ValueError):
            return _Range(ip_interface(text).network)
    host, port = _split_port(text)
    address = _address(host)
    if address is not None:
        return _Single(address, port)
    host = host.removeprefix("*") if host.startswith("*.") else host
    if not host:
        return None
    return _Domain(_ascii(host if host[0] == "." else f".{host}"), host[0] != ".", port)


def _split_port(text: str) -> tuple[str, str]:
    """Host and port as Go's ``net.SplitHostPort`` has them; what that refuses is all host."""
    if text.startswith("["):
        host, closed, port = text[1:].partition("]:")
        return (host, port) if closed and not set(host + port) & set("[]") and ":" not in port else (text, "")
    host, colon, port = text.rpartition(":")
    return (host, port) if colon and ":" not in host and not set(text) & set("[]") else (text, "")


def _address(text: str) -> Address | None:
    """An address without zone; the IPv4-mapped form of one is that one."""
    if "%" in text:
        return None
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def _ascii(host: str) -> str:
    try:
        return host if host.isascii() else "." + host[1:].encode("idna").decode("ascii")
    except UnicodeError:
        return host
