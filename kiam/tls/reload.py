"""Following the rotation of certificates without a restart."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from kiam.errors import UserError
from kiam.tls import Fingerprint, TLSFiles, TLSMaterial
from kiam.tls.metrics import TLSMetrics
from kiam.tls.summary import Loader, Side, TLSSummary, format_time

log = logging.getLogger(__name__)

WATCH_INTERVAL = 1.0
"""Seconds between looks at the files: three stat calls, and nothing more while they stay the same."""

_WARN_AGAIN = timedelta(days=1)
_LOOK_AGAIN, _LOOK_AGAIN_MOST = timedelta(seconds=1), timedelta(seconds=30)
"""After files were refused, while they seem unchanged: twice as long each time, as each look may cost a process."""


def utc_now() -> datetime:
    """The wall clock; tests bring their own."""
    return datetime.now(UTC)


def expiry_warning(certificate: str, expiry: datetime) -> str:
    """What to say of a certificate that expires soon."""
    return (
        f"{certificate}, or an authority above it, expires at {format_time(expiry)}; renew it ('kiam certs renew', or "
        "an upgrade of the chart, for what these made), it is taken over without a restart"
    )


def own_certificate(cert: Path, inspected: TLSSummary) -> str:
    """A process's own certificate, for people."""
    return f"the TLS certificate {inspected.subject} in {cert}"


class TLSReloader:
    """Holds the last good material of three files, and looks for a newer one when asked to.

    Material that can't work (key of another certificate, expired, not PEM, half written) never replaces material that
    was good: it is logged once, shown in ``…_update_error``, and looked at again when the files change.

    Methods may be called from any thread; gRPC asks from its own for each handshake.
    """

    def __init__(
        self,
        files: TLSFiles,
        side: Side,
        load: Loader,
        metrics: TLSMetrics | None = None,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        """Read the files for the first time, with ``load``. Raises UserError, in one line, when they can't work."""
        self._files = files
        self._side = side
        self._load = load
        self._metrics = metrics
        self._now = now
        self._lock = threading.Lock()
        # Taken before the read: a change during it is then seen as one by the next refresh.
        self._seen = self._fingerprint()
        self._refusal: str | None = None
        self._look_again = now()
        self._pause = _LOOK_AGAIN
        self._expiry_logged = False
        self._warn_again = self._look_again
        self._material, self._inspected = load(files, side, now())
        self._report_loaded()

    @property
    def material(self) -> TLSMaterial:
        """The last good material."""
        return self._material

    @property
    def inspected(self) -> TLSSummary:
        """What is in the last good material."""
        return self._inspected

    def refresh(self) -> bool:
        """Look at the files, and take them over if they changed and are good. True if the material is another now."""
        with self._lock:
            seen = self._fingerprint()
            now = self._now()
            due = self._refusal is not None and now >= self._look_again
            if seen == self._seen and not due:
                self._watch_expiry(now)
                return False
            if seen != self._seen:
                self._pause = _LOOK_AGAIN
            self._seen = seen
            return self._take_over(now)

    async def watch(self, changed: Callable[[], None], interval: float = WATCH_INTERVAL) -> None:
        """Refresh every so many seconds, for ever; ``changed`` is called after the material became another."""
        while True:
            await asyncio.sleep(interval)
            # In a thread: the loader may wait for a process, and pods are answered meanwhile.
            if await asyncio.to_thread(self.refresh):
                changed()

    def handshake_ended(self, accepted: bool) -> None:
        """Show in the metrics whether both sides accepted each other's certificates."""
        if self._metrics is None:
            return
        if accepted:
            self._metrics.verified(self._inspected)
        else:
            self._metrics.verify_failed()

    def _take_over(self, now: datetime) -> bool:
        try:
            material, inspected = self._load(self._files, self._side, now)
        except UserError as error:
            self._refuse(str(error), now)
            return False
        self._refusal = None
        if material == self._material:
            if self._metrics:
                self._metrics.loaded(inspected)
            return False
        self._material, self._inspected = material, inspected
        self._expiry_logged = False
        self._warn_again = now
        self._report_loaded()
        return True

    def _refuse(self, reason: str, now: datetime) -> None:
        """Say once why; then look again from time to time, also while nothing seems to change.

        A certificate issued for later becomes good by itself, and a file that was written in two steps within one tick
        of the file system's clock looks unchanged.
        """
        self._look_again = now + self._pause
        self._pause = min(2 * self._pause, _LOOK_AGAIN_MOST)
        if reason == self._refusal:
            return
        self._refusal = reason
        log.error(
            "new TLS files refused, the certificate until %s stays in use: %s",
            format_time(self._inspected.not_after),
            reason,
        )
        if self._metrics:
            self._metrics.update_failed()

    def _report_loaded(self) -> None:
        certificate = self._inspected
        log.info(
            "TLS certificate %s loaded, %s, for %s",
            certificate.subject,
            certificate.lifetime,
            certificate.names,
        )
        for problem in self._inspected.problems:
            log.warning("%s", problem)
        if self._metrics:
            self._metrics.loaded(self._inspected)
        self._watch_expiry(self._now())

    def _watch_expiry(self, now: datetime) -> None:
        """Say once a day that what is in use expires soon, and once that it has; no file changes at that moment."""
        expiry = self._inspected.expiry
        soon = self._inspected.expires_soon(now)
        if self._metrics:
            self._metrics.expires_soon(soon)
        if soon and now <= expiry and now >= self._warn_again:
            self._warn_again = now + _WARN_AGAIN
            log.warning("%s", expiry_warning(own_certificate(self._files.cert, self._inspected), expiry))
        if now <= expiry or self._expiry_logged:
            return
        self._expiry_logged = True
        log.error(
            "the TLS certificate %s in %s, or an authority above it, expired at %s and is refused by the other side; "
            "put a new one there, it is taken over without a restart",
            self._inspected.subject,
            self._files.cert,
            format_time(expiry),
        )
        if self._metrics:
            self._metrics.verify_failed()

    def _fingerprint(self) -> Fingerprint | None:
        try:
            return self._files.fingerprint()
        except OSError:
            return None
