"""Credentials of the roles that pods are annotated with: fetched before they are asked for, renewed before they expire.

All pods with one identity share one AssumeRole call, its credentials, and the wait after a refusal.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from tenacity import RetryCallState, Retrying, wait_exponential_jitter

from kiam.identity import Identity
from kiam.metrics import LATENCY_BUCKETS
from kiam.rpc import kiam_pb2
from kiam.server.aws.sts import STS, THROTTLING, Issued, STSError

log = logging.getLogger(__name__)

REFUSED_BACKOFF = wait_exponential_jitter(multiplier=2, max=60, jitter=1)
"""Seconds between calls for one identity after AWS said no: a new role or trust policy takes AWS seconds to spread."""
THROTTLED_BACKOFF = wait_exponential_jitter(multiplier=4, max=120, jitter=4)
UNREACHABLE_BACKOFF = wait_exponential_jitter(multiplier=0.5, max=30, jitter=0.5)
_RETRYING = Retrying()

URGENT, BACKGROUND = 0, 1


class CredentialsUnavailableError(Exception):
    """There are none, for a reason that pods may be told."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds until STS is asked again."""


@dataclass(frozen=True, slots=True)
class Held:
    """Credentials held, and their document as every call and stream sends it."""

    expires_at: float
    """Unix time."""
    message: kiam_pb2.Credentials


class Metrics:
    """Conventional kiam's metrics of its credentials cache and of STS."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        """Register them."""
        self.size = Gauge("kiam_sts_cacheSize", "Credentials held.", registry=registry)
        self.hits = Counter("kiam_sts_cache_hit", "Requests answered with credentials held.", registry=registry)
        self.misses = Counter("kiam_sts_cache_miss", "Requests that had to wait for STS.", registry=registry)
        self.errors = Counter("kiam_sts_issuing_errors", "AssumeRole calls that failed.", registry=registry)
        self.timing = Histogram(
            "kiam_sts_assumerole_timing_seconds",
            "Duration of AssumeRole calls.",
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        self.current = Gauge("kiam_sts_assumerole_current", "AssumeRole calls under way.", registry=registry)


class _Entry:
    """All there is to one identity."""

    __slots__ = ("failed_until", "failures", "held", "identity", "message", "outcome", "queued", "timer", "wanted")

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.held: Held | None = None
        self.wanted = False
        self.queued: int | None = None
        self.outcome: asyncio.Future[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.failures = 0
        self.failed_until = 0.0
        self.message = ""


class CredentialsManager:
    """The credentials of all identities, with at most ``fetchers`` AssumeRole calls at a time.

    Used on the event loop only; STS's blocking calls run in threads. :meth:`run` does the fetching.
    """

    def __init__(
        self, sts: STS, fetchers: int, refresh: timedelta, metrics: Metrics, now: Callable[[], float] = time.time
    ) -> None:
        """``refresh``: how long before their expiry credentials are renewed at the latest (``--session-refresh``)."""
        self._sts = sts
        self._fetchers = fetchers
        self._refresh = refresh.total_seconds()
        self._metrics = metrics
        self._now = now
        self._entries: dict[Identity, _Entry] = {}
        self._queue: asyncio.PriorityQueue[tuple[int, int, _Entry]] = asyncio.PriorityQueue()
        self._ticket = 0
        self._on_issued: list[Callable[[Identity], None]] = []
        self._on_failed: list[Callable[[Identity], None]] = []
        metrics.size.set_function(lambda: sum(1 for entry in list(self._entries.values()) if entry.held))

    def listen(self, issued: Callable[[Identity], None], failed: Callable[[Identity], None]) -> None:
        """Have it told, on the event loop, when an identity's credentials are issued or a call for them fails."""
        self._on_issued.append(issued)
        self._on_failed.append(failed)

    async def run(self) -> None:
        """Fetch what is wanted, for ever."""
        pool = ThreadPoolExecutor(self._fetchers, thread_name_prefix="sts")
        try:
            async with asyncio.TaskGroup() as fetchers:
                for _ in range(self._fetchers):
                    fetchers.create_task(self._fetch_queued(pool))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def peek(self, identity: Identity) -> kiam_pb2.Credentials | None:
        """The credentials held and not expired. Never any other: what has expired would only fail in the pod."""
        entry = self._entries.get(identity)
        if entry is None or entry.held is None or entry.held.expires_at <= self._now():
            return None
        return entry.held.message

    def count_hit(self) -> None:
        """Credentials that :meth:`peek` found were given to a pod."""
        self._metrics.hits.inc()

    def failure(self, identity: Identity) -> CredentialsUnavailableError | None:
        """Why there are no (new) credentials, while STS is left alone after a failure."""
        entry = self._entries.get(identity)
        if entry is None or not entry.failures:
            return None
        return CredentialsUnavailableError(entry.message, max(entry.failed_until - time.monotonic(), 0.0))

    async def get(self, identity: Identity) -> kiam_pb2.Credentials:
        """The identity's credentials: held, or issued now by a call that all who ask share.

        Raises CredentialsUnavailableError: at once while STS is left alone after a failure.
        """
        held = self.peek(identity)
        if held is not None:
            self.count_hit()
            return held
        self._metrics.misses.inc()
        entry = self._entry(identity)
        if entry.failures and time.monotonic() < entry.failed_until:
            raise CredentialsUnavailableError(entry.message, entry.failed_until - time.monotonic())
        await asyncio.shield(self._enqueue(entry, URGENT))
        held = self.peek(identity)
        if held is None:
            raise CredentialsUnavailableError(entry.message, max(entry.failed_until - time.monotonic(), 0.0))
        return held

    def want(self, identity: Identity) -> None:
        """Have credentials ready from now on, whoever asks."""
        entry = self._entry(identity)
        if entry.wanted:
            return
        entry.wanted = True
        if self.peek(identity) is None:
            if time.monotonic() >= entry.failed_until:
                self._enqueue(entry, BACKGROUND)
        elif entry.held is not None:
            self._set_timer(entry, renewal_delay(entry.held.expires_at - self._now(), self._refresh))

    def unwant(self, identity: Identity) -> None:
        """No active pod is left: renew no more, and forget the credentials when they have expired."""
        entry = self._entries.get(identity)
        if entry is None:
            return
        entry.wanted = False
        if entry.outcome is None:
            self._set_timer(entry, self._time_left(entry))

    def _entry(self, identity: Identity) -> _Entry:
        entry = self._entries.get(identity)
        if entry is None:
            entry = self._entries[identity] = _Entry(identity)
        return entry

    def _enqueue(self, entry: _Entry, urgency: int) -> asyncio.Future[None]:
        """Put an entry in the queue, or further ahead; the future is done when its call is, well or not."""
        if entry.outcome is None:
            entry.outcome = asyncio.get_running_loop().create_future()
        elif entry.queued is None or entry.queued <= urgency:
            return entry.outcome
        entry.queued = urgency
        self._ticket += 1
        self._queue.put_nowait((urgency, self._ticket, entry))
        return entry.outcome

    async def _fetch_queued(self, pool: ThreadPoolExecutor) -> None:
        while True:
            urgency, _, entry = await self._queue.get()
            # An entry that was moved ahead is in the queue twice.
            if entry.queued != urgency or entry.outcome is None:
                continue
            entry.queued = None
            if urgency == URGENT or entry.wanted:
                await self._fetch(pool, entry)
            else:
                self._set_timer(entry, self._time_left(entry))
            outcome, entry.outcome = entry.outcome, None
            outcome.set_result(None)

    async def _fetch(self, pool: ThreadPoolExecutor, entry: _Entry) -> None:
        with self._metrics.current.track_inprogress(), self._metrics.timing.time():
            try:
                issued = await asyncio.get_running_loop().run_in_executor(pool, self._sts.assume_role, entry.identity)
            except STSError as error:
                failure: STSError | None = error
            except Exception as error:
                log.exception("AssumeRole failed in an unforeseen way: %s", entry.identity.role_arn)
                failure = STSError(type(error).__name__, "internal error, see the server's log")
            else:
                failure = None
        if failure is None and issued.expires.timestamp() <= self._now():
            failure = STSError(
                "Expired",
                f"STS gave credentials that expired at {format_time(issued.expires)}; is the server's clock right?",
            )
        if failure is None:
            self._take(entry, issued)
        else:
            self._back_off(entry, failure)

    def _take(self, entry: _Entry, issued: Issued) -> None:
        entry.held = Held(issued.expires.timestamp(), _document(issued))
        entry.failures, entry.failed_until, entry.message = 0, 0.0, ""
        lifetime = entry.held.expires_at - self._now()
        log.info(
            "credentials issued", extra={"role": entry.identity.role_arn, "expires": entry.held.message.expiration}
        )
        self._set_timer(entry, renewal_delay(lifetime, self._refresh) if entry.wanted else max(lifetime, 0.0))
        for listener in self._on_issued:
            listener(entry.identity)

    def _back_off(self, entry: _Entry, error: STSError) -> None:
        self._metrics.errors.inc()
        entry.failures += 1
        entry.message = str(error)
        delay = backoff_delay(error.code, entry.failures)
        entry.failed_until = time.monotonic() + delay
        log.warning(
            "no credentials: %s", error, extra={"role": entry.identity.role_arn, "retry_after": f"{delay:.1f}s"}
        )
        self._set_timer(entry, delay)
        for listener in self._on_failed:
            listener(entry.identity)

    def _set_timer(self, entry: _Entry, delay: float) -> None:
        if entry.timer is not None:
            entry.timer.cancel()
        entry.timer = asyncio.get_running_loop().call_later(delay, self._due, entry)

    def _due(self, entry: _Entry) -> None:
        """Time to renew, to ask again after a failure, or to forget."""
        entry.timer = None
        if entry.outcome is not None:
            return
        if entry.wanted:
            self._enqueue(entry, BACKGROUND)
        elif left := self._time_left(entry):
            self._set_timer(entry, left)
        else:
            self._entries.pop(entry.identity, None)

    def _time_left(self, entry: _Entry) -> float:
        """Seconds for which an entry that nobody wants is kept: while its credentials are good, or STS is left alone.

        Pods that come and go must not make the server forget that AWS has just refused their role.
        """
        good = entry.held.expires_at - self._now() if entry.held else 0.0
        return max(good, entry.failed_until - time.monotonic(), 0.0)


def renewal_delay(lifetime: float, refresh: float) -> float:
    """Seconds until credentials with so many to live are renewed: before the last ``refresh`` of them begin.

    Up to a tenth earlier, so that credentials issued together aren't renewed together. Credentials that live no
    longer than ``refresh`` are renewed in the middle of their life.
    """
    spread = random.uniform(0.9, 1.0)  # noqa: S311  # spreads load, keeps no secret
    return max((lifetime - refresh if lifetime > refresh else lifetime / 2) * spread, 1.0)


def backoff_delay(code: str, failures: int) -> float:
    """Seconds to leave STS alone about an identity, after so many failures in a row."""
    state = RetryCallState(_RETRYING, None, (), {})
    state.attempt_number = failures
    if code in THROTTLING:
        return float(THROTTLED_BACKOFF(state))
    # botocore's own errors (no connection, timeout) are named after their class: EndpointConnectionError, ...
    if code.endswith(("Error", "Unavailable", "InternalFailure")):
        return float(UNREACHABLE_BACKOFF(state))
    return float(REFUSED_BACKOFF(state))


def format_time(moment: datetime) -> str:
    """A time (UTC) as instance metadata writes it."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _document(issued: Issued) -> kiam_pb2.Credentials:
    return kiam_pb2.Credentials(
        code="Success",
        type="AWS-HMAC",
        access_key_id=issued.access_key_id,
        secret_access_key=issued.secret_access_key,
        token=issued.token,
        expiration=format_time(issued.expires),
        last_updated=format_time(issued.issued),
    )
