"""Running ``nft``: the one place where that program is started.

The program and not libnftables: the library waits with select(), which aborts a process that holds more than 1,024
descriptors (FD_SETSIZE), and any pod could have the agent hold that many connections.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from kiam.errors import UserError

Json = dict[str, Any]

PACKAGE = "nftables"
"""Of the distribution, in which the program is."""
MISSING = "the program nft is missing"
INSTALL = "install the package nftables on the node or in the image (apt-get or dnf install nftables)"


@dataclass(frozen=True, slots=True)
class Answer:
    """What nft said."""

    status: int
    output: Json = field(default_factory=dict)
    said: str = ""
    """On standard error."""

    @property
    def complaint(self) -> str:
        """The first line of what was said."""
        return next((line.strip() for line in self.said.splitlines() if line.strip()), "it said nothing")


def run(commands: Sequence[Json], *, check_only: bool = False) -> Answer:
    """Hand over commands in libnftables' JSON (libnftables-json(5)), all of which happen or none.

    ``check_only``: ask the kernel whether it would take them, and change nothing.
    Raises UserError where there is no nft.
    """
    flags = ["--check"] if check_only else []
    return _run([*flags, "--json", json.dumps({"nftables": list(commands)})])


def run_text(script: str) -> Answer:
    """As run, in nft's own language, for what its JSON lacks. Raises UserError where there is no nft."""
    return _run([script])


def list_table(family: str, name: str) -> Answer:
    """One table with all in it, priorities in numbers; a status other than 0 where there is none."""
    return _run(["--json", "--numeric-priority", "list", "table", family, name])


def list_table_text(family: str, name: str) -> str:
    """The same as people read it; empty where there is none."""
    return _start(["--numeric-priority", "list", "table", family, name]).stdout


def list_ruleset() -> Answer:
    """Every table of the network namespace, with handles."""
    return _run(["--json", "--handle", "list", "ruleset"])


def _run(arguments: Sequence[str]) -> Answer:
    done = _start(arguments)
    output = json.loads(done.stdout) if done.stdout.strip().startswith("{") else {}
    return Answer(done.returncode, output, done.stderr)


def _start(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            # Commands as an argument: to read standard input nft opens /dev/stdin, which not every /dev has.
            ["nft", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise UserError(MISSING, INSTALL) from error
