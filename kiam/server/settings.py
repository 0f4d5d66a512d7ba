"""What the server's flags say."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from kiam.tls import TLSFiles

LEAST_LEFT = timedelta(minutes=10)
"""botocore takes credentials from instance metadata for hours-long ones. Those with less than about 20 minutes to live
it takes for a sign of an outage, and uses for up to ten minutes before it asks again (``_evaluate_expiration`` of
botocore's InstanceMetadataFetcher)."""
DEFAULT_REFRESH = LEAST_LEFT + timedelta(seconds=30)
"""``--session-refresh`` when it isn't set: renewal starts early enough for STS, a retry and the push to the nodes."""
TOO_LATE = "leaves pods credentials with less than 10m to live, which current boto3 uses past their end"
TOO_LATE_FIX = "leave --session-refresh out, or give it 10m or more (with --session-duration=1h: 25m)"
"""What to say of a ``--session-refresh`` below LEAST_LEFT."""


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """One field for each flag, under its name."""

    tls: TLSFiles
    bind: str
    kubeconfig: str
    sync: timedelta
    fetchers: int
    role_base_arn: str
    """Empty: detect it."""
    disable_strict_namespace_regexp: bool
    session: str
    session_duration: timedelta
    session_refresh: timedelta
    assume_role_arn: str
    region: str
    grpc_keepalive_time_duration: timedelta
    grpc_keepalive_timeout_duration: timedelta
    grpc_max_connection_idle_duration: timedelta
    grpc_max_connection_age_duration: timedelta
    grpc_max_connection_age_grace_duration: timedelta
    node_authorization: bool
    container_credentials: bool
    prometheus_listen_addr: str | None
    pprof_listen_addr: str | None
