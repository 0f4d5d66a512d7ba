"""What ``kiam config check agent`` learns from the first word of the node's stream."""

from __future__ import annotations

import grpc

from kiam.agent.settings import AgentSettings
from kiam.errors import UserError
from kiam.rpc import kiam_pb2
from kiam.tls.diagnosis import needs_lenient_tls
from kiam.tls.tunnel import ask_through_tunnel
from kiam.verify.results import CheckResult, failed, passed, warned

_CHECK = "stream"
_METHOD = "/kiam.KiamService/WatchNode"
_NAME_THE_NODE = "give the agent its node's name (spec.nodeName), with --node-name or NODE_NAME"


def check_stream(settings: AgentSettings, timeout: float) -> CheckResult:
    """Whether the server knows pods of the node that this agent will ask for. ``timeout`` in seconds."""
    try:
        material = settings.server.tls.read()
    except UserError as error:
        return failed(_CHECK, error.what, error.fix)
    address = settings.server.address
    credentials = grpc.ssl_channel_credentials(material.ca, material.key, material.cert)
    target = address if address.startswith(("dns:", "ipv4:", "ipv6:", "unix:")) else f"dns:///{address}"
    if needs_lenient_tls(address, settings.server.tls, timeout):
        return ask_through_tunnel(
            address, settings.server.tls, lambda tunnel: _open(grpc.insecure_channel(tunnel), settings, timeout)
        )
    return _open(grpc.secure_channel(target, credentials, [("grpc.enable_http_proxy", 0)]), settings, timeout)


def _open(channel: grpc.Channel, settings: AgentSettings, timeout: float) -> CheckResult:
    """Open the stream on a channel, which is closed afterwards, and judge its first word."""
    request = kiam_pb2.WatchNodeRequest(node_name=settings.node_name, host_ip=str(settings.host))
    with channel:
        watch = channel.unary_stream(
            _METHOD, kiam_pb2.WatchNodeRequest.SerializeToString, kiam_pb2.NodeUpdate.FromString
        )
        call = watch(request, timeout=timeout)
        try:
            hello = next(call).hello
        except StopIteration:
            return failed(_CHECK, "the server ended the stream without a word", "see the server's log")
        except grpc.RpcError as error:
            return _not_opened(error)
        finally:
            call.cancel()
    return judge_hello(hello, settings.node_name, str(settings.host))


def judge_hello(hello: kiam_pb2.Hello, node_name: str, host: str) -> CheckResult:
    """Whether the server knows the node it was asked for."""
    asked_for = f"node {node_name}" if node_name else f"the node with the address {host}"
    if (hello.HasField("node_known") and not hello.node_known) or not hello.node_name:
        return warned(
            _CHECK,
            f"the server knows no pod of {asked_for}: each answer is a call to the server, and outages aren't survived",
            _NAME_THE_NODE,
        )
    if node_name:
        return passed(_CHECK, f"the server streams node {hello.node_name}")
    return passed(_CHECK, f"the server streams {asked_for}, which is {hello.node_name}")


def _not_opened(error: grpc.RpcError) -> CheckResult:
    assert isinstance(error, grpc.Call)
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return passed(_CHECK, "the server has none, as conventional kiam: each answer is a call to the server")
    return failed(_CHECK, f"the server doesn't open this node's: {details or code.name}", "see the server's log")
