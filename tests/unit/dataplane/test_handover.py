"""The order of a change of dataplanes, and what is said of those that stay."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from ipaddress import IPv4Address
from itertools import repeat

import pytest

from kiam.dataplane import handover
from kiam.dataplane.contract import Condition, Counters, Inspection, WantedState
from kiam.errors import UserError
from kiam.netfilter.interfaces import InterfacePattern

WANTED = WantedState(IPv4Address("10.0.0.1"), 8181, InterfacePattern.parse("cali+"))


class Fake:
    """A dataplane that notes what is done to it."""

    def __init__(self, name: str, done: list[str], condition: Condition = Condition.ABSENT) -> None:
        self.name = name
        self.condition = condition
        self.done = done
        self.after_install: Iterator[Condition] = repeat(Condition.INSTALLED)
        self.error: UserError | None = None
        self.stuck = False

    def install(self, wanted: WantedState) -> None:
        self.done.append(f"install {self.name}")
        self.condition = next(self.after_install)

    def remove(self) -> None:
        if self.stuck:
            raise UserError("no rights")
        self.done.append(f"remove {self.name}")
        self.condition = Condition.ABSENT

    def inspect(self, wanted: WantedState | None = None) -> Inspection:
        if self.error:
            raise self.error
        return Inspection(self.condition, problems=("a rule is missing",) if self.condition == "different" else ())

    def counters(self) -> Counters:
        return Counters()


@pytest.fixture
def done() -> list[str]:
    return []


@pytest.fixture
def planes(monkeypatch: pytest.MonkeyPatch, done: list[str]) -> dict[str, Fake]:
    made = {name: Fake(name, done) for name in ("one", "two", "three")}
    monkeypatch.setattr(handover, "DATAPLANES", dict.fromkeys(made, ""))
    monkeypatch.setattr(handover, "load_dataplane", made.__getitem__)
    return made


def test_the_new_one_is_in_before_the_old_one_is_out(planes: dict[str, Fake], done: list[str]) -> None:
    planes["two"].condition = Condition.INSTALLED
    planes["three"].condition = Condition.DIFFERENT
    assert handover.install("one", WANTED).removed == ("two", "three")
    assert done == ["install one", "remove two", "remove three"]


def test_the_old_one_stays_where_the_new_one_is_not_proved(planes: dict[str, Fake], done: list[str]) -> None:
    planes["two"].condition = Condition.INSTALLED
    planes["one"].after_install = repeat(Condition.DIFFERENT)
    with pytest.raises(UserError, match=r"a rule is missing.*other dataplanes were left in place"):
        handover.install("one", WANTED)
    assert set(done) == {"install one"}


def test_a_node_that_changes_during_the_install_is_installed_for_again(
    planes: dict[str, Fake], done: list[str]
) -> None:
    planes["two"].condition = Condition.INSTALLED
    planes["one"].after_install = iter([Condition.DIFFERENT, Condition.INSTALLED])
    assert handover.install("one", WANTED).removed == ("two",)
    assert done == ["install one", "install one", "remove two"]


def test_one_that_can_not_be_asked_or_removed_keeps_nobody_else_in(planes: dict[str, Fake]) -> None:
    planes["two"].error = UserError("libraries are missing")
    planes["three"].condition = Condition.INSTALLED
    planes["three"].stuck = True
    others = handover.install("one", WANTED)
    assert (others.removed, others.stuck) == ((), {"three": "no rights"})
    assert others.unknown == {"two": "libraries are missing"}
    assert handover.Others.parse(json.dumps(asdict(others))) == others
