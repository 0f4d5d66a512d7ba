"""gRPC ignores an option whose name it doesn't know, so each name used is looked up in the library itself."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

import kiam

SOURCES = Path(kiam.__file__).parent


def _names(tree: ast.AST) -> Iterator[str]:
    """First elements of tuples, and keys of dictionaries, that look like channel arguments."""
    for node in ast.walk(tree):
        candidates: list[ast.expr | None] = []
        if isinstance(node, ast.Tuple):
            candidates = list(node.elts[:1])
        elif isinstance(node, ast.Dict):
            candidates = list(node.keys)
        for candidate in candidates:
            name = candidate.value if isinstance(candidate, ast.Constant) else None
            if isinstance(name, str) and name.startswith("grpc."):
                yield name


USED = sorted({name for path in SOURCES.rglob("*.py") for name in _names(ast.parse(path.read_text()))})


@pytest.fixture(scope="module")
def library() -> bytes:
    """The compiled library, in which every channel argument's name stands as a C string."""
    (compiled,) = (Path(grpc.__file__).parent / "_cython").glob("cygrpc*.so")
    return compiled.read_bytes()


def test_both_sides_set_options() -> None:
    assert {"grpc.keepalive_time_ms", "grpc.max_connection_age_ms", "grpc.dns_min_time_between_resolutions_ms"} <= set(
        USED
    )


@pytest.mark.parametrize("name", USED)
def test_library_knows_the_option(library: bytes, name: str) -> None:
    assert name.encode() + b"\0" in library


def test_look_up_tells_a_name_that_is_only_nearly_right(library: bytes) -> None:
    assert b"grpc.http2.min_recv_ping_interval_without_data_ms\0" not in library
