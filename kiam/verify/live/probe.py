"""The parent's end of a probe: starts the process, gives it orders, and makes sure it ends."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

from kiam.errors import ErrorKind, UserError
from kiam.verify.live.attempts import Attempt, Order, Outcome

NEW = "new"
HOST = "host"
START_SECONDS = 60.0
GRACE_SECONDS = 30.0


class Probe:
    """A process in a network namespace of its own (``new``), the host's (``host``) or that of a path.

    A context manager. The namespace of a new one has no name: it lives as long as the process, and the process no
    longer than this one, whatever ends it.
    """

    def __init__(self, where: str, cgroup: Path | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-m", "kiam.verify.live.prober", str(os.getpid()), where],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # A session of its own: Ctrl-C at the terminal must reach this process only, which then ends the probe.
            start_new_session=True,
        )
        try:
            if cgroup is not None:
                _join(cgroup, self._process.pid)
            self._read(START_SECONDS)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def namespace(self) -> str:
        """A path to its network namespace, good while it lives."""
        return f"/proc/{self._process.pid}/ns/net"

    def configure(self, address: str, address6: str, next_hop: str) -> None:
        """Give a new namespace's interface its addresses (the second may be empty) and routes. Raises UserError."""
        self._write({"configure": [address, address6, next_hop]})
        self._read(START_SECONDS)

    def carry_out(self, order: Order) -> dict[str, Attempt]:
        """Try all the order's routes at once; connections stay open until the probe ends."""
        self._write({"order": _as_json(order)})
        # The first route is tried alone, the others together.
        answer = self._read(2 * order.timeout + GRACE_SECONDS)
        return {attempt.route: attempt for attempt in map(_as_attempt, answer["attempts"])}

    def talk(self, route: str, path: str, timeout: float) -> str:
        """Ask for a path over the connection that route has made; the answer, or why there was none."""
        self._write({"talk": route, "path": path, "timeout": timeout})
        return str(self._read(timeout + GRACE_SECONDS)["reply"])

    def _write(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise UserError(f"the probe ended early with exit code {self._process.wait()}") from None

    def _read(self, seconds: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            raise UserError("the probe gave no answer" if ready == [] else "the probe ended early; see the lines above")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            kind = ErrorKind.RIGHTS if answer.get("errno") in (errno.EPERM, errno.EACCES) else ErrorKind.OTHER
            raise UserError(f"the probe can't do its work: {answer['error']}", kind=kind)
        return answer

    def close(self) -> None:
        """End the process, and with it its namespace."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


def _join(cgroup: Path, pid: int) -> None:
    try:
        (cgroup / "cgroup.procs").write_text(str(pid))
    except OSError as error:
        raise UserError(f"can't move the probe to {cgroup}: {error.strerror}", kind=ErrorKind.RIGHTS) from error


def _as_json(order: Order) -> dict[str, Any]:
    return dataclasses.asdict(order)


def _as_attempt(message: dict[str, Any]) -> Attempt:
    sent = tuple((int(protocol), str(mark)) for protocol, mark in message.pop("sent"))
    return Attempt(outcome=Outcome(message.pop("outcome")), sent=sent, **message)
