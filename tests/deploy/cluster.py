"""As much of a Kubernetes API as ``helm install`` and ``helm upgrade`` ask of it: discovery, and objects by name."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import helm_python
import yaml

from tests.deploy.chart import CHART, Manifest, Values, merged

GROUPS: dict[str, dict[str, str]] = {
    "v1": {"secrets": "Secret", "services": "Service", "serviceaccounts": "ServiceAccount"},
    "apps/v1": {"daemonsets": "DaemonSet", "deployments": "Deployment"},
    "policy/v1": {"poddisruptionbudgets": "PodDisruptionBudget"},
    "rbac.authorization.k8s.io/v1": {
        "roles": "Role",
        "rolebindings": "RoleBinding",
        "clusterroles": "ClusterRole",
        "clusterrolebindings": "ClusterRoleBinding",
    },
}
"""What every cluster the chart supports has."""
POD_SECURITY_POLICIES = {"policy/v1beta1": {"podsecuritypolicies": "PodSecurityPolicy"}}
"""What clusters before 1.25 had besides."""
NOT_NAMESPACED = {"ClusterRole", "ClusterRoleBinding", "PodSecurityPolicy"}


class Cluster:
    """The API's state. ``objects`` are those stored, by the path of their URL."""

    def __init__(self, version: str, groups: dict[str, dict[str, str]]) -> None:
        self.version = version
        self.groups = groups
        self.objects: dict[str, Manifest] = {}
        self.url = ""

    def find(self, kind: str, name: str) -> Manifest:
        """A stored object."""
        return next(o for o in self.objects.values() if o["kind"] == kind and o["metadata"]["name"] == name)

    def kinds(self) -> set[str]:
        """Of all that is stored."""
        return {stored["kind"] for stored in self.objects.values()}

    @contextmanager
    def helm(self) -> Iterator[helm_python.Config]:
        """Helm, talking to this cluster; releases are remembered in memory."""
        configuration = helm_python.Config(kube_apiserver=self.url, namespace="kube-system", storage_driver="memory")
        with configuration:
            yield configuration

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        """One request's status and body."""
        discovered = self._discovery(path) if method == "GET" else None
        if discovered is not None:
            return 200, discovered
        given = yaml.safe_load(body) if body else {}  # server-side apply sends YAML
        if method == "POST":
            path = f"{path}/{given['metadata']['name']}"
        if method == "DELETE":
            return (200, self.objects.pop(path)) if path in self.objects else (404, _status(404))
        if method in ("POST", "PUT", "PATCH"):
            given["metadata"].setdefault("uid", f"uid-{len(self.objects)}")
            given["metadata"]["resourceVersion"] = "1"
            self.objects[path] = given
        return (200, self.objects[path]) if path in self.objects else (404, _status(404))

    def _discovery(self, path: str) -> dict[str, Any] | None:
        words = path.strip("/").split("/")
        match words:
            case ["version"]:
                major, minor, _ = self.version.removeprefix("v").split(".")
                return {"major": major, "minor": minor, "gitVersion": self.version}
            case ["api"]:
                return {"kind": "APIVersions", "versions": ["v1"]}
            case ["apis"]:
                names = {group.partition("/")[0] for group in self.groups if "/" in group}
                return {
                    "kind": "APIGroupList",
                    "apiVersion": "v1",
                    "groups": [self._group(name) for name in sorted(names)],
                }
            case ["api", "v1"]:
                return self._resources("v1")
            case ["apis", group, version] if f"{group}/{version}" in self.groups:
                return self._resources(f"{group}/{version}")
            case ["openapi", "v3"]:
                return {
                    "paths": {
                        _root(group): {"serverRelativeURL": f"/openapi/v3/{_root(group)}"} for group in self.groups
                    }
                }
            case ["openapi", "v3", *root]:
                return self._openapi("/".join(root))
        return None

    def _openapi(self, root: str) -> dict[str, Any]:
        """Only what Helm looks for: that the API itself refuses unknown fields, so that Helm needn't."""
        (name,) = [group for group in self.groups if _root(group) == root]
        group, _, version = name.rpartition("/")
        checked = [{"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}]
        return {
            "openapi": "3.0.0",
            "paths": {
                f"/{root}/{resource}/{{name}}": {
                    "patch": {
                        "parameters": checked,
                        "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind},
                    }
                }
                for resource, kind in self.groups[name].items()
            },
        }

    def _group(self, name: str) -> dict[str, Any]:
        versions = [
            {"groupVersion": group, "version": group.partition("/")[2]}
            for group in self.groups
            if group.startswith(f"{name}/")
        ]
        return {"name": name, "versions": versions, "preferredVersion": versions[0]}

    def _resources(self, group: str) -> dict[str, Any]:
        verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
        return {
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": group,
            "resources": [
                {"name": name, "kind": kind, "namespaced": kind not in NOT_NAMESPACED, "verbs": verbs}
                for name, kind in self.groups[group].items()
            ],
        }


def _root(group: str) -> str:
    return f"apis/{group}" if "/" in group else f"api/{group}"


def _status(code: int) -> dict[str, Any]:
    return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": code}


@contextmanager
def running_cluster(version: str = "v1.34.0", *, pod_security_policies: bool = False) -> Iterator[Cluster]:
    """A cluster on a loopback port, until the end of the block."""
    cluster = Cluster(version, GROUPS | (POD_SECURITY_POLICIES if pod_security_policies else {}))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Head and body are two writes, and the second would wait 40 ms for the first to be acknowledged.
        disable_nagle_algorithm = True

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, answer = cluster.answer(self.command, urlsplit(self.path).path, body)
            blob = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(blob)))
            self.end_headers()
            self.wfile.write(blob)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    cluster.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield cluster
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def install(helm: helm_python.Config, *values: Values) -> None:
    """``helm install kiam`` into the cluster."""
    helm.install(CHART, "kiam", merged(*values))


def upgrade(helm: helm_python.Config, *values: Values) -> None:
    """``helm upgrade kiam`` in the cluster."""
    helm.upgrade(CHART, "kiam", merged(*values))
