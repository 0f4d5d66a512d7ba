"""Only kiam.netfilter runs iptables' programs and nft."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import kiam

HERE = Path(kiam.__file__).parent
PROGRAM = re.compile(r"(nft|ip6?tables(-nft|-legacy)?(-save|-restore)?)")
RUNNERS = ("run", "Popen", "call", "check_call", "check_output", "create_subprocess_exec", "system", "execvp")


def started(source: Path) -> Iterator[tuple[int, str]]:
    """Where a module starts a program that it names: a list or a call whose first word is the program."""
    for node in ast.walk(ast.parse(source.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name not in RUNNERS or not node.args:
            continue
        first = node.args[0]
        word = first.elts[0] if isinstance(first, ast.List | ast.Tuple) and first.elts else first
        if isinstance(word, ast.Constant) and isinstance(word.value, str) and PROGRAM.match(word.value):
            yield node.lineno, word.value


def test_nobody_else_starts_them() -> None:
    found = [
        f"{source.relative_to(HERE)}:{line}: {program}"
        for source in HERE.rglob("*.py")
        if not source.is_relative_to(HERE / "netfilter")
        for line, program in started(source)
    ]
    assert found == []


def test_libnftables_is_loaded_by_nobody() -> None:
    text = re.compile(r"^\s*(import nftables|from nftables )|import_module\(.nftables.\)", re.MULTILINE)
    assert [source.name for source in HERE.rglob("*.py") if text.search(source.read_text())] == []


def test_the_search_finds_what_it_is_for(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text('import subprocess\nsubprocess.run(["nft", "list", "ruleset"], check=False)\n')
    assert list(started(module)) == [(2, "nft")]
