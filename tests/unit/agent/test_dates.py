"""The date in answers is of their own second, and nothing of an answer is kept."""

from __future__ import annotations

import pytest

from kiam.agent.http import dates


def test_heads_are_made_anew_each_second_and_for_each_length(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [784111777.25]
    monkeypatch.setattr(dates, "time", lambda: now[0])
    head_of = dates.DatedHeads(b"HTTP/1.1 200 OK\r\nContent-Length: ").of
    first = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\n"
    assert head_of(7) == first
    assert head_of(12) == first.replace(b" 7\r", b" 12\r")
    assert head_of(7) is head_of(7)
    now[0] += 1
    assert head_of(7) == first.replace(b":37 ", b":38 ")
    # The wall clock may be set back.
    now[0] -= 1
    assert head_of(7) == first
