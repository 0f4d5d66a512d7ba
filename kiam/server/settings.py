"""What the server's flags say."""

from __future__ import annotations

import enum
import re
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


PLACEHOLDERS = ("cluster", "namespace", "serviceaccount", "pod")
PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_CLUSTER_NAME = re.compile(r"[\w .:/=+@-]{1,256}", re.ASCII)


class TagScope(enum.StrEnum):
    """How far session tags go (``--session-tags``); each has those of the ones before it."""

    NONE = "none"
    NAMESPACE = "namespace"
    SERVICE_ACCOUNT = "service-account"
    POD = "pod"


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """The flags about sessions."""

    session: str = "kiam"
    """A name, or a template with PLACEHOLDERS in braces."""
    cluster: str = ""
    tags: TagScope = TagScope.NONE
    source_identity: str = ""
    """A template; empty: none is set."""


def template_problem(template: str) -> str:
    """What is wrong with a template; empty: nothing."""
    for name in PLACEHOLDER.findall(template):
        if name not in PLACEHOLDERS:
            known = ", ".join(f"{{{known}}}" for known in PLACEHOLDERS)
            return f"'{{{name}}}' is none of {known}"
    return ""


def cluster_name_problem(name: str) -> str:
    """Why a cluster's name can't be a session tag's value; empty: it can."""
    return "" if _CLUSTER_NAME.fullmatch(name) else "give 1 to 256 letters, digits, blanks and _.:/=+@-"


def needs_cluster(settings: SessionSettings) -> bool:
    """Whether the cluster's name is part of what is asked for."""
    return settings.tags is not TagScope.NONE or any(
        "{cluster}" in template for template in (settings.session, settings.source_identity)
    )


class RestrictionFormat(enum.StrEnum):
    """How kube2iam's ``allowed-roles`` are written (``--namespace-restriction-format``, a flag of kube2iam's)."""

    GLOB = "glob"
    REGEXP = "regexp"


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """The flags about what namespaces permit."""

    default_permitted: str = ""
    """For namespaces without an annotation about it."""
    kube2iam_annotations: bool = False
    """Whether ``allowed-roles`` counts beside ``permitted``."""
    restriction_format: RestrictionFormat = RestrictionFormat.GLOB


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
    sessions: SessionSettings
    policy: PolicySettings
    session_tags_transitive: bool
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
    container_credentials_webhook: str | None
    """HOST:PORT; None: off."""
    stale_after: timedelta
    """Zero: never."""
    prometheus_listen_addr: str | None
    pprof_listen_addr: str | None
