"""How results are printed: commands that can be copied whole, at any width, in a pipe too."""

from __future__ import annotations

import json
import subprocess

import pytest

from kiam.cli.check_table import as_script, command_lines, print_results
from kiam.verify.fix import Fix, FixKind, advice
from kiam.verify.results import CheckResult, Status, failed, passed, skipped, warned

LONG = (
    "kiam dataplane install --dataplane=nftables --host=10.0.0.1 --port=8181 '--host-interface=!eth0' --host6=fd00::1"
)
RESULTS = [
    passed("one", "as it has to be"),
    failed("two", "broken [red]", Fix(FixKind.INSTALL, LONG, "then tell the agent")),
    warned("three", "broken as well", Fix(FixKind.INSTALL, LONG, "then tell the agent")),
    failed("four", "the agent is down", Fix(FixKind.RESTART_AGENT, "kubectl delete pod x")),
    skipped("five", "can't be tried", Fix(FixKind.SHOW_ROUTE, "ip -4 route get 169.254.169.254")),
    failed("six", "nobody knows", advice("ask a person")),
]


@pytest.mark.parametrize("columns", ["20", "80", "120", None])
def test_commands_stand_unwrapped_on_lines_of_their_own(
    columns: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    print_results(RESULTS, "table")
    lines = capsys.readouterr().out.splitlines()
    assert lines.count(LONG) == 1
    assert lines[lines.index(LONG) - 3 : lines.index(LONG)] == [
        "# FAIL two: broken [red]",
        "# WARN three: broken as well",
        "# then tell the agent",
    ]
    table = [line for line in lines if line.startswith(("│", "┏", "└"))]
    assert not [line for line in table if "kiam dataplane" in line]
    if columns:
        assert max(map(len, table)) <= max(int(columns), 20)


def test_no_color_is_honoured_where_colours_are_forced(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    print_results(RESULTS, "table")
    assert "\x1b[32m" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    print_results(RESULTS, "table")
    assert "\x1b[32m" not in capsys.readouterr().out


def test_the_script_runs_what_is_for_the_node_and_only_mentions_the_rest() -> None:
    script = as_script(RESULTS)
    commands = [line for line in script.splitlines() if line and not line.startswith("#")]
    assert commands == ["set -eu", LONG]
    assert "# kubectl delete pod x" in script
    assert "# not by a command: ask a person" in script
    assert "route get" not in script
    assert subprocess.run(["sh", "-n"], input=script, text=True, check=False).returncode == 0


def test_a_finding_of_several_lines_stays_a_comment() -> None:
    found = CheckResult("x", Status.FAIL, "one\nrm -rf /", Fix(FixKind.INSTALL, "true"))
    assert "rm -rf /" not in [line.strip() for line in as_script([found]).splitlines()]
    assert all(line in ("", "true") or line.startswith(("#", "to fix")) for line in command_lines([found]))


def test_programs_get_the_fix_as_data(capsys: pytest.CaptureFixture[str]) -> None:
    print_results(RESULTS, "json")
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert checks[0]["fix"] is None
    assert checks[1]["fix"] == {"kind": "install", "command": LONG, "note": "then tell the agent", "where": "node"}
