"""What the agent makes of what the server pushes."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from time import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiam.agent.core.failures import CredentialsUnavailable, Forbidden, NoRole
from kiam.agent.core.pods import PushedPods, credentials_of, role_of
from kiam.identity import Identity
from kiam.rpc import kiam_pb2

BASE = "arn:aws:iam::123456789012:role/"
A, B = "10.0.0.1", "10.0.0.2"


def pod(
    uid: str = "u1", addresses: tuple[str, ...] = (A,), role: str = "app", allowed: bool = True
) -> kiam_pb2.NodeUpdate:
    identity = kiam_pb2.Identity(role_arn=BASE + role.removeprefix("/"), session_name="kiam-kiam") if role else None
    return kiam_pb2.NodeUpdate(
        pod=kiam_pb2.Pod(
            uid=uid,
            namespace="default",
            name=uid,
            addresses=addresses,
            role=role,
            identity=identity,
            decision=kiam_pb2.Decision(allowed=allowed, explanation="" if allowed else "no"),
            fingerprint=f"{uid}{addresses}{role}{allowed}",
        )
    )


def withdrawn(uid: str = "u1") -> kiam_pb2.NodeUpdate:
    return kiam_pb2.NodeUpdate(pod_withdrawn=kiam_pb2.PodWithdrawn(uid=uid))


def credentials(role: str = "app", minutes: float = 15, key: str = "ASIA1") -> kiam_pb2.NodeUpdate:
    now = datetime.now(UTC)
    return kiam_pb2.NodeUpdate(
        credentials=kiam_pb2.IdentityCredentials(
            identity=kiam_pb2.Identity(role_arn=BASE + role, session_name="kiam-kiam"),
            credentials=kiam_pb2.Credentials(
                code="Success",
                type="AWS-HMAC",
                access_key_id=key,
                secret_access_key="s/+=",
                token="t",
                expiration=(now + timedelta(minutes=minutes)).strftime("%Y-%m-%dT%H:%M:%SZ"),
                last_updated=now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            ),
        )
    )


def failed(role: str = "app", message: str = "AccessDenied: no", retry: int = 9) -> kiam_pb2.NodeUpdate:
    return kiam_pb2.NodeUpdate(
        credentials_failed=kiam_pb2.CredentialsFailed(
            identity=kiam_pb2.Identity(role_arn=BASE + role, session_name="kiam-kiam"),
            message=message,
            retry_after_seconds=retry,
        )
    )


class PodsByAddress(PushedPods):
    """What the pod at an address gets, without anybody's doubts."""

    def role_at(self, address: str) -> bytes | None:
        found = self.pod_at(address)
        return None if found is None else role_of(found)

    def credentials_at(self, address: str, role: str, wall: float) -> bytes | None:
        found = self.pod_at(address)
        return None if found is None else credentials_of(found, role, self.role_base_arn, wall)


def state(*updates: kiam_pb2.NodeUpdate) -> PodsByAddress:
    made = PodsByAddress()
    made.apply(kiam_pb2.NodeUpdate(hello=kiam_pb2.Hello(role_base_arn=BASE)))
    for update in updates:
        made.apply(update)
    return made


def test_pod_with_credentials_is_answered() -> None:
    body = state(pod(), credentials()).credentials_at(A, "app", time())
    assert body is not None
    assert body.endswith(b"\n")
    assert json.loads(body)["SecretAccessKey"] == "s/+="


@pytest.mark.parametrize("role", ["team/app", "/team/app", BASE + "team/app"])
@pytest.mark.parametrize("annotated", ["team/app", "/team/app"])
def test_every_spelling_of_its_role(annotated: str, role: str) -> None:
    assert state(pod(role=annotated), credentials("team/app")).credentials_at(A, role, time()) is not None


@pytest.mark.parametrize("role", ["other", "app/", "APP", "arn:aws:iam::999999999999:role/app", "//app", "app2"])
def test_another_role_is_forbidden(role: str) -> None:
    with pytest.raises(Forbidden):
        state(pod(), credentials()).credentials_at(A, role, time())


def test_policy_no_is_forbidden_even_with_credentials_at_hand() -> None:
    made = state(pod("u1", (A,)), credentials(), pod("u2", (B,), allowed=False))
    assert made.credentials_at(A, "app", time()) is not None
    with pytest.raises(Forbidden):
        made.credentials_at(B, "app", time())


def test_pod_without_role() -> None:
    made = state(pod(role=""))
    with pytest.raises(NoRole):
        made.role_at(A)
    with pytest.raises(NoRole):
        made.credentials_at(A, "app", time())


def test_stranger_and_pod_whose_credentials_are_to_come_are_waited_for() -> None:
    made = state(pod())
    assert made.credentials_at(B, "app", time()) is None
    assert made.role_at(B) is None
    assert made.credentials_at(A, "app", time()) is None


def test_expired_credentials_are_not_given() -> None:
    made = state(pod(), credentials(minutes=-1))
    assert made.credentials_at(A, "app", time()) is None


def test_failure_is_told_at_once_but_good_credentials_stay_good() -> None:
    with pytest.raises(CredentialsUnavailable) as caught:
        state(pod(), failed()).credentials_at(A, "app", time())
    assert caught.value.retry_after == 9
    assert state(pod(), credentials(), failed()).credentials_at(A, "app", time()) is not None
    assert state(pod(), failed(), credentials()).credentials_at(A, "app", time()) is not None


def test_withdrawal_is_immediate() -> None:
    made = state(pod(), credentials())
    assert made.apply(withdrawn()) == {A}
    assert made.credentials_at(A, "app", time()) is None
    # Nothing is kept that no pod of the node may have.
    assert made.known() == ([], [])


def test_address_that_a_pod_lost_is_withdrawn() -> None:
    made = state(pod(addresses=(A, B)), credentials())
    assert made.apply(pod(addresses=(B,))) == {A, B}
    assert made.credentials_at(A, "app", time()) is None
    assert made.credentials_at(B, "app", time()) is not None


def test_changed_annotation_withdraws_the_old_role() -> None:
    made = state(pod(), credentials(), pod(role="new"))
    with pytest.raises(Forbidden):
        made.credentials_at(A, "app", time())
    assert made.credentials_at(A, "new", time()) is None


def test_address_of_two_pods_is_nobodys() -> None:
    made = state(pod("u1"), pod("u2", role="other"), credentials())
    assert made.is_shared(A)
    assert made.credentials_at(A, "app", time()) is None
    assert made.role_at(A) is None
    made.apply(withdrawn("u2"))
    assert made.credentials_at(A, "app", time()) is not None


def test_mapped_addresses_are_the_ipv4_ones() -> None:
    assert state(pod(addresses=("::ffff:10.0.0.1",)), credentials()).credentials_at(A, "app", time()) is not None


def test_known_is_what_a_reconnect_needs_to_say() -> None:
    pods, held = state(pod(), credentials(), pod("u2", (B,), role="other")).known()
    assert {known.uid for known in pods} == {"u1", "u2"}
    assert [known.identity.role_arn for known in held] == [BASE + "app"]


def test_who_waits_is_woken_by_what_concerns_it() -> None:
    made = state(pod())
    made.woken.clear()
    made.apply(credentials())
    assert made.woken == {A, "u1"}
    made.apply(pod("u2", (B,)))
    assert made.woken == {A, B, "u1", "u2"}


UPDATES = st.lists(
    st.one_of(
        st.builds(
            pod,
            uid=st.sampled_from(["u1", "u2", "u3"]),
            addresses=st.sets(st.sampled_from([A, B, "fd00::1"])).map(tuple),
            role=st.sampled_from(["", "app", "other"]),
            allowed=st.booleans(),
        ),
        st.builds(withdrawn, st.sampled_from(["u1", "u2", "u3"])),
        st.builds(credentials, st.sampled_from(["app", "other"])),
        st.builds(failed, st.sampled_from(["app", "other"])),
    ),
    max_size=25,
)


@given(UPDATES)
def test_only_the_one_allowed_pod_of_an_address_ever_gets_credentials(updates: list[kiam_pb2.NodeUpdate]) -> None:
    made = state(*updates)
    latest: dict[str, kiam_pb2.Pod] = {}
    for update in updates:
        if update.HasField("pod"):
            latest[update.pod.uid] = update.pod
        elif update.HasField("pod_withdrawn"):
            latest.pop(update.pod_withdrawn.uid, None)
    for address in (A, B, "fd00::1"):
        owners = [message for message in latest.values() if address in message.addresses]
        for role in ("app", "other"):
            try:
                body = made.credentials_at(address, role, time())
            except (Forbidden, NoRole, CredentialsUnavailable):
                continue
            if body is not None:
                (owner,) = owners
                assert owner.role == role
                assert owner.decision.allowed
    used = {Identity.of(message.identity) for message in latest.values()}
    # Credentials pushed before their pod are kept until the next change of pods, and no longer.
    made.apply(withdrawn("nobody"))
    assert {Identity.of(known.identity) for known in made.known()[1]} <= used
