"""Every line of the contract's HTTP table, asked by pods through the redirect."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from tests.integration.node.conftest import PodMaker
from tests.sandbox.aws import INSTANCE_ID, ROLE_BASE_ARN, TOKEN, TOKEN_TTL
from tests.sandbox.netns import NODE_IPV4, NODE_IPV6
from tests.sandbox.node import AGENT_PORT, CREDENTIALS, NodeInABox, Pod, fetch
from tests.sandbox.process import wait_until

KEYS = ["Code", "Type", "AccessKeyId", "SecretAccessKey", "Token", "Expiration", "LastUpdated"]
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


def test_ping_is_pong(make_pod: PodMaker) -> None:
    answer = make_pod().ask("/ping")
    assert (answer.status, answer.text) == (200, "pong")


class TestHealth:
    def test_is_the_instance_id(self, box: NodeInABox) -> None:
        for query in ("", "?deep=1", "?deep=no"):
            answer = box.ask_agent(f"/health{query}")
            assert (answer.status, answer.text) == (200, INSTANCE_ID)

    def test_fails_when_instance_metadata_does(self, box: NodeInABox) -> None:
        box.aws.faults(imds="unavailable")
        assert wait_until(lambda: box.ask_agent("/health").status == 500, "the last good answer to age")

    def test_deep_fails_without_a_server_and_shallow_does_not(self, box: NodeInABox) -> None:
        assert box.server is not None
        box.server.kill()
        assert box.ask_agent("/health").status == 200
        assert box.ask_agent("/health?deep=yes").status == 500


class TestRole:
    @pytest.mark.parametrize("role", ["app", "/team/app", "team/app", ROLE_BASE_ARN + "team/app"])
    @pytest.mark.parametrize("version", ["latest", "2016-09-02"])
    def test_is_exactly_as_annotated(self, make_pod: PodMaker, role: str, version: str) -> None:
        answer = make_pod(role).ask(f"/{version}/meta-data/iam/security-credentials/")
        assert (answer.status, answer.text) == (200, role)

    def test_is_404_for_a_pod_without_the_annotation(self, make_pod: PodMaker) -> None:
        answer = make_pod().role()
        assert (answer.status, answer.text.strip()) == (404, "empty role")

    @pytest.mark.parametrize("version", ["latest", "1.0"])
    def test_comes_without_the_last_slash_too(self, make_pod: PodMaker, version: str) -> None:
        answer = make_pod("app").ask(f"/{version}/meta-data/iam/security-credentials?a=1&b=2")
        assert (answer.status, answer.text) == (200, "app")


class TestCredentials:
    def test_are_the_document_that_instance_metadata_gives(self, box: NodeInABox, make_pod: PodMaker) -> None:
        answer = make_pod("team/app").credentials("team/app")
        assert answer.status == 200
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert answer.text.endswith("}\n")
        document = answer.json()
        assert list(document) == KEYS
        assert (document["Code"], document["Type"]) == ("Success", "AWS-HMAC")
        assert TIME.fullmatch(document["Expiration"])
        assert TIME.fullmatch(document["LastUpdated"])
        left = datetime.fromisoformat(document["Expiration"]) - datetime.now(UTC)
        assert timedelta(minutes=5) < left <= timedelta(minutes=15)

    @pytest.mark.parametrize("annotated", ["team/app", "/team/app", ROLE_BASE_ARN + "team/app"])
    def test_are_given_for_every_spelling_of_the_role(self, make_pod: PodMaker, annotated: str) -> None:
        pod = make_pod(annotated)
        keys = set()
        for spelling in ("team/app", "/team/app", ROLE_BASE_ARN + "team/app"):
            answer = pod.credentials(spelling)
            assert answer.status == 200, (spelling, answer.text)
            keys.add(answer.json()["AccessKeyId"])
        assert len(keys) == 1

    def test_are_refused_for_another_role(self, make_pod: PodMaker) -> None:
        answer = make_pod("app").credentials("other")
        assert answer.status == 403
        assert answer.text.count("\n") <= 1

    def test_come_with_session_name_and_external_id_as_annotated(self, box: NodeInABox, make_pod: PodMaker) -> None:
        notes = {
            "iam.amazonaws.com/session-name": "a b/ü" + "x" * 80,
            "iam.amazonaws.com/external-id": "external-7",
        }
        assert make_pod("named", annotations=notes).credentials("named").status == 200
        assert make_pod("unnamed").credentials("unnamed").status == 200
        calls = {call.role_arn: call for call in box.aws.calls()}
        named, unnamed = calls[ROLE_BASE_ARN + "named"], calls[ROLE_BASE_ARN + "unnamed"]
        assert (named.session_name, named.external_id) == (("kiam-a-b--" + "x" * 80)[:64], "external-7")
        assert (unnamed.session_name, unnamed.external_id) == ("kiam-kiam", "")
        assert named.duration == unnamed.duration == 900

    @pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
    def test_and_role_are_for_reading_only(self, make_pod: PodMaker, method: str) -> None:
        pod = make_pod("app")
        for path in (CREDENTIALS, f"{CREDENTIALS}app"):
            answer = pod.ask(path, method)
            assert answer.status == 405
            assert "GET" in answer.headers["allow"]

    def test_for_a_path_that_could_mean_two_things_are_refused(self, make_pod: PodMaker) -> None:
        answer = make_pod("app").ask(f"{CREDENTIALS}app%00")
        assert answer.status == 400


class TestTokens:
    def test_are_the_agents_own_and_need_no_instance_metadata(self, box: NodeInABox, make_pod: PodMaker) -> None:
        box.aws.faults(imds="unavailable")
        pod, other = make_pod("app"), make_pod("app")
        token = pod.ask("/2016-09-02/api/token", "PUT", {TOKEN_TTL: "60", "Via": "1.1 proxy"}).text
        assert pod.ask(f"{CREDENTIALS}app", headers={TOKEN: token}).status == 200
        assert other.ask(f"{CREDENTIALS}app", headers={TOKEN: token}).status == 401

    def test_are_demanded_of_a_pod_that_is_annotated_so(self, make_pod: PodMaker) -> None:
        pod = make_pod("app", annotations={"iam.amazonaws.com/imds-tokens": "required"})
        token = pod.ask("/latest/api/token", "PUT", {TOKEN_TTL: "60"}).text
        assert pod.ask(CREDENTIALS, headers={TOKEN: token}).status == 200
        assert pod.ask(CREDENTIALS).status == 401

    @pytest.mark.parametrize("field", ["X-Forwarded-For", "Forwarded"])
    def test_are_refused_to_reverse_proxies(self, make_pod: PodMaker, field: str) -> None:
        answer = make_pod("app").ask("/latest/api/token", "PUT", {TOKEN_TTL: "60", field: "192.0.2.99"})
        assert answer.status == 403

    def test_are_refused_as_instance_metadata_refuses_them(self, make_pod: PodMaker) -> None:
        assert make_pod("app").ask("/latest/api/token", "PUT", {TOKEN_TTL: "0"}).status == 400

    def test_serve_a_real_boto3_session(self, make_pod: PodMaker) -> None:
        got = make_pod("team/app").boto3()
        assert got["method"] == "iam-role"
        assert got["arn"] == "arn:aws:sts::123456789012:assumed-role/app/kiam-kiam"


def refused_foreigners(box: NodeInABox) -> float:
    found = re.search(r"^kiam_agent_foreign_requests_total (\S+)$", box.metrics("agent"), re.MULTILINE)
    assert found is not None
    return float(found[1])


class TestOtherHosts:
    """From behind the node, where instance metadata is too: any machine of the network."""

    @pytest.mark.parametrize(
        ("method", "path"), [("PUT", "/latest/api/token"), ("GET", "/latest/meta-data/placement/region")]
    )
    def test_get_nothing(self, box: NodeInABox, method: str, path: str) -> None:
        headers = {TOKEN_TTL: "60"}
        before = refused_foreigners(box)
        for node in (NODE_IPV4, NODE_IPV6):
            answer = box.net.aws.call(fetch, str(node), AGENT_PORT, path, method, headers)
            assert (answer.status, answer.text) == (403, "only pods of this node are served here\n")
        assert refused_foreigners(box) == before + 2
        # The node itself, and a pod that the server knows nothing of.
        assert box.node.call(fetch, str(NODE_IPV4), AGENT_PORT, path, method, headers).status == 200

    def test_are_not_those_the_server_does_not_know(self, make_pod: PodMaker) -> None:
        assert make_pod(known=False).ask("/latest/api/token", "PUT", {TOKEN_TTL: "60"}).status == 200


class TestOtherPaths:
    def test_are_passed_on_if_the_expression_matches(self, make_pod: PodMaker) -> None:
        answer = make_pod("app").ask("/latest/meta-data/placement/region")
        assert (answer.status, answer.text) == (200, "us-east-1")

    @pytest.mark.parametrize(
        "path",
        [
            "/latest/meta-data/",
            "/latest/meta-data/instance-id",
            "/latest/user-data",
            "/latest/meta-data/placement/../iam/info",
            "/latest/meta-data/placement/..%2fiam/info",
            "/latest/meta-data/placement/%2e%2e/iam/info",
            "/latest/meta-data/placement//../iam/info",
            "/latest/meta-data/placement/..;/iam/info",
            "/latest/meta-data/placement/..\\iam/info",
            "/latest/meta-data/placement/../iam/security-credentials/node-role",
            "http://169.254.169.254/latest/meta-data/iam/info",
        ],
    )
    def test_are_refused_otherwise(self, box: NodeInABox, make_pod: PodMaker, path: str) -> None:
        box.aws.forget_calls()
        answer = make_pod("app").ask(path)
        assert answer.status in (400, 404)
        assert not [asked for asked in box.aws.imds_requests() if "/iam/" in asked]

    def test_are_never_the_nodes_own_credentials(self, box: NodeInABox, make_pod: PodMaker) -> None:
        pod = make_pod("app")
        box.start_agent("--allow-route-regexp=.*")
        for path in (f"{CREDENTIALS}node-role", "/latest//meta-data/iam/security-credentials/node-role"):
            answer = pod.ask(path)
            assert answer.status in (400, 403, 404)
            assert "AccessKeyId" not in answer.text


class TestIdentity:
    def test_is_the_address_of_the_connection(self, box: NodeInABox, make_pod: PodMaker) -> None:
        victim, pod = make_pod("victim"), make_pod("app")
        headers = {"X-Forwarded-For": victim.address, "Forwarded": f"for={victim.address}", "X-Real-IP": victim.address}
        assert pod.ask(f"{CREDENTIALS}?ip={victim.address}", headers=headers).text == "app"

    def test_is_the_query_with_the_flag(self, box: NodeInABox, make_pod: PodMaker) -> None:
        other, pod = make_pod("other"), make_pod("app")
        box.start_agent("--allow-ip-query")
        assert pod.ask(f"{CREDENTIALS}?ip={other.address}").text == "other"
        assert pod.role().text == "app"


def test_a_pod_that_becomes_known_is_answered_then(box: NodeInABox, make_pod: PodMaker) -> None:
    pod = make_pod(known=False)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(pod.role)
        wait_until(lambda: asked_by(box, pod), "the request to reach the agent")
        box.announce(pod, "late")
        assert (answer.result().status, answer.result().text) == (200, "late")


def asked_by(box: NodeInABox, pod: Pod) -> bool:
    """Whether the agent has a connection of the pod."""
    return pod.address in box.node.run("ss", "-Htn", "state", "established", "sport", f"= :{AGENT_PORT}").stdout


def test_a_pod_that_stays_unknown_is_told_to_try_again_within_the_budget(make_pod: PodMaker) -> None:
    answer = make_pod(known=False).role()
    assert answer.status == 503
    assert int(answer.headers["retry-after"]) > 0
