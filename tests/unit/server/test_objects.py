"""What is read of pods and namespaces."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from kiam.server.kubernetes.objects import (
    LONGEST_EXPRESSION,
    Namespace,
    Pod,
    WireNamespace,
    WirePod,
    read_namespace,
    read_pod,
)
from tests.sandbox import kubeapi


def _read(body: Any) -> Pod:
    return read_pod(msgspec.json.decode(json.dumps(body).encode(), type=WirePod))


def test_pod_is_reduced_to_what_is_needed() -> None:
    body = kubeapi.pod(
        "app-1",
        "10.0.0.1",
        "team/app",
        namespace="apps",
        node="n1",
        host_address="192.0.2.1",
        addresses=["2001:DB8::1"],
        annotations={"iam.amazonaws.com/session-name": "s", "iam.amazonaws.com/external-id": "e", "other": "x"},
        uid="u",
        service_account="cart",
    )
    assert _read(body) == Pod(
        uid="u",
        namespace="apps",
        name="app-1",
        node="n1",
        host_ip="192.0.2.1",
        addresses=("10.0.0.1", "2001:db8::1"),
        role="team/app",
        session_name="s",
        external_id="e",
        active=True,
        deleting=False,
        host_network=False,
        service_account="cart",
    )


def test_pod_just_created_has_nothing_yet() -> None:
    pod = _read({"metadata": {"uid": "u", "name": "p", "namespace": "n"}, "spec": {}, "status": {"phase": "Pending"}})
    assert (pod.node, pod.host_ip, pod.addresses, pod.role, pod.active) == ("", "", (), "", True)


def test_nulls_count_as_absent() -> None:
    pod = _read(
        {"metadata": {"uid": "u", "annotations": None}, "spec": None, "status": {"podIP": None, "podIPs": None}}
    )
    assert (pod.addresses, pod.role) == ((), "")


def test_host_network_pod_owns_no_address() -> None:
    pod = _read(kubeapi.pod("agent", "192.0.2.1", "node-tool", host_network=True))
    assert pod.addresses == ()
    assert pod.host_network


def test_finished_and_terminating_pods_are_marked() -> None:
    assert not _read(kubeapi.pod("p", "10.0.0.1", phase="Succeeded")).active
    assert not _read(kubeapi.pod("p", "10.0.0.1", phase="Failed")).active
    assert _read(kubeapi.pod("p", "10.0.0.1", phase="Unknown")).active
    body = kubeapi.pod("p", "10.0.0.1")
    body["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert _read(body).deleting


def test_pod_ip_alone_is_enough() -> None:
    assert _read({"metadata": {}, "status": {"podIP": "10.0.0.1"}}).addresses == ("10.0.0.1",)


def test_namespace_is_reduced_to_its_permission() -> None:
    def read(body: Any) -> Namespace:
        return read_namespace(msgspec.json.decode(json.dumps(body).encode(), type=WireNamespace))

    assert read(kubeapi.namespace("apps", ".*")).permitted == ".*"
    assert read(kubeapi.namespace("apps", "")).permitted == ""
    assert read(kubeapi.namespace("apps")).permitted is None
    assert read({"metadata": {"name": "apps", "annotations": None}}).permitted is None


@pytest.mark.parametrize("around", ["{}\n", " {}", "{} ", "\r\n\t{}\v\f \n"])
def test_blanks_around_annotations_are_no_part_of_them(around: str) -> None:
    names = {"role": "app", "session-name": "my session", "external-id": "agreed", "imds-tokens": "required"}
    annotations = {f"iam.amazonaws.com/{name}": around.format(value) for name, value in names.items()}
    pod = _read(kubeapi.pod("p", "10.0.0.1", annotations=annotations))
    assert (pod.role, pod.session_name, pod.external_id, pod.imds_tokens) == ("app", "my session", "agreed", "required")
    body = kubeapi.namespace("apps", around.format(".*/app"))
    assert read_namespace(msgspec.json.decode(json.dumps(body).encode(), type=WireNamespace)).permitted == ".*/app"


def test_huge_annotations_are_cut_to_what_is_too_long_still() -> None:
    huge = {f"iam.amazonaws.com/{name}": "x" * 200_000 for name in ("role", "session-name", "external-id")}
    pod = _read(kubeapi.pod("p", "10.0.0.1", annotations=huge))
    assert [len(text) for text in (pod.role, pod.session_name, pod.external_id)] == [2049, 64, 1225]
    body = kubeapi.namespace("apps", "x" * 200_000)
    namespace = read_namespace(msgspec.json.decode(json.dumps(body).encode(), type=WireNamespace))
    assert len(namespace.permitted or "") == LONGEST_EXPRESSION + 1
