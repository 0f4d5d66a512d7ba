"""A pod's program that never stops asking who it is, over connections that it keeps, and checks every answer.

Run inside a pod, with the standard library alone: ``python asker.py PROGRESS OWN_ROLE CONNECTIONS OTHER_ROLE...``. The
number of answers so far is kept in the file PROGRESS. At SIGTERM it writes one line of JSON: how many answers were
right, how many were refusals, and each that was wrong.

By turns each connection asks for its role's name, for its credentials, and for another pod's. Wrong is the name of
another role, another role's credentials, and a 403 for its own: that is what an agent says that takes it for another.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

ADDRESS = ("169.254.169.254", 80)
PATH = "/latest/meta-data/iam/security-credentials/"
MOST_WRONG = 20
"""Wrong answers that are told in full."""
PROGRESS_EVERY = 200


class Connection:
    """One connection with one question under way."""

    def __init__(self, asker: Asker, questions: Iterator[str]) -> None:
        self._asker = asker
        self._questions = questions
        self._role = ""
        self._buffer = b""
        self.sock = socket.create_connection(ADDRESS, timeout=5)
        self.sock.setblocking(False)

    def ask(self) -> None:
        """Send the next question."""
        self._role = next(self._questions)
        self.sock.send(f"GET {PATH}{self._role} HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n".encode())

    def read(self) -> bool:
        """Take in what came; False: the other end has closed."""
        chunk = self.sock.recv(65536)
        self._buffer += chunk
        head, end, body = self._buffer.partition(b"\r\n\r\n")
        if not end or len(body) < _length(head):
            return bool(chunk)
        self._buffer = b""
        self._asker.judge(self._role, int(head.split(b" ", 2)[1]), body)
        if b"\r\nconnection: close" in head.lower():
            return False
        self.ask()
        return True


class Asker:
    """All connections of a pod and what they were told."""

    def __init__(self, progress: Path, own: str, others: list[str]) -> None:
        self._progress = progress
        self.own = own
        self.others = others
        self.answers: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._selector = selectors.DefaultSelector()
        self.stopped = False

    def judge(self, role: str, status: int, body: bytes) -> None:
        """Count one answer."""
        if status == 200:
            right = body == self.own.encode() if not role else role == self.own
        else:
            right = not (status == 403 and role == self.own)
        if right:
            self.answers["own" if status == 200 else "refused"] += 1
            total = self.answers.total()
            if total % PROGRESS_EVERY == 0:
                self._progress.write_text(str(total))
            return
        self.answers["wrong"] += 1
        if len(self.wrong) < MOST_WRONG:
            text = "credentials" if status == 200 and role else body[:80].decode(errors="replace")
            self.wrong.append(f"{time.monotonic():.3f} {self.own} asked for {role or 'its role'}: {status} {text}")

    def run(self, connections: int) -> None:
        """Ask until stopped."""
        for number in range(connections):
            self._connect(number)
        while not self.stopped:
            for key, _ in self._selector.select(0.1):
                connection, number = key.data
                alive = False
                with contextlib.suppress(OSError):
                    alive = connection.read()
                if not alive:
                    self._selector.unregister(connection.sock)
                    connection.sock.close()
                    self._connect(number)

    def _connect(self, number: int) -> None:
        while not self.stopped:
            questions = cycle(["", self.own, self.others[number % len(self.others)]])
            try:
                connection = Connection(self, questions)
                connection.ask()
            except OSError:
                self.answers["unanswered"] += 1
                time.sleep(0.05)
                continue
            self._selector.register(connection.sock, selectors.EVENT_READ, (connection, number))
            return


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


def main() -> None:
    """See the module."""
    progress, own, connections, *others = sys.argv[1:]
    asker = Asker(Path(progress), own, others)

    def stop(*_: object) -> None:
        asker.stopped = True

    signal.signal(signal.SIGTERM, stop)
    asker.run(int(connections))
    print(json.dumps({"answers": asker.answers, "wrong": asker.wrong}))


if __name__ == "__main__":
    main()
