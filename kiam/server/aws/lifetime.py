"""How long credentials are good, when they are renewed, and how long STS is left alone after a failure."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import datetime, timedelta

from tenacity import RetryCallState, Retrying, wait_exponential_jitter

from kiam.clocks import Clock
from kiam.rpc import kiam_pb2
from kiam.server.aws.contract import THROTTLING, Issued

REFUSED_BACKOFF = wait_exponential_jitter(multiplier=2, max=60, jitter=1)
"""Seconds between calls for one identity after AWS said no: a new role or trust policy takes AWS seconds to spread."""
THROTTLED_BACKOFF = wait_exponential_jitter(multiplier=4, max=120, jitter=4)
UNREACHABLE_BACKOFF = wait_exponential_jitter(multiplier=0.5, max=30, jitter=0.5)
_RETRYING = Retrying()


@dataclass(frozen=True, slots=True)
class Held:
    """Credentials held, and their document as every call and stream sends it."""

    message: kiam_pb2.Credentials
    expires_at: float
    """Unix time, by AWS's word."""
    ends_at: float
    """The same on the clock that nobody sets: a wall clock that is set back makes nothing live longer."""
    least_left: float
    """With fewer seconds to live they aren't handed out while newer ones can be had."""
    renewed_left: float
    """With so many seconds to live they are renewed; some more than ``least_left``, to spread load."""

    def left(self, clock: Clock) -> float:
        """Seconds to live; not above 0: expired."""
        return min(self.expires_at - clock.wall(), self.ends_at - clock.elapsed())


def hold(issued: Issued, refresh: timedelta, longest: timedelta, clock: Clock) -> Held:
    """Credentials just issued, to be renewed ``refresh`` before they end; they live no longer than ``longest``."""
    expires_at = issued.expires.timestamp()
    lifetime = min(expires_at - clock.wall(), longest.total_seconds())
    least_left = least_time_left(lifetime, refresh.total_seconds())
    return Held(
        message=_document(issued),
        expires_at=expires_at,
        ends_at=clock.elapsed() + lifetime,
        least_left=least_left,
        renewed_left=lifetime - renewal_delay(lifetime, least_left),
    )


def least_time_left(lifetime: float, refresh: float) -> float:
    """Seconds to live at which credentials are renewed at the latest; what lives no longer is renewed at its middle."""
    return refresh if lifetime > refresh else lifetime / 2


def renewal_delay(lifetime: float, least_left: float) -> float:
    """Seconds from issue until renewal: before the last ``least_left`` of the lifetime begin.

    Up to a tenth earlier, so that credentials issued together aren't renewed together.
    """
    spread = random.uniform(0.9, 1.0)  # noqa: S311  # spreads load, keeps no secret
    return max((lifetime - least_left) * spread, 1.0)


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
