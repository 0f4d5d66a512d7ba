"""Which pod the server is, so that it can write an Event about itself."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from kiam.server.kubernetes.events import CERTIFICATE_EXPIRING, EventRecorder
from kiam.server.kubernetes.own_pod import own_pod
from kiam.server.kubernetes.store import PodStore
from kiam.tls.inspection import load_summary
from kiam.tls.reload import TLSReloader, expiry_warning
from kiam.tls.summary import Side
from tests.sandbox.certificates import Authority, days, write
from tests.unit.server.test_events import make


class Api:
    def __init__(self) -> None:
        self.written: list[tuple[str, dict[str, Any]]] = []
        self.first = asyncio.Event()

    async def post(self, path: str, body: dict[str, Any]) -> None:
        self.written.append((path, body))
        self.first.set()

    async def patch(self, path: str, body: dict[str, Any]) -> None:
        raise AssertionError("one Event is enough")


def test_the_servers_own_pod_is_found_by_name_and_namespace() -> None:
    pods = PodStore()
    own = make("server-1", "u1")
    pods.put(own)
    pods.put(make("server-2", "u2"))
    environment = {"POD_NAME": own.name, "POD_NAMESPACE": "apps"}
    assert own_pod(pods, environment) == own
    assert own_pod(pods, {**environment, "POD_NAMESPACE": "team"}) is None
    assert own_pod(pods, {"POD_NAMESPACE": "apps"}) is None


@pytest.mark.parametrize("left", [3, 200])
async def test_an_event_about_it_says_until_when_the_certificate_is_good(tmp_path: Path, left: int) -> None:
    authority = Authority.make("for a decade", days(-400, 3650))
    files = write(tmp_path, authority.sign("kiam-server", period=days(left - 365, left)), authority.pem)
    reloader = TLSReloader(files, Side.SERVER, load_summary)
    soon = reloader.inspected.expires_soon(reloader.inspected.expiry - timedelta(days=left))
    assert soon is (left == 3)
    api, recorder = Api(), EventRecorder()
    recorder.record(make("server-1"), CERTIFICATE_EXPIRING, expiry_warning("kiam-server", reloader.inspected.expiry))
    writing = asyncio.create_task(recorder.run(api))
    await asyncio.wait_for(api.first.wait(), 30)
    writing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await writing
    ((_, event),) = api.written
    assert (event["reason"], event["type"]) == ("KiamCertificateExpiring", "Warning")
    assert "kiam-server" in event["message"]
    assert "expires at" in event["message"]
