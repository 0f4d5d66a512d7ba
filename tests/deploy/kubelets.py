"""What runs ``helm test``'s pods: the DaemonSet's controller and kubelets, with the nodes of the sandbox.

Commands are run as the pod says: with its arguments and environment, with its capabilities and no others, in the node's
network; the collector as its service account. Images and mounts are the sandbox's own.
"""

from __future__ import annotations

import os
import re
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from kiam.dataplane.cgroups import CGROUP_VARIABLE
from tests.deploy.chart import Manifest
from tests.deploy.cluster import Cluster
from tests.integration.verify.site import KIAM, Site
from tests.sandbox.kubeapi import write_kubeconfig
from tests.sandbox.netns import NODE_IPV4
from tests.sandbox.process import placed

PODS = "/api/v1/namespaces/kube-system/pods"
REFUSED_CAPABILITIES: set[str] = set()
"""What a pod doesn't get though it asks for it."""


def command_of(container: Manifest, fields: Mapping[str, str], message: Path) -> tuple[list[str], dict[str, str]]:
    """The command line and the environment that a container runtime starts (v1.Container)."""
    environment = {
        one["name"]: one.get("value") or fields[one["valueFrom"]["fieldRef"]["fieldPath"]]
        for one in container.get("env", ())
    }
    words = [
        re.sub(r"\$\((\w+)\)", lambda name: environment[name[1]], word)
        for word in [*container["command"], *container.get("args", ())]
    ]
    places = {"/dev/termination-log": str(message), "/kiam ": f"{KIAM} "}
    for place, here in places.items():
        words = [word.replace(place, here) for word in words]
    return [KIAM if word == "/kiam" else word for word in words], environment


def confined(container: Manifest, command: list[str]) -> list[str]:
    """The command with the capabilities of its security context."""
    security = container["securityContext"]
    assert security["capabilities"]["drop"] == ["ALL"]
    granted = [name for name in security["capabilities"].get("add", ()) if name not in REFUSED_CAPABILITIES]
    added = "".join(f",+{name.lower()}" for name in granted)
    flags = [f"--bounding-set=-all{added}", f"--inh-caps=-all{added}"]
    return ["setpriv", *flags, *(["--no-new-privs"] if not security["allowPrivilegeEscalation"] else []), *command]


class Kubelets:
    """Runs what ``helm test`` brings, on every node."""

    def __init__(self, cluster: Cluster, nodes: Mapping[str, Site], folder: Path) -> None:
        self.cluster, self.nodes, self.folder = cluster, nodes, folder
        self._done: set[str] = set()

    def run(self) -> None:
        """Until the cluster ends."""
        while not self.cluster.ended.wait(0.05):
            for path, found in list(self.cluster.objects.items()):
                uid = found["metadata"]["uid"]
                if uid in self._done or found["metadata"]["name"] != "kiam-test" or "status" in found:
                    continue
                if found["kind"] == "DaemonSet":
                    self._done.add(uid)
                    self._daemonset(path, found)
                elif found["kind"] == "Pod":
                    self._done.add(uid)
                    self._collector(path, found)

    def _daemonset(self, path: str, daemonset: Manifest) -> None:
        count = len(self.nodes)
        scheduled = {"observedGeneration": 1, "desiredNumberScheduled": count, "currentNumberScheduled": count}
        waiting = {**daemonset, "status": {**scheduled, "updatedNumberScheduled": count}}
        waiting["metadata"]["generation"] = 1
        self.cluster.put(path, waiting)
        template = daemonset["spec"]["template"]
        for node, site in self.nodes.items():
            self._node(node, site, template)
        ready = {"numberReady": count, "numberAvailable": count}
        self.cluster.put(path, {**waiting, "status": {**waiting["status"], **ready}})

    def _node(self, node: str, site: Site, template: Manifest) -> None:
        (container,) = template["spec"]["initContainers"]
        message = self.folder / f"message-{node}"
        fields = {"status.hostIP": str(NODE_IPV4), "spec.nodeName": node}
        command, environment = command_of(container, fields, message)
        # What a site's own node has in its environment: where its cgroups begin.
        environment |= {CGROUP_VARIABLE: str(site.cgroups.root)}
        done = subprocess.run(
            placed(confined(container, command), site.net.node.name),
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        state = {"terminated": {"exitCode": done.returncode, "message": message.read_text(), "reason": "Completed"}}
        name = f"kiam-test-{node}"
        self.cluster.logs[name, container["name"]] = done.stdout
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": template["metadata"]["labels"]},
            "spec": {"nodeName": node},
            "status": {
                "phase": "Running",
                "initContainerStatuses": [{"name": container["name"], "state": state}],
            },
        }
        self.cluster.put(f"{PODS}/{name}", pod)

    def _collector(self, path: str, pod: Manifest) -> None:
        (container,) = pod["spec"]["containers"]
        command, environment = command_of(container, {}, self.folder / "message")
        account = pod["spec"]["serviceAccountName"]
        kubeconfig = write_kubeconfig(self.folder / "kubeconfig", self.cluster.url, self.cluster.token(account))
        done = subprocess.run(
            [*command, f"--kubeconfig={kubeconfig}"],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        self.cluster.logs[pod["metadata"]["name"], container["name"]] = done.stdout
        phase = "Failed" if done.returncode else "Succeeded"
        self.cluster.put(path, {**pod, "status": {"phase": phase}})


@contextmanager
def running_kubelets(cluster: Cluster, nodes: Mapping[str, Site], folder: Path) -> Iterator[Kubelets]:
    """Kubelets until the end of the cluster."""
    kubelets = Kubelets(cluster, nodes, folder)
    thread = threading.Thread(target=kubelets.run, daemon=True)
    thread.start()
    yield kubelets
    cluster.ended.set()
    thread.join()
