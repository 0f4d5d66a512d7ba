"""Takes the startup taint off a node once the agent on it is ready.

A node that registers with the taint (kubelet's ``--register-with-taints``) gets no pod that doesn't tolerate it. So no
pod starts before the redirect is in place, which would let it have the node's credentials.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import msgspec
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from kiam.server.kubernetes.api import KubeApi, KubeError
from kiam.server.kubernetes.objects import UNREADABLE, WireList
from kiam.server.kubernetes.reflector import Reflector
from kiam.server.kubernetes.resources import Resource

log = logging.getLogger(__name__)

WORKERS = 8
"""Nodes changed at the same time: a cluster that starts as a whole is done soon, and the API isn't flooded."""
LONGEST_WAIT = 30.0
"""Seconds between tries, at most."""


@dataclass(frozen=True, slots=True)
class AgentPod:
    """What matters of an agent's pod."""

    uid: str
    labels: Mapping[str, str]
    node: str
    """``spec.nodeName``; empty until the pod is scheduled."""
    ready: bool
    """Its Ready condition is True: the dataplane is installed and the agent serves."""


class _Meta(msgspec.Struct, rename="camel", gc=False):
    uid: str = ""
    resource_version: str = ""
    labels: dict[str, str] | None = None


class _Spec(msgspec.Struct, rename="camel", gc=False):
    node_name: str | None = None


class _Condition(msgspec.Struct, gc=False):
    type: str = ""
    status: str = ""


class _Status(msgspec.Struct, gc=False):
    conditions: list[_Condition] | None = None


class _WireAgentPod(msgspec.Struct, gc=False):
    metadata: _Meta
    spec: _Spec | None = None
    status: _Status | None = None


class _Taints(msgspec.Struct, gc=False):
    taints: list[dict[str, Any]] | None = None


class _WireNode(msgspec.Struct, gc=False):
    metadata: _Meta
    spec: _Taints | None = None


_NODE = msgspec.json.Decoder(_WireNode)


def _read_pod(wire: _WireAgentPod) -> AgentPod:
    conditions = (wire.status.conditions if wire.status else None) or ()
    return AgentPod(
        uid=wire.metadata.uid,
        labels=wire.metadata.labels or {},
        node=(wire.spec.node_name if wire.spec else None) or "",
        ready=any(condition.type == "Ready" and condition.status == "True" for condition in conditions),
    )


class Untainter:
    """The store behind a reflector of one namespace's pods: each ready agent's node is freed of the taint, once."""

    def __init__(self, api: KubeApi, taint: str, selector: Mapping[str, str]) -> None:
        """``taint``: the taint's key, whatever its effect. ``selector``: the labels that agents' pods have."""
        self._api = api
        self._taint = taint
        self._selector = dict(selector)
        self._pods: set[str] = set()
        self._done: set[str] = set()
        self._nodes: asyncio.Queue[str] = asyncio.Queue()

    async def run(self, namespace: str, watch_seconds: float) -> None:
        """Watch the namespace's pods and free nodes, for ever."""
        pods = Resource(
            "agents",
            f"/api/v1/namespaces/{namespace}/pods",
            msgspec.json.Decoder(WireList[_WireAgentPod]),
            msgspec.json.Decoder(_WireAgentPod),
            _read_pod,
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(Reflector(self._api, pods, self, watch_seconds).run())
            for _ in range(WORKERS):
                group.create_task(self._work())

    def put(self, item: AgentPod) -> None:
        """See reflector.Store.put."""
        self._pods.add(item.uid)
        is_agent = self._selector.items() <= item.labels.items()
        if is_agent and item.ready and item.node and item.uid not in self._done:
            self._done.add(item.uid)
            self._nodes.put_nowait(item.node)

    def remove(self, uid: str) -> None:
        """See reflector.Store.remove."""
        self._pods.discard(uid)
        self._done.discard(uid)

    def uids(self) -> set[str]:
        """See reflector.Store.uids."""
        return set(self._pods)

    async def _work(self) -> None:
        while True:
            node = await self._nodes.get()
            await AsyncRetrying(
                retry=retry_if_exception_type((KubeError, *UNREADABLE)),
                wait=wait_random_exponential(multiplier=0.2, max=LONGEST_WAIT),
                before_sleep=_log_failure,
            )(self._free, node)

    async def _free(self, node: str) -> None:
        path = f"/api/v1/nodes/{node}"
        try:
            found = _NODE.decode(await self._api.get(path, {}))
            taints = (found.spec.taints if found.spec else None) or []
            kept = [taint for taint in taints if taint.get("key") != self._taint]
            if len(kept) == len(taints):
                return
            # The list is written as a whole. The version makes the API refuse (409) if another has changed the node
            # since it was read; otherwise a taint added meanwhile would be lost.
            version = found.metadata.resource_version
            await self._api.patch(path, {"metadata": {"resourceVersion": version}, "spec": {"taints": kept or None}})
        except KubeError as error:
            if error.status == HTTPStatus.NOT_FOUND:
                log.info("node %s is gone", node)
                return
            raise
        log.info("node %s: the agent is ready, taint %s taken off", node, self._taint)


def _log_failure(state: RetryCallState) -> None:
    log.warning(
        "node %s: %s; trying again in %.1f s",
        state.args[0] if state.args else "",
        state.outcome.exception() if state.outcome else "",
        state.next_action.sleep if state.next_action else 0.0,
    )
