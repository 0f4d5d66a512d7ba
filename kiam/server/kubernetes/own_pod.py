"""The pod this process is in, and the Event it gets while its certificate expires soon."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping
from pathlib import Path

from kiam.server.kubernetes.events import CERTIFICATE_EXPIRING, EXPIRY_EVENT_SECONDS, EventRecorder
from kiam.server.kubernetes.objects import Pod
from kiam.server.kubernetes.store import PodStore
from kiam.tls.reload import TLSReloader, expiry_warning, own_certificate, utc_now

NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def own_pod(pods: PodStore, environment: Mapping[str, str]) -> Pod | None:
    """The pod this process is in, by what kubelet gives it; None outside a cluster."""
    name = environment.get("POD_NAME") or socket.gethostname()
    namespace = environment.get("POD_NAMESPACE") or (NAMESPACE_FILE.read_text() if NAMESPACE_FILE.exists() else "")
    return next((pod for pod in pods.in_namespace(namespace.strip()) if pod.name == name), None)


async def tell_of_expiry(
    pods: PodStore, synced: asyncio.Event, events: EventRecorder, tls: TLSReloader, cert: Path
) -> None:
    """Keep an Event on this server's own pod, for ever, while its certificate, which is in ``cert``, expires soon.

    ``synced``: set when the pods are complete.
    """
    await synced.wait()
    while True:
        inspected = tls.inspected
        own = own_pod(pods, os.environ)
        if own is not None and inspected.expires_soon(utc_now()):
            certificate = own_certificate(cert, inspected)
            events.record(own, CERTIFICATE_EXPIRING, expiry_warning(certificate, inspected.expiry))
        await asyncio.sleep(EXPIRY_EVENT_SECONDS)
