"""A server's status for people."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from rich.console import Group
from rich.table import Table
from rich.text import Text

from kiam.durations import format_duration
from kiam.rpc import kiam_pb2

_COLOURS = {"held": "green", "failing": "bold red", "expiring": "yellow", "fetching": "cyan", "waiting": "dim"}
_SOON = timedelta(days=30)


def printable(text: str, style: str = "") -> Text:
    """A text from outside.

    The attack stopped: what a pod's owner or an agent calls things must not drive the terminal of whoever looks.
    """
    return Text("".join(c if c.isprintable() else repr(c)[1:-1] for c in text), style)


def build(status: kiam_pb2.ServerStatus, now: datetime | None = None) -> Group:
    """Four tables and their heading."""
    moment = now or datetime.now(UTC)
    return Group(_heading(status), _nodes(status), _roles(status), _sts(status), _certificates(status, moment))


def _heading(status: kiam_pb2.ServerStatus) -> Text:
    ready = status.readiness == "ok"
    heading = Text.assemble(printable(status.server, "bold"), " kiam ", printable(status.version), ", ")
    heading.append_text(printable("ready" if ready else status.readiness, "green" if ready else "bold red"))
    age = (
        _seconds(status.watch_age_milliseconds / 1000) + " ago"
        if status.HasField("watch_age_milliseconds")
        else "never"
    )
    heading.append(f", up {_seconds(status.uptime_seconds)}, Kubernetes API heard of {age}")
    heading.append(f"\n{status.pods} pods in {status.namespaces} namespaces")
    if status.own_nodes_only:
        heading.append("; nodes and roles are only those that this certificate speaks for", "yellow")
    return heading


def _nodes(status: kiam_pb2.ServerStatus) -> Table:
    table = _table("node", "pods", "agent at", "version", "connected", "behind")
    for row in status.nodes:
        name = printable(row.node) if row.node else Text("unknown", "yellow")
        if not row.HasField("stream"):
            table.add_row(name, str(row.pods), Text("no stream", "yellow"), "", "", "")
            continue
        stream = row.stream
        lag = f"{_seconds(stream.lag_milliseconds / 1000)}, {stream.pending} to send" if stream.lag_milliseconds else ""
        late = "red" if stream.lag_milliseconds >= 1000 else ""
        version = printable(stream.agent_version or "unknown")
        table.add_row(
            name, str(row.pods), printable(stream.peer), version, _seconds(stream.open_seconds), Text(lag, late)
        )
    return table


def _roles(status: kiam_pb2.ServerStatus) -> Table:
    table = _table("role", "session", "state", "credentials until", "namespaces", "error")
    for role in status.roles:
        error = role.error
        if error and role.retry_after_seconds:
            error += f" (asked again in {_seconds(role.retry_after_seconds)})"
        table.add_row(
            printable(role.role_arn),
            printable(role.session_name),
            printable(role.state, _COLOURS.get(role.state, "")),
            printable(role.expiration),
            str(role.namespaces),
            printable(error),
        )
    return table


def _sts(status: kiam_pb2.ServerStatus) -> Table:
    table = _table("AssumeRole calls", "failed", "throttled", "running")
    calls = status.sts
    table.add_row(
        str(calls.calls),
        Text(str(calls.errors), "red" if calls.errors else ""),
        Text(str(calls.throttled), "red" if calls.throttled else ""),
        str(calls.running),
    )
    return table


def _certificates(status: kiam_pb2.ServerStatus, now: datetime) -> Table:
    table = _table("certificate", "subject", "from", "until", "left")
    for one in status.certificates:
        table.add_row(
            printable(one.kind),
            printable(one.subject),
            printable(one.not_before),
            printable(one.not_after),
            _left(one.not_after, now),
        )
    return table


def _left(not_after: str, now: datetime) -> Text:
    try:
        left = datetime.fromisoformat(not_after) - now
    except (ValueError, TypeError):
        return Text("unknown", "yellow")
    if left <= timedelta(0):
        return Text("expired", "bold red")
    days = left.days
    return Text(f"{days} days" if days else _seconds(left.total_seconds()), "yellow" if left < _SOON else "")


def _table(*headings: str) -> Table:
    table = Table()
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def _seconds(seconds: float) -> str:
    rounded = round(seconds, 1 if seconds < 10 else 0)
    return format_duration(timedelta(seconds=rounded)) if rounded else "0s"
