"""Credentials of the roles that pods are annotated with: fetched before they are asked for, renewed before they expire.

All pods with one identity share one AssumeRole call, its credentials, and the wait after a refusal.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import timedelta

from kiam.clocks import Clock, SystemClock
from kiam.identity import Identity
from kiam.rpc import kiam_pb2
from kiam.server.aws.alarms import Alarms
from kiam.server.aws.assume_role import AssumeRole
from kiam.server.aws.contract import STS, Issued, STSError
from kiam.server.aws.entry import CredentialsUnavailableError, Entry
from kiam.server.aws.lifetime import backoff_delay, hold
from kiam.server.aws.metrics import Metrics
from kiam.server.aws.report import Calls, RoleReport, report
from kiam.server.fair_queue import FairQueue

log = logging.getLogger(__name__)

URGENT, BACKGROUND = 0, 1
LATE_PATIENCE = 1.0
"""Seconds that a pod waits for newer credentials when those held are good but have little time left."""


class CredentialsManager:
    """The credentials of all identities, with at most ``fetchers`` AssumeRole calls at a time.

    Who waits goes first; what is fetched ahead, and also those who wait, go by namespaces in turn. Used on the event
    loop only; STS's blocking calls run in threads. :meth:`run` does the fetching.
    """

    def __init__(
        self,
        sts: STS,
        fetchers: int,
        refresh: timedelta,
        longest: timedelta,
        metrics: Metrics,
        clock: Clock | None = None,
    ) -> None:
        """``refresh``: how long before their expiry credentials are renewed at the latest (``--session-refresh``).

        ``longest``: what STS is asked for (``--session-duration``), and so the longest that anything lives.
        """
        self._calls = AssumeRole(sts, fetchers, metrics, clock or SystemClock())
        self._fetchers = fetchers
        self._refresh = refresh
        self._longest = longest
        self._metrics = metrics
        self._clock = clock or SystemClock()
        self._entries: dict[Identity, Entry] = {}
        self._queue: FairQueue[Entry] = FairQueue()
        self._running = {URGENT: 0, BACKGROUND: 0}
        """Calls under way."""
        self._may_start = asyncio.Event()
        self._alarms: Alarms[Identity] = Alarms(self._clock, self._due, self._clock_was_set)
        self._on_issued: list[Callable[[Identity], None]] = []
        self._on_failed: list[Callable[[Identity], None]] = []
        metrics.size.set_function(lambda: sum(1 for entry in list(self._entries.values()) if entry.held))

    def listen(self, issued: Callable[[Identity], None], failed: Callable[[Identity], None]) -> None:
        """Have it told, on the event loop, when an identity's credentials are issued or a call for them fails."""
        self._on_issued.append(issued)
        self._on_failed.append(failed)

    async def run(self) -> None:
        """Fetch what is wanted, for ever."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._alarms.run())
                while True:
                    await self._may_start.wait()
                    self._may_start.clear()
                    while self._has_room():
                        urgency, entry = self._queue.pop()
                        # One that was moved ahead, or that several namespaces want, is in the queue more than once.
                        if entry.queued == urgency and entry.outcome is not None:
                            entry.queued = None
                            self._running[urgency] += 1
                            tasks.create_task(self._fetch_queued(entry, entry.outcome, urgency))
        finally:
            self._calls.close()

    @property
    def calls(self) -> Calls:
        """AssumeRole calls so far."""
        calls = self._calls
        return Calls(calls.made, calls.failed, calls.throttled, sum(self._running.values()))

    def reports(self) -> list[RoleReport]:
        """How each identity is doing."""
        return [report(entry, self._clock) for entry in self._entries.values()]

    def peek(self, identity: Identity) -> kiam_pb2.Credentials | None:
        """The credentials held and not expired. Never any other: what has expired would only fail in the pod."""
        entry = self._entries.get(identity)
        return (
            entry.held.message if entry is not None and entry.held is not None and entry.left(self._clock) > 0 else None
        )

    def ready(self, identity: Identity) -> kiam_pb2.Credentials | None:
        """The credentials held, unless they have little time left and newer ones may be had."""
        entry = self._entries.get(identity)
        if entry is None or (entry.is_late(self._clock) and not entry.is_left_alone(self._clock)):
            return None
        return self.peek(identity)

    def count_hit(self) -> None:
        """Credentials that were :meth:`ready` were given to a pod."""
        self._metrics.hits.inc()

    def count_push(self, identity: Identity) -> None:
        """Credentials held were sent to a node."""
        entry = self._entries.get(identity)
        (self._metrics.misses if entry is not None and entry.waited else self._metrics.hits).inc()

    def failure(self, identity: Identity) -> CredentialsUnavailableError | None:
        """Why there are no (new) credentials, while STS is left alone after a failure."""
        entry = self._entries.get(identity)
        return None if entry is None or not entry.failures else entry.unavailable(self._clock)

    async def get(self, identity: Identity, namespace: str = "") -> kiam_pb2.Credentials:
        """The identity's credentials for a pod that waits: held, or issued now by a call that all who ask share.

        Raises CredentialsUnavailableError: at once while STS is left alone after a failure.
        """
        ready = self.ready(identity)
        if ready is not None:
            self.count_hit()
            return ready
        self._metrics.misses.inc()
        entry = self._entry(identity)
        if entry.is_left_alone(self._clock):
            raise entry.unavailable(self._clock)
        outcome = self._enqueue(entry, URGENT, namespace)
        if self.peek(identity) is None:
            await asyncio.shield(outcome)
        else:
            await asyncio.wait({outcome}, timeout=LATE_PATIENCE)
        held = self.peek(identity)
        if held is None:
            raise entry.unavailable(self._clock)
        return held

    def want(self, identity: Identity, namespace: str = "", settle: float = 0.0) -> None:
        """Have credentials ready from now on for pods of a namespace, whoever asks.

        ``settle``: fetch them only if they are still wanted after so many seconds, or a pod waits.
        """
        entry = self._entry(identity)
        if namespace in entry.namespaces:
            return
        if not entry.namespaces:
            entry.settled_at = self._clock.elapsed() + settle
        entry.namespaces[namespace] = None
        if entry.queued == BACKGROUND:
            self._line_up(entry, namespace)
        self._schedule(entry)

    def unwant(self, identity: Identity, namespace: str = "") -> None:
        """A namespace has no such pod left. Without any: renew no more, and forget the credentials at their end."""
        entry = self._entries.get(identity)
        if entry is not None:
            entry.namespaces.pop(namespace, None)
            self._schedule(entry)

    def _entry(self, identity: Identity) -> Entry:
        entry = self._entries.get(identity)
        if entry is None:
            entry = self._entries[identity] = Entry(identity)
        return entry

    def _enqueue(self, entry: Entry, urgency: int, *namespaces: str) -> asyncio.Future[None]:
        """Put an entry in the queue, or further ahead; the future is done when its call is, well or not."""
        if entry.outcome is None:
            entry.outcome = asyncio.get_running_loop().create_future()
        elif entry.queued is None or entry.queued < urgency:
            return entry.outcome
        if entry.queued != urgency:
            entry.queued = urgency
            entry.lines.clear()
        self._alarms.cancel(entry.identity)
        self._line_up(entry, *namespaces)
        return entry.outcome

    def _line_up(self, entry: Entry, *namespaces: str) -> None:
        """Have a queued entry's turn come with that of each namespace, so that none waits for another's."""
        assert entry.queued is not None, "it has been put in the queue"
        for namespace in set(namespaces) - entry.lines:
            entry.lines.add(namespace)
            self._queue.put(entry.queued, namespace, entry)
        self._may_start.set()

    def _has_room(self) -> bool:
        """Whether the next in the queue may be fetched now. One call of all is kept for those who wait."""
        if not len(self._queue) or sum(self._running.values()) >= self._fetchers:
            return False
        return self._queue.urgency == URGENT or self._running[BACKGROUND] < max(self._fetchers - 1, 1)

    async def _fetch_queued(self, entry: Entry, outcome: asyncio.Future[None], urgency: int) -> None:
        if urgency == URGENT or entry.namespaces:
            await self._fetch(entry, urgency)
        entry.outcome = None
        outcome.set_result(None)
        self._running[urgency] -= 1
        self._may_start.set()
        self._schedule(entry)

    async def _fetch(self, entry: Entry, urgency: int) -> None:
        try:
            issued = await self._calls.call(entry.identity)
        except STSError as error:
            self._back_off(entry, error)
        else:
            entry.waited = urgency == URGENT
            self._take(entry, issued)

    def _take(self, entry: Entry, issued: Issued) -> None:
        entry.held = hold(issued, self._refresh, self._longest, self._clock)
        entry.failures, entry.failed_until, entry.message = 0, 0.0, ""
        log.info(
            "credentials issued",
            extra={"pod.iam.role": entry.identity.role_arn, "expires": entry.held.message.expiration},
        )
        for listener in self._on_issued:
            listener(entry.identity)

    def _back_off(self, entry: Entry, error: STSError) -> None:
        entry.failures += 1
        entry.message = str(error)
        delay = backoff_delay(error.code, entry.failures)
        entry.failed_until = self._clock.elapsed() + delay
        log.warning(
            "no credentials: %s", error, extra={"pod.iam.role": entry.identity.role_arn, "retry_after": f"{delay:.1f}s"}
        )
        for listener in self._on_failed:
            listener(entry.identity)

    def _clock_was_set(self) -> None:
        for entry in list(self._entries.values()):
            self._schedule(entry)

    def _due(self, identity: Identity) -> None:
        """Time to renew, to ask again after a failure, or to forget."""
        entry = self._entries.get(identity)
        if entry is not None:
            self._schedule(entry)

    def _schedule(self, entry: Entry) -> None:
        """Do what is due about an entry, or set the alarm for when something will be."""
        if entry.outcome is not None:
            return
        seconds = entry.seconds_until_due(self._clock)
        if seconds > 0:
            self._alarms.set(entry.identity, seconds)
        elif entry.namespaces:
            self._enqueue(entry, BACKGROUND, *entry.namespaces)
        else:
            self._alarms.cancel(entry.identity)
            del self._entries[entry.identity]
