"""Secrets whose contents are replaced, without a quarrel with who applied them before."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from kiam.errors import UserError
from kiam.server.kubernetes.api import KubeApi
from kiam.server.kubernetes.objects import UNREADABLE

KEPT = ("labels", "annotations")
"""What of an object's metadata, beside its name, is whoever applied it's."""


@dataclass(frozen=True, slots=True)
class Secret:
    """One as it was read."""

    path: str
    data: Mapping[str, bytes] = field(repr=False)
    annotations: Mapping[str, str]
    body: Mapping[str, Any] = field(repr=False)

    @property
    def applier(self) -> str | None:
        """Who owns the contents by server-side apply, such as Helm 4; None: nobody does."""
        for entry in self.body["metadata"].get("managedFields", ()):
            if entry.get("operation") == "Apply" and "f:data" in entry.get("fieldsV1", {}):
                return str(entry["manager"])
        return None


async def read_secret(api: KubeApi, namespace: str, name: str) -> Secret:
    """Read one. Raises KubeError, and UserError for what isn't a Secret."""
    path = f"/api/v1/namespaces/{namespace}/secrets/{name}"
    answer = await api.get(path, {})
    try:
        body = msgspec.json.decode(answer, type=dict[str, Any])
        data = {key: base64.b64decode(text, validate=True) for key, text in (body.get("data") or {}).items()}
        return Secret(path, data, body["metadata"].get("annotations") or {}, body)
    except (*UNREADABLE, binascii.Error, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"the Secret {name} of namespace {namespace} can't be read: {error}") from error


async def replace_contents(
    api: KubeApi, secret: Secret, data: Mapping[str, bytes], annotations: Mapping[str, str]
) -> None:
    """Change entries of the contents and annotations; what isn't named stays.

    The API refuses (409) if somebody has changed the Secret since it was read. Where the contents were applied on the
    server's side, it is done again in the name of who did: a manager of our own would own these fields from then on,
    and the next ``helm upgrade`` that changes them fail with a conflict. Raises KubeError.
    """
    metadata = secret.body["metadata"]
    changes: dict[str, Any] = {
        "metadata": {"resourceVersion": metadata["resourceVersion"]},
        "data": {key: base64.b64encode(content).decode() for key, content in data.items()},
    }
    if annotations:
        changes["metadata"]["annotations"] = dict(annotations)
    if secret.applier is None:
        await api.patch(secret.path, changes)
        return
    # What a manager doesn't apply again it doesn't own any more, and loses.
    whole = {key: metadata[key] for key in KEPT if key in metadata}
    whole["annotations"] = {**secret.annotations, **annotations}
    body = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": metadata["name"], **changes["metadata"], **whole},
        "type": secret.body.get("type", "Opaque"),
        "data": {**secret.body.get("data", {}), **changes["data"]},
    }
    await api.apply(secret.path, body, secret.applier)
