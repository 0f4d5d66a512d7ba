"""The real instance metadata service, as the agent asks it."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from importlib import import_module
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from kiam.agent.core.failures import UpstreamFailed
from kiam.agent.http.messages import TOKEN_FIELD

if TYPE_CHECKING:
    from aiohttp import ClientSession

log = logging.getLogger(__name__)

_TOKEN_LIFETIME = ("X-aws-ec2-metadata-token-ttl-seconds", "21600")
_CONNECT_SECONDS = 1.0
_CONNECTIONS = 32
"""Connections to the service: it limits the whole instance to some 1,000 packets a second (Amazon EC2 user guide)."""
_INSTANCE_ID_FRESH = 1.0
"""Seconds an instance id is good for /health: pods can reach it too, and may not make us flood the service."""
_LONGEST_TOKEN = 1024
_LONGEST_ID = 256

Fields = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the service answered."""

    status: int
    fields: tuple[tuple[str, str], ...]
    body: bytes


class InstanceMetadata:
    """A client of the real service. An async context manager."""

    def __init__(self, url: str, timeout: float) -> None:
        """``timeout`` is for a whole request, in seconds."""
        self._url = url.rstrip("/")
        self._timeout = timeout
        self._session: ClientSession | None = None
        self._opening = asyncio.Lock()
        self._token: str | None = None
        self._instance_id: tuple[float, asyncio.Task[str]] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def send(self, method: str, path: str, query: str, fields: Fields, body: bytes, longest: int) -> Answer:
        """Send one request. The path must be canonical: it is sent as it is. ``longest`` bounds the answer, in bytes.

        Raises UpstreamFailed.
        """
        session, aiohttp = await self._open()
        url = _url(f"{self._url}{path}{'?' + query if query else ''}")
        try:
            async with session.request(
                method, url, headers=fields, data=body or None, allow_redirects=False, max_redirects=0
            ) as response:
                chunks = bytearray()
                async for chunk in response.content.iter_any():
                    chunks += chunk
                    if len(chunks) > longest:
                        raise UpstreamFailed("the instance metadata service's answer is too large")
                got = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in response.raw_headers)
                return Answer(response.status, got, bytes(chunks))
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            log.warning("instance metadata service: %s %s: %s", method, path, str(error) or type(error).__name__)
            raise UpstreamFailed("the instance metadata service doesn't answer") from None

    async def send_with_token(
        self, method: str, path: str, query: str, fields: Fields, body: bytes, longest: int
    ) -> Answer:
        """As :meth:`send`, with a session token of the agent's own where the service gives one."""
        for _ in range(2):
            token = await self._own_token()
            own = [(TOKEN_FIELD, token)] if token else []
            answer = await self.send(method, path, query, [*fields, *own], body, longest)
            if answer.status != 401:
                break
            if self._token == token:
                # It has expired, or the instance wants IMDSv2 and there was none yet.
                self._token = None
        return answer

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
        answer = await self.send_with_token("GET", "/latest/meta-data/instance-id", "", [], b"", _LONGEST_ID)
        if answer.status != 200:
            raise UpstreamFailed(f"the instance metadata service answers {answer.status} for the instance id")
        return answer.body.decode("ascii", "replace").strip()

    async def _own_token(self) -> str:
        if self._token is None:
            answer = await self.send("PUT", "/latest/api/token", "", [_TOKEN_LIFETIME], b"", _LONGEST_TOKEN)
            # Anything but a token means a service that knows IMDSv1 only; header values have no line ends.
            self._token = answer.body.decode("ascii", "replace").strip() if answer.status == 200 else ""
        return self._token

    async def _open(self) -> tuple[ClientSession, Any]:
        """The client's session and its library, which is loaded when it is first needed: on most nodes never."""
        async with self._opening:
            # In a thread, as it takes longer than a pod's answer may.
            aiohttp = _library() if self._session is not None else await asyncio.to_thread(_library)
            if self._session is None:
                self._session = aiohttp.ClientSession(
                    # No proxy from the environment, no cookie and no decoding comes between a pod and the service.
                    trust_env=False,
                    cookie_jar=aiohttp.DummyCookieJar(),
                    auto_decompress=False,
                    connector=aiohttp.TCPConnector(limit=_CONNECTIONS, keepalive_timeout=15.0),
                    timeout=aiohttp.ClientTimeout(total=self._timeout, sock_connect=_CONNECT_SECONDS),
                    skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
                )
            return self._session, aiohttp


def _url(text: str) -> Any:
    # encoded=True: what was matched is what is sent, byte for byte.
    return import_module("yarl").URL(text, encoded=True)


def _library() -> Any:
    return import_module("aiohttp")
