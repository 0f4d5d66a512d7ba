"""The scripts, read by the shells they are for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kiam.cli import COMMANDS, main

SHELLS = ("bash", "zsh", "fish")


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("completion")
    found = {}
    for shell in SHELLS:
        done = subprocess.run(
            [sys.executable, "-m", "kiam", "completion", shell], capture_output=True, text=True, check=True, timeout=120
        )
        found[shell] = directory / f"kiam.{shell}"
        found[shell].write_text(done.stdout)
    return found


def ask(shell: str, script: str, home: Path) -> str:
    program = shutil.which(shell)
    assert program, f"{shell} is in packages.txt"
    arguments = {"bash": ["--norc", "-c"], "zsh": ["-f", "-c"], "fish": ["--no-config", "-c"]}[shell]
    # fish asks whether the program exists before it completes for it.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [program, *arguments, script],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={"PATH": path, "HOME": str(home), "TERM": "dumb"},
    )
    assert done.stderr == ""
    return done.stdout


def bash_completes(script: Path, words: list[str], home: Path) -> set[str]:
    listed = " ".join(f"'{word}'" for word in words)
    return set(
        ask(
            "bash",
            f"source {script}; COMP_WORDS=({listed}); COMP_CWORD={len(words) - 1}; _shtab_kiam; "
            'printf "%s\\n" "${COMPREPLY[@]}"',
            home,
        ).split()
    )


def test_bash_completes_commands_flags_choices_and_files(scripts: dict[str, Path], tmp_path: Path) -> None:
    assert bash_completes(scripts["bash"], ["kiam", "ag"], tmp_path) == {"agent"}
    assert bash_completes(scripts["bash"], ["kiam", "agent", "--allow-r"], tmp_path) == {"--allow-route-regexp"}
    assert bash_completes(scripts["bash"], ["kiam", "agent", "--dataplane", "nf"], tmp_path) == {"nftables"}
    assert bash_completes(scripts["bash"], ["kiam", "certs", "s"], tmp_path) == {"server"}
    file = tmp_path / "server.pem"
    file.touch()
    assert str(file) in bash_completes(scripts["bash"], ["kiam", "server", "--cert", str(tmp_path / "ser")], tmp_path)


def test_fish_completes_commands_and_flags(scripts: dict[str, Path], tmp_path: Path) -> None:
    listed = ask("fish", f"source {scripts['fish']}; complete --do-complete 'kiam '", tmp_path)
    assert {line.split("\t")[0] for line in listed.splitlines()} >= set(COMMANDS)
    listed = ask("fish", f"source {scripts['fish']}; complete --do-complete 'kiam server --assume'", tmp_path)
    assert listed.split("\t")[0] == "--assume-role-arn"


def test_zsh_reads_its_script_and_knows_the_command(scripts: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "_kiam").write_text(scripts["zsh"].read_text())
    loaded = ask(
        "zsh",
        f"fpath=({tmp_path} $fpath); autoload -Uz compinit; compinit -u -d {tmp_path}/dump; print ${{_comps[kiam]}}; "
        f"zsh -fn {tmp_path}/_kiam && print fine",
        tmp_path,
    )
    assert loaded.split() == ["_kiam", "fine"]
    for name in COMMANDS:
        assert name in scripts["zsh"].read_text()


def test_shell_without_a_script_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["completion", "tcsh"])
    assert "argument shell: invalid choice: 'tcsh'" in capsys.readouterr().err
