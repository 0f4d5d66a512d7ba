"""What the webhook adds to a pod, applied as the API server applies it."""

from __future__ import annotations

import copy
from typing import Any

import jsonpatch
import msgspec
from hypothesis import given
from hypothesis import strategies as st

from kiam.server.webhook.injection import DIRECTORY, FILE, URI, VOLUME, NewPod, patch_of

Json = dict[str, Any]

names = st.text("abcdefghijklmnop", min_size=1, max_size=8)
variables = st.lists(st.fixed_dictionaries({"name": names, "value": names}), max_size=3)
mounts = st.lists(st.fixed_dictionaries({"name": names, "mountPath": names}), max_size=3)
containers = st.fixed_dictionaries({"name": names}, optional={"env": variables, "volumeMounts": mounts})
pods = st.fixed_dictionaries(
    {"spec": st.fixed_dictionaries(
        {"containers": st.lists(containers, min_size=1, max_size=3)},
        optional={
            "initContainers": st.lists(containers, max_size=2),
            "volumes": st.lists(st.fixed_dictionaries({"name": names}), max_size=3),
        },
    )}
)  # fmt: skip


def patched(pod: Json) -> Json:
    decoded = msgspec.json.decode(msgspec.json.encode(pod), type=NewPod)
    result: Json = jsonpatch.apply_patch(copy.deepcopy(pod), patch_of(decoded))
    return result


@given(pod=pods)
def test_each_container_has_both_variables_and_the_token_and_keeps_what_it_had(pod: Json) -> None:
    after = patched(pod)
    for kind in ("containers", "initContainers"):
        for before, container in zip(pod["spec"].get(kind, ()), after["spec"].get(kind, ()), strict=True):
            environment = {variable["name"]: variable["value"] for variable in container["env"]}
            assert environment["AWS_CONTAINER_CREDENTIALS_FULL_URI"] == URI
            assert environment["AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"] == f"{DIRECTORY}/{FILE}"
            assert container["env"][: len(before.get("env", ()))] == before.get("env", [])
            assert {"name": VOLUME, "mountPath": DIRECTORY, "readOnly": True} in container["volumeMounts"]
    assert [volume["name"] for volume in after["spec"]["volumes"]].count(VOLUME) == 1


@given(pod=pods)
def test_a_second_patch_adds_nothing(pod: Json) -> None:
    once = patched(pod)
    assert patched(once) == once


def test_containers_with_a_way_of_their_own_are_left_alone() -> None:
    for name in (
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
    ):
        pod = {"spec": {"containers": [{"name": "a", "env": [{"name": name, "value": "x"}]}]}}
        assert patched(pod) == pod
