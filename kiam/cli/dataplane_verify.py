"""``kiam dataplane verify``: one table, a line a check; exit 0 only if nothing failed."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from kiam.cli.check_table import print_results
from kiam.cli.dataplane_options import add_wanted_state, host_of_environment, ipv4_address
from kiam.dataplane.registry import DATAPLANES
from kiam.errors import UserError
from kiam.verify.results import Status, any_failed

if TYPE_CHECKING:
    from types import FrameType

AUTO = "auto"
BY_HAND = "none"
FLAGS = {
    "host": "host_address",
    "port": "port",
    "host_interface": "interface",
    "host6": "host_address6",
    "host_network": "host_network",
    "agent_cgroup": "agent_cgroup",
    "iptables_backend": "iptables_backend",
    "forward_metadata": "forward_from",
}
"""Flag (its name in the parsed arguments): the field of WantedState it is about."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``verify``."""
    parser.add_argument(
        "--dataplane",
        choices=(AUTO, *DATAPLANES, BY_HAND),
        default=AUTO,
        help="the dataplane that has to be installed; none: a rule made by hand; auto (default): whichever is found",
    )
    add_wanted_state(parser)
    # Read from what is installed: a flag that isn't given must not be taken for a wish.
    parser.set_defaults(**dict.fromkeys(FLAGS))
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--output", choices=("table", "json"), default="table", help="for people or for programs")
    output.add_argument(
        "--fix",
        dest="output",
        action="store_const",
        const="script",
        help="print a shell script that fixes what failed or warned, and nothing else; it is not run",
    )
    parser.add_argument(
        "--live",
        action=argparse.BooleanOptionalAction,
        help="prove it with connections from a throwaway pod (as it does by default where it has the rights), and fail "
        "where that can't be done",
    )
    parser.add_argument(
        "--pod-netns",
        type=Path,
        metavar="PATH",
        help="make them from this network namespace of a real pod instead, such as /proc/4711/ns/net",
    )
    parser.add_argument(
        "--pod-address",
        type=ipv4_address,
        metavar="ADDRESS",
        help="the throwaway pod's IPv4 address (default: one of 198.18.0.0/15)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Verify, print, and say by the exit code whether anything failed."""
    # The checks' libraries cost more to import than all other subcommands' together.
    from kiam.verify.live.proof import PROOF, LiveSettings
    from kiam.verify.run import VerifySettings, verify

    given = {field: getattr(arguments, flag) for flag, field in FLAGS.items()}
    if arguments.pod_netns is not None and not arguments.pod_netns.exists():
        raise UserError(f"--pod-netns: nothing at '{arguments.pod_netns}'", "give a path such as /proc/<pid>/ns/net")
    settings = VerifySettings(
        arguments.dataplane,
        arguments.live is not False,
        LiveSettings(arguments.pod_netns, arguments.pod_address),
        host_of_environment(),
    )
    with _terminated_as_interrupted():
        try:
            results = list(verify(given, settings))
        except KeyboardInterrupt:
            raise UserError("interrupted; everything made for the proof has been removed") from None
    print_results(results, arguments.output)
    if arguments.live and any(result.check == PROOF and result.status is Status.SKIP for result in results):
        # Whoever demands the proof, as helm test does, must not take its absence for a pass.
        raise UserError(f"--live: not proved, see '{PROOF}'", "leave --live out to have the other checks alone decide")
    return 1 if any_failed(results) else 0


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into KeyboardInterrupt, so that they clean up as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signals = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, interrupt) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
