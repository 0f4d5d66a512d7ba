"""What the server's first word says about the node that was asked for."""

from __future__ import annotations

import pytest

from kiam.cli.config_stream import judge_hello
from kiam.rpc import kiam_pb2
from kiam.verify.results import Status


@pytest.mark.parametrize(
    ("node_name", "hello", "status"),
    [
        ("node-1", kiam_pb2.Hello(node_name="node-1", node_known=True), Status.PASS),
        ("node-1", kiam_pb2.Hello(node_name="node-1", node_known=False), Status.WARN),
        ("", kiam_pb2.Hello(node_name="node-1", node_known=True), Status.PASS),
        ("", kiam_pb2.Hello(node_name="", node_known=False), Status.WARN),
        # Servers up to 5.0 don't say whether they know a node that they were given the name of.
        ("node-1", kiam_pb2.Hello(node_name="node-1"), Status.PASS),
        ("", kiam_pb2.Hello(node_name=""), Status.WARN),
    ],
)
def test_node_the_server_does_not_know_is_a_warning(node_name: str, hello: kiam_pb2.Hello, status: Status) -> None:
    result = judge_hello(hello, node_name, "10.0.0.1")
    assert result.status is status
    assert (node_name or "10.0.0.1") in result.seen
