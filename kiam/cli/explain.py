"""``kiam explain``: why a pod gets its role or doesn't, and what fixes it.

Asked of a server, or worked out by the same rules from what a kubeconfig gives.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from datetime import timedelta
from typing import TYPE_CHECKING

from kiam.cli.calls import call, load_grpc, reason
from kiam.cli.options import add_server_address, add_tls, duration, flag_type, namespace
from kiam.cli.server_policy import add_base_arn, add_policy, add_sessions, policy, sessions
from kiam.dataplane.contract import HostNetwork
from kiam.errors import UserError

if TYPE_CHECKING:
    from kiam.server.policy.steps import Explanation


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument("pod", nargs="?", default="", metavar="POD", help="a pod's name")
    parser.add_argument(
        "-n", "--namespace", type=flag_type(namespace, "namespace"), default="default", help="the pod's namespace"
    )
    parser.add_argument("--node", default="", metavar="NAME", help="instead of POD: all pods of this node")
    parser.add_argument("--output", choices=("text", "json"), default="text", help="how to print it")
    parser.add_argument("--timeout", type=duration, default=timedelta(seconds=5), metavar="DURATION")
    add_tls(parser, required=False)
    add_server_address(parser)
    parser.add_argument(
        "--kubeconfig",
        metavar="FILE",
        help="ask no server: read the pod with this, and judge by the flags below, given as the server has them; "
        "empty: as the pod it runs in",
    )
    parser.add_argument(
        "--host-network",
        type=HostNetwork,
        choices=tuple(HostNetwork),
        help="with --kubeconfig: as the agents have it, which decides about pods on the host network",
    )
    add_base_arn(parser)
    add_policy(parser)
    add_sessions(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the steps; 0 if every pod that was asked about gets its role, of a node's those that name one."""
    if bool(arguments.pod) == bool(arguments.node):
        raise UserError("give a pod's name, or a node's with --node", "see 'kiam help explain'")
    if arguments.kubeconfig is not None:
        if not arguments.role_base_arn:
            raise UserError("--kubeconfig needs --role-base-arn", "give it as the server has it")
        from kiam.cli.explain_alone import explain_alone

        found = asyncio.run(explain_alone(arguments, policy(arguments), sessions(arguments)))
    else:
        found = _ask(arguments)
    print(_as_json(found) if arguments.output == "json" else _as_text(found), end="")
    counted = found if arguments.pod else [one for one in found if not _without_role(one)]
    return 0 if all(one.gets_its_role for one in counted) else 1


def _ask(arguments: argparse.Namespace) -> list[Explanation]:
    if None in (arguments.cert, arguments.key, arguments.ca):
        raise UserError("a server is asked with --cert, --key and --ca", "or give --kubeconfig to do without a server")
    from kiam.rpc import kiam_pb2
    from kiam.server.policy.steps import Explanation

    request = kiam_pb2.ExplainRequest(namespace=arguments.namespace, pod=arguments.pod, node=arguments.node)
    grpc = load_grpc()

    try:
        answer = call(arguments, "Explain", request.SerializeToString())
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            raise UserError(
                f"the server at {arguments.server_address} is of a release that can't explain", "use --kubeconfig"
            ) from None
        if error.code() is grpc.StatusCode.PERMISSION_DENIED:
            raise UserError(
                error.details() or "not permitted", "use a certificate of that node, or --kubeconfig"
            ) from None
        raise UserError(reason(arguments, error)) from None
    return [Explanation.of(message) for message in kiam_pb2.Explanations.FromString(answer).explanations]


def _without_role(explanation: Explanation) -> bool:
    return any(step.name == "role" and step.outcome.value != "ok" for step in explanation.steps)


def _as_json(found: list[Explanation]) -> str:
    pods = [
        {
            "namespace": one.namespace,
            "pod": one.pod,
            "getsItsRole": one.gets_its_role,
            "steps": [
                {"name": step.name, "outcome": step.outcome.value, "text": step.text, "fix": step.fix}
                for step in one.steps
            ],
        }
        for one in found
    ]
    return json.dumps({"pods": pods}, indent=2) + "\n"


def _as_text(found: list[Explanation]) -> str:
    if not found:
        return "no pods are known there\n"
    lines = []
    for one in found:
        lines.append(f"{one.namespace}/{one.pod} {'gets its role' if one.gets_its_role else 'does not get a role'}")
        for step in one.steps:
            lines.append(f"  {step.outcome.value:<9}  {step.name:<11}  {step.text}")
            if step.fix:
                lines.append(f"  {'':<9}  {'':<11}  -> {step.fix}")
    return "\n".join(lines) + "\n"
