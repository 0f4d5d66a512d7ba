"""The container credentials endpoint in the box: real boto3, its projected token, and a pod with somebody else's."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from kiam.server.kubernetes.tokens import AUDIENCE
from tests.integration.node.conftest import AGENT_FLAGS, PodMaker
from tests.sandbox.node import BOTO3_PROGRAM, Answer, NodeInABox, Pod, fetch

HOST, HOST6, PATH = "169.254.170.23", "fd00:ec2::23", "/v1/credentials"


@pytest.fixture
def endpoint(box: NodeInABox) -> NodeInABox:
    box.start_server("--container-credentials")
    box.start_agent(*AGENT_FLAGS, "--container-credentials")
    return box


def token_of(box: NodeInABox, pod: Pod) -> str:
    return box.api.issue_token(pod.name, pod.namespace, AUDIENCE)


def ask(pod: Pod, token: str | None, path: str = PATH, host: str = HOST, **headers: str) -> Answer:
    return pod.ask(path, host=host, headers=headers if token is None else {"Authorization": token, **headers})


def test_boto3_gets_its_pods_own_role_by_its_token(endpoint: NodeInABox, make_pod: PodMaker, tmp_path: Path) -> None:
    pod = make_pod("by-token")
    file = tmp_path / "eks-pod-identity-token"
    file.write_text(token_of(endpoint, pod))
    environment = {
        "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"http://{HOST}{PATH}",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": str(file),
        "AWS_ENDPOINT_URL_STS": endpoint.aws.sts_url,
    }
    done = pod.run([sys.executable, "-c", BOTO3_PROGRAM], environment)
    said = json.loads(done.stdout)
    assert (said["method"], said["arn"].split("/")[1]) == ("container-role", "by-token"), done.stderr


def test_the_document_is_the_one_sdks_expect_over_both_families(endpoint: NodeInABox, make_pod: PodMaker) -> None:
    pod = make_pod("by-token")
    for host in (HOST, HOST6):
        answer = ask(pod, token_of(endpoint, pod), host=host)
        assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
        document = answer.json()
        assert list(document) == ["AccessKeyId", "SecretAccessKey", "Token", "AccountId", "Expiration"]
        assert document["AccountId"] == "123456789012"
    assert document["AccessKeyId"] == pod.credentials("by-token").json()["AccessKeyId"]


def test_another_pods_token_is_refused(endpoint: NodeInABox, make_pod: PodMaker) -> None:
    owner, thief = make_pod("by-token"), make_pod("other")
    assert ask(owner, token_of(endpoint, owner)).status == 200
    answer = ask(thief, token_of(endpoint, owner))
    assert (answer.status, answer.text) == (401, "the token's pod has another address\n")


def test_with_the_kernels_word_a_stolen_token_is_worth_nothing_at_its_own_address(
    box: NodeInABox, make_pod: PodMaker
) -> None:
    owner, thief = make_pod("by-token"), make_pod("other")
    box.start_server("--container-credentials")
    box.start_agent(*AGENT_FLAGS, "--container-credentials", "--pod-uid=require")
    authorization = {"Authorization": token_of(box, owner)}

    def from_owners_address(cgroup: Path) -> Answer:
        return owner.net.netns.call(fetch, HOST, 80, PATH, "GET", authorization, None, 8.0, cgroup=cgroup)

    assert from_owners_address(box.pod_cgroup(owner)).status == 200
    stolen = from_owners_address(box.pod_cgroup(thief))
    assert (stolen.status, stolen.text) == (401, "the token is another pod's\n")
    # And who has no pod's socket at all isn't answered, as with instance metadata.
    assert from_owners_address(box.cgroup.system).status == 503


def test_what_is_no_good_token_is_refused_and_says_why(endpoint: NodeInABox, make_pod: PodMaker) -> None:
    pod = make_pod("by-token")
    good = token_of(endpoint, pod)
    assert ask(pod, None).status == 401
    assert ask(pod, "x" * 4000).status == 401
    assert ask(pod, good[:-2] + "zz").status == 401
    assert ask(pod, good, path="/v1/other").status == 404
    assert ask(pod, good, **{"X-Forwarded-For": "203.0.113.9"}).status == 403
    assert pod.ask(PATH, "PUT", {"Authorization": good}, host=HOST).status == 405
    # The token is not in the log, wherever it went.
    assert endpoint.agent is not None
    assert endpoint.server is not None
    assert good[:40] not in endpoint.agent.output() + endpoint.server.output()


def test_metadata_paths_are_not_served_there_nor_tokens_taken_elsewhere(
    endpoint: NodeInABox, make_pod: PodMaker
) -> None:
    pod = make_pod("by-token")
    assert ask(pod, None, path="/latest/meta-data/iam/security-credentials/").status == 404
    assert ask(pod, token_of(endpoint, pod), host="169.254.169.254").status == 404


def test_without_agent_or_flag_the_connection_is_refused(box: NodeInABox, make_pod: PodMaker) -> None:
    box.start_server("--container-credentials")
    box.start_agent(*AGENT_FLAGS, "--container-credentials")
    pod = make_pod("by-token")
    assert ask(pod, token_of(box, pod)).status == 200
    box.start_agent(*AGENT_FLAGS)
    with pytest.raises(ConnectionRefusedError):
        ask(pod, token_of(box, pod))


def test_a_server_without_the_flag_is_named(box: NodeInABox, make_pod: PodMaker) -> None:
    box.start_agent(*AGENT_FLAGS, "--container-credentials")
    pod = make_pod("by-token")
    answer = ask(pod, token_of(box, pod))
    assert (answer.status, answer.text) == (
        404,
        "the kiam server takes no service account tokens; start it with --container-credentials\n",
    )
