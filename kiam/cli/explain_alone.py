"""``kiam explain --kubeconfig``: pods and namespaces read once from the Kubernetes API, judged as a server does."""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import quote

import msgspec

from kiam.dataplane.contract import HostNetwork
from kiam.errors import UserError
from kiam.server.kubernetes.api import KubeApi, KubeError
from kiam.server.kubernetes.objects import (
    UNREADABLE,
    WireList,
    WireNamespace,
    WirePod,
    read_namespace,
    read_pod,
)
from kiam.server.kubernetes.store import NamespaceStore
from kiam.server.policy.explain import explain, no_pod
from kiam.server.policy.expressions import decide_namespace
from kiam.server.policy.judge import Judge
from kiam.server.policy.permitted import Decision
from kiam.server.policy.sessions import Sessions
from kiam.server.policy.steps import Explanation
from kiam.server.policy.surroundings import Facts
from kiam.server.settings import PolicySettings, SessionSettings

_PODS = msgspec.json.Decoder(WireList[WirePod])
_POD = msgspec.json.Decoder(WirePod)
_NAMESPACE = msgspec.json.Decoder(WireNamespace)


@dataclass(frozen=True, slots=True)
class Inline:
    """Evaluates expressions here and now: this process has nobody to keep waiting but its user."""

    strict: bool

    def decide(self, namespace: str, role_arn: str, expression: str) -> Decision:
        """Whether the expression permits the ARN."""
        return decide_namespace(role_arn, expression, self.strict)


async def explain_alone(
    arguments: argparse.Namespace, policy: PolicySettings, sessions: SessionSettings
) -> list[Explanation]:
    """The explanations of what the arguments ask about. Raises UserError."""
    namespaces = NamespaceStore()
    evaluator = Inline(not arguments.disable_strict_namespace_regexp)
    judge = Judge(namespaces, evaluator, arguments.role_base_arn, Sessions(sessions), policy)
    api = await KubeApi.connect(arguments.kubeconfig)
    try:
        async with asyncio.timeout(arguments.timeout.total_seconds()):
            pods = await _pods(api, arguments)
            for name in sorted({wire.metadata.namespace for wire in pods}):
                await _read_namespace(api, name, namespaces)
    except TimeoutError:
        raise UserError("the Kubernetes API doesn't answer in time", "--timeout gives it longer") from None
    except KubeError as error:
        raise UserError(str(error)) from error
    except UNREADABLE as error:
        raise UserError(f"the Kubernetes API's answer can't be read: {error}", "check --kubeconfig") from error
    finally:
        await api.close()
    if not pods and arguments.pod:
        return [Explanation(arguments.namespace, arguments.pod, no_pod(arguments.namespace, arguments.pod))]
    return [_explain(wire, namespaces, judge, arguments.host_network) for wire in pods]


def _explain(wire: WirePod, namespaces: NamespaceStore, judge: Judge, host_network: HostNetwork | None) -> Explanation:
    pod = read_pod(wire)
    annotations = wire.metadata.annotations
    # Of pods on the host network, servers tell agents of those alone that are annotated themselves.
    redirected = None if host_network is None else host_network is HostNetwork.REDIRECT and bool(pod.role)
    facts = Facts(written=annotations.role if annotations is not None else None, known_by_uid=redirected)
    return Explanation(pod.namespace, pod.name, explain(pod, namespaces.get(pod.namespace), judge, facts))


async def _pods(api: KubeApi, arguments: argparse.Namespace) -> list[WirePod]:
    if arguments.node:
        query = {"fieldSelector": f"spec.nodeName={arguments.node}"}
        return _PODS.decode(await api.get("/api/v1/pods", query)).items or []
    path = f"/api/v1/namespaces/{quote(arguments.namespace, safe='')}/pods/{quote(arguments.pod, safe='')}"
    body = await _get(api, path)
    return [] if body is None else [_POD.decode(body)]


async def _read_namespace(api: KubeApi, name: str, namespaces: NamespaceStore) -> None:
    body = await _get(api, f"/api/v1/namespaces/{quote(name, safe='')}")
    if body is not None:
        namespaces.put(read_namespace(_NAMESPACE.decode(body)))


async def _get(api: KubeApi, path: str) -> bytes | None:
    """An object; None: there is none."""
    try:
        return await api.get(path, {})
    except KubeError as error:
        if error.status == HTTPStatus.NOT_FOUND:
            return None
        raise
