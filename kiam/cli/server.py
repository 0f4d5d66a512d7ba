"""``kiam server``: flags to configuration."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

from kiam.addresses import parse_listen_address
from kiam.arns import resolve_role_arn, role_problem
from kiam.cli.options import (
    add_boolean,
    add_common,
    add_keepalive,
    add_telemetry,
    duration,
    flag_type,
    flags_without_effect,
    tls_files,
)
from kiam.cli.server_policy import add_base_arn, add_policy, add_sessions, policy, sessions
from kiam.durations import format_duration
from kiam.errors import UserError
from kiam.grpc_core import prepare_grpc
from kiam.server.settings import DEFAULT_REFRESH, LEAST_LEFT, TOO_LATE, TOO_LATE_FIX, needs_cluster

if TYPE_CHECKING:
    from kiam.server.settings import ServerSettings

LEAST_SESSION, LONGEST_SESSION = timedelta(minutes=15), timedelta(hours=12)
"""What STS grants (AWS STS API reference, AssumeRole, DurationSeconds)."""


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ValueError(f"'{text}' is not a number from 1 up")
    return int(text)


def _listen_address(text: str) -> str:
    parse_listen_address(text)
    return text


def _role(text: str) -> str:
    if text and role_problem(resolve_role_arn(text, "arn:aws:iam::123456789012:role/")):
        raise ValueError(
            f"'{text}' is not a role; write it like kiam-server, /path/kiam-server "
            "or arn:aws:iam::123456789012:role/kiam-server"
        )
    return text


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the server's flags."""
    add_common(parser)
    add_telemetry(parser)
    count = flag_type(_count, "number")
    parser.add_argument("--bind", default="localhost:9610", metavar="HOST:PORT", help="listen for agents there")
    parser.add_argument(
        "--kubeconfig", default="", metavar="FILE", help="how to reach the Kubernetes API; empty: as the pod it runs in"
    )
    parser.add_argument(
        "--sync",
        type=duration,
        default=timedelta(minutes=1),
        metavar="DURATION",
        help="begin a new watch of pods and namespaces so often; bounds how long a dead one goes unnoticed",
    )
    parser.add_argument(
        "--stale-after",
        type=duration,
        metavar="DURATION",
        help="not ready, and no streams, once nothing was heard of the API's pods for so long; at least twice --sync, "
        "unset: three times; 0s: never",
    )
    parser.add_argument("--fetchers", type=count, default=8, metavar="N", help="AssumeRole calls at a time")
    parser.add_argument(
        "--prefetch-buffer-size",
        type=count,
        default=1000,
        metavar="N",
        help="accepted for compatibility; pods wait for their credentials in the store, where none is dropped",
    )
    add_base_arn(parser)
    add_boolean(parser, "--role-base-arn-autodetect", False, "take the base ARN from the instance's own profile")
    add_policy(parser)
    add_sessions(parser)
    parser.add_argument(
        "--session-duration",
        type=duration,
        default=timedelta(minutes=15),
        metavar="DURATION",
        help="how long credentials live that STS is asked for (15m; STS takes 15m to 12h, role chaining at most 1h)",
    )
    parser.add_argument(
        "--session-refresh",
        type=duration,
        metavar="DURATION",
        help="renew credentials that have so long to live; default: 10m30s, so that pods get at least 10m",
    )
    parser.add_argument(
        "--assume-role-arn",
        type=flag_type(_role, "role"),
        default="",
        metavar="ROLE",
        help="assume this role first, and the pods' with it (ARN, name or path and name); "
        "empty: the server's own identity",
    )
    parser.add_argument("--region", default="", help="use this region's STS endpoint; empty: the global one")
    add_keepalive(parser)
    for flag, what in (
        ("--grpc-max-connection-idle-duration", "close a connection that has had no call for so long (15m)"),
        ("--grpc-max-connection-age-duration", "have agents connect anew after so long (15m)"),
        ("--grpc-max-connection-age-grace-duration", "how long calls under way may go on after that (15m)"),
    ):
        parser.add_argument(flag, type=duration, default=timedelta(minutes=15), metavar="DURATION", help=what)
    add_boolean(
        parser,
        "--node-authorization",
        False,
        "give an agent only the pods of the node that its certificate names (DNS SAN equal to the node's name)",
    )
    add_boolean(
        parser,
        "--container-credentials",
        False,
        "check service account tokens for agents' container credentials endpoint (needs the right to create "
        "tokenreviews and get serviceaccounts)",
    )
    parser.add_argument(
        "--container-credentials-webhook",
        type=flag_type(_listen_address, "address"),
        metavar="HOST:PORT",
        help="serve the mutating webhook there that gives pods a token and its variables (HTTPS, the same certificate)",
    )


def check(arguments: argparse.Namespace) -> None:
    """What no single flag can tell. Raises UserError."""
    if bool(arguments.role_base_arn) == arguments.role_base_arn_autodetect:
        raise UserError("give either --role-base-arn or --role-base-arn-autodetect")
    session = arguments.session_duration
    if not LEAST_SESSION <= session <= LONGEST_SESSION:
        raise UserError(f"--session-duration: {format_duration(session)} is not between 15m and 12h, which STS grants")
    refresh = arguments.session_refresh
    if refresh is not None and refresh >= session:
        raise UserError(
            f"--session-refresh: {format_duration(refresh)} must be less than "
            f"--session-duration ({format_duration(session)})"
        )
    if not arguments.cluster_name and needs_cluster(sessions(arguments)):
        raise UserError("--session-tags and {cluster} need the cluster's name; give --cluster-name")
    if arguments.sync <= timedelta(0):
        raise UserError("--sync: must be more than 0s; the default is 1m")
    if arguments.stale_after is not None and timedelta(0) < arguments.stale_after < 2 * arguments.sync:
        raise UserError(
            f"--stale-after: {format_duration(arguments.stale_after)} is less than twice --sync "
            f"({format_duration(arguments.sync)}), within which a quiet cluster is heard of",
            "give it longer, or 0s for never",
        )


def doubts(arguments: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """What works, but hardly as it is meant: what it is, and how to fix it."""
    from kiam.server.policy.sessions import ambiguous_parts

    if arguments.session_refresh is not None and arguments.session_refresh < LEAST_LEFT:
        yield f"--session-refresh={format_duration(arguments.session_refresh)} {TOO_LATE}", TOO_LATE_FIX
    for flag, template in (("--session", arguments.session), ("--source-identity", arguments.source_identity)):
        if (parts := ambiguous_parts(template, arguments.cluster_name)) is not None:
            first, second = parts
            yield (
                f"{flag}={template} gives different pods one name: where {{{first}}} ends and {{{second}}} begins "
                "can't be told",
                f"put a character between them that no name has, as in {{{first}}}_{{{second}}}",
            )


def make_config(arguments: argparse.Namespace) -> ServerSettings:
    """The configuration that parsed arguments mean. Raises UserError."""
    from kiam.server.settings import ServerSettings

    check(arguments)
    made = {"tls", "stale_after", "session_refresh", "sessions", "policy"}
    names = ServerSettings.__dataclass_fields__.keys() - made
    return ServerSettings(
        tls=tls_files(arguments),
        sessions=sessions(arguments),
        policy=policy(arguments),
        stale_after=3 * arguments.sync if arguments.stale_after is None else arguments.stale_after,
        session_refresh=DEFAULT_REFRESH if arguments.session_refresh is None else arguments.session_refresh,
        **{name: getattr(arguments, name) for name in names},
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the server until it is told to stop."""
    from kiam.server.grpc.port import listen_early

    config = make_config(arguments)
    # Before all that takes time to import: a conventional agent that finds the port closed tries again after a second,
    # when it has given up.
    listening = listen_early(config.bind)
    prepare_grpc()
    import uvloop

    from kiam.logs import configure_logging
    from kiam.server.serve import require_packages, serve

    require_packages()

    configure_logging(arguments.level, arguments.json_log)
    log = logging.getLogger(__name__)
    for line in flags_without_effect(arguments):
        log.warning("%s", line)
    for what, fix in doubts(arguments):
        log.warning("%s; %s", what, fix)
    uvloop.run(serve(config, listening))
    return 0
