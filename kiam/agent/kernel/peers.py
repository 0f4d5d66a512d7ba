"""Whose socket is at the other end of a connection: the kernel's word, looked up once a connection.

The client's socket is in its pod's network namespace. The kernel's route to the client's address leads to the pod's
interface, which tells its other end's namespace; a sock_diag socket opened there once, for all connections of the pod,
finds the client's socket by its two ends, with the cgroup it was made in.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Protocol

from kiam.agent.core.addresses import Addresses
from kiam.agent.core.routes import Route
from kiam.agent.kernel.pod_cgroups import PodCgroups
from kiam.agent.kernel.rtnetlink import Questions
from kiam.agent.kernel.sock_diag import End, SocketTable
from kiam.dataplane.cgroups import find_cgroup2_root
from kiam.errors import UserError
from kiam.metadata import METADATA_IPV4, METADATA_IPV6, METADATA_PORT

log = logging.getLogger(__name__)

NAMESPACES = Path("/run/netns")
"""Where container runtimes keep the pods' network namespaces (CNI specification, "CNI_NETNS"; containerd, CRI-O)."""
_LOOK_AGAIN = 1.0
"""Seconds until the namespace of an interface that wasn't found is looked for again."""


class Kernel(Protocol):
    """The part of :class:`kiam.agent.kernel.watcher.KernelWatcher` that is needed here."""

    def catch_up(self) -> None:
        """Hear what the kernel has told so far."""

    def route_to(self, address: str) -> Route | None:
        """The routing table's entry for an address."""


class SocketPeers:
    """Implements :class:`kiam.agent.core.askers.PeerIdentification` with sock_diag, for every dataplane."""

    def __init__(
        self,
        addresses: Addresses,
        kernel: Kernel,
        cgroup_root: Path | None = None,
        namespaces: Path = NAMESPACES,
    ) -> None:
        """``addresses`` and ``kernel`` tell the interface behind an address. Raises UserError."""
        self._addresses = addresses
        self._kernel = kernel
        self._namespaces = namespaces
        self._cgroups = PodCgroups(cgroup_root or find_cgroup2_root())
        self._questions = Questions()
        self._node = SocketTable.here()
        self._tables: dict[int, SocketTable] = {}
        self._missing: dict[int, float] = {}
        if not namespaces.is_dir():
            raise UserError(
                f"--pod-uid: the pods' network namespaces aren't in {namespaces}",
                "mount the node's /run/netns into the agent (hostPath, mountPropagation: HostToContainer), "
                "or leave --pod-uid off",
            )

    def close(self) -> None:
        """No more questions."""
        for table in (self._node, *self._tables.values()):
            table.close()
        self._questions.close()
        self._cgroups.close()

    def uid_of(self, client: End, server: End, original: End | None = None) -> str | None:
        """The UID of the pod whose socket is at ``client``; None: it is no pod's, or that can't be told."""
        try:
            # The kernel tells of a new pod's interface before it delivers the pod's first packet.
            self._kernel.catch_up()
            table = self._table(client[0])
            if table is None:
                return None
            for end in self._far_ends(client, server, original, is_node=table is self._node):
                cgroup = table.cgroup_of(client, end)
                if cgroup is not None:
                    return self._cgroups.uid_of(cgroup)
            return None
        except (OSError, ValueError) as error:
            log.debug("who is at %s port %d can't be told: %s", *client, error)
            return None

    @staticmethod
    def _far_ends(client: End, server: End, original: End | None, *, is_node: bool) -> tuple[End, ...]:
        """What the client's socket may be connected to, as it sees that; the likelier first."""
        if original is not None:
            return (original,)
        if is_node:
            # Which attack: a pod on the host network connects to us directly, from the port from which another one is
            # connected to the metadata address (both may: the other ends differ), to be taken for that one. What is
            # redirected there is translated by netfilter, which says so, or by the connect hook, before it is sent.
            return (server,)
        # The connect hook, too, leaves a pod's socket with our address. Translated in a zone of its own, a connection
        # isn't found by who asks connection tracking.
        return server, (str(METADATA_IPV6 if ":" in client[0] else METADATA_IPV4), METADATA_PORT)

    def links_gone(self, is_there: Callable[[int], bool]) -> None:
        """Let go of the namespaces whose interfaces have gone: an open socket would keep them."""
        for link in [link for link in self._tables if not is_there(link)]:
            self._tables.pop(link).close()
        for link in [link for link in self._missing if not is_there(link)]:
            del self._missing[link]

    def _table(self, address: str) -> SocketTable | None:
        link = self._addresses.bound_link(address)
        if link is None:
            route = self._kernel.route_to(address)
            if route is not None and route.is_local:
                return self._node
            link = self._addresses.link_behind(address, route)
        if link is None:
            return None
        table = self._tables.get(link)
        return table or self._open(link)

    def _open(self, link: int) -> SocketTable | None:
        now = monotonic()
        if now < self._missing.get(link, 0.0):
            return None
        wanted = self._questions.namespace_behind(link)
        for path in sorted(self._namespaces.iterdir()) if wanted is not None else ():
            with contextlib.suppress(OSError):
                namespace = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    if self._questions.namespace_number(namespace) == wanted:
                        self._missing.pop(link, None)
                        self._tables[link] = SocketTable.inside(namespace)
                        return self._tables[link]
                finally:
                    os.close(namespace)
        self._missing[link] = now + _LOOK_AGAIN
        return None
