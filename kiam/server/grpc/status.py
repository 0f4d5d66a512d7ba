"""What a person who looks at the server wants to know: the answer to ``Status``.

Never credentials, tokens or external ids. Without ``--node-authorization`` every certificate of the authority sees all
of it, as it may have every pod's credentials anyway. With it, an agent's certificate sees the rows of its own node and
the roles of that node's pods: a key stolen from one node must not tell which pods and roles the others have. Whoever
holds a certificate with all of the server's own DNS names sees everything; such a key could pose as the server.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from kiam.identity import Identity
from kiam.rpc import kiam_pb2
from kiam.server.aws.credentials import CredentialsManager
from kiam.server.aws.lifetime import format_time
from kiam.server.aws.report import Calls, RoleReport, RoleState
from kiam.server.grpc.node_streams import NodeStreams
from kiam.server.kubernetes.freshness import Freshness
from kiam.server.kubernetes.store import NamespaceStore, PodStore
from kiam.server.readiness import Readiness
from kiam.tls.certificates import Certificate
from kiam.tls.inspection import InspectedTLS

SPACING = 0.25
"""Seconds that one look is shared for: clients can't have the server look at everything faster."""
_LONGEST = (1 << 32) - 1
_ORDER = {state: number for number, state in enumerate(RoleState)}


@dataclass(frozen=True, slots=True)
class StreamReport:
    """An agent's stream."""

    peer: str
    agent_version: str
    open_seconds: float
    pending: int
    lag_seconds: float
    """For how long the oldest change waits to be written; 0: none does."""


@dataclass(frozen=True, slots=True)
class NodeReport:
    """A node with one of its streams, or without any."""

    node: str
    pods: int
    stream: StreamReport | None


@dataclass(frozen=True, slots=True)
class CertificateReport:
    """One certificate in use."""

    kind: str
    subject: str
    not_before: datetime
    not_after: datetime


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The server at one moment."""

    version: str
    server: str
    readiness: str
    uptime_seconds: float
    watch_age_seconds: float
    """Infinite: the API was never heard of."""
    pods: int
    namespaces: int
    nodes: tuple[NodeReport, ...]
    roles: tuple[RoleReport, ...]
    calls: Calls
    certificates: tuple[CertificateReport, ...]
    own_nodes_only: bool = False


def node_reports(streams: NodeStreams, pods: PodStore, now: float) -> tuple[NodeReport, ...]:
    """A row for each stream, and for each node that has pods and no stream; by name."""
    rows = []
    for stream in streams:
        node = streams.node_of(stream)
        lag = 0.0 if stream.behind_since is None else now - stream.behind_since
        seen = StreamReport(stream.peer, stream.agent_version, now - stream.opened_at, stream.pending, lag)
        rows.append(NodeReport(node, len(pods.of_node(node)), seen))
    streamed = {row.node for row in rows}
    rows += [NodeReport(node, len(pods.of_node(node)), None) for node in pods.nodes() if node not in streamed]
    return tuple(sorted(rows, key=lambda row: (row.node, -row.stream.open_seconds if row.stream else 0.0)))


def role_reports(reports: Iterable[RoleReport]) -> tuple[RoleReport, ...]:
    """What needs looking at first, then by name."""
    return tuple(sorted(reports, key=lambda one: (_ORDER[one.state], one.identity.role_arn, one.identity.session_name)))


def certificate_reports(inspected: InspectedTLS) -> tuple[CertificateReport, ...]:
    """The server's own certificate and the authorities it trusts."""

    def described(kind: str, certificate: Certificate) -> CertificateReport:
        return CertificateReport(kind, certificate.subject, certificate.not_before, certificate.not_after)

    authorities = (described("authority", authority) for authority in inspected.authorities)
    return (described("server", inspected.certificate), *authorities)


def visible_nodes(caller: frozenset[str] | None, own_names: Collection[str]) -> frozenset[str] | None:
    """Whose rows a caller may see that speaks for certain nodes (None: all), by the server's own DNS names."""
    return None if caller is None or (own_names and caller.issuperset(own_names)) else caller


def restricted(snapshot: Snapshot, nodes: Collection[str], identities: Collection[Identity]) -> Snapshot:
    """What is left of it for a caller that speaks for some nodes, whose pods have some identities."""
    return replace(
        snapshot,
        nodes=tuple(row for row in snapshot.nodes if row.node in nodes),
        roles=tuple(role for role in snapshot.roles if role.identity in identities),
        own_nodes_only=True,
    )


def as_message(snapshot: Snapshot) -> kiam_pb2.ServerStatus:
    """As it is sent."""
    known = snapshot.watch_age_seconds != float("inf")
    calls = snapshot.calls
    return kiam_pb2.ServerStatus(
        version=snapshot.version,
        server=snapshot.server,
        readiness=snapshot.readiness,
        uptime_seconds=int(snapshot.uptime_seconds),
        watch_age_milliseconds=_milliseconds(snapshot.watch_age_seconds) if known else None,
        pods=snapshot.pods,
        namespaces=snapshot.namespaces,
        nodes=[_node(row) for row in snapshot.nodes],
        roles=[_role(role) for role in snapshot.roles],
        sts=kiam_pb2.StsStatus(calls=calls.made, errors=calls.failed, throttled=calls.throttled, running=calls.running),
        certificates=[
            kiam_pb2.CertificateStatus(
                kind=one.kind,
                subject=one.subject,
                not_before=format_time(one.not_before.astimezone(UTC)),
                not_after=format_time(one.not_after.astimezone(UTC)),
            )
            for one in snapshot.certificates
        ],
        own_nodes_only=snapshot.own_nodes_only,
    )


def _milliseconds(seconds: float) -> int:
    return min(round(seconds * 1000), _LONGEST)


def _node(row: NodeReport) -> kiam_pb2.NodeStatus:
    stream = row.stream
    return kiam_pb2.NodeStatus(
        node=row.node,
        pods=row.pods,
        stream=None
        if stream is None
        else kiam_pb2.StreamStatus(
            peer=stream.peer,
            agent_version=stream.agent_version,
            open_seconds=int(stream.open_seconds),
            pending=stream.pending,
            lag_milliseconds=_milliseconds(stream.lag_seconds),
        ),
    )


def _role(role: RoleReport) -> kiam_pb2.RoleStatus:
    return kiam_pb2.RoleStatus(
        role_arn=role.identity.role_arn,
        session_name=role.identity.session_name,
        state=role.state,
        expiration=role.expiration,
        error=role.error,
        retry_after_seconds=role.retry_after,
        namespaces=role.namespaces,
    )


@dataclass(frozen=True, slots=True)
class Parts:
    """What there is to look at."""

    version: str
    server: str
    readiness: Readiness
    freshness: Freshness
    pods: PodStore
    namespaces: NamespaceStore
    streams: NodeStreams
    credentials: CredentialsManager
    inspected: Callable[[], InspectedTLS]


def take_snapshot(parts: Parts, started: float, now: float) -> Snapshot:
    """Everything; ``started`` and ``now`` in seconds of the monotonic clock."""
    return Snapshot(
        parts.version,
        parts.server,
        parts.readiness.message,
        now - started,
        parts.freshness.age,
        len(parts.pods),
        len(parts.namespaces),
        node_reports(parts.streams, parts.pods, now),
        role_reports(parts.credentials.reports()),
        parts.credentials.calls,
        certificate_reports(parts.inspected()),
    )


class StatusReporter:
    """Answers ``Status`` for each caller."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._started = time.monotonic()
        self._latest: tuple[float, Snapshot] | None = None

    def answer(self, caller: frozenset[str] | None, *, judged: bool) -> kiam_pb2.ServerStatus:
        """For a caller that speaks for some nodes (None: all). ``judged``: pods' identities can be told by now."""
        now = time.monotonic()
        if self._latest is None or now - self._latest[0] >= SPACING:
            self._latest = now, take_snapshot(self._parts, self._started, now)
        snapshot = self._latest[1]
        nodes = visible_nodes(caller, self._parts.inspected().certificate.dns_names)
        if nodes is not None:
            snapshot = restricted(snapshot, nodes, self._identities(nodes) if judged else frozenset())
        return as_message(snapshot)

    def _identities(self, nodes: frozenset[str]) -> frozenset[Identity]:
        parts = self._parts
        described = (parts.streams.describe(pod) for node in nodes for pod in parts.pods.of_node(node))
        return frozenset(one[1] for one in described if one is not None and one[1] is not None)
