"""The real instance metadata service, as the agent asks it."""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType
from typing import Self

import aiohttp
from yarl import URL

from kiam.agent.core.failures import UpstreamFailed

log = logging.getLogger(__name__)

_TOKEN_LIFETIME = ("X-aws-ec2-metadata-token-ttl-seconds", "21600")
_CONNECT_SECONDS = 1.0
_CONNECTIONS = 32
"""Connections to the service: it limits the whole instance to some 1,000 packets a second (Amazon EC2 user guide)."""
_INSTANCE_ID_FRESH = 1.0
"""Seconds an instance id is good for /health: pods can reach it too, and may not make us flood the service."""
_LONGEST_ID = 256


class InstanceMetadata:
    """A client of the real service. An async context manager."""

    def __init__(self, url: str, timeout: float) -> None:
        """``timeout`` is for a whole request, in seconds."""
        self._url = url.rstrip("/")
        self._timeout = timeout
        self._token: str | None = None
        self._instance_id: tuple[float, asyncio.Task[str]] | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            # Neither a proxy from the environment nor a cookie nor a decoded body comes between a pod and the service.
            trust_env=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            connector=aiohttp.TCPConnector(limit=_CONNECTIONS, keepalive_timeout=15.0),
            timeout=aiohttp.ClientTimeout(total=self._timeout, sock_connect=_CONNECT_SECONDS),
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def send(
        self, method: str, path: str, query: str, headers: list[tuple[str, str]], body: bytes
    ) -> aiohttp.ClientResponse:
        """Send one request; the response's body is not read yet. The path must be canonical: it is sent as it is.

        Raises UpstreamFailed.
        """
        # encoded=True: what was matched is what is sent, byte for byte.
        url = URL(f"{self._url}{path}{'?' + query if query else ''}", encoded=True)
        try:
            return await self._session.request(
                method, url, headers=headers, data=body or None, allow_redirects=False, max_redirects=0
            )
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            log.warning("instance metadata service: %s %s: %s", method, path, str(error) or type(error).__name__)
            raise UpstreamFailed("the instance metadata service doesn't answer") from None

    async def instance_id(self) -> str:
        """The instance's id, by IMDSv2 or, where that isn't to be had, IMDSv1. Raises UpstreamFailed."""
        loop = asyncio.get_running_loop()
        if self._instance_id is None or not self._instance_id_is_good(loop.time()):
            task = asyncio.create_task(self._ask_instance_id())
            # Whoever asks hears of the failure; if nobody waits any more, that is no news.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._instance_id = (loop.time() + _INSTANCE_ID_FRESH, task)
        return await asyncio.shield(self._instance_id[1])

    def _instance_id_is_good(self, now: float) -> bool:
        assert self._instance_id is not None
        until, task = self._instance_id
        if not task.done():
            return True
        return now < until and not task.cancelled() and task.exception() is None

    async def _ask_instance_id(self) -> str:
        status, body = await self._get_instance_id()
        if status == 401:
            # The token has expired, or the instance wants IMDSv2 and there was none yet.
            self._token = None
            status, body = await self._get_instance_id()
        if status != 200:
            raise UpstreamFailed(f"the instance metadata service answers {status} for the instance id")
        return body.strip()

    async def _get_instance_id(self) -> tuple[int, str]:
        if self._token is None:
            status, token = await self._ask("PUT", "/latest/api/token", [_TOKEN_LIFETIME])
            # Anything but a token means a service that knows IMDSv1 only; header values have no line ends.
            self._token = token.strip() if status == 200 else ""
        headers = [("X-aws-ec2-metadata-token", self._token)] if self._token else []
        return await self._ask("GET", "/latest/meta-data/instance-id", headers)

    async def _ask(self, method: str, path: str, headers: list[tuple[str, str]]) -> tuple[int, str]:
        response = await self.send(method, path, "", headers, b"")
        try:
            async with response:
                body = await response.content.read(_LONGEST_ID)
                return response.status, body.decode("ascii", "replace")
        except (aiohttp.ClientError, TimeoutError):
            raise UpstreamFailed("the instance metadata service broke off its answer") from None
