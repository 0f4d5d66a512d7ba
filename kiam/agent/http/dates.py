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


class DatedHeads:
    """The heads of plain 200 answers as bytes, by the length of what follows: made once a second and length.

    Of the head alone: an answer kept here would be credentials that outlive their pod.
    """

    __slots__ = ("_before", "_heads", "_second")

    def __init__(self, before: bytes) -> None:
        """``before``: the head up to the value of Content-Length, which comes last but for the Date."""
        self._before = before
        self._second = -1
        self._heads: dict[int, bytes] = {}

    def of(self, length: int) -> bytes:
        """The whole head, with the empty line."""
        second = int(time())
        if second != self._second:
            self._second = second
            self._heads.clear()
        head = self._heads.get(length)
        if head is None:
            date = formatdate(second, usegmt=True).encode()
            head = self._heads[length] = b"%b%d\r\nDate: %b\r\n\r\n" % (self._before, length, date)
        return head
