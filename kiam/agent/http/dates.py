"""The time as HTTP writes it."""

from __future__ import annotations

from email.utils import formatdate
from time import time


class HttpDate:
    """The Date field's value, made anew once a second."""

    __slots__ = ("_second", "_text")

    def __init__(self) -> None:
        self._second = -1
        self._text = b""

    def now(self) -> bytes:
        """The time now (RFC 9110, section 5.6.7)."""
        second = int(time())
        if second != self._second:
            self._second = second
            self._text = formatdate(second, usegmt=True).encode()
        return self._text
