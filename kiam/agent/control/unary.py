"""One gRPC call for each question, as the conventional agent asks; the server decides."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from grpc import aio

from kiam.agent.control.channel import ServerClient, is_cancelled
from kiam.agent.control.grpc_errors import ANSWERED_NOT_READY, Understand, understand, understand_token_error
from kiam.agent.core.failures import (
    Forbidden,
    NoRole,
    NotYetKnown,
    RequestFailure,
    ServerAway,
    empty_role,
    server_away,
)
from kiam.agent.core.rendering import render_container_credentials, render_credentials
from kiam.clocks import Clock
from kiam.pauses import growing
from kiam.rpc import kiam_pb2

log = logging.getLogger(__name__)

T = TypeVar("T")

_PROVE = (("kiam-prove", "1"),)
"""Asks our server how old its word is; others don't know it."""
_AGE_OF_REFUSAL = "kiam-watch-age-milliseconds"
"""Trailing metadata of an error that is the server's word on the pod at the address."""
_FIRST_RETRY = 0.005
"""Seconds; doubles from there, as in the conventional agent."""
_LONGEST_RETRY = 0.5
# An error of AWS is told at once: asking again would be one more AssumeRole call, and the pod's SDK asks again itself.
_WORTH_ASKING_AGAIN = (NotYetKnown, ServerAway)


@dataclass(frozen=True, slots=True)
class Word:
    """The server's word on one question."""

    body: bytes
    asked_at: float
    """When it was asked, by :meth:`kiam.clocks.Clock.elapsed`."""
    age: float | None
    """Seconds before which the server's watch was last proved to be up to date; None: it doesn't say."""
    refusal: RequestFailure | None = None
    """Told instead of the body, if the word is believed: it may be about the pod that had the address before."""


class _RefusedError(Exception):
    """A word that is a refusal."""

    def __init__(self, word: Word, failure: RequestFailure) -> None:
        super().__init__(failure)
        self.word, self.failure = word, failure


def _number(metadata: Iterable[tuple[str, str | bytes]], name: str) -> int | None:
    """A whole number of our server's trailing metadata; None: it didn't say."""
    for key, value in metadata:
        if key == name and isinstance(value, str) and value.isdecimal():
            return int(value)
    return None


class UnaryCalls:
    """GetPodRole, GetPodCredentials and GetHealth. Deadlines are in seconds of the event loop's clock.

    All raise :class:`kiam.agent.core.failures.RequestFailure`.
    """

    def __init__(self, client: ServerClient, clock: Clock) -> None:
        self._client = client
        self._clock = clock

    async def role(self, address: str, deadline: float) -> Word:
        """GetPodRole, asked again until the pod is known."""
        request = kiam_pb2.GetPodRoleRequest(ip=address)
        role: kiam_pb2.Role
        role, asked_at = await self._call(lambda: self._client.stub.GetPodRole, request, deadline)
        return Word(role.name.encode(), asked_at, _age(role), None if role.name else empty_role())

    async def credentials(self, address: str, role: str, deadline: float) -> Word:
        """GetPodCredentials, asked again until the pod is known."""
        request = kiam_pb2.GetPodCredentialsRequest(ip=address, role=role)
        credentials: kiam_pb2.Credentials
        try:
            credentials, asked_at = await self._call(lambda: self._client.stub.GetPodCredentials, request, deadline)
        except _RefusedError as error:
            return error.word
        return Word(render_credentials(credentials), asked_at, _age(credentials))

    async def report(self, address: str, role: str, deadline: float) -> None:
        """Let the server see what was refused here already, once; its answer is of no interest."""
        request = kiam_pb2.GetPodCredentialsRequest(ip=address, role=role)
        # No proof is asked for: a pod that makes up roles would have the server ask the API for each.
        with contextlib.suppress(_RefusedError):
            await self._once(self._client.stub.GetPodCredentials, request, deadline, understand, metadata=())

    async def container_credentials(self, token: str, address: str, uid: str, deadline: float) -> bytes:
        """GetContainerCredentials, asked again until the pod is known; the document that SDKs expect."""
        request = kiam_pb2.GetContainerCredentialsRequest(token=token, ip=address, pod_uid=uid)
        answer: kiam_pb2.ContainerCredentials
        try:
            answer, _ = await self._call(
                lambda: self._client.stub.GetContainerCredentials, request, deadline, understand_token_error
            )
        except _RefusedError as error:
            raise error.failure from None
        return render_container_credentials(answer)

    async def server_health(self, deadline: float) -> str:
        """GetHealth, once. A server that isn't ready says why as an error, or, up to version 5.0, as its message."""
        left = max(deadline - asyncio.get_running_loop().time(), 0.001)
        try:
            status: kiam_pb2.HealthStatus = await self._client.stub.GetHealth(
                kiam_pb2.GetHealthRequest(), timeout=left, wait_for_ready=True
            )
        except aio.AioRpcError as error:
            if error.code() in ANSWERED_NOT_READY:
                return error.details() or error.code().name
            raise self._understood(error) from None
        return status.message

    async def _call(
        self,
        method: Callable[[], Callable[..., Awaitable[T]]],
        request: Any,
        deadline: float,
        understand: Understand = understand,
    ) -> tuple[T, float]:
        try:
            return await self._once(method(), request, deadline, understand)
        except _WORTH_ASKING_AGAIN:
            pass
        loop = asyncio.get_running_loop()
        pauses = growing(_FIRST_RETRY, _LONGEST_RETRY)
        while True:
            try:
                # The method is taken anew each time: the certificates may have been replaced meanwhile.
                return await self._once(method(), request, deadline, understand)
            except _WORTH_ASKING_AGAIN:
                pause = next(pauses)
                if loop.time() + pause >= deadline:
                    raise
            await asyncio.sleep(pause)

    async def _once(
        self,
        method: Callable[..., Awaitable[T]],
        request: Any,
        deadline: float,
        understand: Understand,
        metadata: tuple[tuple[str, str], ...] = _PROVE,
    ) -> tuple[T, float]:
        """The answer, and when it was asked for. Raises _RefusedError where the server says no."""
        left = deadline - asyncio.get_running_loop().time()
        asked_at = self._clock.elapsed()
        try:
            # wait_for_ready: a server that isn't there yet is waited for, and asked the moment it is.
            return await method(request, timeout=max(left, 0.001), wait_for_ready=True, metadata=metadata), asked_at
        except aio.AioRpcError as error:
            failure = self._understood(error, understand)
            if isinstance(failure, (Forbidden, NoRole)):
                word = Word(b"", asked_at, _age_of_refusal(error.trailing_metadata()), failure)
                raise _RefusedError(word, failure) from None
            raise failure from None
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            raise server_away() from None

    def _understood(self, error: aio.AioRpcError, understand: Understand = understand) -> RequestFailure:
        failure = understand(
            error.code(),
            error.details() or "",
            _number(error.trailing_metadata(), "retry-after"),
            self._client.reachable,
        )
        log.debug("server: %s %s: %s", error.code().name, error.details(), failure)
        return failure


def _age(answer: kiam_pb2.Role | kiam_pb2.Credentials) -> float | None:
    return answer.watch_age_milliseconds / 1000 if answer.HasField("watch_age_milliseconds") else None


def _age_of_refusal(metadata: Iterable[tuple[str, str | bytes]]) -> float | None:
    age = _number(metadata, _AGE_OF_REFUSAL)
    return None if age is None else age / 1000
