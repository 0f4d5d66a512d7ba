"""What a pod sends to the agent's port."""

from __future__ import annotations

from typing import Any, cast

from kiam.agent.core.failures import Unparsable
from kiam.agent.http.paths import gives_node_credentials, is_token_path, parse_target
from tests.unit.agent import test_connection_bytes as connections


def _property(test: Any) -> Any:
    """The function that Hypothesis would call (its documented handle for other fuzzers)."""
    return cast(Any, test).hypothesis.inner_test


_of_bytes = [
    _property(connections.test_any_bytes_are_answered_or_waited_for),
    _property(connections.test_requests_are_those_that_another_parser_sees),
    _property(connections.test_what_is_recognised_at_first_sight_is_what_is_parsed),
]
_of_pieces = _property(connections.test_pieces_make_no_difference)


def request(data: bytes) -> None:
    """Bytes on a connection keep what Hypothesis is asked about them too: they are answered or waited for, they are
    the requests that another parser sees, and where packets end makes no difference."""
    for kept in _of_bytes:
        kept(data)
    _of_pieces(data, [byte * 7 for byte in data[:4]])


def target(data: bytes) -> None:
    """A request target is refused, or it has exactly one spelling: that of its canonical path, which has no second
    meaning to whom it is passed on."""
    text = data.decode("latin-1")
    try:
        parsed = parse_target(text)
    except Unparsable:
        return
    assert parsed.path.startswith("/")
    if parsed.role is None:
        again = parse_target(parsed.path)
        assert (again.path, again.role) == (parsed.path, None)
        segments = parsed.path.split("/")
        assert not {".", ".."} & set(segments)
        assert "" not in segments[1:-1]
        assert not set(parsed.path) & set("%\\;?# \r\n\0")
    else:
        assert parsed.is_credentials
        assert not is_token_path(parsed.path)
        assert gives_node_credentials(parsed.path) or not parsed.role
        assert not set(parsed.role) & set("%\\;\r\n\0 ")
        assert not {".", ".."} & set(parsed.role.split("/"))
