"""Debian's cloud kernels, downloaded and unpacked beside the machine's own, never installed."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SUITES = ("bullseye", "bookworm", "bookworm-backports", "trixie", "trixie-backports")
SECURITY_SUITES = ("bullseye-security", "bookworm-security", "trixie-security")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
NEWEST = "newest"


class KernelError(Exception):
    """A kernel that can't be had, with the reason."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """One unpacked kernel."""

    release: str
    """As ``uname -r`` will say."""
    image: Path
    modules: Path
    """The folder that holds ``lib/modules/<release>``."""


class KernelStore:
    """A folder of kernels, with an apt configuration of its own: nothing of the machine's apt is touched."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()

    def get(self, series: str) -> Kernel:
        """The newest kernel of a series such as ``6.1``, or of all with ``newest``. Raises KernelError."""
        name = self._newest_package(series)
        release = name.removeprefix("linux-image-")
        root = self._folder / release
        if not (root / ".complete").exists():
            self._download(name, root)
        tree = root if (root / "lib/modules").is_dir() else root / "usr"
        modules = tree / "lib/modules" / release
        # Since 7.x the image lies beside its modules.
        image = next(
            (path for path in (root / "boot" / f"vmlinuz-{release}", modules / "vmlinuz") if path.exists()), None
        )
        if image is None or not modules.is_dir():
            raise KernelError(f"{name} holds no kernel image or modules where they are expected, see {root}")
        return Kernel(release, image, tree)

    def refresh(self) -> None:
        """Write the apt configuration and fetch the package lists. Raises KernelError."""
        for folder in ("lists/partial", "cache/archives/partial", "state"):
            (self._folder / "apt" / folder).mkdir(parents=True, exist_ok=True)
        (self._folder / "apt/state/status").touch()
        lines = [f"deb [signed-by={KEYRING}] {base} {suite} main" for base, suites in _mirrors() for suite in suites]
        (self._folder / "apt/sources.list").write_text("\n".join(lines) + "\n")
        self._run("apt-get", "update", "-qq")

    def _newest_package(self, series: str) -> str:
        prefix = "" if series == NEWEST else re.escape(series) + r"\."
        listing = self._run("apt-cache", "search", "--names-only", f"^linux-image-{prefix}[0-9].*-cloud-amd64$")
        names = [line.split()[0] for line in listing.splitlines()]
        if not names:
            raise KernelError(f"no Debian suite of {', '.join(SUITES)} has a cloud kernel {series}")
        return max(names, key=_version_key)

    def _download(self, name: str, root: Path) -> None:
        depends = self._run("apt-cache", "depends", "--important", name)
        split = re.findall(rf"\b(linux-(?:base|binary|modules)-{re.escape(name[12:])})\b", depends)
        root.mkdir(parents=True, exist_ok=True)
        for package in (name, *split):
            self._run("apt-get", "download", package, cwd=root)
        for deb in root.glob("*.deb"):
            _run(["dpkg", "-x", str(deb), str(root)])
            deb.unlink()
        (root / ".complete").touch()

    def _run(self, program: str, *arguments: str, cwd: Path | None = None) -> str:
        apt = self._folder / "apt"
        options = {
            "Dir::Etc::SourceList": apt / "sources.list",
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::State": apt / "state",
            "Dir::State::Lists": apt / "lists",
            "Dir::State::status": apt / "state/status",
            "Dir::Cache": apt / "cache",
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
        }
        flags = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
        return _run([program, *flags, *arguments], cwd)


def _mirrors() -> Iterator[tuple[str, Sequence[str]]]:
    """The mirrors the machine's own apt uses for Debian, with the suites to ask each for."""
    targets = _run(["apt-get", "indextargets", "--format", "$(ORIGIN) $(RELEASE) $(REPO_URI)", "Created-By: Packages"])
    bases: dict[str, Sequence[str]] = {}
    for suite, base in (line.split()[1:] for line in targets.splitlines() if line.startswith("Debian ")):
        bases[base] = SECURITY_SUITES if suite.endswith("-security") else SUITES
    if not bases:
        raise KernelError("apt knows no Debian mirror here; run apt-get update on a Debian machine first")
    yield from bases.items()


def _version_key(name: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", name.split("-cloud")[0]))


def _run(command: Sequence[str], cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise KernelError(f"{command[0]} failed: {reason[-1] if reason else done.returncode}")
    return done.stdout
