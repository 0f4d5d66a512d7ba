"""Errors as data: programs go by kind, what and fix, and never by the words."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import kiam
from kiam.errors import ErrorKind, UserError, joined


def test_the_line_is_what_is_wrong_and_then_how_to_fix_it() -> None:
    assert str(UserError("it is wrong", "do it right")) == "it is wrong; do it right"
    assert str(UserError("it is wrong")) == "it is wrong"


def test_several_become_one_line_with_the_last_ones_fix() -> None:
    found = joined(
        [UserError("one", "first", ErrorKind.CERTIFICATE), UserError("two", "second", ErrorKind.CERTIFICATE)]
    )
    assert str(found) == "one; first; two; second"
    assert (found.fix, found.kind) == ("second", ErrorKind.CERTIFICATE)
    assert joined([found, UserError("three", kind=ErrorKind.BUSY)]).kind is ErrorKind.OTHER
    with pytest.raises(ValueError, match="no errors"):
        joined([])


def test_nothing_of_ours_looks_for_words_in_the_text_of_an_error() -> None:
    """``"certificate" in str(error)`` breaks when somebody words the error better."""
    root = Path(kiam.__file__).parent
    openssl = root / "tls/refusals.py"  # whose reasons are OpenSSL's names of alerts, and no prose
    found = [
        f"{path.relative_to(root)}:{node.lineno}"
        for path in root.rglob("*.py")
        if path != openssl
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Compare | ast.Call) and _looks_into_an_error(node)
    ]
    assert found == []


def _looks_into_an_error(node: ast.Compare | ast.Call) -> bool:
    if isinstance(node, ast.Compare):
        searched = isinstance(node.ops[0], ast.In | ast.NotIn) and isinstance(node.left, ast.Constant)
        return searched and _is_text_of_an_error(node.comparators[0])
    methods = ("partition", "rpartition", "split", "rsplit", "startswith", "endswith", "find")
    if not isinstance(node.func, ast.Attribute) or node.func.attr not in methods or not node.args:
        return False
    return _is_text_of_an_error(node.func.value)


def _is_text_of_an_error(node: ast.expr) -> bool:
    match node:
        case ast.Call(func=ast.Name(id="str"), args=[ast.Name(id="error" | "problem" | "exc")]):
            return True
        case ast.Name(id="reason" | "problem") | ast.Attribute(attr="seen" | "problem" | "message"):
            return True
    return False
