"""Pods and namespaces as kiam needs them, decoded from the Kubernetes API's JSON.

Only the fields named here are decoded; the rest of an object is skipped by the parser and never becomes Python
objects. The field names are those of https://kubernetes.io/docs/reference/kubernetes-api/.
"""

from __future__ import annotations

from sys import intern
from typing import Generic, TypeVar

import msgspec

from kiam.addresses import canonical_address
from kiam.arns import LONGEST_ARN
from kiam.identity import LONGEST_EXTERNAL_ID, SESSION_NAME_LENGTH

ROLE_ANNOTATION = "iam.amazonaws.com/role"
SESSION_NAME_ANNOTATION = "iam.amazonaws.com/session-name"
EXTERNAL_ID_ANNOTATION = "iam.amazonaws.com/external-id"
PERMITTED_ANNOTATION = "iam.amazonaws.com/permitted"
DEFAULT_ROLE_ANNOTATION = "iam.amazonaws.com/default-role"
ALLOWED_ROLES_ANNOTATION = "iam.amazonaws.com/allowed-roles"
IMDS_TOKENS_ANNOTATION = "iam.amazonaws.com/imds-tokens"

BLANKS = " \t\r\n\v\f"
"""What may stand around an annotation's value, as YAML's block scalars leave it: no value begins or ends with one."""
LONGEST_WORD = 64
"""Characters of an annotation that is one of a few words."""
LONGEST_EXPRESSION = 16_384
"""Characters of a ``permitted`` expression; the expression of a longer one is invalid."""

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError)
"""What decoding the API's JSON raises; msgspec has no error of its own for what isn't UTF-8."""

_FINISHED = frozenset({"Succeeded", "Failed"})


class Pod(msgspec.Struct, frozen=True, gc=False):
    """What is kept of a pod. A msgspec Struct, because gc=False keeps 100,000 of them from slowing every collection."""

    uid: str
    namespace: str
    name: str
    node: str
    """``spec.nodeName``; empty until the pod is scheduled."""
    host_ip: str
    addresses: tuple[str, ...]
    """``status.podIPs`` in canonical spelling; none for a pod on the host network, whose addresses are the node's."""
    role: str
    """The annotation, trimmed; empty: not annotated. One that is too long for a role is cut to what is too long still,
    and so are the others: annotations of 200 kB cost no more than those of 2."""
    session_name: str
    external_id: str
    active: bool
    """Phase neither Succeeded nor Failed."""
    deleting: bool
    """Has a deletionTimestamp."""
    host_network: bool
    imds_tokens: str = ""
    """Whether IMDSv2 session tokens are demanded of the pod, in the agent's words; empty: the namespace's say."""
    service_account: str = ""
    """``spec.serviceAccountName``."""


class Namespace(msgspec.Struct, frozen=True, gc=False):
    """What is kept of a namespace."""

    uid: str
    name: str
    permitted: str | None
    """The ``iam.amazonaws.com/permitted`` expression; empty permits nothing; None: not annotated."""
    imds_tokens: str = ""
    """As of a pod, for those of its pods that have none."""
    default_role: str = ""
    """Of its pods that are annotated with none."""
    allowed_roles: str | None = None
    """kube2iam's annotation, as it is; None: not annotated."""


class _ListMeta(msgspec.Struct, rename="camel", gc=False):
    resource_version: str = ""
    continue_: str | None = msgspec.field(default=None, name="continue")


class _PodAnnotations(msgspec.Struct, gc=False):
    role: str | None = msgspec.field(default=None, name=ROLE_ANNOTATION)
    session_name: str | None = msgspec.field(default=None, name=SESSION_NAME_ANNOTATION)
    external_id: str | None = msgspec.field(default=None, name=EXTERNAL_ID_ANNOTATION)
    imds_tokens: str | None = msgspec.field(default=None, name=IMDS_TOKENS_ANNOTATION)


class _PodMeta(msgspec.Struct, rename="camel", gc=False):
    uid: str = ""
    name: str = ""
    namespace: str = ""
    resource_version: str = ""
    deletion_timestamp: str | None = None
    annotations: _PodAnnotations | None = None


class _PodSpec(msgspec.Struct, rename="camel", gc=False):
    node_name: str | None = None
    service_account_name: str | None = None
    host_network: bool | None = None


class _PodIP(msgspec.Struct, gc=False):
    ip: str | None = None


class _PodStatus(msgspec.Struct, gc=False):
    phase: str | None = None
    host_ip: str | None = msgspec.field(default=None, name="hostIP")
    pod_ip: str | None = msgspec.field(default=None, name="podIP")
    pod_ips: list[_PodIP] | None = msgspec.field(default=None, name="podIPs")


class WirePod(msgspec.Struct, gc=False):
    """A v1.Pod, as far as kiam reads it."""

    metadata: _PodMeta
    spec: _PodSpec | None = None
    status: _PodStatus | None = None


class _NamespaceAnnotations(msgspec.Struct, gc=False):
    permitted: str | None = msgspec.field(default=None, name=PERMITTED_ANNOTATION)
    default_role: str | None = msgspec.field(default=None, name=DEFAULT_ROLE_ANNOTATION)
    allowed_roles: str | None = msgspec.field(default=None, name=ALLOWED_ROLES_ANNOTATION)
    imds_tokens: str | None = msgspec.field(default=None, name=IMDS_TOKENS_ANNOTATION)


class _NamespaceMeta(msgspec.Struct, rename="camel", gc=False):
    uid: str = ""
    name: str = ""
    resource_version: str = ""
    annotations: _NamespaceAnnotations | None = None


class WireNamespace(msgspec.Struct, gc=False):
    """A v1.Namespace, as far as kiam reads it."""

    metadata: _NamespaceMeta


WireT = TypeVar("WireT")


class WireList(msgspec.Struct, Generic[WireT], gc=False):
    """One page of a list."""

    metadata: _ListMeta
    items: list[WireT] | None = None


class WireEvent(msgspec.Struct, gc=False):
    """One line of a watch; the object is decoded by what the type says it is."""

    type: str
    object: msgspec.Raw


class _BookmarkMeta(msgspec.Struct, rename="camel", gc=False):
    resource_version: str = ""


class WireBookmark(msgspec.Struct, gc=False):
    """The object of a BOOKMARK event."""

    metadata: _BookmarkMeta


class WireStatus(msgspec.Struct, gc=False):
    """The object of an ERROR event, and the body of a refusal."""

    code: int | None = None
    reason: str | None = None
    message: str | None = None


def read_pod(wire: WirePod) -> Pod:
    """Reduce a pod to what is kept."""
    meta, spec, status = wire.metadata, wire.spec or _NO_SPEC, wire.status or _NO_STATUS
    annotations = meta.annotations or _NO_ANNOTATIONS
    host_network = bool(spec.host_network)
    return Pod(
        uid=meta.uid,
        namespace=intern(meta.namespace),
        name=meta.name,
        node=intern(spec.node_name or ""),
        host_ip=intern(_canonical(status.host_ip) or ""),
        # The attack stopped: a host-network pod's podIP is the node's address, which would make that pod's role the
        # role of everything else that runs there.
        addresses=() if host_network else _addresses(status),
        role=_value(annotations.role, LONGEST_ARN + 1),
        session_name=_value(annotations.session_name, SESSION_NAME_LENGTH),
        external_id=_value(annotations.external_id, LONGEST_EXTERNAL_ID + 1),
        active=status.phase not in _FINISHED,
        deleting=meta.deletion_timestamp is not None,
        host_network=host_network,
        imds_tokens=_value(annotations.imds_tokens, LONGEST_WORD),
        service_account=intern(spec.service_account_name or ""),
    )


def read_namespace(wire: WireNamespace) -> Namespace:
    """Reduce a namespace to what is kept."""
    annotations = wire.metadata.annotations or _NO_NAMESPACE_ANNOTATIONS
    return Namespace(
        uid=wire.metadata.uid,
        name=intern(wire.metadata.name),
        permitted=_optional(annotations.permitted, LONGEST_EXPRESSION + 1),
        default_role=_value(annotations.default_role, LONGEST_ARN + 1),
        allowed_roles=_optional(annotations.allowed_roles, LONGEST_EXPRESSION + 1),
        imds_tokens=_value(annotations.imds_tokens, LONGEST_WORD),
    )


def _value(annotation: str | None, longest: int) -> str:
    return intern((annotation or "").strip(BLANKS)[:longest])


def _optional(annotation: str | None, longest: int) -> str | None:
    return None if annotation is None else _value(annotation, longest)


def _addresses(status: _PodStatus) -> tuple[str, ...]:
    """podIPs (dual stack), which holds podIP too; older API servers give podIP only."""
    texts = [entry.ip for entry in status.pod_ips or ()]
    if status.pod_ip not in texts:
        texts.append(status.pod_ip)
    return tuple(dict.fromkeys(address for text in texts if (address := _canonical(text))))


def _canonical(text: str | None) -> str | None:
    if not text:
        return None
    try:
        return canonical_address(text)
    except ValueError:
        return None


_NO_SPEC = _PodSpec()
_NO_STATUS = _PodStatus()
_NO_ANNOTATIONS = _PodAnnotations()
_NO_NAMESPACE_ANNOTATIONS = _NamespaceAnnotations()
