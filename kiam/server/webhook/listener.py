"""HTTPS for the Kubernetes API server's admission reviews, with the server's own certificate.

A pod is never refused here: what goes wrong leaves it as it is, and it then gets its credentials as it did before
(https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/).
"""

from __future__ import annotations

import asyncio
import base64
import logging
import ssl
from typing import Any, Protocol

import msgspec
from aiohttp import web

from kiam.errors import UserError
from kiam.server.kubernetes.api import KubeError
from kiam.server.webhook.injection import NewPod, patch_of
from kiam.telemetry import parse_listen_address
from kiam.tls import TLSFiles

log = logging.getLogger(__name__)

PATH = "/mutate"
LARGEST_REVIEW = 3 << 20
"""Bytes; the API server takes no larger object."""
KEEPALIVE_SECONDS = 30.0
MOST_AT_ONCE = 32
"""Reviews under way; whoever reaches the port can have service accounts looked up."""


class Roles(Protocol):
    """Service accounts' roles."""

    async def role(self, namespace: str, name: str) -> str:
        """The annotation; empty: none. Raises KubeError, msgspec.DecodeError."""


class _Asked(msgspec.Struct, gc=False):
    uid: str
    namespace: str = ""
    object: NewPod = msgspec.field(default_factory=NewPod)


class _Review(msgspec.Struct, rename="camel", gc=False):
    request: _Asked
    api_version: str = "admission.k8s.io/v1"


class Webhook:
    """Answers reviews of new pods."""

    def __init__(self, roles: Roles) -> None:
        self._roles = roles
        self._turn = asyncio.Semaphore(MOST_AT_ONCE)

    async def answer(self, request: web.Request) -> web.Response:
        """One review."""
        try:
            review = msgspec.json.decode(await request.read(), type=_Review)
        except msgspec.DecodeError as error:
            return web.Response(status=400, text=f"not an admission review of a pod: {error}\n")
        response: dict[str, Any] = {"uid": review.request.uid, "allowed": True}
        async with self._turn:
            is_wanted = await self._is_wanted(review.request)
        if is_wanted and (patch := patch_of(review.request.object)):
            response |= {"patchType": "JSONPatch", "patch": base64.b64encode(msgspec.json.encode(patch)).decode()}
        answer = {"apiVersion": review.api_version, "kind": "AdmissionReview", "response": response}
        return web.Response(body=msgspec.json.encode(answer), content_type="application/json")

    async def _is_wanted(self, asked: _Asked) -> bool:
        pod = asked.object
        if pod.wish is not None:
            return pod.wish
        try:
            return bool(await self._roles.role(asked.namespace, pod.service_account))
        except (KubeError, msgspec.DecodeError) as error:
            log.warning("a new pod of namespace %s is left as it is: %s", asked.namespace, error)
            return False


class Listener:
    """The webhook's port. :meth:`open` once, :meth:`reload` when the certificate became another, :meth:`close`."""

    def __init__(self, listen: str, files: TLSFiles, webhook: Webhook) -> None:
        """``listen`` is HOST:PORT."""
        self._listen = listen
        self._files = files
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        application = web.Application(client_max_size=LARGEST_REVIEW)
        application.router.add_post(PATH, webhook.answer)
        self._runner = web.AppRunner(application, access_log=None, keepalive_timeout=KEEPALIVE_SECONDS)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._runner.addresses[0][1])

    async def open(self) -> None:
        """Listen. Raises UserError."""
        host, port = parse_listen_address(self._listen)
        self._context.load_cert_chain(self._files.cert, self._files.key)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host or None, port, ssl_context=self._context, reuse_address=True)
        try:
            await site.start()
        except OSError as error:
            await self.close()
            raise UserError(
                f"--container-credentials-webhook: can't listen on {self._listen}: {error.strerror}",
                "choose another port",
            ) from error
        log.info("mutating webhook for pods on %s%s", self._listen, PATH)

    def reload(self) -> None:
        """Present the certificate that is in the files now, from the next handshake on."""
        try:
            self._context.load_cert_chain(self._files.cert, self._files.key)
        except (OSError, ssl.SSLError) as error:
            log.warning("the webhook goes on with its old certificate: %s", error)

    async def close(self) -> None:
        """Stop listening."""
        await self._runner.cleanup()
