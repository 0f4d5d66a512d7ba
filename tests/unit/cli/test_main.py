"""kiam help, and what a wrong command line is told."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import pytest

from kiam.cli import COMMANDS, build_parser, main


def leaves(parser: argparse.ArgumentParser, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command there is, as its words."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield words
    for action in below:
        for name, command in action.choices.items():
            yield from leaves(command, (*words, name))


LEAVES = list(leaves(build_parser()))


def exits(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(list(words))
    captured = capsys.readouterr()
    assert isinstance(stopped.value.code, int)
    return stopped.value.code, captured.out, captured.err


@pytest.mark.parametrize("words", [(), *((name,) for name in COMMANDS), *LEAVES], ids=" ".join)
def test_help_prints_what_the_flag_prints(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert exits(capsys, "help", *words) == exits(capsys, *words, "--help")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ((), "kiam: the following arguments are required: COMMAND; see 'kiam help'"),
        (("dataplane", "install"), "kiam dataplane install: the following arguments are required: --dataplane; "),
        (
            ("agent", "--port=70000"),
            "kiam agent: argument --port: '70000' is not a port; give a number from 1 to 65535",
        ),
        (("server", "--nonsense"), "see 'kiam help server'"),
        (("dataplane", "verify", "--fix", "--output=json"), "not allowed with argument"),
        (("nonsense",), "invalid choice: 'nonsense'"),
        (("help", "nonsense"), "invalid choice: 'nonsense'"),
        (("help", "dataplane", "nonsense"), "see 'kiam help dataplane'"),
    ],
)
def test_a_usage_error_is_one_line_with_a_hint(
    words: tuple[str, ...], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = exits(capsys, *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert line in err
    assert "; see 'kiam help" in err
