"""README.md's first steps and getting-started's, as they are written, on a minimal Debian 12."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.deploy.image import debootstrap, enter, host_settings
from tests.docs.blocks import read_blocks

pytestmark = [pytest.mark.newcomer, pytest.mark.timeout(2400)]

ROOT = Path(__file__).parents[2]
VERDICT = "everything as it has to be"
LARGEST = 2.5
"""GB that everything may take, the minimal Debian included; README.md says what it was."""


class Machine:
    """A minimal Debian in a folder. A clone from the address on the pages gets this checkout's last commit."""

    def __init__(self, root: Path, repository: Path) -> None:
        self.root = root
        subprocess.run(["git", "clone", "--quiet", "--bare", str(ROOT), str(repository)], check=True)
        self._setup = [
            *host_settings(root),
            f"mkdir -p {shlex.quote(str(root))}/run/repository",
            f"mount --bind {shlex.quote(str(repository))} {shlex.quote(str(root))}/run/repository",
        ]

    def type(self, lines: Sequence[str], folder: str = "/root") -> str:
        """Type lines into a shell, which ends at the first that fails; what it prints."""
        environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "LANG": "C.UTF-8",
            "DEBIAN_FRONTEND": "noninteractive",
            "PIP_CERT": "/run/authorities",
            # The address on the pages leads to this checkout.
            "GIT_CONFIG_COUNT": "2",
            "GIT_CONFIG_KEY_0": "url.file:///run/repository.insteadOf",
            "GIT_CONFIG_VALUE_0": "https://example.com/kiam.git",
            "GIT_CONFIG_KEY_1": "safe.directory",
            "GIT_CONFIG_VALUE_1": "*",
        }
        script = "\n".join([f"cd {folder}", "set -e", *lines])
        # In no namespace of process ids: names that the sandbox makes of its own would look like others' leftovers.
        command = enter(
            self.root, ["bash", "-c", script], environment=environment, setup=self._setup, namespaces=("--mount",)
        )
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        assert done.returncode == 0, f"{lines}: exit {done.returncode}\n{done.stdout[-6000:]}"
        return done.stdout

    def gigabytes(self) -> float:
        """What its files take on disk."""
        listed = subprocess.run(
            ["du", "-sx", "--block-size=1", str(self.root)], capture_output=True, text=True, check=True
        )
        return int(listed.stdout.split()[0]) / 1e9


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine on which each page is followed in turn."""
    folder = tmp_path_factory.mktemp("newcomer")
    try:
        debootstrap(folder / "root")
        yield Machine(folder / "root", folder / "repository")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def steps(page: Path) -> list[list[str]]:
    """The commands of each block that a newcomer types."""
    blocks = [block for block in read_blocks(page) if block.kind == "newcomer"]
    return [[line.removeprefix("# ") for line in block.content.splitlines()] for block in blocks]


def test_the_readme_leads_to_a_demo(machine: Machine) -> None:
    (first,) = steps(ROOT / "README.md")
    printed = machine.type(first)
    assert VERDICT in printed
    readme = (ROOT / "README.md").read_text()
    shown = readme.partition("$ make demo\n")[2].partition("```")[0]
    for line in shown.splitlines()[:-1]:
        assert " ".join(line.split()) in " ".join(printed.split())
    assert machine.gigabytes() < LARGEST
    print(f"{machine.gigabytes():.1f} GB")


def test_getting_started_leads_to_a_demo_with_each_dataplane(machine: Machine) -> None:
    first, others = steps(ROOT / "docs" / "getting-started.md")
    folder = "/root"
    machine.type(["rm -rf kiam"])
    assert VERDICT in machine.type(first, folder)
    assert machine.type(others, "/root/kiam").count(VERDICT) == len(others)


def test_the_commands_of_getting_started_work_there(machine: Machine) -> None:
    # The page's other blocks: run on a node of the sandbox, or parsed, as each is marked.
    machine.type([".venv/bin/pytest -q tests/docs/test_docs.py -k getting-started"], "/root/kiam")
