"""The architecture page's walks through the code name files and functions that are there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache

import pytest

from tests.docs.layers import PAGE, ROOT

_NAMED = re.compile(r"`(kiam/[\w/]+\.py):([\w.]+)`")
NAMED = sorted(set(_NAMED.findall(PAGE.read_text())))


def _defined(body: list[ast.stmt], prefix: str = "") -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + node.name
        if isinstance(node, ast.ClassDef):
            yield from _defined(node.body, f"{prefix}{node.name}.")


@cache
def defined(path: str) -> frozenset[str]:
    """Classes, functions and methods of a file, dotted."""
    return frozenset(_defined(ast.parse((ROOT / path).read_text()).body))


@pytest.mark.parametrize(("path", "name"), NAMED, ids=":".join)
def test_what_the_walks_name_exists(path: str, name: str) -> None:
    assert (ROOT / path).is_file(), "the file has moved"
    assert name in defined(path), f"{path} has no {name}"


def test_the_walks_visit_every_room_they_are_about() -> None:
    rooms = {path.rpartition("/")[0] for path, _ in NAMED}
    agent = {f"kiam/agent/{room}" for room in ("core", "http", "control", "kernel")}
    server = {f"kiam/server/{room}" for room in ("grpc", "policy", "kubernetes", "aws")}
    assert rooms >= agent | server


def test_every_step_is_named_with_its_function() -> None:
    """A file alone would go stale without a test that notices."""
    walks = PAGE.read_text().partition("## Two walks through the code")[2].partition("\n## ")[0]
    steps = re.split(r"^\d+\. ", walks, flags=re.MULTILINE)[1:]
    assert steps
    assert [step for step in steps if not _NAMED.search(step)] == []
