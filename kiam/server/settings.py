"""What the server's flags say."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from kiam.tls import TLSFiles


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
    prometheus_listen_addr: str | None
    pprof_listen_addr: str | None
