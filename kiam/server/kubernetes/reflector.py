"""Keeps a store equal to what the Kubernetes API has, by list and watch.

Follows https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes: list in pages,
watch from the list's resourceVersion, take bookmarks, list again when the version is too old (410).
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, Protocol, TypeVar

import msgspec
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from kiam.server.kubernetes.api import KubeApi, KubeError
from kiam.server.kubernetes.freshness import Freshness
from kiam.server.kubernetes.objects import UNREADABLE, WireBookmark, WireEvent, WireStatus
from kiam.server.kubernetes.resources import Resource

log = logging.getLogger(__name__)

LongT = TypeVar("LongT")

PAGE_LIMIT = 500
PAGE_BYTES = 1 << 20
"""A page is decoded in one go, and 1 MiB takes some milliseconds; a longer page makes the next one ask for less."""
MINIMUM_PAGE_LIMIT = 20
SLICE_SECONDS = 0.005
"""After so long the event loop gets its turn."""
WATCH_GRACE = 15.0
"""Seconds a watch may outlive the time it was asked for, before it counts as dead."""
SHORTEST_WATCH = 1.0
LONGEST_LINE = 8 << 20
"""etcd takes objects of 1.5 MiB; a longer line is no object."""
BACKOFF = wait_random_exponential(multiplier=0.2, max=30)


class Store(Protocol):
    """Where objects go."""

    def put(self, item: Any) -> None:
        """Take over an object as it is now."""

    def remove(self, uid: str) -> None:
        """Forget an object."""

    def uids(self) -> set[str]:
        """Those of all objects kept."""


_EVENT = msgspec.json.Decoder(WireEvent)
_BOOKMARK = msgspec.json.Decoder(WireBookmark)
_STATUS = msgspec.json.Decoder(WireStatus)


class _TooOldError(Exception):
    """The resourceVersion is gone (410): only a new list helps."""


class Reflector:
    """One resource's list and watch, for ever."""

    def __init__(
        self,
        api: KubeApi,
        resource: Resource,
        store: Store,
        watch_seconds: float,
        freshness: Freshness | None = None,
        stale_after: float = float("inf"),
    ) -> None:
        """``watch_seconds``: how long one watch lasts (``--sync``), and so how long a dead one can go unnoticed.

        ``freshness`` is told of every sign of life. After ``stale_after`` seconds without one, a new list is made: what
        a watch has yet to bring can't be seen from outside.
        """
        self._freshness = freshness or Freshness()
        self._stale_after = stale_after
        self._api = api
        self._resource = resource
        self._store = store
        self._watch_seconds = max(watch_seconds, 1.0)
        self._limit = PAGE_LIMIT
        self.version = ""
        """The resourceVersion reached."""
        self._turn_ends = 0.0
        self.synced = asyncio.Event()
        """Set once the first list is complete."""

    async def run(self) -> None:
        """List, watch, and start over when the watch's version is too old; never ends by itself."""
        while True:
            await self._persist(self._list)
            self.synced.set()
            try:
                while True:
                    await self._persist(self._watch)
            except _TooOldError as error:
                log.info("listing %s again: %s", self._resource.name, error)

    async def _persist(self, step: Callable[[], Awaitable[None]]) -> None:
        """Try a step until it succeeds, waiting longer each time, and as long as the API asks for."""
        await AsyncRetrying(
            retry=retry_if_exception_type((KubeError, *UNREADABLE)), wait=_wait, before_sleep=self._log_failure
        )(step)

    def _log_failure(self, state: RetryCallState) -> None:
        log.warning(
            "%s: %s; trying again in %.1f s",
            self._resource.name,
            state.outcome.exception() if state.outcome else "",
            state.next_action.sleep if state.next_action else 0.0,
        )

    async def _list(self) -> None:
        # What was there before the list and isn't in it has gone. Nothing else can come in meanwhile: the watch that
        # would bring it starts after the list.
        unseen = self._store.uids()
        query = {"limit": str(self._limit)}
        while True:
            body = await self._api.get(self._resource.path, query)
            page = self._resource.page.decode(body)
            await self._yield()
            for wire in page.items or ():
                item = self._resource.read(wire)
                unseen.discard(item.uid)
                self._store.put(item)
                await self._take_turns()
            self._fit_limit(len(body))
            if not page.metadata.continue_:
                break
            query = {"limit": str(self._limit), "continue": page.metadata.continue_}
        for uid in unseen:
            self._store.remove(uid)
            await self._take_turns()
        self.version = page.metadata.resource_version
        self._freshness.heard()

    def _fit_limit(self, size: int) -> None:
        if size > PAGE_BYTES:
            self._limit = max(MINIMUM_PAGE_LIMIT, self._limit * PAGE_BYTES // (2 * size))

    async def _watch(self) -> None:
        """One watch from the version reached so far. Returns when it ends; the next goes on from there.

        A watch that ends with an error after it brought something is no failure to wait after: the version moved on.
        """
        if self._freshness.age > self._stale_after:
            raise _TooOldError("nothing was heard of it for too long")
        started, before = time.monotonic(), self.version
        seconds = self._watch_seconds * random.uniform(0.9, 1.1)  # noqa: S311  # spreads load, keeps no secret
        query = {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": self.version,
            "timeoutSeconds": str(max(int(seconds), 1)),
        }
        try:
            async with self._api.stream(self._resource.path, query, seconds + WATCH_GRACE) as chunks:
                self._freshness.heard()
                rest = b""
                async for chunk in chunks:
                    *lines, rest = (rest + chunk).split(b"\n")
                    if len(rest) > LONGEST_LINE:
                        raise KubeError(f"a watch of {self._resource.name} sent a line over {LONGEST_LINE} bytes")
                    for line in lines:
                        if line.strip():
                            self._apply(line)
                            await self._take_turns()
        except KubeError as error:
            if error.status == HTTPStatus.GONE:
                raise _TooOldError(error) from error
            if self.version == before:
                raise
            log.debug("watch of %s ended: %s", self._resource.name, error)
        else:
            if self.version == before and time.monotonic() - started < SHORTEST_WATCH:
                raise KubeError(f"a watch of {self._resource.name} ended at once")

    def _apply(self, line: bytes) -> None:
        event = _EVENT.decode(line)
        if event.type != "ERROR":
            self._freshness.heard()
        if event.type == "BOOKMARK":
            self.version = _BOOKMARK.decode(event.object).metadata.resource_version
            return
        if event.type == "ERROR":
            status = _STATUS.decode(event.object)
            if status.code == HTTPStatus.GONE or status.reason in ("Expired", "Gone"):
                raise _TooOldError(status.message or status.reason)
            raise KubeError(f"watch of {self._resource.name}: {status.message or status.reason}", status.code or 0)
        wire = self._resource.wire.decode(event.object)
        item = self._resource.read(wire)
        if event.type == "DELETED":
            self._store.remove(item.uid)
        else:
            self._store.put(item)
        self.version = wire.metadata.resource_version

    async def _take_turns(self) -> None:
        if time.monotonic() > self._turn_ends:
            await self._yield()

    async def _yield(self) -> None:
        await asyncio.sleep(0)
        self._turn_ends = time.monotonic() + SLICE_SECONDS


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    return max(BACKOFF(state), error.retry_after if isinstance(error, KubeError) else 0.0)
