"""IMDSv2 session tokens of the agent's own.

A token proves that its bearer could send a PUT with a header of its own from a pod's address, which what is tricked
into fetching a URL (SSRF) can't. It is bound to that address and, once the server has said who is there, to the pod's
UID, so it is worth nothing to another pod. It carries all that has to be known, under a MAC; what is
remembered of it only saves checking that again.

The MAC's key is derived from the agent's TLS key and the machine's boot, so that the old and the new agent of a
roll-over, which share the port for a while, take each other's tokens, and so does an agent that was restarted. It is
nowhere but in the memory of agents of this node. A new TLS key makes a new key; the one before stays good for
checking. Whoever has the TLS key has more than tokens.
"""

from __future__ import annotations

import hmac
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from kiam.agent.core.failures import Unparsable

SHORTEST, LONGEST = 1, 21600
"""Seconds that a token may live (Amazon EC2 user guide, "Use the Instance Metadata Service to access metadata")."""
UNBOUND_SECONDS = 60
"""For how long a token that was issued before the pod was known is good for whoever is known at its address then."""

_HEAD = struct.Struct(">BII8s")
"""Version, issued at and expires at (seconds since the epoch), the pod's UID as a MAC of it."""
_VERSION = 1
_MAC_BYTES = 24
_LENGTH = 56
"""Characters: (17 + 24 bytes), and the padding that the real service's tokens have too."""
_UNBOUND = bytes(8)
_MOST_REMEMBERED = 4096
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class SessionTokens:
    """Issues and checks the tokens."""

    def __init__(self, secret: Callable[[], bytes], node: str) -> None:
        """``secret`` gives the agent's private key as it is now; ``node`` keeps nodes that share it apart."""
        self._secret = secret
        self._node = f"{node} {_boot_id()}".encode()
        self._seen = b""
        self._keys: tuple[bytes, ...] = ()

    def issue(self, ttl: str, address: str, uid: str, now: float) -> str:
        """A token for the pod at an address; ``uid`` is empty while it isn't known, ``ttl`` is as the client sent it.

        Raises Unparsable if that isn't a number of seconds from 1 to 21,600.
        """
        if not (ttl.isascii() and ttl.isdigit() and len(ttl) <= 5 and SHORTEST <= int(ttl) <= LONGEST):
            raise Unparsable(f"a token lives {SHORTEST} to {LONGEST} seconds")
        key = self._current_keys()[0]
        issued = int(now)
        head = _HEAD.pack(_VERSION, issued, issued + int(ttl), _uid_mac(key, uid))
        return urlsafe_b64encode(head + _mac(key, head, address)).decode()

    def accepts(self, token: str, address: str, uid: str, now: float) -> bool:
        """Whether a token was issued to the pod at an address and is still good; ``uid`` as in :meth:`issue`."""
        return len(token) == _LENGTH and now < _good_until(self._current_keys(), token, address, uid)

    def _current_keys(self) -> tuple[bytes, ...]:
        secret = self._secret()
        if secret is not self._seen:
            self._seen = secret
            key = hmac.digest(secret, b"kiam session tokens, version 1: " + self._node, "sha256")
            if key not in self._keys:
                self._keys = (key, *self._keys[:1])
        return self._keys


@lru_cache(maxsize=_MOST_REMEMBERED)
def _good_until(keys: tuple[bytes, ...], token: str, address: str, uid: str) -> float:
    """When a token stops being good for a pod, in seconds since the epoch; 0: it never was.

    Remembered, because an SDK sends one token for hours. Nothing is taken for good that these arguments don't make so.
    """
    try:
        raw = urlsafe_b64decode(token)
        if urlsafe_b64encode(raw).decode() != token:
            # Decoding overlooks some characters and bits, so that one token would have several spellings.
            return 0.0
    except (Error, ValueError):
        return 0.0
    head = raw[: _HEAD.size]
    for key in keys:
        if hmac.compare_digest(_mac(key, head, address), raw[_HEAD.size :]):
            return _head_good_until(key, head, uid)
    return 0.0


def _head_good_until(key: bytes, head: bytes, uid: str) -> float:
    version, issued, expires, bound_to = _HEAD.unpack(head)
    if version != _VERSION:
        return 0.0
    if not uid:
        return float(expires)
    if bound_to == _UNBOUND:
        # Which attack: one pod collects tokens before it is known, and another one that gets its address later is
        # tricked into using them.
        return float(min(expires, issued + UNBOUND_SECONDS))
    return float(expires) if hmac.compare_digest(bound_to, _uid_mac(key, uid)) else 0.0


def _mac(key: bytes, head: bytes, address: str) -> bytes:
    return hmac.digest(key, head + address.encode(), "sha256")[:_MAC_BYTES]


def _uid_mac(key: bytes, uid: str) -> bytes:
    return hmac.digest(key, b"uid " + uid.encode(), "sha256")[:8] if uid else _UNBOUND


def _boot_id() -> str:
    """Empty where /proc hides it: then only nodes with keys of their own are kept apart by it."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""
