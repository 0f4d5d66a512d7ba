"""How old the server's word is: when the API was last heard of, and proof that a node's pods are as known."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import msgspec

from kiam.server.kubernetes.api import KubeApi, KubeError
from kiam.server.kubernetes.objects import WireList, WirePod, read_pod
from kiam.server.kubernetes.store import PodStore

PROOF_SECONDS = 2.0
"""For a proof as a whole: the question, and the watch's catching up with the answer."""
SPACING = 0.1
"""Seconds between the beginnings of two proofs for one node: agents can't have the API asked faster."""
CATCH_UP_STEP = 0.02
MOST_PROOFS = 16
"""At a time; others wait for one of these."""
_LIST = msgspec.json.Decoder(WireList[WirePod])

Claims = dict[str, frozenset[str]]
"""Addresses by UID."""


class Freshness:
    """When the watch of pods last showed a sign of life, in seconds of a monotonic clock."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._heard: float | None = None

    def heard(self) -> None:
        """A list was complete, a watch began, or it brought an event or a bookmark."""
        self._heard = self._clock()

    @property
    def age(self) -> float:
        """Seconds since; infinite before the first time."""
        return float("inf") if self._heard is None else self._clock() - self._heard


class NodeProofs:
    """Asks the API itself which pods a node has, and waits until the watch has brought the same.

    Which attack: a server that is cut off from the API would go on vouching for a pod whose address another one has by
    now. A list without resourceVersion is as of the moment it was asked for (Kubernetes API concepts, "Semantics for
    get and list"), so what agrees with it was true then. Those who ask for one node at a time share the answer.
    """

    def __init__(self, api: KubeApi, pods: PodStore) -> None:
        self._api = api
        self._pods = pods
        self._next: dict[str, asyncio.Task[float | None]] = {}
        self._turns: dict[str, asyncio.Lock] = {}
        self._begun: dict[str, float] = {}
        self._slots = asyncio.Semaphore(MOST_PROOFS)

    async def prove(self, node: str) -> float | None:
        """Seconds since the moment for which the node's pods are proved; None: they can't be.

        Only a proof that is begun from now on will do.
        """
        following = self._next.get(node)
        if following is None:
            following = self._next[node] = asyncio.get_running_loop().create_task(self._prove(node))
        as_of = await asyncio.shield(following)
        return None if as_of is None else time.monotonic() - as_of

    async def _prove(self, node: str) -> float | None:
        # One at a time for a node; who asks meanwhile shares the next.
        async with self._turns.setdefault(node, asyncio.Lock()), self._slots:
            await asyncio.sleep(self._begun.get(node, 0.0) + SPACING - time.monotonic())
            self._begun[node] = time.monotonic()
            del self._next[node]
            as_of = time.monotonic()
            try:
                async with asyncio.timeout(PROOF_SECONDS):
                    wanted = await self._ask(node)
                    # Looked at for two seconds at most; the store tells each change of the whole cluster.
                    while wanted != self._known(node):  # noqa: ASYNC110
                        await asyncio.sleep(CATCH_UP_STEP)
            except (TimeoutError, KubeError, msgspec.DecodeError):
                return None
            return as_of

    async def _ask(self, node: str) -> Claims:
        body = await self._api.get("/api/v1/pods", {"fieldSelector": f"spec.nodeName={node}"})
        pods = [read_pod(wire) for wire in _LIST.decode(body).items or ()]
        return {
            pod.uid: frozenset(pod.addresses)
            for pod in pods
            if pod.node == node and pod.active and not pod.host_network
        }

    def _known(self, node: str) -> Claims:
        return {pod.uid: frozenset(pod.addresses) for pod in self._pods.of_node(node) if not pod.host_network}
