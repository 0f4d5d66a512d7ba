"""Run a script of this checkout in other kernels: ``python -m tests.vm [--kernel SERIES ...] [-- COMMAND ...]``."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.vm.guest import Verdict, hidden_from_guests, machine_can_boot, run_in_guest
from tests.vm.kernels import NEWEST, KernelError, KernelStore

DEFAULT_KERNELS = ("5.10", "6.1", "6.12", NEWEST)
CHECKOUT = Path(__file__).resolve().parents[2]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.vm", description=__doc__)
    parser.add_argument("--kernel", action="append", metavar="SERIES", help=f"default: {' '.join(DEFAULT_KERNELS)}")
    parser.add_argument("--limit", type=float, default=900, metavar="SECONDS", help="for one guest (default 900)")
    parser.add_argument("--store", type=Path, default=CHECKOUT / "build/vm", help="where kernels are kept")
    parser.add_argument("command", nargs="*", default=["vagrant/redirect-test", "--no-install"])
    arguments = parser.parse_args()

    if (reason := machine_can_boot() or hidden_from_guests(CHECKOUT)) is not None:
        print(f"test-vm: {reason}", file=sys.stderr)
        return 1
    # Ended from outside, the guest and its file servers end too: leaving by an exception runs their clean-up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    verdicts: dict[str, Verdict] = {}
    try:
        store = KernelStore(arguments.store)
        print("fetching package lists", flush=True)
        store.refresh()
        for series in arguments.kernel or DEFAULT_KERNELS:
            kernel = store.get(series)
            print(f"=== {kernel.release}", flush=True)
            verdicts[kernel.release] = run_in_guest(
                kernel,
                arguments.command,
                CHECKOUT,
                arguments.limit,
                on_output=lambda line: print(line, end="", flush=True),
            )
    except KernelError as error:
        print(f"test-vm: {error}", file=sys.stderr)
        return 1
    console = Console()
    console.print(_summary(verdicts))
    return 0 if all(verdict.passed for verdict in verdicts.values()) else 1


def _summary(verdicts: dict[str, Verdict]) -> Table:
    table = Table("kernel", "verdict", "seconds")
    for release, verdict in verdicts.items():
        if verdict.exit_status is None:
            word = "FAIL: ended before the script did (panic, hang or no boot)"
        else:
            word = "PASS" if verdict.passed else f"FAIL: exit status {verdict.exit_status}"
        table.add_row(release, word, f"{verdict.seconds:.0f}")
    return table


if __name__ == "__main__":
    raise SystemExit(main())
