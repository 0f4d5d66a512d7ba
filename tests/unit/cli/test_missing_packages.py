"""The agents' image has no package that only the server needs."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = {
    "server": ("--role-base-arn=arn:aws:iam::123456789012:role/",),
    "untaint": ("--taint=kiam.io/x", "--namespace=kube-system", "--selector=app=kiam"),
}


@pytest.mark.parametrize("package", ["kubernetes", "msgspec"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_needs_one_says_which_image_has_it(command: str, package: str, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("cert", "key", "ca")] if command == "server" else []
    for file in files:
        file.touch()
    flags = [*COMMANDS[command], *(f"--{file.name}={file}" for file in files)]
    script = f"import sys; sys.modules[{package!r}] = None; from kiam.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", script, command, *flags], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    assert done.stderr == (
        f"kiam {command}: the package {package} is missing; "
        "use the servers' image (deploy/Dockerfile, target server), or install kiam[server]\n"
    )


def test_a_server_whose_files_are_no_good_says_so_first_whoever_has_its_port(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        files = []
        for name in ("cert", "key", "ca"):
            (tmp_path / name).touch()
            files.append(f"--{name}={tmp_path / name}")
        argv = [sys.executable, "-m", "kiam", "server", *COMMANDS["server"], f"--bind={bind}", *files]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "--cert" in done.stderr
    assert "--bind" not in done.stderr
