"""The demonstration itself, with each dataplane."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from kiam.dataplane.registry import DATAPLANES


def demo(*arguments: str, user: int = 0) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    command = [sys.executable, "-m", "tests.sandbox.demo", *arguments]
    environment = {**os.environ, "HOME": "/"}
    return subprocess.run(command, capture_output=True, text=True, check=False, user=user, env=environment)


@pytest.mark.parametrize("dataplane", DATAPLANES)
def test_everything_goes_as_it_has_to(dataplane: str) -> None:
    done = demo("--dataplane", dataplane)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "assumed-role/node-role/i-fake  the node's: the problem" in done.stdout
    assert "assumed-role/cart/kiam-kiam" in done.stdout
    assert "nothing is left behind" in done.stdout
    # One screen of a usual terminal.
    assert done.stdout.count("\n") < 40


@pytest.mark.parametrize("name", ["", "ipfilter"])
def test_it_names_the_dataplanes_when_given_none_it_knows(name: str) -> None:
    done = demo("--dataplane", name)
    assert done.returncode == 2
    assert done.stderr == f"make demo: DATAPLANE={name!r} is no dataplane; use DATAPLANE=iptables|nftables|ebpf\n"


def test_it_says_in_one_line_that_it_needs_root() -> None:
    done = demo(user=65534)
    assert done.returncode == 1
    assert done.stderr.startswith("make demo: this needs root")
    assert done.stderr.count("\n") == 1
