"""Who is behind the Unix connections on which the front joins clients to gRPC."""

from __future__ import annotations

import secrets
import socket
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class _Client:
    address: str
    names: frozenset[str]


class JoinedClients:
    """Clients by the name of their Unix connection's own end, which gRPC tells of each call."""

    def __init__(self) -> None:
        """There are none yet."""
        self._clients: dict[str, _Client] = {}
        self._prefix = f"kiam-{secrets.token_hex(8)}"
        self._next = 0

    def bind(self, sock: socket.socket, address: str, dns_names: frozenset[str]) -> str:
        """Give the socket a name that stands for the client. Raises OSError when somebody else has it.

        Which attack: a program beside the server that has bound the next name would be taken for the client. So the
        name stands for nobody until it is ours.
        """
        self._next += 1
        name = f"{self._prefix}-{self._next}"
        sock.bind(f"\0{name}")
        self._clients[_peer(name)] = _Client(address, dns_names)
        return name

    def forget(self, name: str) -> None:
        """The client is gone, and the name stands for nobody."""
        del self._clients[_peer(name)]

    def names(self, peer: str) -> frozenset[str] | None:
        """The DNS names in a client's certificate, by gRPC's name for the peer; None: nobody we joined."""
        client = self._clients.get(peer)
        return None if client is None else client.names

    def address(self, peer: str) -> str:
        """The address that a client connects from; empty: nobody we joined."""
        client = self._clients.get(peer)
        return "" if client is None else client.address

    def __len__(self) -> int:
        return len(self._clients)


def _peer(name: str) -> str:
    """As gRPC writes it."""
    return f"unix-abstract:{name}"
