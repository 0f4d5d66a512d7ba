"""Pods on the node's own network."""

from __future__ import annotations

from collections.abc import Mapping
from uuid import uuid4

from tests.sandbox import kubeapi
from tests.sandbox.netns import METADATA_IPV4, NODE_IPV4
from tests.sandbox.node import Answer, NodeInABox, fetch


class HostPod:
    """A pod on the node's own network: its cgroup and its Pod object."""

    def __init__(
        self,
        box: NodeInABox,
        role: str | None = None,
        namespace: str = "default",
        annotations: Mapping[str, str] | None = None,
    ) -> None:
        self.box, self.uid, self.namespace = box, str(uuid4()), namespace
        self.name = f"host-{self.uid[:8]}"
        self.cgroup = box.cgroup.pod(self.uid)
        self.annotate(role, annotations)

    def annotate(self, role: str | None, annotations: Mapping[str, str] | None = None) -> None:
        """Make or change its Pod object."""
        address = str(NODE_IPV4)
        self.box.api.apply(
            kubeapi.pod(
                self.name,
                address,
                role,
                namespace=self.namespace,
                annotations=annotations,
                host_address=address,
                host_network=True,
                uid=self.uid,
            )
        )

    def ask(self, path: str) -> Answer:
        """Ask the metadata address over HTTP, by a process of the pod's."""
        return self.box.node.call(fetch, str(METADATA_IPV4), 80, path, cgroup=self.cgroup)
