"""As much of a Kubernetes API as ``helm install`` and ``helm upgrade`` ask of it: discovery, and objects by name.

And what the commands that run in an installed chart's pods ask: service accounts with the rights that were installed
for them, merge patches, and server-side apply, whose managers get in each other's way over a Secret's contents.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import helm_python
import yaml

from tests.deploy.chart import CHART, Manifest, Values, merged
from tests.sandbox.kubeapi import merge_patch

GROUPS: dict[str, dict[str, str]] = {
    "v1": {"pods": "Pod", "secrets": "Secret", "services": "Service", "serviceaccounts": "ServiceAccount"},
    "apps/v1": {"daemonsets": "DaemonSet", "deployments": "Deployment"},
    "batch/v1": {"cronjobs": "CronJob"},
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


@dataclass(frozen=True, slots=True)
class Request:
    """What the API looks at of one."""

    method: str
    path: str
    body: bytes
    content_type: str = ""
    query: Mapping[str, str] = field(default_factory=dict)
    account: str = ""
    """The service account whose token came along; empty: an administrator's."""


class Cluster:
    """The API's state. ``objects`` are those stored, by the path of their URL."""

    def __init__(self, version: str, groups: dict[str, dict[str, str]]) -> None:
        self.version = version
        self.groups = groups
        self.objects: dict[str, Manifest] = {}
        self.changes = 0
        self.ended = threading.Event()
        self.logs: dict[tuple[str, str], str] = {}
        """What a pod's container printed."""
        self.requests: list[str] = []
        """Each verb and path that was allowed."""
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

    def token(self, account: str) -> str:
        """A token of a service account; requests without one may do everything."""
        return f"token-of-{account}"

    def may(self, account: str, verb: str, path: str) -> bool:
        """Whether a Role that is bound to the account allows it, as the API's RBAC sees it."""
        group, _, resource, name, subresource = parts(path)
        resource += f"/{subresource}" if subresource else ""
        stored = list(self.objects.values())
        bound = {
            one["roleRef"]["name"]
            for one in stored
            if one["kind"] == "RoleBinding" and account in [subject["name"] for subject in one["subjects"]]
        }
        return any(
            verb in rule["verbs"]
            and resource in rule["resources"]
            and group in rule["apiGroups"]
            and name in rule.get("resourceNames", [name])
            for one in stored
            if one["kind"] == "Role" and one["metadata"]["name"] in bound
            for rule in one["rules"]
        )

    def select(self, request: Request) -> list[Manifest]:
        """The objects of a collection that a list or a watch is about."""
        labels = [term.split("=") for term in request.query.get("labelSelector", "").split(",") if term]
        wanted = request.query.get("fieldSelector", "").partition("metadata.name=")[2]
        return [
            one
            for path, one in list(self.objects.items())
            if path.startswith(f"{request.path}/")
            and wanted in ("", one["metadata"]["name"])
            and all(one["metadata"].get("labels", {}).get(name) == value for name, value in labels)
        ]

    def events(self, request: Request) -> Iterator[Manifest]:
        """What a watch is told, until the cluster ends: each object when it is new to the watch, or has changed."""
        known = {one["metadata"]["name"]: one for one in self.select(request)}
        seen = {name: one["metadata"]["resourceVersion"] for name, one in known.items()}
        while not self.ended.wait(0.02):
            now = {one["metadata"]["name"]: one for one in self.select(request)}
            for name in seen.keys() - now.keys():
                yield {"type": "DELETED", "object": known[name]}
            for name, one in now.items():
                if seen.get(name) != one["metadata"]["resourceVersion"]:
                    yield {"type": "MODIFIED" if name in seen else "ADDED", "object": one}
            known, seen = now, {name: one["metadata"]["resourceVersion"] for name, one in now.items()}

    def put(self, path: str, given: Manifest) -> None:
        """Store an object as a controller or a kubelet does."""
        self._store(Request("PUT", path, b""), path, given)

    def answer(self, request: Request) -> tuple[int, dict[str, Any] | str]:
        """One request's status and body."""
        method, path = request.method, request.path
        discovered = self._discovery(path) if method == "GET" else None
        if discovered is not None:
            return 200, discovered
        verb = {"GET": "get", "PATCH": "patch", "POST": "create", "PUT": "update"}.get(method, "delete")
        _, kinds, resource, name, subresource = parts(path)
        if verb == "get" and not name:
            verb = "list"
        if request.account and not self.may(request.account, verb, path):
            return 403, _status(403, f"{request.account} may not {verb} {path}")
        self.requests.append(f"{verb} {path}")
        if "sendInitialEvents" in request.query:
            # As an API server before 1.34 does, so that clients list and watch.
            return 422, _status(422, "sendInitialEvents is forbidden for watch unless the WatchList feature is on")
        if verb == "list" and (kind := self.groups.get(kinds, {}).get(resource)):
            head = {"kind": f"{kind}List", "apiVersion": kinds, "metadata": {"resourceVersion": str(self.changes)}}
            return 200, {**head, "items": self.select(request)}
        if subresource == "log":
            return 200, self.logs[name, request.query["container"]]
        given = yaml.safe_load(request.body) if request.body else {}  # server-side apply sends YAML
        if method == "POST":
            path = f"{path}/{given['metadata']['name']}"
        if method == "DELETE":
            return (200, self.objects.pop(path)) if path in self.objects else (404, _status(404))
        if method in ("POST", "PUT", "PATCH"):
            refused = self._store(request, path, given)
            if refused:
                return 409, _status(409, refused)
        return (200, self.objects[path]) if path in self.objects else (404, _status(404))

    def _store(self, request: Request, path: str, given: Manifest) -> str:
        """Keep what was sent; returns why not."""
        before = self.objects.get(path, {"metadata": {}})
        version = before["metadata"].get("resourceVersion")
        if given["metadata"].get("resourceVersion", version) != version:
            return f"{path}: the object has been modified"
        is_apply = "apply-patch" in request.content_type
        if request.method == "PATCH" and not is_apply:
            given = merge_patch(before, given)
        managed = before["metadata"].get("managedFields", [])
        if given.get("kind") == "Secret":
            changed = {key for key, text in given.get("data", {}).items() if before.get("data", {}).get(key) != text}
            entry = {
                "manager": request.query.get("fieldManager", "somebody"),
                "operation": "Apply" if is_apply else "Update",
            }
            others = [one for one in managed if {**one, **entry} != one]
            for one in others:
                taken = changed & {key.removeprefix("f:") for key in one["fieldsV1"]["f:data"]}
                if taken and is_apply and request.query.get("force") != "true":
                    return f"Apply failed with 1 conflict: conflict with {one['manager']!r}: {sorted(taken)}"
                one["fieldsV1"]["f:data"] = {f: {} for f in one["fieldsV1"]["f:data"] if f[2:] not in taken}
            owned: Manifest = {f"f:{key}": {} for key in (given["data"] if is_apply else changed)}
            managed = [*others, {**entry, "fieldsV1": {"f:data": owned}}]
        self.changes += 1
        given["metadata"] = {
            "uid": f"uid-{len(self.objects)}",
            **given["metadata"],
            "resourceVersion": str(self.changes),
            "managedFields": managed,
        }
        self.objects[path] = given
        return ""

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


def parts(path: str) -> tuple[str, str, str, str, str]:
    """An object's or a collection's group, group with version, resource, name and subresource; empty where it has none.

    Without the namespace.
    """
    words = path.strip("/").split("/")
    group, version, words = (
        ("", words[1], words[2:]) if words[0] == "api" else (words[1], "/".join(words[1:3]), words[3:])
    )
    if words[0] == "namespaces" and len(words) > 2:
        words = words[2:]
    resource, name, subresource = [*words, "", ""][:3]
    return group, version, resource, name, subresource


def _root(group: str) -> str:
    return f"apis/{group}" if "/" in group else f"api/{group}"


def _status(code: int, message: str = "not found") -> dict[str, Any]:
    reason = {403: "Forbidden", 404: "NotFound", 409: "Conflict", 422: "Invalid"}[code]
    head = {"kind": "Status", "apiVersion": "v1", "status": "Failure"}
    return {**head, "reason": reason, "code": code, "message": message}


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
            url = urlsplit(self.path)
            query = {key: values[0] for key, values in parse_qs(url.query).items()}
            account = self.headers.get("Authorization", "").partition("token-of-")[2]
            request = Request(self.command, url.path, body, self.headers.get("Content-Type", ""), query, account)
            if query.get("watch") in ("1", "true") and "sendInitialEvents" not in query:
                self._watch(request)
                return
            status, answer = cluster.answer(request)
            blob = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(blob)))
            self.end_headers()
            self.wfile.write(blob)

        def _watch(self, request: Request) -> None:
            self.close_connection = True
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            with suppress(ConnectionError):
                for event in cluster.events(request):
                    self.wfile.write(json.dumps(event).encode() + b"\n")

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    cluster.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield cluster
    finally:
        cluster.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()


def install(helm: helm_python.Config, *values: Values) -> None:
    """``helm install kiam`` into the cluster."""
    helm.install(CHART, "kiam", merged(*values))


def upgrade(helm: helm_python.Config, *values: Values) -> None:
    """``helm upgrade kiam`` in the cluster."""
    helm.upgrade(CHART, "kiam", merged(*values))
