"""What only iptables has: the documented text, its place, the two rule stores, the lock, rules written by hand."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kiam.dataplane.contract import Condition
from kiam.dataplane.iptables import IptablesDataplane
from kiam.errors import UserError
from kiam.netfilter.interfaces import InterfacePattern, IptablesBackend
from tests.integration.dataplane.conftest import Plane
from tests.integration.dataplane.kube_proxy import iptables_rules
from tests.integration.dataplane.world import AGENT_PORT, METADATA, OTHER_AGENT_PORT, World
from tests.sandbox.netns import NODE_IPV4, NetNs

BY_HAND = (
    f"-A PREROUTING -d 169.254.169.254/32 -i cali+ -p tcp -m tcp --dport 80 -j DNAT --to-destination {NODE_IPV4}:8181"
)


@pytest.fixture(params=["nft", "legacy"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def iptables(world: World, backend: str) -> Iterator[Plane]:
    made = Plane(f"iptables-{backend}", world)
    world.forget_connections()
    yield made
    made.remove()
    for table in ("nat", "mangle"):
        world.node.run(f"iptables-{backend}", "-t", table, "-F")
        world.node.run(f"iptables-{backend}", "-t", table, "-X")


def prerouting(world: World, backend: str) -> list[str]:
    lines = world.node.run(f"iptables-{backend}", "-t", "nat", "-S", "PREROUTING").stdout.splitlines()
    return [line for line in lines if line.startswith("-A")]


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("cali+", "-i cali+ "),
        ("!eth0", "! -i eth0 "),
        ("weave", "-i weave "),
        ("kube-bridge", "-i kube-bridge "),
        ("cbr0", "-i cbr0 "),
        ("lxc+", "-i lxc+ "),
        ("!cali+", "! -i cali+ "),
        ("+", ""),
    ],
)
def test_the_rule_reads_as_documented(iptables: Plane, world: World, backend: str, pattern: str, words: str) -> None:
    interface = InterfacePattern.parse(pattern)
    iptables.install(iptables.but(interface=interface))
    written = f"-A PREROUTING -d 169.254.169.254/32 {words}-p tcp -m tcp --dport 80 -j DNAT --to-destination "
    assert prerouting(world, backend) == [f"{written}{NODE_IPV4}:{AGENT_PORT}"]


@pytest.mark.parametrize("copies", [1, 2])
def test_a_rule_of_a_conventional_agent_or_written_by_hand_is_adopted_and_not_doubled(
    iptables: Plane, world: World, backend: str, copies: int
) -> None:
    for _ in range(copies):
        world.node.run(f"iptables-{backend}", "-t", "nat", *BY_HAND.split())
    with world.nothing_gets_through():
        world.client.do("start_load", METADATA, 80, 2)
        iptables.install()
        iptables.install()
        assert set(world.client.do("stop_load")) <= {"agent"}
    assert prerouting(world, backend) == [BY_HAND]
    iptables.remove()
    assert prerouting(world, backend) == []


def test_the_rule_store_stays_the_same_when_the_only_rule_in_it_was_adopted(
    iptables: Plane, world: World, backend: str
) -> None:
    world.node.run(f"iptables-{backend}", "-t", "nat", *BY_HAND.split())
    for _ in range(2):
        iptables.install(iptables.but(iptables_backend=IptablesBackend.AUTO))
        assert prerouting(world, backend) == [BY_HAND]


def test_a_rule_to_another_place_is_not_adopted(iptables: Plane, world: World, backend: str) -> None:
    world.node.run(f"iptables-{backend}", "-t", "nat", *BY_HAND.split())
    iptables.install(iptables.but(port=OTHER_AGENT_PORT))
    iptables.remove()
    assert prerouting(world, backend) == [BY_HAND]


def test_a_rule_written_by_hand_alone_is_not_ours(iptables: Plane, world: World, backend: str) -> None:
    world.node.run(f"iptables-{backend}", "-t", "nat", *BY_HAND.split())
    assert iptables.inspect().condition is Condition.ABSENT
    iptables.remove()
    assert prerouting(world, backend) == [BY_HAND]


def test_it_goes_in_ahead_of_kube_proxy_and_moves_ahead_again(iptables: Plane, world: World, backend: str) -> None:
    restore = f"iptables-{backend}-restore"
    world.node.run(restore, "--noflush", stdin=iptables_rules(5))
    iptables.install()
    assert prerouting(world, backend)[0] == BY_HAND
    greedy = ("-d", METADATA, "-p", "tcp", "-m", "tcp", "--dport", "80", "-j", "KUBE-SVC-0000000000000001")
    world.node.run(f"iptables-{backend}", "-t", "nat", "-I", "KUBE-SERVICES", *greedy)
    world.node.run(f"iptables-{backend}", "-t", "nat", "-I", "PREROUTING", "-j", "KUBE-SERVICES")
    inspection = iptables.inspect(iptables.wanted)
    assert inspection.condition is Condition.DIFFERENT
    assert "behind a rule that could take the packet first" in inspection.problems[0]
    assert "--to-destination 10.44.0.2:8080" in inspection.problems[0]

    iptables.install()
    assert prerouting(world, backend)[0] == BY_HAND
    assert len(prerouting(world, backend)) == 3
    assert world.client.do("who", METADATA)["service"] == "agent"


def test_behind_rules_that_cannot_take_the_packet_it_stays_where_it_is(
    iptables: Plane, world: World, backend: str
) -> None:
    iptables.install()
    # As kube-proxy does when it starts after us: its chain goes to the top, and no Service has this address.
    world.node.run(f"iptables-{backend}-restore", "--noflush", stdin=iptables_rules(5))
    assert prerouting(world, backend)[1] == BY_HAND
    assert iptables.inspect(iptables.wanted).condition is Condition.INSTALLED
    assert world.client.do("who", METADATA)["service"] == "agent"


def test_auto_goes_where_kubelets_hint_is_and_takes_ours_out_of_the_other_store(
    iptables: Plane, world: World, backend: str
) -> None:
    auto = iptables.but(iptables_backend=IptablesBackend.AUTO)
    other = {"nft": "legacy", "legacy": "nft"}[backend]
    iptables.install(iptables.but(iptables_backend=IptablesBackend(other)))
    world.node.run(f"iptables-{backend}-restore", "--noflush", stdin=iptables_rules(1))
    stale = iptables.inspect(auto)
    assert stale.condition is Condition.DIFFERENT
    assert any(f"in the other backend, {other}" in problem for problem in stale.problems)

    with world.nothing_gets_through():
        world.client.do("start_load", METADATA, 80, 2)
        iptables.install(auto)
        assert set(world.client.do("stop_load")) <= {"agent"}
    assert BY_HAND in prerouting(world, backend)
    assert prerouting(world, other) == []


def test_removal_finds_ours_in_both_stores(world: World) -> None:
    before = world.state()
    plane = Plane("iptables-nft", world)
    plane.install()
    # As somebody who moves a node from one store to the other does it.
    for name in ("iptables", "ip6tables"):
        saved = world.node.run(f"{name}-nft-save").stdout
        world.node.run(f"{name}-legacy-restore", "--noflush", stdin=saved)
    assert prerouting(world, "nft") == prerouting(world, "legacy") == [BY_HAND]
    plane.remove()
    assert world.state() == before


def test_rules_doubled_by_a_restore_are_put_right(iptables: Plane, world: World, backend: str) -> None:
    iptables.install()
    saved = world.node.run(f"iptables-{backend}-save", "-t", "nat").stdout
    doubled = "\n".join(line for line in saved.splitlines() if not line.startswith(":"))
    world.node.run(f"iptables-{backend}-restore", "--noflush", stdin=doubled + "\n")
    assert prerouting(world, backend) == [BY_HAND, BY_HAND]
    assert iptables.inspect(iptables.wanted).condition is Condition.DIFFERENT
    iptables.install()
    assert prerouting(world, backend) == [BY_HAND]


def test_counts_survive_a_change_of_what_is_dropped(iptables: Plane, world: World) -> None:
    iptables.install()
    world.client.ask("try_connect", METADATA, 81)
    before = iptables.counters()
    assert (before.drops or {})["other-port"] >= 1
    iptables.install(iptables.but(port=OTHER_AGENT_PORT))
    assert (iptables.counters().drops or {})["other-port"] >= (before.drops or {})["other-port"]


@pytest.mark.parametrize("held", [0.3])
def test_a_held_xtables_lock_is_waited_for(
    iptables: Plane, world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, held: float
) -> None:
    lock = tmp_path / "xtables.lock"
    monkeypatch.setenv("XTABLES_LOCKFILE", str(lock))
    with lock.open("w") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        release = threading.Timer(held, fcntl.flock, (holder, fcntl.LOCK_UN))
        release.start()
        iptables.install()
        release.join()
    assert world.client.do("who", METADATA)["service"] == "agent"


@pytest.mark.parametrize("backend", ["legacy"])
def test_a_lock_that_is_held_too_long_is_one_line_that_says_whose_to_look_for(
    iptables: Plane, world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, backend: str
) -> None:
    lock = tmp_path / "xtables.lock"
    monkeypatch.setenv("XTABLES_LOCKFILE", str(lock))
    monkeypatch.setattr("kiam.netfilter.iptables.LOCK_WAIT_SECONDS", 1)
    monkeypatch.setattr("kiam.netfilter.iptables.LOCK_BUDGET_SECONDS", 0.5)
    before = world.state()
    with lock.open("w") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=f"has held the xtables lock for .*'fuser -v {lock}'") as raised:
            iptables.install()
    assert "\n" not in str(raised.value)
    assert world.state() == before


@pytest.fixture
def failing_at_nat(tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """While the returned file exists, IPv4's restore program refuses the nat table, the last of all."""
    real = shutil.which(f"iptables-{backend}-restore")
    broken = tmp_path / "broken"
    script = tmp_path / f"iptables-{backend}-restore"
    script.write_text(
        f"#!/bin/sh\nrules=$(cat)\n"
        f'case "$rules" in *"*nat"*-I*) [ -e {broken} ] && {{ echo "no memory" >&2; exit 4; }};; esac\n'
        f'printf \'%s\\n\' "$rules" | exec {real} "$@"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return broken


@pytest.mark.parametrize("earlier", [False, True])
def test_an_install_that_fails_on_its_last_step_leaves_all_as_it_was(
    iptables: Plane, world: World, failing_at_nat: Path, earlier: bool
) -> None:
    if earlier:
        iptables.install(iptables.but(port=OTHER_AGENT_PORT, interface=InterfacePattern.parse("!eth0")))
    before = world.state()
    failing_at_nat.touch()
    with pytest.raises(UserError, match="no memory"):
        iptables.install()
    failing_at_nat.unlink()
    assert world.state() == before


@pytest.mark.parametrize(("program", "table"), [("ip6tables", "mangle"), ("ip6tables", "nat"), ("iptables", "mangle")])
def test_half_of_it_is_not_called_installed(
    iptables: Plane, world: World, backend: str, program: str, table: str
) -> None:
    iptables.install()
    for flag in ("-F", "-X"):
        world.node.run(f"{program}-{backend}", "-t", table, flag)
    inspection = iptables.inspect()
    assert inspection.condition is Condition.DIFFERENT
    assert any(f"{program}-{backend} {table}" in problem for problem in inspection.problems)


def test_nothing_is_written_where_all_is_well(iptables: Plane, world: World, backend: str) -> None:
    iptables.install()
    watched = world.node.run(f"iptables-{backend}-save", "-c").stdout
    iptables.install()
    assert strip_comments(world.node.run(f"iptables-{backend}-save", "-c").stdout) == strip_comments(watched)


def strip_comments(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith("#")]


def test_legacy_tables_are_not_made_by_looking() -> None:
    with NetNs("looking") as netns:
        plane = IptablesDataplane()
        assert netns.call(plane.inspect).condition is Condition.ABSENT
        netns.call(plane.remove)
        netns.call(plane.counters)
        assert netns.run("cat", "/proc/net/ip_tables_names", check=False).stdout == ""
        assert netns.run("nft", "list", "ruleset").stdout == ""


def test_two_installs_at_the_same_time_leave_one_rule(iptables: Plane, world: World, backend: str) -> None:
    threads = [
        threading.Thread(target=world.node.call, args=(IptablesDataplane().install, iptables.wanted)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    iptables.install()
    assert prerouting(world, backend) == [BY_HAND]
    assert dataclasses.asdict(iptables.inspect(iptables.wanted))["problems"] == ()
