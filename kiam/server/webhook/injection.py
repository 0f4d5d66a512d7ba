"""What a pod lacks to use the container credentials endpoint, as a JSON patch (RFC 6902). Plain functions, no I/O."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from kiam.metadata import CONTAINER_CREDENTIALS_IPV4
from kiam.server.kubernetes.tokens import AUDIENCE

ANNOTATION = "iam.amazonaws.com/container-credentials"
"""On a pod: ``true`` has it injected, ``false`` leaves it alone, whatever its service account says."""
URI = f"http://{CONTAINER_CREDENTIALS_IPV4}/v1/credentials"
DIRECTORY = "/var/run/secrets/pods.eks.amazonaws.com/serviceaccount"
VOLUME = FILE = "eks-pod-identity-token"
"""As EKS Pod Identity's own webhook names them, so that a manifest written for it isn't given them twice."""
TOKEN_SECONDS = 86_400
_URI_VARIABLE, _FILE_VARIABLE = "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"
_OWN_WAY = frozenset({_URI_VARIABLE, "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_WEB_IDENTITY_TOKEN_FILE"})
"""A container with one of these gets its credentials in a way that its owner chose."""

Json = dict[str, Any]


class _Variable(msgspec.Struct, gc=False):
    name: str


class _Container(msgspec.Struct, rename="camel", gc=False):
    env: list[_Variable] | None = None
    volume_mounts: list[Any] | None = None


class _Volume(msgspec.Struct, gc=False):
    name: str


class _Spec(msgspec.Struct, rename="camel", gc=False):
    service_account_name: str | None = None
    containers: list[_Container] = []
    init_containers: list[_Container] | None = None
    volumes: list[_Volume] | None = None


class _Annotations(msgspec.Struct, gc=False):
    wanted: str | None = msgspec.field(default=None, name=ANNOTATION)


class _Meta(msgspec.Struct, gc=False):
    annotations: _Annotations | None = None


class NewPod(msgspec.Struct, gc=False):
    """A pod that is being created, as far as this needs it."""

    metadata: _Meta = msgspec.field(default_factory=_Meta)
    spec: _Spec = msgspec.field(default_factory=_Spec)

    @property
    def service_account(self) -> str:
        """Its service account's name."""
        return self.spec.service_account_name or "default"

    @property
    def wish(self) -> bool | None:
        """What its annotation says; None: nothing."""
        said = self.metadata.annotations.wanted if self.metadata.annotations else None
        return None if said is None else said.strip() == "true"


def patch_of(pod: NewPod) -> list[Json]:
    """What to add to the pod; nothing where each container has its own way already."""
    operations = [
        operation
        for kind, containers in (("containers", pod.spec.containers), ("initContainers", pod.spec.init_containers))
        for index, container in enumerate(containers or ())
        for operation in _patch_container(f"/spec/{kind}/{index}", container)
    ]
    if operations and all(volume.name != VOLUME for volume in pod.spec.volumes or ()):
        token = {"audience": AUDIENCE, "expirationSeconds": TOKEN_SECONDS, "path": FILE}
        volume = {"name": VOLUME, "projected": {"sources": [{"serviceAccountToken": token}]}}
        operations += _append("/spec/volumes", pod.spec.volumes, volume)
    return operations


def _patch_container(path: str, container: _Container) -> Iterator[Json]:
    if not _OWN_WAY.isdisjoint(variable.name for variable in container.env or ()):
        return
    yield from _append(
        f"{path}/env",
        container.env,
        {"name": _URI_VARIABLE, "value": URI},
        {"name": _FILE_VARIABLE, "value": f"{DIRECTORY}/{FILE}"},
    )
    mount = {"name": VOLUME, "mountPath": DIRECTORY, "readOnly": True}
    yield from _append(f"{path}/volumeMounts", container.volume_mounts, mount)


def _append(path: str, present: object, *items: Json) -> Iterator[Json]:
    if present is None:
        yield {"op": "add", "path": path, "value": list(items)}
        return
    for item in items:
        yield {"op": "add", "path": f"{path}/-", "value": item}
