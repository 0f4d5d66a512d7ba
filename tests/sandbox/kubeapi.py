"""A Kubernetes API over HTTP for pods, namespaces and events, as an API server behaves towards a watcher.

Lists come in pages that all show the moment of the first one; watches start from a resourceVersion, carry bookmarks,
and see an object that leaves their selector as DELETED; history can be compacted, so that old versions are 410 Gone.
What a real cluster does wrong now and then happens on demand (:class:`Faults`).

Use it in this process (``async with KubeApi() as api``) or as one of its own (:class:`KubeApiProcess`), which is
driven through a Unix socket and so can be reached whichever network namespace it listens in.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import hmac
import json
import os
import ssl
import sys
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web

from tests.sandbox.control import Control, serve_control
from tests.sandbox.process import Process

Json = dict[str, Any]

TOKEN = "sandbox-kiam-server-token"  # the emulator's own, worth nothing elsewhere
KINDS = {
    "pods": "Pod",
    "namespaces": "Namespace",
    "events": "Event",
    "nodes": "Node",
    "serviceaccounts": "ServiceAccount",
}
NAMESPACED = frozenset({"pods", "events", "serviceaccounts"})
ALLOWED = {
    "pods": {"get", "list", "watch"},
    "namespaces": {"get", "list", "watch"},
    "events": {"create", "patch"},
    "nodes": set(),
    "serviceaccounts": {"get"},
}
"""What the bearer token may do: the RBAC of the contract."""


class ApiError(Exception):
    """Answered as a Status object."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code, self.reason = code, reason

    def status(self) -> Json:
        """The ``metav1.Status`` of this error."""
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": str(self),
            "reason": self.reason,
            "code": self.code,
        }


def _gone(what: str) -> ApiError:
    return ApiError(410, "Expired", f"{what} is too old; start over")


@dataclass(frozen=True, slots=True)
class Stored:
    """An object as kept: its JSON once, and what selectors look at."""

    key: str
    version: int
    blob: bytes
    labels: Mapping[str, str]
    fields: Mapping[str, str]

    @classmethod
    def of(cls, resource: str, body: Json, version: int) -> Stored:
        """Stamp the resourceVersion into a body and keep it."""
        metadata = body["metadata"]
        metadata["resourceVersion"] = str(version)
        fields = {"metadata.name": metadata["name"], "metadata.namespace": metadata.get("namespace", "")}
        if resource == "pods":
            fields["spec.nodeName"] = body.get("spec", {}).get("nodeName", "")
            fields["status.phase"] = body.get("status", {}).get("phase", "")
            fields["status.podIP"] = body.get("status", {}).get("podIP", "")
        if resource == "events":
            fields["involvedObject.name"] = body.get("involvedObject", {}).get("name", "")
            fields["involvedObject.uid"] = body.get("involvedObject", {}).get("uid", "")
            fields["reason"] = body.get("reason", "")
        blob = json.dumps(body, separators=(",", ":")).encode()
        return cls(_key(resource, metadata), version, blob, metadata.get("labels") or {}, fields)


@dataclass(frozen=True, slots=True)
class Change:
    """One entry of a collection's history."""

    version: int
    before: Stored | None
    after: Stored | None


@dataclass(frozen=True, slots=True)
class Selector:
    """labelSelector and fieldSelector, of the equality kind; a namespace counts as one more field."""

    labels: tuple[tuple[str, str, bool], ...] = ()
    fields: tuple[tuple[str, str, bool], ...] = ()

    @classmethod
    def parse(cls, labels: str, fields: str, namespace: str | None) -> Selector:
        """Read ``a=b,c!=d`` of both kinds."""
        wanted = [("metadata.namespace", namespace, True)] if namespace else []
        return cls(tuple(_terms(labels)), (*_terms(fields), *wanted))

    def matches(self, stored: Stored | None) -> bool:
        """Whether the object is there and selected."""
        return (
            stored is not None
            and all((stored.labels.get(key) == value) is equal for key, value, equal in self.labels)
            and all((stored.fields.get(key) == value) is equal for key, value, equal in self.fields)
        )


def _terms(text: str) -> Iterator[tuple[str, str, bool]]:
    for term in filter(None, text.split(",")):
        key, sign, value = term.partition("!=")
        if not sign:
            key, sign, value = term.partition("=")
        if not sign:
            raise ApiError(400, "BadRequest", f"unsupported selector term {term!r}")
        yield key.strip(), value.removeprefix("=").strip(), "!=" not in term


def _key(resource: str, metadata: Json) -> str:
    return f"{metadata['namespace']}/{metadata['name']}" if resource in NAMESPACED else str(metadata["name"])


class Collection:
    """The objects of one resource, their history and those who watch it."""

    def __init__(self, resource: str) -> None:
        self.resource = resource
        self.objects: dict[str, Stored] = {}
        self.history: deque[Change] = deque(maxlen=200_000)
        self.oldest = 0
        """Watches from before this version are 410 Gone."""
        self.snapshots: OrderedDict[int, list[Stored]] = OrderedDict()
        self.watchers: set[asyncio.Event] = set()

    def record(self, version: int, before: Stored | None, after: Stored | None) -> None:
        """Add a change to the history and wake the watchers."""
        if len(self.history) == self.history.maxlen:
            self.oldest = self.history[0].version
        self.history.append(Change(version, before, after))
        for watcher in self.watchers:
            watcher.set()

    def compact(self, version: int) -> None:
        """Forget history up to a version, and every unfinished paged list."""
        self.oldest = version
        self.snapshots.clear()
        while self.history and self.history[0].version <= version:
            self.history.popleft()

    def since(self, version: int) -> list[Change]:
        """Changes after a version, oldest first. Raises ApiError 410 if they are forgotten."""
        if version < self.oldest:
            raise _gone(f"resource version {version} (oldest {self.oldest})")
        newer: list[Change] = []
        for change in reversed(self.history):
            if change.version <= version:
                break
            newer.append(change)
        newer.reverse()
        return newer


@dataclass(slots=True)
class Faults:
    """What goes wrong on purpose. Counters of failures count down; 0 is none."""

    fail: int = 0
    """So many of the next requests are answered with ``fail_status``."""
    fail_status: int = 500
    fail_retry_after: int = 0
    """Seconds; sent as Retry-After with these failures when not 0."""
    delay: float = 0.0
    """Seconds before each answer."""
    gone_as_event: bool = True
    """410 on a watch: as an ERROR event in a 200 stream (what API servers mostly do), or as the HTTP status."""
    garbage: int = 0
    """So many of the next watch streams get half a line of JSON and end."""


class KubeApi:
    """The emulator. ``async with KubeApi() as api`` serves on a free loopback port; ``api.url`` says where."""

    def __init__(
        self, host: str = "127.0.0.1", port: int = 0, *, token: str | None = TOKEN, tls: ssl.SSLContext | None = None
    ) -> None:
        """``token`` None switches authentication and RBAC off."""
        self.host, self.port, self.token, self.tls = host, port, token, tls
        self.faults = Faults()
        self.requests: Counter[str] = Counter()
        """``<verb> <resource>``: how often it was asked for."""
        self.version = 1
        self.collections = {resource: Collection(resource) for resource in KINDS}
        self._streams: set[asyncio.Task[Any]] = set()
        self._runner: web.AppRunner | None = None
        self._bookmarks = asyncio.Event()
        self._signing_key = os.urandom(32)

    async def __aenter__(self) -> KubeApi:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def url(self) -> str:
        """The API's base URL."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"

    async def start(self) -> None:
        """Listen. After :meth:`stop`, on the same port again."""
        application = web.Application(client_max_size=64 << 20)
        application.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.host, self.port, ssl_context=self.tls, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Stop listening and cut every connection; what is stored stays."""
        self.drop_streams()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    # ---- what tests do to the cluster

    def apply(self, body: Json) -> Json:
        """Create an object or put it in the place of the one of that name; returns it as stored."""
        resource = next(name for name, kind in KINDS.items() if kind == body["kind"])
        return self._put(resource, json.loads(json.dumps(body)))

    def load(self, bodies: Iterable[Json]) -> int:
        """Apply many; how many it were."""
        return sum(1 for body in bodies if self.apply(body))

    def delete(self, resource: str, name: str, namespace: str | None = None) -> None:
        """Delete an object; none of that name is fine."""
        collection = self.collections[resource]
        before = collection.objects.pop(f"{namespace}/{name}" if namespace else name, None)
        if before is not None:
            self.version += 1
            collection.record(self.version, before, None)

    def get(self, resource: str, name: str, namespace: str | None = None) -> Json:
        """Read an object. Raises KeyError if there is none."""
        stored = self.collections[resource].objects[f"{namespace}/{name}" if namespace else name]
        return dict(json.loads(stored.blob))

    def events(self) -> list[Json]:
        """All Event objects."""
        return [json.loads(stored.blob) for stored in self.collections["events"].objects.values()]

    def compact(self) -> None:
        """Forget all history, as etcd's compaction does every five minutes: versions up to now are 410 Gone."""
        self.version += 1
        for collection in self.collections.values():
            collection.compact(self.version)

    def drop_streams(self) -> int:
        """Cut every watch without a word; how many there were."""
        cut = len(self._streams)
        for stream in list(self._streams):
            stream.cancel()
        return cut

    def send_bookmarks(self) -> None:
        """Send a bookmark on every watch that asked for them."""
        event, self._bookmarks = self._bookmarks, asyncio.Event()
        event.set()
        for collection in self.collections.values():
            for watcher in collection.watchers:
                watcher.set()

    def watches(self) -> int:
        """How many watches are open."""
        return len(self._streams)

    # ---- storage

    def _put(self, resource: str, body: Json) -> Json:
        metadata = body["metadata"]
        collection = self.collections[resource]
        body.setdefault("apiVersion", "v1")
        body["kind"] = KINDS[resource]
        if resource in NAMESPACED:
            metadata.setdefault("namespace", "default")
        self.version += 1
        if "name" not in metadata:
            metadata["name"] = f"{metadata.pop('generateName')}{self.version:05x}"
        before = collection.objects.get(_key(resource, metadata))
        metadata.setdefault("uid", f"00000000-0000-4000-8000-{self.version:012x}")
        metadata.setdefault("creationTimestamp", "2026-01-01T00:00:00Z")
        stored = Stored.of(resource, body, self.version)
        collection.objects[stored.key] = stored
        collection.record(self.version, before, stored)
        return body

    # ---- HTTP

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        try:
            return await self._answer(request)
        except ApiError as error:
            return web.json_response(error.status(), status=error.code)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if self.faults.delay:
            await asyncio.sleep(self.faults.delay)
        if self.faults.fail > 0:
            self.faults.fail -= 1
            headers = {"Retry-After": str(self.faults.fail_retry_after)} if self.faults.fail_retry_after else {}
            broken = ApiError(self.faults.fail_status, "InternalError", "the sandbox was told to fail")
            return web.json_response(broken.status(), status=self.faults.fail_status, headers=headers)
        # The scheme's name is case-insensitive (RFC 9110, 11.1); kubernetes' in-cluster configuration writes it small.
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if self.token is not None and (scheme.lower(), token) != ("bearer", self.token):
            raise ApiError(401, "Unauthorized", "Unauthorized")
        if request.path in ("/version", "/readyz", "/livez"):
            return web.json_response({"major": "1", "minor": "34", "gitVersion": "v1.34.0-sandbox"})
        if request.path == "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews":
            return self._review(await request.json())
        if request.path == "/apis/authentication.k8s.io/v1/tokenreviews":
            self.requests["create tokenreviews"] += 1
            return web.json_response(self._token_review(await request.json()), status=201)
        resource, namespace, name = _route(request.path)
        verb = _verb(request, name)
        self.requests[f"{verb} {resource}"] += 1
        if self.token is not None and verb not in ALLOWED[resource]:
            raise ApiError(403, "Forbidden", f'{resource} is forbidden: this token cannot "{verb}" them')
        if verb == "list":
            return self._list(request, resource, namespace)
        if verb == "watch":
            return await self._watch(request, resource, namespace, name)
        return await self._single(request, verb, resource, namespace, name)

    def _review(self, body: Json) -> web.Response:
        """What the token may do, for whoever asks first."""
        asked = body["spec"]["resourceAttributes"]
        allowed = self.token is None or asked["verb"] in ALLOWED.get(asked["resource"], ())
        return web.json_response({**body, "status": {"allowed": allowed}}, status=201)

    def issue_token(self, pod: Json, audience: str, seconds: float = 3600.0) -> str:
        """A token bound to a pod, as kubelet projects it: a JWT, but for its signature, which only this API reads."""
        claims = {
            "aud": [audience],
            "exp": int(time.time() + seconds),
            "kubernetes.io": {
                "namespace": pod["metadata"]["namespace"],
                "pod": {"name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]},
                "serviceaccount": {"name": pod.get("spec", {}).get("serviceAccountName", "default")},
            },
        }
        parts = ({"alg": "RS256"}, claims)
        head = ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts)
        signature = hmac.new(self._signing_key, head.encode(), "sha256").hexdigest()
        return f"{head}.{signature}"

    def _token_review(self, body: Json) -> Json:
        """Whether a token is one of :meth:`issue_token`'s, in time, and of a pod that is there."""
        head, _, signature = body["spec"]["token"].rpartition(".")
        wanted = hmac.new(self._signing_key, head.encode(), "sha256").hexdigest()
        if not hmac.compare_digest(signature, wanted):
            return {**body, "status": {"authenticated": False, "error": "invalid signature"}}
        claims = json.loads(base64.urlsafe_b64decode(head.split(".")[1] + "=="))
        bound = claims["kubernetes.io"]
        audiences = [audience for audience in claims["aud"] if audience in body["spec"]["audiences"]]
        try:
            pod = self.get("pods", bound["pod"]["name"], bound["namespace"])
        except KeyError:
            pod = {"metadata": {}}
        if not audiences or claims["exp"] <= time.time() or pod["metadata"].get("uid") != bound["pod"]["uid"]:
            return {**body, "status": {"authenticated": False, "error": "token is not valid"}}
        user = {
            "username": f"system:serviceaccount:{bound['namespace']}:{bound['serviceaccount']['name']}",
            "extra": {
                "authentication.kubernetes.io/pod-name": [bound["pod"]["name"]],
                "authentication.kubernetes.io/pod-uid": [bound["pod"]["uid"]],
            },
        }
        return {**body, "status": {"authenticated": True, "user": user, "audiences": audiences}}

    async def _single(
        self, request: web.Request, verb: str, resource: str, namespace: str | None, name: str | None
    ) -> web.Response:
        objects = self.collections[resource].objects
        if verb == "create":
            body = await request.json()
            body.setdefault("metadata", {})
            if namespace:
                body["metadata"]["namespace"] = namespace
            if "name" in body["metadata"] and _key(resource, body["metadata"]) in objects:
                raise ApiError(409, "AlreadyExists", f'{resource} "{body["metadata"]["name"]}" already exists')
            return web.json_response(self._put(resource, body), status=201)
        key = f"{namespace}/{name}" if namespace else str(name)
        if key not in objects:
            raise ApiError(404, "NotFound", f'{resource} "{name}" not found')
        current = json.loads(objects[key].blob)
        if verb == "get":
            return web.json_response(current)
        if verb == "delete":
            self.delete(resource, str(name), namespace)
            return web.json_response(current)
        change = await request.json()
        if verb == "patch":
            if "json-patch" in request.content_type:
                raise ApiError(415, "UnsupportedMediaType", "the sandbox takes merge patches only")
            version = change.get("metadata", {}).get("resourceVersion", current["metadata"]["resourceVersion"])
            if version != current["metadata"]["resourceVersion"]:
                raise ApiError(409, "Conflict", f'{resource} "{name}": the object has been modified')
            change = merge_patch(current, change)
        return web.json_response(self._put(resource, change))

    def _list(self, request: web.Request, resource: str, namespace: str | None) -> web.Response:
        collection = self.collections[resource]
        query = request.query
        selector = Selector.parse(query.get("labelSelector", ""), query.get("fieldSelector", ""), namespace)
        limit = int(query.get("limit") or 0)
        token = query.get("continue")
        if token:
            version, start = json.loads(base64.urlsafe_b64decode(token))
            if version not in collection.snapshots:
                raise _gone("the provided continue parameter")
            selected = collection.snapshots[version]
        else:
            version, start = self.version, 0
            selected = [stored for stored in collection.objects.values() if selector.matches(stored)]
        end = start + limit if limit else len(selected)
        metadata: Json = {"resourceVersion": str(version)}
        if end < len(selected):
            collection.snapshots[version] = selected
            while len(collection.snapshots) > 16:
                collection.snapshots.popitem(last=False)
            metadata["continue"] = base64.urlsafe_b64encode(json.dumps([version, end]).encode()).decode()
            metadata["remainingItemCount"] = len(selected) - end
        head = json.dumps({"kind": f"{KINDS[resource]}List", "apiVersion": "v1", "metadata": metadata})
        items = b",".join(stored.blob for stored in selected[start:end])
        body = head[:-1].encode() + b',"items":[' + items + b"]}"
        return web.Response(body=body, content_type="application/json")

    async def _watch(
        self, request: web.Request, resource: str, namespace: str | None, name: str | None
    ) -> web.StreamResponse:
        collection = self.collections[resource]
        query = request.query
        if query.get("sendInitialEvents") == "true":
            raise ApiError(422, "Invalid", "sendInitialEvents is forbidden for watch unless WatchList is enabled")
        fields = query.get("fieldSelector", "") if name is None else f"metadata.name={name}"
        selector = Selector.parse(query.get("labelSelector", ""), fields, namespace)
        version = int(query.get("resourceVersion") or 0)
        if version and version < collection.oldest and not self.faults.gone_as_event:
            raise _gone(f"resource version {version} (oldest {collection.oldest})")
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        stream = asyncio.current_task()
        assert stream is not None
        wake = asyncio.Event()
        self._streams.add(stream)
        collection.watchers.add(wake)
        timeout = float(query.get("timeoutSeconds") or 1800)
        bookmarks = query.get("allowWatchBookmarks") in ("true", "1")
        try:
            async with asyncio.timeout(timeout):
                await self._stream(response, collection, selector, version, wake, bookmarks)
        except TimeoutError:
            if bookmarks:
                await response.write(self._bookmark(resource))
        except ApiError as error:
            await response.write(_frame(b"ERROR", json.dumps(error.status()).encode()))
        except (asyncio.CancelledError, ConnectionError):
            # Cut: no last chunk, as when a load balancer or an API server dies.
            if request.transport is not None:
                request.transport.abort()
        finally:
            collection.watchers.discard(wake)
            self._streams.discard(stream)
        return response

    async def _stream(
        self,
        response: web.StreamResponse,
        collection: Collection,
        selector: Selector,
        version: int,
        wake: asyncio.Event,
        bookmarks: bool,
    ) -> None:
        if self.faults.garbage > 0:
            self.faults.garbage -= 1
            await response.write(b'{"type":"MODIFIED","object":{"kind":"Po')
            return
        if not version:
            version = self.version
            for stored in list(collection.objects.values()):
                if selector.matches(stored):
                    await response.write(_frame(b"ADDED", stored.blob))
        bookmark = self._bookmarks
        while True:
            wake.clear()
            for change in collection.since(version):
                version = change.version
                frame = _seen(change, selector)
                if frame is not None:
                    await response.write(frame)
            if bookmark.is_set():
                bookmark = self._bookmarks
                if bookmarks:
                    await response.write(self._bookmark(collection.resource))
            await wake.wait()

    def _bookmark(self, resource: str) -> bytes:
        body = {"kind": KINDS[resource], "apiVersion": "v1", "metadata": {"resourceVersion": str(self.version)}}
        return _frame(b"BOOKMARK", json.dumps(body).encode())


def merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7386. Kubernetes' strategic merge does the same for objects without lists to merge, such as Events."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge_patch(merged.get(key), value)
    return merged


def _seen(change: Change, selector: Selector) -> bytes | None:
    before, after = selector.matches(change.before), selector.matches(change.after)
    if after:
        assert change.after is not None
        return _frame(b"MODIFIED" if before else b"ADDED", change.after.blob)
    if before:
        assert change.before is not None
        gone = json.loads((change.after or change.before).blob)
        gone["metadata"]["resourceVersion"] = str(change.version)
        return _frame(b"DELETED", json.dumps(gone).encode())
    return None


def _frame(kind: bytes, blob: bytes) -> bytes:
    return b'{"type":"%b","object":%b}\n' % (kind, blob)


def _route(path: str) -> tuple[str, str | None, str | None]:
    words = path.strip("/").split("/")
    if words[:2] == ["api", "v1"]:
        match words[2:]:
            case [resource] if resource in KINDS:
                return resource, None, None
            case [resource, name] if resource in KINDS.keys() - NAMESPACED:
                return resource, None, name
            case ["namespaces", namespace, resource] if resource in NAMESPACED:
                return resource, namespace, None
            case ["namespaces", namespace, resource, name, *rest] if resource in NAMESPACED and rest in (
                [],
                ["status"],
            ):
                return resource, namespace, name
    raise ApiError(404, "NotFound", f"the sandbox serves no {path}")


def _verb(request: web.Request, name: str | None) -> str:
    if request.method == "GET":
        if request.query.get("watch") in ("1", "true"):
            return "watch"
        return "list" if name is None else "get"
    verb = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}.get(request.method)
    if verb is None or (verb == "create") is not (name is None):
        raise ApiError(405, "MethodNotAllowed", f"{request.method} {request.path}")
    return verb


# ---- objects


def namespace(name: str, permitted: str | None = None, annotations: Mapping[str, str] | None = None) -> Json:
    """A Namespace; ``permitted`` is its ``iam.amazonaws.com/permitted`` expression."""
    notes = dict(annotations or {})
    if permitted is not None:
        notes["iam.amazonaws.com/permitted"] = permitted
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "annotations": notes}}


def pod(
    name: str,
    address: str | None,
    role: str | None = None,
    *,
    namespace: str = "default",
    node: str = "node-1",
    host_address: str = "192.0.2.10",
    phase: str = "Running",
    annotations: Mapping[str, str] | None = None,
    addresses: Iterable[str] = (),
    host_network: bool = False,
    uid: str | None = None,
    service_account: str = "default",
) -> Json:
    """A Pod as kubelet reports it. ``addresses`` adds further ``status.podIPs``."""
    notes = dict(annotations or {})
    if role is not None:
        notes["iam.amazonaws.com/role"] = role
    metadata: Json = {"name": name, "namespace": namespace, "annotations": notes, "labels": {"app": name}}
    if uid is not None:
        metadata["uid"] = uid
    spec: Json = {
        "nodeName": node,
        "serviceAccountName": service_account,
        "containers": [{"name": "main", "image": "example.invalid/app:1"}],
    }
    if host_network:
        spec["hostNetwork"] = True
    status: Json = {"phase": phase, "hostIP": host_address}
    if address is not None:
        status["podIP"] = address
        status["podIPs"] = [{"ip": one} for one in (address, *addresses)]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": status}


def many_pods(count: int, *, roles: int = 100, per_node: int = 100, size: int = 4096) -> Iterator[Json]:
    """So many running pods of about ``size`` bytes of JSON each, over as many nodes as it takes.

    Addresses run from 10.64.0.1 up, roles from ``role-0`` up, nodes from ``node-0`` up, ten namespaces.
    """
    filler = _padding(size)
    for number in range(count):
        host = number // per_node
        body = pod(
            f"pod-{number}",
            f"10.{64 + (number + 1 >> 16)}.{number + 1 >> 8 & 255}.{number + 1 & 255}",
            f"role-{number % roles}",
            namespace=f"team-{number % 10}",
            node=f"node-{host}",
            host_address=f"172.{16 + (host >> 16)}.{host >> 8 & 255}.{host & 255}",
        )
        body["spec"].update(filler)
        yield body


def many_namespaces() -> Iterator[Json]:
    """The namespaces of :func:`many_pods`, each permitting every role."""
    for number in range(10):
        yield namespace(f"team-{number}", ".*")


def _padding(size: int) -> Json:
    """Container fields of a usual kind, up to about ``size`` bytes together with the rest of a pod."""
    variables: list[Json] = []
    while len(json.dumps(variables)) < size - 400:
        number = len(variables)
        variables.append({"name": f"SETTING_{number}", "value": f"value number {number} of an ordinary deployment"})
    return {"containers": [{"name": "main", "image": "example.invalid/app:1", "env": variables}]}


def write_kubeconfig(path: Path, url: str, token: str = TOKEN, ca: Path | None = None) -> Path:
    """Write a kubeconfig for the API at a URL."""
    cluster: Json = {"server": url}
    if ca is not None:
        cluster["certificate-authority"] = str(ca)
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "sandbox", "cluster": cluster}],
        "users": [{"name": "kiam", "user": {"token": token}}],
        "contexts": [{"name": "sandbox", "context": {"cluster": "sandbox", "user": "kiam"}}],
        "current-context": "sandbox",
    }
    path.write_text(yaml.safe_dump(document))
    return path


# ---- as a process of its own


class KubeApiProcess:
    """The emulator as a process, in a network namespace if wanted; the same operations as :class:`KubeApi`."""

    def __init__(self, directory: Path, *, host: str = "127.0.0.1", port: int = 0, netns: str | None = None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._control = Control(directory / "kubeapi.sock")
        self.process = Process(
            [
                *(sys.executable, "-m", "tests.sandbox.kubeapi"),
                *("--host", host, "--port", str(port), "--control", str(self._control.path)),
            ],
            directory / "kubeapi.log",
            netns=netns,
        )
        try:
            self.url = self.process.wait_for_output(r"^listening on (\S+)$").group(1)
        except BaseException:
            self.process.stop()
            raise

    def __enter__(self) -> KubeApiProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the process."""
        self.process.stop()

    def apply(self, *bodies: Json) -> float:
        """Create or replace objects; when, on the machine's monotonic clock, which all processes share."""
        return float(self._control.call("apply", bodies=bodies))

    def delete(self, resource: str, name: str, namespace: str | None = None) -> None:
        """Delete an object; none of that name is fine."""
        self._control.call("delete", resource=resource, name=name, namespace=namespace)

    def issue_token(self, pod: str, namespace: str, audience: str, seconds: float = 3600.0) -> str:
        """See :meth:`KubeApi.issue_token`."""
        return str(self._control.call("issue_token", pod=pod, namespace=namespace, audience=audience, seconds=seconds))

    def load_many(self, count: int) -> None:
        """Apply :func:`many_namespaces` and :func:`many_pods`, made over there."""
        self._control.call("load_many", timeout=300, count=count)

    def events(self) -> list[Json]:
        """All Event objects."""
        return list(self._control.call("events"))

    def faults(self, **values: Any) -> None:
        """Set fields of :class:`Faults`."""
        self._control.call("faults", **values)

    def compact(self) -> None:
        """See :meth:`KubeApi.compact`."""
        self._control.call("compact")

    def drop_streams(self) -> int:
        """See :meth:`KubeApi.drop_streams`."""
        return int(self._control.call("drop_streams"))

    def send_bookmarks(self) -> None:
        """See :meth:`KubeApi.send_bookmarks`."""
        self._control.call("send_bookmarks")

    def close_port(self) -> None:
        """Stop listening and cut every connection; what is stored stays."""
        self._control.call("close_port")

    def open_port(self) -> None:
        """Listen again after :meth:`close_port`."""
        self._control.call("open_port")

    def requests(self) -> dict[str, int]:
        """``<verb> <resource>``: how often it was asked for."""
        return dict(self._control.call("requests"))

    def watches(self) -> int:
        """How many watches are open."""
        return int(self._control.call("watches"))


@dataclass(slots=True)
class _Operations:
    """What the control socket of the process can ask for."""

    api: KubeApi
    busy: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def apply(self, bodies: list[Json]) -> float:
        now = time.monotonic()
        for body in bodies:
            self.api.apply(body)
        return now

    async def delete(self, resource: str, name: str, namespace: str | None) -> None:
        self.api.delete(resource, name, namespace)

    async def issue_token(self, pod: str, namespace: str, audience: str, seconds: float) -> str:
        return self.api.issue_token(self.api.get("pods", pod, namespace), audience, seconds)

    async def load_many(self, count: int) -> int:
        return self.api.load([*many_namespaces(), *many_pods(count)])

    async def events(self) -> list[Json]:
        return self.api.events()

    async def faults(self, **values: Any) -> None:
        for name, value in values.items():
            setattr(self.api.faults, name, value)

    async def compact(self) -> None:
        self.api.compact()

    async def drop_streams(self) -> int:
        return self.api.drop_streams()

    async def send_bookmarks(self) -> None:
        self.api.send_bookmarks()

    async def close_port(self) -> None:
        await self.api.stop()

    async def open_port(self) -> None:
        await self.api.start()

    async def requests(self) -> dict[str, int]:
        return dict(self.api.requests)

    async def watches(self) -> int:
        return self.api.watches()


@contextlib.asynccontextmanager
async def _running(api: KubeApi, control: Path) -> AsyncIterator[None]:
    async with api, serve_control(control, _Operations(api)):
        print(f"listening on {api.url}", flush=True)
        yield


async def _main() -> None:
    parser = argparse.ArgumentParser(description="Kubernetes API emulator of the sandbox")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--control", type=Path, required=True)
    arguments = parser.parse_args()
    async with _running(KubeApi(arguments.host, arguments.port), arguments.control):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main())
