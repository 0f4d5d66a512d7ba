"""The role that a service account is annotated with, for pods that aren't."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Protocol
from urllib.parse import quote

import msgspec

from kiam.server.kubernetes.objects import ROLE_ANNOTATION

KEPT = 10.0
"""Seconds an annotation is believed: it takes effect, or stops to, after so long."""
MOST_KEPT = 4096


class ReadApi(Protocol):
    """The part of the Kubernetes API that is needed."""

    async def get(self, path: str, query: Mapping[str, str]) -> bytes:
        """The body of a GET. Raises KubeError."""


class _Annotations(msgspec.Struct, gc=False):
    role: str | None = msgspec.field(default=None, name=ROLE_ANNOTATION)


class _Meta(msgspec.Struct, gc=False):
    annotations: _Annotations | None = None


class _Account(msgspec.Struct, gc=False):
    metadata: _Meta


class ServiceAccountRoles:
    """Reads service accounts one by one: watching all of them would cost more than the few that are asked for."""

    def __init__(self, api: ReadApi, now: Callable[[], float] = time.monotonic) -> None:
        self._api = api
        self._now = now
        self._kept: OrderedDict[tuple[str, str], tuple[float, str]] = OrderedDict()

    async def role(self, namespace: str, name: str) -> str:
        """The annotation, trimmed; empty: it has none. Raises KubeError, msgspec.DecodeError."""
        now = self._now()
        until, role = self._kept.get((namespace, name), (0.0, ""))
        if now < until:
            return role
        path = f"/api/v1/namespaces/{quote(namespace, safe='')}/serviceaccounts/{quote(name, safe='')}"
        account = msgspec.json.decode(await self._api.get(path, {}), type=_Account)
        role = ((account.metadata.annotations.role if account.metadata.annotations else None) or "").strip()
        self._kept[namespace, name] = (now + KEPT, role)
        self._kept.move_to_end((namespace, name))
        while len(self._kept) > MOST_KEPT:
            self._kept.popitem(last=False)
        return role
