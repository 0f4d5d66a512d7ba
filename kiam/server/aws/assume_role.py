"""AssumeRole calls: in threads, timed, counted, and with one kind of failure."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor

from kiam.clocks import Clock
from kiam.identity import Identity
from kiam.server.aws.contract import STS, THROTTLING, Issued, STSError
from kiam.server.aws.lifetime import format_time
from kiam.server.aws.metrics import Metrics

log = logging.getLogger(__name__)


class AssumeRole:
    """Makes at most ``at_once`` calls at a time; more wait for a thread."""

    def __init__(self, sts: STS, at_once: int, metrics: Metrics, clock: Clock) -> None:
        self._sts = sts
        self._metrics = metrics
        self._clock = clock
        self._pool = ThreadPoolExecutor(at_once, thread_name_prefix="sts")
        self.made = self.failed = self.throttled = 0
        """Calls since the start; of those, which failed, and with which AWS asks to be asked less."""

    async def call(self, identity: Identity) -> Issued:
        """Credentials that are good now. Raises STSError, whatever went wrong."""
        self.made += 1
        try:
            with self._metrics.current.track_inprogress(), self._metrics.timing.time():
                issued = await self._call(identity)
            if issued.expires.timestamp() <= self._clock.wall():
                ended = format_time(issued.expires)
                raise STSError("Expired", f"STS gave credentials that expired at {ended}; is the server's clock right?")
        except STSError as error:
            self._metrics.errors.inc()
            self.failed += 1
            self.throttled += error.code in THROTTLING
            raise
        return issued

    def close(self) -> None:
        """Begin no further call; what is under way is left to itself."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _call(self, identity: Identity) -> Issued:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, self._sts.assume_role, identity)
        except STSError:
            raise
        except Exception as error:
            log.exception("AssumeRole failed in an unforeseen way: %s", identity.role_arn)
            raise STSError(type(error).__name__, "internal error, see the server's log") from error
