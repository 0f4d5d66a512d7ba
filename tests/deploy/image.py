"""Runs the Dockerfile's own steps in folders, where there is no Docker: debootstrap for the base, chroot for RUN.

What a chroot needs besides, and an image does not, is mounted while a command runs and gone with its mount namespace:
name resolution, and this machine's own settings for apt and pip.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dockerfile_parse import DockerfileParser

from tests.deploy.chart import ROOT

DOCKERFILE = ROOT / "deploy" / "Dockerfile"
SUITE = "bookworm"
HOST_SETTINGS = (
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/pip.conf",
    "/etc/apt/sources.list",
    "/etc/apt/sources.list.d",
    "/etc/apt/apt.conf.d/99artifact-registry",
)
"""Files and folders that say how this machine reaches its mirrors."""
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
"""Those this machine trusts. Mounted in a place of its own: a step may install the package this file belongs to."""


BUILD_RIGHTS = ",".join(
    [
        "-all",
        *(
            f"+{name}"
            for name in (
                *("chown", "dac_override", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap"),
                *("net_bind_service", "net_raw", "sys_chroot", "mknod", "audit_write", "setfcap"),
            )
        ),
    ]
)
"""What Docker lets a build step do, and no more (docs.docker.com, "Runtime privilege and Linux capabilities")."""


class StepError(Exception):
    """A step of the Dockerfile failed; the message has its output's end."""


def mirror() -> str:
    """The Debian mirror this machine's apt uses."""
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)"], capture_output=True, text=True, check=True
    )
    uris = [line.split(" ")[0] for line in listed.stdout.splitlines() if line.endswith(f" {SUITE}")]
    if not uris:
        raise StepError(f"apt has no source for {SUITE}")
    return uris[0]


SLIM = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")
"""What Debian's slim images leave out, of every package."""


def debootstrap(target: Path) -> None:
    """The base image's stand-in: Debian's minimal system, as slim as the slim image. Raises StepError."""
    _run(["debootstrap", "--variant=minbase", SUITE, str(target), mirror()])
    excluded = "".join(f"path-exclude {pattern}\n" for pattern in SLIM)
    (target / "etc/dpkg/dpkg.cfg.d/slim").write_text(excluded)
    left_out = [place for pattern in SLIM for place in target.glob(pattern.removeprefix("/"))]
    caches = [target / "var/cache/apt/archives", target / "var/lib/apt/lists"]
    for place in [*left_out, *(file for cache in caches for file in cache.iterdir())]:
        shutil.rmtree(place) if place.is_dir() and not place.is_symlink() else place.unlink()


def _run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise StepError(f"{shlex.join(command)[:200]} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


def enter(
    root: Path,
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    setup: Sequence[str] = (),
    read_only: bool = False,
    namespaces: Sequence[str] = ("--mount", "--pid", "--fork", "--kill-child"),
) -> list[str]:
    """The command line that runs a command inside a folder, with /proc, /sys and /dev, in namespaces of its own.

    ``setup``: lines of shell that run first, with the folder's path in ``$root``.
    """
    lines = [
        "set -e",
        f"root={shlex.quote(str(root))}",
        "mount --make-rprivate /",
        'mount --bind "$root" "$root"',
        'mount -t proc proc "$root/proc"',
        'mount --rbind /sys "$root/sys"',
        'mount --rbind /dev "$root/dev"',
        *setup,
        *(['mount -o remount,bind,ro "$root"', 'mount -t tmpfs tmpfs "$root/tmp"'] if read_only else []),
        'exec chroot "$root" env -i '
        + " ".join(shlex.quote(f"{name}={value}") for name, value in environment.items())
        + f" {shlex.join(command)}",
    ]
    return ["unshare", *namespaces, "sh", "-c", "\n".join(lines)]


def host_settings(root: Path) -> list[str]:
    """Lines of shell that mount this machine's settings over the folder's, making the mount points as needed."""
    lines = [f"touch {shlex.quote(str(root))}/run/authorities"]
    lines += [f"mount --bind {AUTHORITIES} {shlex.quote(str(root))}/run/authorities"]
    for name in HOST_SETTINGS:
        source, target = Path(name), root / name.removeprefix("/")
        if not source.exists():
            continue
        lines += [f"mkdir -p {shlex.quote(str(target if source.is_dir() else target.parent))}"]
        if not source.is_dir():
            lines += [f"[ -e {shlex.quote(str(target))} ] || touch {shlex.quote(str(target))}"]
        lines += [f"mount --bind {shlex.quote(name)} {shlex.quote(str(target))}"]
    return lines


@dataclass(slots=True)
class Image:
    """A stage that was built: its file system and what it runs with."""

    root: Path
    environment: dict[str, str] = field(
        default_factory=lambda: {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/"}
    )
    user: str = "0:0"
    command: list[str] = field(default_factory=list)

    def size(self) -> int:
        """Bytes its files take on disk."""
        return int(_run(["du", "-sx", "--block-size=1", str(self.root)]).split()[0])


class Builder:
    """Builds a Dockerfile of FROM, ARG, ENV, COPY, RUN, USER and CMD below a folder. Raises StepError."""

    def __init__(self, folder: Path, base: Path) -> None:
        """``base``: the folder that stands for every image that is not a stage."""
        self._folder = folder
        self._base = base
        self._stages: dict[str, Image] = {}

    def build(self) -> Mapping[str, Image]:
        """Run every step; the stages by their names."""
        current: Image | None = None
        for step in DockerfileParser(path=str(DOCKERFILE)).structure:
            instruction, value = step["instruction"], step["value"]
            if instruction == "FROM":
                current = self._from(value)
            elif instruction in ("COMMENT", "ARG"):
                continue
            elif current is None:
                raise StepError(f"{instruction} before FROM")
            else:
                self._step(current, instruction, value)
        return self._stages

    def _from(self, value: str) -> Image:
        source, _, name = re.sub(r"\s+", " ", value).partition(" AS ")
        if source == "${BASE}":
            image = Image(self._folder / name)
            _run(["cp", "-a", "--reflink=auto", str(self._base), str(image.root)])
        elif source in self._stages:
            before = self._stages[source]
            image = Image(self._folder / name, dict(before.environment), before.user, list(before.command))
            _run(["cp", "-a", "--reflink=auto", str(before.root), str(image.root)])
        else:
            raise StepError(f"FROM {source}: only the base and earlier stages are known here")
        self._stages[name] = image
        return image

    def _step(self, image: Image, instruction: str, value: str) -> None:
        match instruction:
            case "RUN":
                environment = image.environment | {
                    "DEBIAN_FRONTEND": "noninteractive",
                    "PIP_CERT": "/run/authorities",
                }
                if image.user != "0:0":
                    raise StepError("RUN as another user than root is unknown here")
                shell = ["setpriv", f"--bounding-set={BUILD_RIGHTS}", "/bin/sh", "-c", f"set -e\n{value}"]
                _run(enter(image.root, shell, environment=environment, setup=host_settings(image.root)))
            case "COPY":
                self._copy(image, shlex.split(value))
            case "ENV":
                image.environment |= dict(word.split("=", 1) for word in shlex.split(value))
            case "USER":
                image.user = value
            case "CMD":
                image.command = json.loads(value)
            case _:
                raise StepError(f"{instruction} is unknown here")

    def _copy(self, image: Image, words: list[str]) -> None:
        source_root = ROOT
        if words[0].startswith("--from="):
            source_root = self._stages[words.pop(0).removeprefix("--from=")].root
        *sources, target = words
        for source in sources:
            found = source_root / source.removeprefix("/")
            place = image.root / target.removeprefix("/")
            if target.endswith("/"):
                place = place / found.name
            place.parent.mkdir(parents=True, exist_ok=True)
            if found.is_dir():
                shutil.copytree(found, place, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(found, place)
