"""The pod and namespace stores, and whom an address belongs to."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiam.server.kubernetes.objects import Namespace, Pod
from kiam.server.kubernetes.store import MultiplePodsError, NamespaceStore, PodStore


def make(uid: str, *addresses: str, node: str = "n1", role: str = "", active: bool = True, deleting: bool = False,
         host_network: bool = False, namespace: str = "ns") -> Pod:  # fmt: skip
    return Pod(uid, namespace, f"pod-{uid}", node, "192.0.2.1", addresses, role, "", "", active, deleting, host_network)


@pytest.fixture
def store() -> PodStore:
    return PodStore()


def test_pod_is_found_by_each_of_its_addresses(store: PodStore) -> None:
    store.put(make("a", "10.0.0.1", "2001:db8::1"))
    assert store.find("10.0.0.1") is store.find("2001:db8::1") is store.get("a")
    assert store.find("10.0.0.2") is None


@pytest.mark.parametrize("change", [{"active": False}, {"host_network": True}])
def test_finished_and_host_network_pods_are_as_good_as_gone(store: PodStore, change: dict[str, bool]) -> None:
    store.put(make("a", "10.0.0.1"))
    store.put(make("a", "10.0.0.1", **change))  # type: ignore[arg-type]  # one of several booleans
    assert store.find("10.0.0.1") is None
    assert len(store) == 0
    assert not store.of_node("n1")


def test_annotated_host_network_pods_are_there_while_they_are_wanted(store: PodStore) -> None:
    told: list[tuple[bool, bool]] = []
    store.listen(lambda old, new: told.append((old is not None, new is not None)))
    store.put(make("a", role="app", host_network=True))
    store.put(make("plain", host_network=True))
    store.put(make("far", role="app", node="n2", host_network=True))
    assert store.get("a") is None
    assert store.uids() >= {"a", "far"}
    store.want_host_network("n1")
    store.want_host_network("n1")
    assert [pod.uid for pod in store.of_node("n1")] == ["a"]
    assert not store.of_node("n2")
    store.put(make("late", role="app", host_network=True))
    assert store.get("late") is not None
    store.remove("late")
    store.unwant_host_network("n1")
    assert store.get("a") is not None
    store.put(make("a", host_network=True))
    assert store.get("a") is None
    store.put(make("a", role="app", host_network=True))
    store.unwant_host_network("n1")
    assert len(store) == 0
    store.remove("a")
    assert "a" not in store.uids()
    assert told == [(False, True), (False, True), (True, False), (True, False), (False, True), (True, False)]


def test_host_network_pods_are_wanted_by_their_nodes_address_too(store: PodStore) -> None:
    store.want_host_network("192.0.2.1")
    store.put(make("a", role="app", host_network=True))
    assert store.get("a") is not None
    store.unwant_host_network("192.0.2.1")
    assert store.get("a") is None


def test_two_pods_equally_alive_are_not_guessed_between(store: PodStore) -> None:
    store.put(make("a", "10.0.0.1"))
    store.put(make("b", "10.0.0.1"))
    with pytest.raises(MultiplePodsError):
        store.find("10.0.0.1")
    store.remove("a")
    assert store.find("10.0.0.1") is store.get("b")


def test_pod_being_deleted_gives_way(store: PodStore) -> None:
    store.put(make("old", "10.0.0.1", deleting=True))
    assert store.find("10.0.0.1") is store.get("old")
    store.put(make("new", "10.0.0.1"))
    assert store.find("10.0.0.1") is store.get("new")


def test_two_pods_being_deleted_are_not_guessed_between(store: PodStore) -> None:
    store.put(make("a", "10.0.0.1", deleting=True))
    store.put(make("b", "10.0.0.1", deleting=True))
    with pytest.raises(MultiplePodsError):
        store.find("10.0.0.1")


def test_only_the_given_nodes_are_looked_at(store: PodStore) -> None:
    store.put(make("a", "10.0.0.1", node="n1"))
    assert store.find("10.0.0.1", {"n2"}) is None
    assert store.find("10.0.0.1", frozenset()) is None
    store.put(make("b", "10.0.0.1", node="n2"))
    assert store.find("10.0.0.1", {"n2"}) is store.get("b")


def test_address_that_changes_hands_follows(store: PodStore) -> None:
    store.put(make("a", "10.0.0.1"))
    store.put(make("a", "10.0.0.2"))
    store.put(make("b", "10.0.0.1"))
    assert store.find("10.0.0.1") is store.get("b")
    assert store.find("10.0.0.2") is store.get("a")


def test_listeners_are_told_of_changes_only(store: PodStore) -> None:
    told: list[tuple[object, object]] = []
    store.listen(lambda old, new: told.append((old and old.role, new and new.role)))
    store.put(make("a", role="x"))
    store.put(make("a", role="x"))
    store.put(make("a", role="y"))
    store.remove("a")
    store.remove("a")
    assert told == [(None, "x"), ("x", "y"), ("y", None)]


def test_pods_are_found_by_namespace(store: PodStore) -> None:
    store.put(make("a", role="x"))
    store.put(make("b"))
    store.put(make("c", role="x", namespace="other"))
    assert [pod.uid for pod in store.in_namespace("other")] == ["c"]
    store.remove("c")
    assert not list(store.in_namespace("other"))


pods = st.builds(
    lambda uid, addresses, node, role, flags: make(
        uid, *addresses, node=node, role=role, active=flags[0], deleting=flags[1], host_network=flags[2]
    ),
    st.sampled_from("abcde"),
    st.lists(st.sampled_from(["10.0.0.1", "10.0.0.2", "10.0.0.3"]), unique=True, max_size=2),
    st.sampled_from(["", "n1", "n2"]),
    st.sampled_from(["", "x"]),
    st.tuples(st.sampled_from([True, True, False]), st.booleans(), st.sampled_from([False, False, True])),
)


@given(st.lists(st.one_of(pods, st.sampled_from("abcde"))), st.sampled_from(["", "n1"]))
def test_indexes_always_say_what_the_pods_do(history: list[Pod | str], wanted: str) -> None:
    store, model, unwanted = PodStore(), dict[str, Pod](), set[str]()
    if wanted:
        store.want_host_network(wanted)
    for step in history:
        if isinstance(step, str):
            store.remove(step)
            model.pop(step, None)
            unwanted.discard(step)
        else:
            store.put(step)
            model.pop(step.uid, None)
            unwanted.discard(step.uid)
            if step.active and not step.host_network:
                model[step.uid] = step
            elif step.active and step.role:
                if wanted and step.node == wanted:
                    model[step.uid] = step
                else:
                    unwanted.add(step.uid)
    assert store.uids() == {*model, *unwanted}
    for address in ("10.0.0.1", "10.0.0.2", "10.0.0.3"):
        owners = [pod for pod in model.values() if address in pod.addresses]
        assert Counter(pod.uid for pod in store.claimants(address)) == Counter(pod.uid for pod in owners)
        staying = [pod for pod in owners if not pod.deleting] or owners
        if len(staying) > 1:
            with pytest.raises(MultiplePodsError):
                store.find(address)
        else:
            assert store.find(address) == (staying[0] if staying else None)
    for node in ("n1", "n2"):
        assert {pod.uid for pod in store.of_node(node)} == {pod.uid for pod in model.values() if pod.node == node}
    assert {pod.uid for pod in store.in_namespace("ns")} == set(model)


def test_pods_cost_the_garbage_collector_nothing() -> None:
    import gc

    pod = make("a", "10.0.0.1")
    assert not gc.is_tracked(pod)
    assert isinstance(pod, msgspec.Struct)


def test_namespace_changes_are_told_by_name() -> None:
    store, told = NamespaceStore(), list[str]()
    store.listen(told.append)
    store.put(Namespace("1", "a", ".*"))
    store.put(Namespace("1", "a", ".*"))
    assert told == ["a"]
    store.put(Namespace("1", "a", ""))
    assert told == ["a", "a"]
    store.put(Namespace("2", "a", "x"))
    store.remove("1")
    assert store.get("a") == Namespace("2", "a", "x"), "the namespace of that name is another one by now"
    store.remove("2")
    assert store.get("a") is None
    assert told == ["a"] * 4
