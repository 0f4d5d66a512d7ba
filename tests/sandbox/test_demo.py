"""The demonstration itself, with each dataplane."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from kiam.dataplane.registry import DATAPLANES


def demo(*arguments: str, wrapper: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    command = [*wrapper, sys.executable, "-m", "tests.sandbox.demo", *arguments]
    environment = {**os.environ, "HOME": "/"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def lines(text: str) -> list[str]:
    """Lines without what differs from run to run: the time taken, and white space at the end."""
    return [re.sub(r"; \d+ s;", "; N s;", line.rstrip()) for line in text.splitlines()]


@pytest.mark.parametrize(
    "dataplane", [pytest.param(name, marks=pytest.mark.xdist_group(f"demo {name}")) for name in DATAPLANES]
)
def test_everything_goes_as_it_has_to_and_as_the_readme_shows(dataplane: str) -> None:
    done = demo("--dataplane", dataplane)
    assert done.returncode == 0, done.stdout + done.stderr
    readme = Path(__file__).parents[2].joinpath("README.md").read_text()
    shown = readme.partition("$ make demo\n")[2].partition("```")[0]
    assert lines(done.stdout) == lines(shown.replace("--dataplane=iptables", f"--dataplane={dataplane}"))
    # One screen of a usual terminal.
    assert done.stdout.count("\n") < 40


@pytest.mark.parametrize("name", ["", "ipfilter"])
def test_it_names_the_dataplanes_when_given_none_it_knows(name: str) -> None:
    done = demo("--dataplane", name)
    assert done.returncode == 2
    assert done.stderr == f"make demo: DATAPLANE={name!r} is no dataplane; use DATAPLANE=iptables|nftables|ebpf\n"


def test_it_says_in_one_line_that_it_needs_root() -> None:
    # In a user namespace of its own it isn't root, and can still read a checkout that only root can.
    done = demo(wrapper=("unshare", "--user"))
    assert done.returncode == 1
    assert done.stderr.startswith("make demo: this needs root")
    assert done.stderr.count("\n") == 1
