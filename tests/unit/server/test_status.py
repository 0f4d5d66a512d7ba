"""The status as decisions: what it is called, who sees what, and what the terminal is shown."""

from __future__ import annotations

import io
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from kiam.cli.status_table import build
from kiam.identity import Identity
from kiam.rpc import kiam_pb2
from kiam.server.aws.report import Calls, RoleReport, RoleState, role_state
from kiam.server.grpc.status import (
    NodeReport,
    Snapshot,
    StreamReport,
    as_message,
    restricted,
    role_reports,
    visible_nodes,
)

NAMES = st.sampled_from(["n1", "n2", "n3", "kiam-server", "localhost"])
NOW = datetime(2024, 1, 1, tzinfo=UTC)


def role(name: str, state: RoleState = RoleState.HELD) -> RoleReport:
    identity = Identity(f"arn:aws:iam::123456789012:role/{name}", "kiam", "external-id")
    return RoleReport(identity, state, "2024-01-01T01:00:00Z", "", 0, 1)


def snapshot(*names: str) -> Snapshot:
    stream = StreamReport("192.0.2.1", "5.0.0", 61.0, 2, 1.5)
    return Snapshot(
        version="5.0.0",
        server="server-0",
        readiness="ok",
        uptime_seconds=60.0,
        watch_age_seconds=0.5,
        pods=3,
        namespaces=1,
        nodes=tuple(NodeReport(name, 1, stream) for name in names),
        roles=tuple(role(f"of-{name}") for name in names),
        calls=Calls(3, 1, 1, 0),
        certificates=(),
    )


@given(st.none() | st.frozensets(NAMES), st.lists(NAMES, unique=True))
def test_everything_is_seen_by_who_speaks_for_all_nodes_or_for_the_server(
    caller: frozenset[str] | None, own: list[str]
) -> None:
    seen = visible_nodes(caller, own)
    everything = caller is None or (bool(own) and set(own) <= caller)
    assert (seen is None) == everything
    if not everything:
        assert seen == caller


def test_server_without_names_gives_nobody_its_own_sight() -> None:
    assert visible_nodes(frozenset(), ()) == frozenset()
    assert visible_nodes(frozenset({"n1"}), ()) == frozenset({"n1"})


@given(st.frozensets(NAMES), st.frozensets(NAMES))
def test_nothing_of_other_nodes_is_left(nodes: frozenset[str], held: frozenset[str]) -> None:
    whole = snapshot("n1", "n2", "n3")
    left = restricted(whole, nodes, [role(f"of-{name}").identity for name in held])
    assert {row.node for row in left.nodes} == nodes & {"n1", "n2", "n3"}
    assert {one.identity.role_arn.rpartition("of-")[2] for one in left.roles} == held & {"n1", "n2", "n3"}
    assert left.own_nodes_only


@given(good=st.booleans(), late=st.booleans(), failing=st.booleans(), asked=st.booleans())
def test_role_is_held_only_with_good_credentials_and_no_failure(
    good: bool, late: bool, failing: bool, asked: bool
) -> None:
    state = role_state(good=good, late=late, failing=failing, asked=asked)
    assert (state is RoleState.FAILING) == failing
    assert (state in (RoleState.HELD, RoleState.EXPIRING)) == (good and not failing)
    assert (state is RoleState.EXPIRING) == (good and late and not failing)
    assert (state is RoleState.FETCHING) == (asked and not good and not failing)


def test_what_fails_comes_first() -> None:
    given_roles = [role("a"), role("b", RoleState.FAILING), role("c", RoleState.EXPIRING)]
    assert [one.state for one in role_reports(given_roles)] == ["failing", "expiring", "held"]


def test_message_has_no_external_id_and_no_age_before_the_api_was_heard_of() -> None:
    message = as_message(replace(snapshot("n1"), watch_age_seconds=float("inf")))
    assert not message.HasField("watch_age_milliseconds")
    assert b"external-id" not in message.SerializeToString()
    assert message.nodes[0].stream.lag_milliseconds == 1500


def shown(status: kiam_pb2.ServerStatus) -> str:
    out = io.StringIO()
    Console(file=out, width=160).print(build(status, NOW))
    return out.getvalue()


def test_table_says_how_long_certificates_have() -> None:
    status = as_message(snapshot("n1"))
    for left in (timedelta(days=400), timedelta(days=3), timedelta(hours=2), timedelta(hours=-1)):
        text = f"{NOW + left:%Y-%m-%dT%H:%M:%SZ}"
        status.certificates.add(kind="server", subject="'x'", not_before="2023-01-01T00:00:00Z", not_after=text)
    table = shown(status)
    for words in ("400 days", "3 days", "2h", "expired", "1.5s, 2 to send", "192.0.2.1", "1m1s"):
        assert words in table


@given(st.text(max_size=40))
def test_nothing_from_outside_drives_the_terminal(text: str) -> None:
    status = kiam_pb2.ServerStatus(server=text, readiness=text, version=text)
    status.nodes.add(node=text, pods=1).stream.agent_version = text
    status.roles.add(role_arn=text, session_name=text, state=text, error=text)
    status.certificates.add(kind=text, subject=text, not_after=text, not_before=text)
    assert all(c.isprintable() or c == "\n" for c in shown(status))
