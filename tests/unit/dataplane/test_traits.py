"""A dataplane is data for everybody else: a fourth one is one module and one line, and nobody asks for one by name."""

from __future__ import annotations

import argparse
import ast
import json
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

import kiam
from kiam.cli import dataplane as command
from kiam.dataplane.contract import HostNetwork, WantedState
from kiam.dataplane.registry import DATAPLANES, all_traits, documented, recommended
from kiam.netfilter.interfaces import InterfacePattern
from kiam.verify.checks.prerequisites import check_kernel
from kiam.verify.discovery import ask_all, by_interface
from kiam.verify.fixes import Fixes
from kiam.verify.results import Status
from tests.deploy import generate
from tests.docs import dataplanes as page

HERE = Path(kiam.__file__).parent
WANTED = WantedState(IPv4Address("10.0.0.1"), 8181, InterfacePattern.parse("cali+"))
PROGRAMS = ("iptables",)
"""Also the name of a program, which is a word of kiam.netfilter's and of what verify prints."""


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(DATAPLANES, "fake", "tests.unit.dataplane.fake:FakeDataplane")
    return "fake"


def parsed(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.configure(parser)
    return parser.parse_args(argv)


def test_the_commands_know_it(fake: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.run(parsed("status", "--dataplane=fake", "--output=json")) == 1
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["dataplane"], found["condition"]) == ("fake", "absent")
    assert command.run(parsed("remove", "--dataplane=fake")) == 0
    assert parsed("install", "--dataplane=fake", "--host=10.0.0.1").dataplane == "fake"


def test_verify_knows_it(fake: str) -> None:
    assert fake in ask_all()
    assert not by_interface(fake)
    assert recommended()[0] == fake
    fixes = Fixes(WANTED, fake)
    assert check_kernel(WANTED, fixes, "4.2.0").status is Status.PASS
    assert check_kernel(WANTED, fixes, "4.1.9").status is Status.FAIL


def test_the_charts_schema_and_the_docs_table_know_it(fake: str) -> None:
    assert json.loads(generate.schema())["properties"]["agent"]["properties"]["dataplane"]["enum"][-1] == fake
    header, *rows = page.table().splitlines()
    assert header.endswith("| fake |")
    assert any("`fakery`" in row for row in rows)
    assert any(row.endswith("`ignore`, `deny` |") for row in rows)


def test_what_is_made_of_the_registry_is_up_to_date() -> None:
    assert page.PAGE.read_text() == page.page(), "run make dataplane-table"
    assert generate.SCHEMA.read_text() == generate.schema(), "run make chart-docs"


def test_one_makes_the_documented_rule_and_all_declare_what_they_need() -> None:
    assert [name for name, traits in all_traits().items() if traits.documented_rule] == [documented()]
    for traits in all_traits().values():
        assert traits.oldest_kernel <= traits.oldest_kernel_for_host_network
        assert HostNetwork.IGNORE in traits.host_network


def literals(source: Path) -> Iterator[tuple[str, int]]:
    tree = ast.parse(source.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in DATAPLANES:
            yield str(node.value), node.lineno


def test_nobody_but_the_registry_names_a_dataplane() -> None:
    own = {HERE / "dataplane" / name for name in DATAPLANES}
    found = [
        f"{source.relative_to(HERE)}:{line}: {name}"
        for source in HERE.rglob("*.py")
        if source != HERE / "dataplane" / "registry.py"
        and not any(source.is_relative_to(folder) for folder in own)
        # nft's JSON has a key of that name.
        and not source.is_relative_to(HERE / "netfilter")
        for name, line in literals(source)
        if name not in PROGRAMS or not source.is_relative_to(HERE / "verify")
    ]
    assert found == []
