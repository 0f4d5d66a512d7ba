"""The table of clients in README.md, from the last run of their tests. ``--check`` compares instead of writing.

Clients that come from Debian are newer on a newer Debian: a version alone is no difference for ``--check``.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.clients.conftest import RESULTS
from tests.clients.table import CLIENTS, Client

README = Path(__file__).parents[2] / "README.md"
TESTS = 8
"""That each client has at least."""
_TABLE = re.compile(r"(<!-- clients: made by make client-table -->\n)(.*?)(<!-- clients: end -->\n)", re.DOTALL)
_VERSION = re.compile(r"\d+(?:\.\d+)+")
COLUMNS = (
    *("client", "version", "language", "token demanded", "no real tokens", "role with a path"),
    *("known 2 s late", "the same, by UID", "no role"),
)
HEADER = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|\n"


def table() -> str:
    """The table. Raises ValueError if a client wasn't tried, or failed."""
    tried = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    lines = []
    for client in CLIENTS:
        outcomes = tried.get(client.name.replace(" ", "-"), {})
        if len(outcomes) < TESTS or set(outcomes.values()) != {"passed"}:
            raise ValueError(f"{client.name}: not all of its tests have passed: {outcomes}")
        lines.append(f"| {' | '.join(_cells(client))} |\n")
    return HEADER + "".join(lines) + "\n"


def _cells(client: Client) -> Sequence[str]:
    asked = subprocess.run(client.version, capture_output=True, text=True, check=True)
    version = _VERSION.search(asked.stdout + asked.stderr)
    return (
        client.name,
        version[0] if version else "?",
        client.language,
        "yes" if client.tokens else "error",
        "yes",
        "yes",
        {True: "yes", False: "error, next try", None: "either"}[client.patient],
        "yes",
        "error",
    )


def _without_versions(text: str) -> str:
    return re.sub(r"(?m)^(\| [^|]+ \|) [^|]+ \|", r"\1 |", text)


def main(arguments: Sequence[str]) -> int:
    """Write or check."""
    text = README.read_text()
    try:
        made = table()
    except ValueError as error:
        print(f"make client-table: {error}; run 'make test-clients'", file=sys.stderr)
        return 1
    fresh = _TABLE.sub(lambda found: found[1] + made + found[3], text)
    if "--check" in arguments:
        if _without_versions(fresh) != _without_versions(text):
            print("README.md's table of clients isn't what the tests found; run 'make client-table'", file=sys.stderr)
            return 1
    else:
        README.write_text(fresh)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
