"""Finding the pod and the node that a call is about, within what the caller speaks for."""

from __future__ import annotations

import grpc

from kiam.rpc import kiam_pb2
from kiam.server.grpc.authorization import Authorization
from kiam.server.grpc.calls import Context, Hold, abort, canonical
from kiam.server.grpc.holds import Waiting
from kiam.server.kubernetes.objects import Pod
from kiam.server.kubernetes.store import MultiplePodsError, PodStore
from kiam.server.readiness import Readiness

MULTIPLE_PODS = "multiple running pods found"


class Lookup:
    """Looks in the stores, and holds a call while what it asks for may yet come."""

    def __init__(
        self,
        pods: PodStore,
        authorization: Authorization,
        readiness: Readiness,
        needed: tuple[str, ...],
        arrivals: Waiting,
    ) -> None:
        """``needed``: what readiness calls the things without which no pod can be found.

        ``arrivals``: told an address when a pod comes to have it, and ``ready`` once.
        """
        self._pods = pods
        self._authorization = authorization
        self._readiness = readiness
        self._needed = needed
        self._arrivals = arrivals

    async def node(self, request: kiam_pb2.WatchNodeRequest, context: Context) -> tuple[str, str]:
        """The name or address of the node that a stream is for; refuses one the caller doesn't speak for."""
        node_name, allowed = request.node_name, self._authorization.nodes(context)
        if allowed is None:
            if not node_name and not request.host_ip:
                await abort(context, grpc.StatusCode.INVALID_ARGUMENT, "node_name or host_ip must be given")
            return node_name, "" if node_name else await canonical(request.host_ip, context)
        if not node_name and len(allowed) == 1:
            (node_name,) = allowed
        # The attack stopped: a key stolen from one node must not open the stream of another.
        if node_name not in allowed:
            await abort(
                context,
                grpc.StatusCode.PERMISSION_DENIED,
                f"the certificate speaks for {', '.join(sorted(allowed)) or 'no node'}, not for '{node_name}'; "
                "give the agent a certificate with its node's name as DNS SAN",
            )
        return node_name, ""

    async def pod(self, ip: str, context: Context, not_found: str, hold: Hold) -> Pod:
        """The pod at an address, held until there is one."""
        nodes = self._authorization.nodes(context)
        address = ip
        while True:
            try:
                pod = self._pods.find(address, nodes)
            except MultiplePodsError:
                await abort(context, grpc.StatusCode.FAILED_PRECONDITION, MULTIPLE_PODS)
            # A pod found before the lists are complete might have to share its address with one yet to come.
            waits = self._readiness.waits_for(*self._needed)
            if pod is not None and not waits:
                return pod
            if address is ip:
                address = await canonical(ip, context)
                if address != ip:
                    continue
            key = "ready" if waits else address
            held = not self._readiness.stopping and await self._arrivals.wait(key, hold.left())
            if not held:
                if waits or self._readiness.stopping:
                    await abort(context, grpc.StatusCode.UNAVAILABLE, self._readiness.message)
                await abort(context, grpc.StatusCode.NOT_FOUND, not_found)
