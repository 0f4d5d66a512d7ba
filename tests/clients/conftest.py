"""Keeps what a whole run of the clients' tests found, for the table in README.md."""

from __future__ import annotations

import json

import pytest

from tests.clients.kits import FOLDER

RESULTS = FOLDER / "results.json"

_outcomes: dict[str, dict[str, str]] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note a test's outcome under its client."""
    if "tests/clients/test_clients.py::" in report.nodeid and (report.when == "call" or report.failed):
        test, _, client = report.nodeid.rpartition("::")[2].rstrip("]").partition("[")
        _outcomes.setdefault(client, {})[test] = report.outcome


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write them down, once: xdist's workers report to the process that has none of this attribute."""
    if _outcomes and not hasattr(session.config, "workerinput") and FOLDER.is_dir():
        RESULTS.write_text(json.dumps(_outcomes, indent=1, sort_keys=True) + "\n")
