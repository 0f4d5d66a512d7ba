"""Names, defaults and booleans of every conventional flag (docs/contract.md), against the contract's own list."""

from __future__ import annotations

import argparse
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from kiam.cli import build_parser
from tests.sandbox.pki import make_pki

ONE_SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)

COMMON = {"--json-log": False, "--level": "info"}
TELEMETRY = {
    "--prometheus-listen-addr": None,
    "--prometheus-sync-interval": 5 * ONE_SECOND,
    "--pprof-listen-addr": None,
}
KEEPALIVE = {
    "--grpc-keepalive-time-duration": 10 * ONE_SECOND,
    "--grpc-keepalive-timeout-duration": 2 * ONE_SECOND,
}
CLIENT = {
    "--server-address": "localhost:9610",
    "--server-address-refresh": 0 * ONE_SECOND,
    "--gateway-timeout-creation": ONE_SECOND,
    **KEEPALIVE,
    "--grpc-keepalive-permit-without-stream": False,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "agent": {
        **COMMON,
        **TELEMETRY,
        **CLIENT,
        "--port": 3100,
        "--host-interface": "docker0",
        "--iptables": False,
        "--iptables-remove": True,
        "--allow-ip-query": False,
        "--allow-route-regexp": "^$",
    },
    "health": {**COMMON, **CLIENT, "--timeout": ONE_SECOND},
    "server": {
        **COMMON,
        **TELEMETRY,
        **KEEPALIVE,
        "--bind": "localhost:9610",
        "--kubeconfig": None,
        "--sync": MINUTE,
        "--fetchers": 8,
        "--prefetch-buffer-size": 1000,
        "--role-base-arn": None,
        "--role-base-arn-autodetect": False,
        "--disable-strict-namespace-regexp": False,
        "--session": "kiam",
        "--session-duration": 15 * MINUTE,
        "--session-refresh": None,
        "--assume-role-arn": None,
        "--region": None,
        "--grpc-max-connection-idle-duration": 15 * MINUTE,
        "--grpc-max-connection-age-duration": 15 * MINUTE,
        "--grpc-max-connection-age-grace-duration": 15 * MINUTE,
    },
}
REQUIRED = {"--cert", "--key", "--ca"}
ROWS = [(command, flag) for command, flags in DEFAULTS.items() for flag in flags]


def actions(command: str) -> dict[str, argparse.Action]:
    """The options of one command, by every name they have."""
    parser = build_parser(command)
    commands = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return {name: action for action in commands.choices[command]._actions for name in action.option_strings}


@pytest.mark.parametrize(("command", "flag"), ROWS)
def test_a_conventional_flag_is_there_with_its_default(command: str, flag: str) -> None:
    action, wanted = actions(command)[flag], DEFAULTS[command][flag]
    if wanted is None:
        assert not action.default
    elif isinstance(wanted, str):
        assert str(action.default) == wanted
    else:
        assert action.default == wanted


@pytest.mark.parametrize(("command", "flag"), [row for row in ROWS if isinstance(DEFAULTS[row[0]][row[1]], bool)])
def test_a_boolean_can_be_switched_off(command: str, flag: str) -> None:
    assert flag.replace("--", "--no-", 1) in actions(command)


@pytest.mark.parametrize("command", DEFAULTS)
def test_the_tls_files_are_required(command: str) -> None:
    assert {flag for flag, action in actions(command).items() if action.required} >= REQUIRED


BASE = "--role-base-arn=arn:aws:iam::123456789012:role/"


def kiam(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command that must not get as far as serving."""
    return subprocess.run(
        [sys.executable, "-m", "kiam", *arguments], capture_output=True, text=True, check=False, timeout=120
    )


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    files = make_pki(tmp_path_factory.mktemp("pki")).agent
    return [f"--cert={files.cert}", f"--key={files.key}", f"--ca={files.ca}"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["agent", "--host=10.0.0.1", "--port=0"], "--port"),
        (["agent", "--host=nowhere"], "--host"),
        (["agent"], "--host"),
        (["agent", "--host=10.0.0.1", "--host-interface=a b"], "--host-interface"),
        (["agent", "--host=10.0.0.1", "--allow-route-regexp=("], "--allow-route-regexp"),
        (["agent", "--host=10.0.0.1", "--dataplane=magic"], "--dataplane"),
        (["server"], "--role-base-arn"),
        (["server", BASE, "--session-duration=1m"], "--session-duration"),
        (["server", BASE, "--sync=often"], "--sync"),
        (["server", BASE, "--kubeconfig=/nowhere"], "--kubeconfig"),
        (["server", "--role-base-arn=nonsense"], "--role-base-arn"),
        (["health", "--timeout=soon"], "--timeout"),
    ],
)
def test_a_bad_flag_is_named_in_one_clear_line(tls: list[str], arguments: list[str], named: str) -> None:
    done = kiam(*arguments, *tls)
    assert done.returncode != 0
    said = done.stderr.strip().splitlines()[-1]
    assert named in said
    assert "Traceback" not in done.stderr


def test_a_missing_certificate_is_named(tmp_path: Path) -> None:
    done = kiam("health", f"--cert={tmp_path}/none", f"--key={tmp_path}/none", f"--ca={tmp_path}/none")
    assert done.returncode != 0
    assert f"{tmp_path}/none" in done.stderr
