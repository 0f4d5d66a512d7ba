"""A server that is cut off from the Kubernetes API without a word, while pods' addresses change hands.

Packets between the server and the API are dropped in the API's network namespace, both ways: no connection is refused
or reset. Meanwhile pods' sandboxes are made anew with each other's addresses, and the API is told. Programs in all pods
go on asking (:mod:`tests.sandbox.asker`).
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.sandbox import asker
from tests.sandbox.kubeapi import write_kubeconfig
from tests.sandbox.netns import AWS_IPV4
from tests.sandbox.node import CREDENTIALS, METRICS_PORT, SERVER_PORT, Answer, NodeInABox, Pod
from tests.sandbox.process import Process, wait_until

API_PORT, SECOND_API_PORT = 6443, 6444
RULES = f"""
table ip kiam_cut {{
  set cut {{ type mark; }}
  chain way_in {{
    type filter hook prerouting priority mangle
    tcp dport {API_PORT} ct mark set {API_PORT}
    ct mark @cut counter drop
  }}
  chain way_out {{
    type filter hook output priority mangle
    ct mark @cut counter drop
  }}
  chain second_port {{
    type nat hook prerouting priority dstnat
    tcp dport {SECOND_API_PORT} redirect to :{API_PORT}
  }}
}}
"""
"""In the API's namespace. What is dropped goes by the port that a connection was made to: each replica has its own."""
CONNECTIONS = 6
"""Of each pod."""
SWAPS = 3
"""In each partition: the API has news of each to tell when it is over."""
STABLE, SWAPPED = ("stays-0", "stays-1"), ("swaps-0", "swaps-1", "swaps-2", "swaps-3")


@dataclass(slots=True)
class Tally:
    """What all pods were told."""

    answers: Counter[str] = field(default_factory=Counter)
    """``own``, ``refused``, ``wrong`` and ``unanswered`` connections."""
    wrong: list[str] = field(default_factory=list)

    def take(self, result: dict[str, Any]) -> None:
        """Add what one program counted."""
        self.answers.update(result["answers"])
        self.wrong += result["wrong"]

    @property
    def total(self) -> int:
        """Answers, of whichever kind."""
        return sum(count for kind, count in self.answers.items() if kind != "unanswered")


class Partition:
    """A node whose pods ask all the time.

    Start kiam by :meth:`start` or :meth:`start_replicated`, then enter: leaving ends the pods' programs.
    """

    def __init__(self, box: NodeInABox) -> None:
        self.box = box
        self.tally = Tally()
        self._askers: dict[str, subprocess.Popen[str]] = {}
        self._files: dict[str, Path] = {}
        self._second: Process | None = None
        # Before the first connection, whose direction conntrack couldn't tell later.
        self._nft(RULES)

    def __enter__(self) -> Partition:
        for name in (*STABLE, *SWAPPED):
            pod = self.box.add_pod(name, name)
            self._start_asking(pod)
        self.wait_until_served()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_asking()
        if self._second is not None:
            self._second.stop()

    def stop_asking(self) -> None:
        """End the pods' programs; the tally is complete then."""
        for name in list(self._askers):
            self._stop_asking(name)

    def start(self, *flags: str) -> None:
        """One server with these flags, and the agent."""
        self.box.start_server(*flags)
        self.box.start_agent()

    def start_replicated(self, *flags: str) -> None:
        """Two servers behind one name, and the agent; it is the first that :meth:`cut_off` is about."""
        self.box.start_server(f"--bind=127.0.0.1:{SERVER_PORT}", *flags, wait=False)
        directory = self.box.directory
        kubeconfig = write_kubeconfig(directory / "second", f"http://{AWS_IPV4}:{SECOND_API_PORT}")
        self._second = self.box.start_replica(
            f"--bind=127.0.0.2:{SERVER_PORT}",
            f"--kubeconfig={kubeconfig}",
            f"--prometheus-listen-addr=127.0.0.1:{METRICS_PORT + 2}",
            *flags,
        )
        assert self.box.server is not None
        for server in (self.box.server, self._second):
            server.wait_for_output(r"\bready pods=", timeout=90)
        self.box.start_agent(hosts=("127.0.0.1", "127.0.0.2"))

    @contextmanager
    def cut_off(self) -> Iterator[None]:
        """No packet passes between the server and the API."""
        self._nft(f"add element ip kiam_cut cut {{ {API_PORT} }}")
        try:
            yield
        finally:
            self._nft("flush set ip kiam_cut cut")

    def swap(self, *, recreate: bool) -> None:
        """Make the sandboxes of two pairs of pods anew, each with the other's address, and tell the API.

        ``recreate``: they are new pods of the same name, as a StatefulSet makes them; otherwise the same pods.
        """
        for one, two in zip(SWAPPED[::2], SWAPPED[1::2], strict=True):
            addresses = [self.box.pods[name].net.address for name in (two, one)]
            for name in (one, two):
                self._stop_asking(name)
                # CNI plugins delete the interface first; deleting the namespace alone would leave it to the kernel.
                self.box.node.ip(f"link delete {self.box.pods[name].net.interface}")
                self.box.net.remove_pod(name)
                if recreate:
                    self.box.api.delete("pods", name, "default")
            for name, address in zip((one, two), addresses, strict=True):
                uid = None if recreate else self.box.pods[name].uid
                pod = Pod(self.box, name, "default", self.box.net.add_pod(name, address), uid)
                self.box.pods[name] = pod
                self.box.announce(pod, name)
                self._start_asking(pod)

    def round(self, *, is_served: bool) -> None:
        """Cut off, have addresses swap, see how swapped pods fare, and heal.

        ``is_served``: another replica answers for them; otherwise nobody may.
        """
        with self.cut_off():
            for number in range(SWAPS):
                self.swap(recreate=number % 2 == 0)
            if is_served:
                self.wait_until_served()
            else:
                # Each is held for as long as a request may be, and refused.
                with ThreadPoolExecutor(len(SWAPPED)) as pool:
                    answers = list(pool.map(self._ask_patiently, SWAPPED))
                assert [answer.status for answer in answers] == [503] * len(SWAPPED), answers
        self.wait_until_served()

    def wait_for_answers(self, count: int, timeout: float = 120.0) -> None:
        """Wait until the pods have been given so many more."""
        wanted = self._answered() + count
        wait_until(lambda: self._answered() >= wanted, f"{count} more answers", timeout)

    def wait_until_served(self, names: Sequence[str] = (*STABLE, *SWAPPED), timeout: float = 120.0) -> None:
        """Wait until each of the pods is given its own role's credentials."""
        for name in names:
            pod = self.box.pods[name]
            wait_until(lambda pod=pod: pod.credentials(pod.name).status == 200, f"{name} to be served", timeout)  # type: ignore[misc]  # a lambda's default

    def _ask_patiently(self, name: str) -> Answer:
        return self.box.pods[name].ask(CREDENTIALS + name, timeout=60)

    def _answered(self) -> int:
        progress = [int(file.read_text() or 0) for file in self._files.values() if file.exists()]
        return self.tally.total + sum(progress)

    def _nft(self, text: str) -> None:
        self.box.net.aws.run("nft", "-f", "-", stdin=text)

    def _start_asking(self, pod: Pod) -> None:
        others = [name for name in (*STABLE, *SWAPPED) if name != pod.name]
        progress = self._files[pod.name] = self.box.directory / f"progress-{pod.uid}-{pod.address}"
        arguments = [str(progress), pod.name, str(CONNECTIONS), *others]
        self._askers[pod.name] = pod.start([sys.executable, "-S", str(Path(asker.__file__)), *arguments])

    def _stop_asking(self, name: str) -> None:
        process = self._askers.pop(name)
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=120)
        if process.returncode:
            raise RuntimeError(f"the program in {name} failed: {errors}")
        self._files.pop(name).unlink(missing_ok=True)
        self.tally.take(json.loads(output))
