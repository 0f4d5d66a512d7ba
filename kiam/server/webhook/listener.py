"""HTTPS for the Kubernetes API server's admission reviews, with the server's own certificate.

A pod is never refused here: what goes wrong leaves it as it is, and it then gets its credentials as it did before
(https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/).
"""

from __future__ import annotations

import asyncio
import base64
import logging
import socket
import ssl
from typing import Any, Protocol

import msgspec
from aiohttp import web

from kiam.addresses import parse_listen_address
from kiam.arns import shown
from kiam.errors import UserError
from kiam.server.kubernetes.api import KubeError
from kiam.server.kubernetes.objects import UNREADABLE
from kiam.server.webhook.connections import Connections
from kiam.server.webhook.injection import NewPod, patch_of
from kiam.tls import TLSFiles

log = logging.getLogger(__name__)

PATH = "/mutate"
LARGEST_REVIEW = 3 << 20
"""Bytes; the API server takes no larger object."""
KEEPALIVE_SECONDS = 30.0
REVIEW_SECONDS = 10.0
"""For a review to come in and be answered; the API server waits no longer unless told to (``timeoutSeconds``)."""
SMALL_REVIEW = 64 << 10
"""Bytes; nearly every pod's is smaller."""
MOST_AT_ONCE = 32
"""Reviews under way; whoever reaches the port can have service accounts looked up."""
MOST_LARGE = 8
"""Reviews that aren't small and are held in memory."""


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
        self._large = asyncio.Semaphore(MOST_LARGE)

    async def answer(self, request: web.Request) -> web.Response:
        """One review."""
        try:
            async with asyncio.timeout(REVIEW_SECONDS):
                return await self._read(request)
        except TimeoutError:
            return _end(408, "the review comes too slowly")
        except (web.RequestPayloadError, ConnectionError) as error:
            log.debug("a review doesn't come in whole: %s", error)
            return _end(400, "the review didn't come in whole")

    async def _read(self, request: web.Request) -> web.Response:
        body = bytearray()
        while chunk := await request.content.readany():
            body += chunk
            if len(body) > SMALL_REVIEW:
                break
        else:
            return await self._review(body)
        # Which attack: strangers send megabytes each and never end. Whoever sends a small review isn't held up.
        async with self._large:
            while chunk := await request.content.readany():
                body += chunk
                if len(body) > LARGEST_REVIEW:
                    return _end(413, "the review is too large")
            return await self._review(body)

    async def _review(self, body: bytearray) -> web.Response:
        try:
            review = msgspec.json.decode(body, type=_Review)
        except (*UNREADABLE, RecursionError) as error:
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
        except (KubeError, *UNREADABLE) as error:
            log.warning("a new pod of namespace %s is left as it is: %s", shown(asked.namespace), error)
            return False


class Listener:
    """The webhook's port. :meth:`open` once, :meth:`reload` when the certificate became another, :meth:`close`."""

    def __init__(self, listen: str, files: TLSFiles, webhook: Webhook) -> None:
        """``listen`` is HOST:PORT."""
        self._listen = listen
        self._files = files
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        application = web.Application()
        application.router.add_post(PATH, webhook.answer)
        # Not decompressed: the API server sends reviews as they are, and a few compressed bytes can be gigabytes.
        self._runner = web.AppRunner(
            application, access_log=None, keepalive_timeout=KEEPALIVE_SECONDS, auto_decompress=False
        )
        self._connections: Connections | None = None

    @property
    def port(self) -> int:
        """Where it listens."""
        return 0 if self._connections is None else self._connections.port

    async def open(self) -> None:
        """Listen. Raises UserError."""
        host, port = parse_listen_address(self._listen)
        self._context.load_cert_chain(self._files.cert, self._files.key)
        await self._runner.setup()
        assert self._runner.server is not None
        try:
            listener = _listen(host, port)
        except OSError as error:
            await self.close()
            raise UserError(
                f"--container-credentials-webhook: can't listen on {self._listen}: {error.strerror}",
                "choose another port",
            ) from error
        self._connections = Connections(self._runner.server, self._context)
        self._connections.serve(listener)
        log.info("mutating webhook for pods on %s%s", self._listen, PATH)

    def reload(self) -> None:
        """Present the certificate that is in the files now, from the next handshake on."""
        try:
            self._context.load_cert_chain(self._files.cert, self._files.key)
        except (OSError, ssl.SSLError) as error:
            log.warning("the webhook goes on with its old certificate: %s", error)

    async def close(self) -> None:
        """Stop listening."""
        if self._connections is not None:
            self._connections.close()
        await self._runner.cleanup()


def _listen(host: str, port: int) -> socket.socket:
    """A socket on an address, or on all. Raises OSError."""
    if not host and socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    family, _, _, _, address = socket.getaddrinfo(host or "0.0.0.0", port, type=socket.SOCK_STREAM)[0]  # noqa: S104
    return socket.create_server(address[:2], family=family)


def _end(status: int, line: str) -> web.Response:
    """An answer to a review that isn't read to its end; the connection ends with it."""
    answer = web.Response(status=status, text=f"{line}\n")
    answer.force_close()
    return answer
