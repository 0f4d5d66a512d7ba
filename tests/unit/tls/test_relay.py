"""Ends of a relay that go at different moments."""

from __future__ import annotations

import asyncio
from unittest.mock import Mock

import pytest
from OpenSSL import SSL

from kiam.tls import relay
from kiam.tls.relay import PlainEnd, TLSEnd


def _end() -> tuple[TLSEnd, Mock, Mock]:
    closed, connection = Mock(), Mock()
    for method in (connection.do_handshake, connection.bio_read):
        method.side_effect = SSL.WantReadError
    return TLSEnd(connection, Mock(), closed), Mock(), closed


def test_end_that_was_aborted_before_it_was_connected_is_aborted_then() -> None:
    end, transport, _ = _end()
    end.abort()
    end.connection_made(transport)
    transport.abort.assert_called_once()
    end.connection.do_handshake.assert_not_called()  # type: ignore[attr-defined]  # a Mock


def test_plain_end_that_comes_too_late_is_closed() -> None:
    end, transport, closed = _end()
    end.connection_made(transport)
    end.connection_lost(None)
    closed.assert_called_once()
    late = Mock()
    PlainEnd(end).connection_made(late)
    late.close.assert_called_once()


async def test_side_that_never_takes_what_is_left_is_aborted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "GOODBYE_SECONDS", 0.0)
    end, transport, _ = _end()
    transport.is_closing.return_value = False
    transport.get_write_buffer_size.return_value = 1
    end.connection_made(transport)
    aborted = asyncio.Event()
    transport.abort.side_effect = aborted.set
    end.close()
    async with asyncio.timeout(10):
        await aborted.wait()
