"""The kinds of objects that are listed and watched, and how they are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from kiam.server.kubernetes.objects import WireList, WireNamespace, WirePod, read_namespace, read_pod


class Keyed(Protocol):
    """What a resource's objects are read into."""

    @property
    def uid(self) -> str:
        """``metadata.uid``."""


@dataclass(frozen=True, slots=True)
class Resource:
    """How objects of one kind are asked for and read."""

    name: str
    path: str
    page: msgspec.json.Decoder[Any]
    wire: msgspec.json.Decoder[Any]
    read: Callable[[Any], Keyed]


PODS = Resource(
    "pods", "/api/v1/pods", msgspec.json.Decoder(WireList[WirePod]), msgspec.json.Decoder(WirePod), read_pod
)
NAMESPACES = Resource(
    "namespaces",
    "/api/v1/namespaces",
    msgspec.json.Decoder(WireList[WireNamespace]),
    msgspec.json.Decoder(WireNamespace),
    read_namespace,
)
