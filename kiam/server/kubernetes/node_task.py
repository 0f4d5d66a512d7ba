"""A command that a DaemonSet runs once on each node: waits for all of them, and gathers what they printed.

Its pods' init container runs the command and leaves the exit code as its termination message; a second container keeps
the pod, and with it the log, until it has been read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus

import msgspec

from kiam.server.kubernetes.api import KubeApi, KubeError

POLL_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class NodeResult:
    """What came of the command on one node."""

    node: str
    exit_code: int | None
    """None: it didn't come to an end."""
    text: str
    """What it printed, or why there is nothing."""


class _Metadata(msgspec.Struct, gc=False):
    name: str = ""
    generation: int = 0


class _DaemonSetStatus(msgspec.Struct, rename="camel", gc=False):
    desired_number_scheduled: int = 0
    observed_generation: int = 0


class _DaemonSet(msgspec.Struct, gc=False):
    metadata: _Metadata
    status: _DaemonSetStatus


class _Ended(msgspec.Struct, rename="camel", gc=False):
    message: str = ""
    reason: str = ""


class _Waiting(msgspec.Struct, gc=False):
    reason: str = ""
    message: str = ""


class _State(msgspec.Struct, gc=False):
    waiting: _Waiting | None = None
    terminated: _Ended | None = None


class _Container(msgspec.Struct, rename="camel", gc=False):
    name: str
    state: _State


class _PodStatus(msgspec.Struct, rename="camel", gc=False):
    init_container_statuses: Sequence[_Container] = ()
    phase: str = ""


class _PodSpec(msgspec.Struct, rename="camel", gc=False):
    node_name: str = ""


class _Pod(msgspec.Struct, gc=False):
    metadata: _Metadata
    spec: _PodSpec
    status: _PodStatus


class _Pods(msgspec.Struct, gc=False):
    items: Sequence[_Pod]


@dataclass(frozen=True, slots=True)
class NodeTask:
    """Where the DaemonSet is, which pods are its own, and which container runs the command."""

    namespace: str
    daemonset: str
    labels: Mapping[str, str]
    container: str

    async def gather(self, api: KubeApi, seconds: float) -> list[NodeResult]:
        """Wait until each node has ended its command, for so long at most; one result a node. Raises KubeError."""
        pods: Sequence[_Pod] = ()
        try:
            async with asyncio.timeout(seconds):
                while True:
                    wanted, pods = await self._wanted(api), await self._pods(api)
                    if wanted is not None and len(pods) == wanted and all(self._ended(pod) for pod in pods):
                        break
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            pass
        return [await self._result(api, pod) for pod in sorted(pods, key=lambda pod: pod.spec.node_name)]

    async def remove(self, api: KubeApi) -> None:
        """Take the DaemonSet away; one that is gone already is fine. Raises KubeError."""
        try:
            await api.delete(self._path)
        except KubeError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise

    @property
    def _path(self) -> str:
        return f"/apis/apps/v1/namespaces/{self.namespace}/daemonsets/{self.daemonset}"

    async def _wanted(self, api: KubeApi) -> int | None:
        """How many pods there are to be; None while the controller hasn't looked yet."""
        found = msgspec.json.decode(await api.get(self._path, {}), type=_DaemonSet)
        seen = found.status.observed_generation >= max(found.metadata.generation, 1)
        return found.status.desired_number_scheduled if seen else None

    async def _pods(self, api: KubeApi) -> Sequence[_Pod]:
        selector = ",".join(f"{name}={value}" for name, value in self.labels.items())
        body = await api.get(f"/api/v1/namespaces/{self.namespace}/pods", {"labelSelector": selector})
        return msgspec.json.decode(body, type=_Pods).items

    def _ended(self, pod: _Pod) -> _Ended | None:
        states = [one.state for one in pod.status.init_container_statuses if one.name == self.container]
        return states[0].terminated if states else None

    async def _result(self, api: KubeApi, pod: _Pod) -> NodeResult:
        ended = self._ended(pod)
        if ended is None:
            waiting = [one.state.waiting for one in pod.status.init_container_statuses if one.state.waiting]
            why = [f"{one.reason}: {one.message}".removesuffix(": ") for one in waiting]
            return NodeResult(pod.spec.node_name, None, "; ".join(why) or pod.status.phase)
        path = f"/api/v1/namespaces/{self.namespace}/pods/{pod.metadata.name}/log"
        text = (await api.get(path, {"container": self.container})).decode(errors="replace")
        code = ended.message.strip()
        return NodeResult(pod.spec.node_name, int(code) if code.isdigit() else None, text or ended.reason)
