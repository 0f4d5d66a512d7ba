"""Processes of the sandbox: started in a namespace and a cgroup, watched through their log, gone at the end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
N = TypeVar("N", int, float)

_GONE = (FileNotFoundError, ProcessLookupError)
"""What /proc says of a process that has ended: before its file is opened, or between that and the reading."""

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


LONGEST_INTERVAL = 0.1
"""Seconds; what is waited for for long is asked for less often, as the processors have other tests to run."""


def wait_until(condition: Callable[[], T], what: str, timeout: float = 60.0, interval: float = 0.01) -> T:
    """Ask every ``interval`` seconds at first until the condition gives something true, and return that.

    Raises TimeoutError that names what was waited for after ``timeout`` seconds. An exception of the condition counts
    as "not yet" and is chained to that error.
    """
    deadline = time.monotonic() + timeout
    last: Exception | None = None
    while True:
        try:
            value = condition()
        except (OSError, ValueError, LookupError, AssertionError) as error:
            last = error
        else:
            if value:
                return value
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout:g} s for {what}") from last
        time.sleep(interval)
        interval = max(interval, min(1.2 * interval, LONGEST_INTERVAL))


async def until(condition: Callable[[], Any], what: str = "the condition", seconds: float = 60.0) -> Any:
    """The same in an event loop, for what no event tells; a coroutine is awaited, exceptions are passed on."""
    deadline, interval = time.monotonic() + seconds, 0.005
    while True:
        value = condition()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s for {what}")
        await asyncio.sleep(interval)
        interval = min(1.2 * interval, LONGEST_INTERVAL)


def placed(argv: Sequence[str], netns: str | None = None, cgroup: Path | None = None) -> list[str]:
    """The command that runs ``argv`` in a named network namespace and a cgroup.

    It uses nsenter and not ``ip netns exec``: that one mounts a fresh /sys, and cgroup2 and bpffs would be gone.
    Both helpers exec, so the process id stays the same.
    """
    command = list(argv)
    if netns is not None:
        command = ["nsenter", f"--net=/run/netns/{netns}", "--", *command]
    if cgroup is not None:
        command = ["/bin/sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(cgroup), *command]
    return command


class Process:
    """A running program whose output goes to a file. A context manager: leaving it ends the program."""

    def __init__(
        self,
        argv: Sequence[str],
        log: Path,
        *,
        netns: str | None = None,
        cgroup: Path | None = None,
        env: Mapping[str, str] | None = None,
        cpus: set[int] | None = None,
    ) -> None:
        """Start at once. ``env`` is added to this process's own; ``cpus`` pins the program to processors."""
        self.argv = list(argv)
        self.log = log
        command = placed(argv, netns, cgroup)
        if cpus is not None:
            command = ["taskset", "--cpu-list", ",".join(map(str, sorted(cpus))), *command]
        with log.open("ab") as output:
            self._offset = output.tell()
            self._popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The program's process id."""
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """The exit code; None while it runs."""
        return self._popen.poll()

    def output(self) -> str:
        """What this program has written so far."""
        with self.log.open("rb") as log:
            log.seek(self._offset)
            return log.read().decode(errors="replace")

    def wait_for_output(self, pattern: str, timeout: float = 60.0) -> re.Match[str]:
        """Wait until the output matches a regular expression. Fails at once if the program has ended without it."""

        def look() -> re.Match[str] | None:
            ended = self.returncode
            found = re.search(pattern, self.output(), re.MULTILINE)
            if found is None and ended is not None:
                raise RuntimeError(f"{self.argv[:4]} ended with {ended} before {pattern!r}:\n{self.output()[-4000:]}")
            return found

        try:
            match = wait_until(look, f"{pattern!r} from {' '.join(self.argv[:4])}", timeout)
        except TimeoutError as error:
            raise TimeoutError(f"{error}; it wrote:\n{self.output()[-4000:]}") from None
        assert match is not None
        return match

    def wait(self, timeout: float = 60.0) -> int:
        """Wait for the program's own end; the exit code."""
        return self._popen.wait(timeout)

    def send_signal(self, number: int) -> None:
        """Send a signal to the program alone."""
        self._popen.send_signal(number)

    def stop(self, number: int = signal.SIGTERM, timeout: float = 10.0) -> int:
        """End the program and what it started; kill them if they don't go in time. The exit code."""
        if self._popen.poll() is None:
            self._popen.send_signal(number)
            try:
                self._popen.wait(timeout)
            except subprocess.TimeoutExpired:
                self._popen.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        return self._popen.wait()

    def kill(self) -> None:
        """End the program as a crash would."""
        self.stop(signal.SIGKILL)

    def cpu_seconds(self) -> float:
        """User and system time of the process and of the children it still has (/proc/pid/stat)."""
        return self._sum(_cpu_seconds)

    def rss_bytes(self) -> int:
        """Resident memory of the process and of the children it still has (/proc/pid/statm)."""
        return self._sum(_rss_bytes)

    def _sum(self, figure: Callable[[int], N]) -> N:
        """Of a figure. A child that ends meanwhile counts for nothing; if the program itself has ended, that raises."""
        total = figure(self.pid)
        for pid in family(self.pid)[1:]:
            with contextlib.suppress(*_GONE):
                total += figure(pid)
        return total


def family(pid: int) -> list[int]:
    """A process and those that descend from it, as far as they are still there."""
    found, queue = [], [pid]
    while queue:
        found.append(queue.pop())
        for children in Path(f"/proc/{found[-1]}/task").glob("*/children"):
            with contextlib.suppress(*_GONE):
                queue.extend(map(int, children.read_text().split()))
    return found


def _rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


def free_port() -> int:
    """A TCP port that nobody listens on, and that no connection to elsewhere is given (ip(7), ip_local_port_range).

    Nobody else is given it by this function, in whatever process, as long as this process lives.
    """
    first_ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(10_000, first_ephemeral)
        with contextlib.suppress(OSError):
            with socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True):
                pass
            reservation = socket.socket(socket.AF_UNIX)
            # An abstract name: gone with the process, however that ends (unix(7)).
            reservation.bind(f"\0kiam-tests-port-{port}")
            _reservations.append(reservation)
            return port


_reservations: list[socket.socket] = []
