"""Things break; pods get their own role or an error, and everything comes back by itself."""

from __future__ import annotations

import http.client
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from tests.integration.node.conftest import PodMaker
from tests.sandbox.node import NodeInABox, Pod
from tests.sandbox.process import wait_until


class Load:
    """Pods that go on asking who they are; anything but their own role or an honest error is kept as wrong."""

    def __init__(self, pods: dict[str, Pod]) -> None:
        self.answers: Counter[int] = Counter()
        self.wrong: list[str] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=item) for item in pods.items()]

    def _ask(self, role: str, pod: Pod) -> None:
        while not self._stop.is_set():
            try:
                answer = pod.role()
            except (OSError, http.client.HTTPException) as error:
                self.wrong.append(f"{role}: {error!r}")
                continue
            self.answers[answer.status] += 1
            if answer.status not in (200, 503) or (answer.status == 200 and answer.text != role):
                self.wrong.append(f"{role}: {answer.status} {answer.text}")

    @contextmanager
    def running(self) -> Iterator[Load]:
        """Ask until the block ends."""
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join()

    def more(self, status: int = 200, count: int = 20) -> Callable[[], bool]:
        """A condition: so many more answers of that status than now."""
        wanted = self.answers[status] + count
        return lambda: self.answers[status] >= wanted


def served(pod: Pod) -> bool:
    """Whether the pod is told its role."""
    return pod.role().status == 200


@pytest.fixture
def load(make_pod: PodMaker) -> Load:
    pods = {role: make_pod(role) for role in ("one", "two")}
    for role, pod in pods.items():
        assert pod.credentials(role).status == 200
    return Load(pods)


def test_a_server_killed_and_restarted_under_load_costs_known_pods_nothing(box: NodeInABox, load: Load) -> None:
    assert box.server is not None
    with load.running():
        wait_until(load.more(), "answers before")
        box.server.kill()
        wait_until(load.more(), "answers without a server")
        box.start_server()
        wait_until(load.more(), "answers afterwards")
    assert load.wrong == []
    assert load.answers[503] == 0


def test_a_new_pod_is_served_as_soon_as_the_server_is_back(box: NodeInABox, make_pod: PodMaker) -> None:
    assert box.server is not None
    box.server.kill()
    pod = make_pod("newcomer")
    answer = pod.role()
    assert (answer.status, "retry-after" in answer.headers) == (503, True)
    box.start_server(wait=False)
    assert wait_until(lambda: pod.role().status == 200, "the server to be back")
    assert pod.credentials("newcomer").status == 200


@pytest.mark.parametrize("as_event", [True, False])
def test_a_compacted_history_and_cut_watches_lose_nothing(box: NodeInABox, make_pod: PodMaker, as_event: bool) -> None:
    gone, stays = make_pod("gone"), make_pod("stays")
    assert gone.role().text == "gone"
    box.api.faults(gone_as_event=as_event)
    box.api.close_port()
    box.api.delete("pods", gone.name, gone.namespace)
    new = make_pod("new")
    box.api.compact()
    box.api.open_port()
    assert wait_until(lambda: new.role().status == 200, "the pod that came meanwhile")
    assert wait_until(lambda: gone.role().status == 503, "the pod that went meanwhile to be forgotten")
    assert stays.credentials("stays").status == 200


def test_watches_that_break_off_are_taken_up_again(box: NodeInABox, make_pod: PodMaker) -> None:
    for number in range(3):
        box.api.faults(garbage=number)
        assert box.api.drop_streams() >= 1
        pod = make_pod(f"after-{number}")
        assert wait_until(partial(served, pod), "the pod after the cut")


def test_an_api_server_in_trouble_is_asked_again_and_known_pods_are_served(box: NodeInABox, make_pod: PodMaker) -> None:
    known = make_pod("known")
    assert known.credentials("known").status == 200
    box.api.faults(fail=6, fail_status=503, fail_retry_after=1)
    box.api.drop_streams()
    new = make_pod("new")
    assert known.credentials("known").status == 200
    assert wait_until(lambda: new.role().status == 200, "the API to be asked again", timeout=60)


@pytest.mark.parametrize("fault", ["throttled", "unavailable", "reset"])
def test_credentials_that_are_held_survive_trouble_at_sts(box: NodeInABox, make_pod: PodMaker, fault: str) -> None:
    pod = make_pod("held")
    keys = pod.credentials("held").json()["AccessKeyId"]
    box.aws.faults(sts=fault)
    assert pod.credentials("held").json()["AccessKeyId"] == keys
    answer = make_pod(f"refused-{fault}").credentials(f"refused-{fault}")
    assert (answer.status, "retry-after" in answer.headers) == (503, True)


def test_instance_metadata_away_does_not_matter_to_pods(box: NodeInABox, make_pod: PodMaker) -> None:
    box.aws.faults(imds="reset")
    assert make_pod("app").credentials("app").status == 200
    assert make_pod("app").ask("/latest/meta-data/placement/region").status == 502
