"""Names by which gRPC knows who was joined to it."""

from __future__ import annotations

import socket
from unittest.mock import Mock

import pytest

from kiam.server.grpc import front as module
from kiam.server.grpc.front import Backends, Front, _Connection


async def test_whoever_has_bound_a_name_first_is_not_taken_for_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "peer_certificate", lambda connection: Mock(dns_names=("node-1",)))
    monkeypatch.setattr(module, "was_lenient", lambda connection: False)
    front = Front("127.0.0.1:0", Mock())
    connection = _Connection(Mock(), "10.0.0.1", False)
    connection.tls = Mock()
    with socket.socket(socket.AF_UNIX) as squatter:
        squatter.bind(f"\0{front._prefix}-1")
        await front._join(connection, Backends("/nonexistent", "/nonexistent"))
        assert front.caller(f"unix-abstract:{front._prefix}-1") is None
    connection.tls.close.assert_called_once()
    assert front.counts()["joined"] == 0
