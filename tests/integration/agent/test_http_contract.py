"""Every line of the contract's HTTP table, through an agent process and a conventional server."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.integration.agent.conftest import CREDENTIALS, RunningAgent, running_agent
from tests.sandbox.aws import INSTANCE_ID, AwsProcess
from tests.sandbox.conventional_server import BASE_ARN, ConventionalServer, conventional_server
from tests.sandbox.pki import Pki

POD, PATH_POD, BARE_POD, TWIN, STRANGER = "127.0.0.11", "127.0.0.12", "127.0.0.13", "127.0.0.14", "127.0.0.99"


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AwsProcess]:
    with AwsProcess(tmp_path_factory.mktemp("aws")) as aws:
        yield aws


@pytest.fixture(scope="module")
def server(pki: Pki) -> Iterator[ConventionalServer]:
    with conventional_server(pki.server) as server:
        server.pods.roles = {POD: "app", PATH_POD: "/team/app", BARE_POD: "", TWIN: "twin"}
        server.pods.twins = {TWIN}
        yield server


@pytest.fixture(scope="module")
def agent(
    tmp_path_factory: pytest.TempPathFactory, pki: Pki, server: ConventionalServer, aws: AwsProcess
) -> Iterator[RunningAgent]:
    with running_agent(
        tmp_path_factory.mktemp("agent"),
        f"localhost:{server.port}",
        pki.agent,
        f"--instance-metadata-url={aws.imds_url}",
        "--allow-route-regexp=^/latest/meta-data/(instance-id|iam/.*|placement/.*)$",
        "--level=debug",
    ) as agent:
        yield agent


def test_ping(agent: RunningAgent) -> None:
    answer = agent.ask("/ping")
    assert (answer.status, answer.body) == (200, b"pong")


def test_health_is_the_instance_id(agent: RunningAgent) -> None:
    answer = agent.ask("/health")
    assert (answer.status, answer.text) == (200, INSTANCE_ID)


def test_health_fails_without_instance_metadata(agent: RunningAgent, aws: AwsProcess) -> None:
    aws.faults(imds="unavailable")
    try:
        # The id is good for a second, so that pods can't flood the service through us.
        assert _until(lambda: agent.ask("/health").status == 500)
    finally:
        aws.faults()


def test_deep_health_asks_the_server(agent: RunningAgent, server: ConventionalServer) -> None:
    assert agent.ask("/health?deep=1").status == 200
    server.pods.health = "not ready"
    try:
        answer = agent.ask("/health?deep=1")
        assert answer.status == 500
        assert "not ready" in answer.text
        assert agent.ask("/health?deep=").status == 200
    finally:
        server.pods.health = "ok"


def test_role_is_exactly_as_annotated(agent: RunningAgent) -> None:
    assert agent.ask(CREDENTIALS, POD).body == b"app"
    answer = agent.ask("/2016-09-02/meta-data/iam/security-credentials/", PATH_POD)
    assert (answer.status, answer.body) == (200, b"/team/app")


def test_pod_without_annotation_has_no_role(agent: RunningAgent) -> None:
    answer = agent.ask(CREDENTIALS, BARE_POD)
    assert (answer.status, answer.text) == (404, "empty role\n")
    assert agent.ask(CREDENTIALS + "app", BARE_POD).status == 404


@pytest.mark.parametrize("version", ["latest", "1.0", "2016-09-02"])
@pytest.mark.parametrize("query", ["", "?a=b&c=%2F"])
def test_missing_slash_makes_no_difference(agent: RunningAgent, version: str, query: str) -> None:
    """AWS's SDK for Python v4, ClickHouse and pgBackRest follow no redirect."""
    answer = agent.ask(f"/{version}/meta-data/iam/security-credentials{query}", POD)
    assert (answer.status, answer.body) == (200, b"app")


def test_credentials_document(agent: RunningAgent) -> None:
    answer = agent.ask(CREDENTIALS + "app", POD)
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.body.endswith(b"}\n")
    document = json.loads(answer.body)
    assert list(document) == [
        "Code", "Type", "AccessKeyId", "SecretAccessKey", "Token", "Expiration", "LastUpdated",
    ]  # fmt: skip
    assert (document["Code"], document["Type"]) == ("Success", "AWS-HMAC")
    assert document["SecretAccessKey"] == f"secret+of/{BASE_ARN}app"
    for field in ("Expiration", "LastUpdated"):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", document[field])


@pytest.mark.parametrize(
    "role",
    [
        "team/app",
        "/team/app",
        "team%2Fapp",
        "%2Fteam/app",
        BASE_ARN + "team/app",
        "arn%3Aaws%3Aiam%3A%3A123456789012%3Arole/team/app",
    ],
)
def test_role_in_every_spelling(agent: RunningAgent, role: str) -> None:
    assert agent.ask(CREDENTIALS + role, PATH_POD).status == 200


def test_another_pods_role_is_forbidden_at_once(agent: RunningAgent, server: ConventionalServer) -> None:
    before = server.calls["GetPodCredentials"]
    answer = agent.ask(CREDENTIALS + "team/app", POD)
    assert (answer.status, answer.text) == (403, "forbidden by policy\n")
    assert server.calls["GetPodCredentials"] == before + 1


def test_stranger_is_told_to_come_back(agent: RunningAgent) -> None:
    answer = agent.ask(CREDENTIALS, STRANGER)
    assert answer.status == 503
    assert answer.headers["retry-after"] == "1"
    assert answer.text.count("\n") == 1


def test_pod_that_appears_meanwhile_is_answered(agent: RunningAgent, server: ConventionalServer) -> None:
    with agent.connect("127.0.0.21") as sock:
        sock.sendall(b"GET " + CREDENTIALS.encode() + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        calls = server.calls["GetPodRole"]
        assert _until(lambda: server.calls["GetPodRole"] > calls)
        server.pods.roles["127.0.0.21"] = "late"
        assert sock.recv(65536).endswith(b"\r\n\r\nlate")


def test_two_pods_at_one_address_get_nothing(agent: RunningAgent) -> None:
    assert agent.ask(CREDENTIALS + "twin", TWIN).status == 503


def test_aws_errors_name_the_code_only(agent: RunningAgent, server: ConventionalServer) -> None:
    server.pods.aws_error = "AccessDenied: User: arn:aws:sts::1:assumed-role/kiam-server/x is not authorized"
    try:
        answer = agent.ask(CREDENTIALS + "app", POD)
    finally:
        server.pods.aws_error = ""
    assert (answer.status, answer.text) == (503, "no credentials from AWS: AccessDenied\n")


def test_head_is_a_get_without_body(agent: RunningAgent) -> None:
    answer = agent.ask(CREDENTIALS, POD, method="HEAD")
    assert (answer.status, answer.body, answer.headers["content-length"]) == (200, b"", "3")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
@pytest.mark.parametrize("path", [CREDENTIALS, CREDENTIALS + "app", CREDENTIALS[:-1]])
def test_other_methods_are_refused_on_credential_paths(agent: RunningAgent, method: str, path: str) -> None:
    answer = agent.ask(path, POD, method=method)
    assert answer.status == 405
    assert answer.headers["allow"] == "GET, HEAD"


def test_ip_query_counts_only_by_flag(agent: RunningAgent) -> None:
    assert agent.ask(f"{CREDENTIALS}?ip={PATH_POD}", POD).body == b"app"


def test_ip_query_with_the_flag(agent: RunningAgent, tmp_path: object, pki: Pki, server: ConventionalServer,
                                tmp_path_factory: pytest.TempPathFactory) -> None:  # fmt: skip
    with running_agent(
        tmp_path_factory.mktemp("agent"), f"localhost:{server.port}", pki.agent, "--allow-ip-query"
    ) as other:
        assert other.ask(f"{CREDENTIALS}?ip={PATH_POD}", POD).body == b"/team/app"
        assert other.ask(f"{CREDENTIALS}?ip=::ffff:{PATH_POD}", POD).body == b"/team/app"
        assert other.ask(f"{CREDENTIALS}?ip=nonsense", POD).status == 400


TOKEN_TTL = "X-aws-ec2-metadata-token-ttl-seconds"


TOKEN = "X-aws-ec2-metadata-token"


def get_token(agent: RunningAgent, pod: str = POD, ttl: str = "60") -> str:
    answer = agent.ask("/latest/api/token", pod, method="PUT", headers={TOKEN_TTL: ttl, "Via": "1.1 proxy"})
    assert answer.status == 200, answer.text
    assert answer.headers["x-aws-ec2-metadata-token-ttl-seconds"] == ttl
    return answer.text


@contextmanager
def agent_with(
    tmp_path: Path, pki: Pki, server: ConventionalServer, aws: AwsProcess, *flags: str
) -> Iterator[RunningAgent]:
    routes = "--allow-route-regexp=^/latest/meta-data/instance-id$"
    upstream = f"--instance-metadata-url={aws.imds_url}"
    with running_agent(tmp_path, f"localhost:{server.port}", pki.agent, upstream, routes, *flags) as agent:
        yield agent


def test_token_is_the_agents_own_and_good_for_its_pod_alone(agent: RunningAgent, aws: AwsProcess) -> None:
    aws.forget_calls()
    token = get_token(agent)
    assert agent.ask(CREDENTIALS, POD, headers={TOKEN: token}).body == b"app"
    assert agent.ask(CREDENTIALS + "app", POD, headers={TOKEN: token}).status == 200
    assert agent.ask(CREDENTIALS, PATH_POD, headers={TOKEN: token}).status == 401
    assert agent.ask(CREDENTIALS, POD, headers={TOKEN: "x"}).status == 401
    assert agent.ask(CREDENTIALS, POD).body == b"app"
    assert aws.imds_requests() == {}


@pytest.mark.parametrize("ttl", [None, "0", "21601", "x"])
def test_token_with_a_wrong_life_is_400(agent: RunningAgent, ttl: str | None) -> None:
    headers = {} if ttl is None else {TOKEN_TTL: ttl}
    assert agent.ask("/latest/api/token", POD, method="PUT", headers=headers).status == 400


def test_token_outlives_the_agent(tmp_path: Path, pki: Pki, server: ConventionalServer, aws: AwsProcess) -> None:
    """Old and new agent share the port in a roll-over; neither may refuse the other's tokens."""
    with agent_with(tmp_path, pki, server, aws) as old:
        token = get_token(old)
    with agent_with(tmp_path, pki, server, aws) as new:
        assert new.ask(CREDENTIALS, POD, headers={TOKEN: token}).status == 200


def test_required_token_is_demanded_of_credentials_and_of_what_is_passed_on(
    tmp_path: Path, pki: Pki, server: ConventionalServer, aws: AwsProcess
) -> None:
    with agent_with(tmp_path, pki, server, aws, "--imds-tokens=required") as agent:
        token = get_token(agent)
        for path in (CREDENTIALS, CREDENTIALS + "app", "/latest/meta-data/instance-id"):
            assert agent.ask(path, POD).status == 401
            assert agent.ask(path, POD, headers={TOKEN: token}).status == 200
        assert agent.ask("/ping", POD).status == 200


def test_credentials_come_with_the_real_service_away(agent: RunningAgent, aws: AwsProcess) -> None:
    """15 of 48 clients got none while the real service refused tokens."""
    aws.faults(imds="unavailable")
    try:
        token = get_token(agent)
        assert agent.ask(CREDENTIALS + "app", POD, headers={TOKEN: token}).status == 200
    finally:
        aws.faults()


def test_token_is_passed_on_if_that_is_wished(
    tmp_path: Path, pki: Pki, server: ConventionalServer, aws: AwsProcess
) -> None:
    with agent_with(tmp_path, pki, server, aws, "--imds-tokens=passed-on") as agent:
        aws.faults(require_token=True)
        try:
            token = get_token(agent)
            assert agent.ask("/latest/meta-data/instance-id", POD).status == 401
            answer = agent.ask("/latest/meta-data/instance-id", POD, headers={TOKEN: token})
            assert (answer.status, answer.text) == (200, INSTANCE_ID)
        finally:
            aws.faults()
        assert agent.ask(CREDENTIALS, POD, headers={TOKEN: "junk, as with conventional kiam"}).status == 200
        assert aws.forwarded_for() == 0
        refused = agent.ask("/latest/api/token", POD, method="PUT", headers={TOKEN_TTL: "60", "Forwarded": "for=x"})
        assert refused.status == 403


def test_one_pod_may_ask_for_tokens_without_end(agent: RunningAgent) -> None:
    def ask(_: int) -> set[int]:
        connection = http.client.HTTPConnection("127.0.0.1", agent.port, timeout=15, source_address=(POD, 0))
        statuses = set()
        for _ in range(500):
            connection.request("PUT", "/latest/api/token", headers={TOKEN_TTL: "60"})
            response = connection.getresponse()
            response.read()
            statuses.add(response.status)
        connection.close()
        return statuses

    with ThreadPoolExecutor(3) as clients:
        assert set().union(*clients.map(ask, range(3))) == {200}


def test_300_first_requests_of_a_pod_at_once_are_answered(agent: RunningAgent, server: ConventionalServer) -> None:
    pod = "127.0.0.22"
    with ExitStack() as stack:
        sockets = [stack.enter_context(agent.connect(pod)) for _ in range(300)]
        for sock in sockets:
            sock.sendall(b"GET " + CREDENTIALS.encode() + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        server.pods.roles[pod] = "app"
        assert {sock.recv(65536)[-7:] for sock in sockets} == {b"\r\n\r\napp"}


@pytest.mark.parametrize("field", ["X-Forwarded-For", "x-forwarded-for", "Forwarded"])
def test_no_token_for_what_a_reverse_proxy_forwarded(agent: RunningAgent, aws: AwsProcess, field: str) -> None:
    aws.forget_calls()
    answer = agent.ask("/latest/api/token", POD, method="PUT", headers={TOKEN_TTL: "60", field: "10.0.0.1"})
    assert (answer.status, answer.text.count("\n")) == (403, 1)
    assert aws.imds_requests() == {}


@pytest.mark.parametrize("framing", [b"Transfer-Encoding: chunked", b"Content-Length: 4"])
def test_client_that_asks_for_leave_to_send_its_body_gets_it(agent: RunningAgent, framing: bytes) -> None:
    """curl and s3fs send nothing for a second unless they are told to go on."""
    body = b"4\r\nbody\r\n0\r\n\r\n" if b"chunked" in framing else b"body"
    with agent.connect(POD) as sock:
        sock.sendall(
            b"PUT /latest/api/token HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
            + TOKEN_TTL.encode() + b": 60\r\n" + framing + b"\r\n\r\n"
        )  # fmt: skip
        assert sock.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(body)
        assert sock.recv(65536).startswith(b"HTTP/1.1 200 OK\r\n")


def test_request_is_logged_in_conventional_fields_and_without_its_token(
    tmp_path: Path, pki: Pki, server: ConventionalServer
) -> None:
    with running_agent(tmp_path, f"localhost:{server.port}", pki.agent, "--json-log", "--level=debug") as agent:
        token = get_token(agent)
        agent.ask(f"{CREDENTIALS}app?x=1", POD, headers={TOKEN: token, "x-odd": "a\tb"})
        agent.ask(f"{CREDENTIALS}other", POD)
        lines = [json.loads(line) for line in agent.process.output().splitlines() if line.startswith("{")]
        assert len(token) == 56
        assert token not in agent.process.output()
    answered, refused = (
        next(line for line in lines if line.get("path") == path)
        for path in (f"{CREDENTIALS}app", f"{CREDENTIALS}other")
    )
    assert (answered["level"], answered["msg"]) == ("debug", "processed request")
    assert (answered["method"], answered["status"], answered["pod.ip"]) == ("GET", 200, POD)
    assert re.fullmatch(re.escape(POD) + r":\d+", answered["addr"])
    assert answered["headers"]["X-Aws-Ec2-Metadata-Token"] == ["***"]
    assert answered["headers"]["X-Odd"] == ["a\\x09b"]
    assert (refused["level"], refused["status"]) == ("warning", 403)
    assert refused["msg"] == "request refused: forbidden by policy"


def test_allowed_route_is_passed_on_with_the_agents_token(agent: RunningAgent, aws: AwsProcess) -> None:
    aws.faults(require_token=True)
    try:
        for headers in ({}, {TOKEN: get_token(agent)}):
            answer = agent.ask("/latest/meta-data/instance-id", POD, headers=headers)
            assert (answer.status, answer.text) == (200, INSTANCE_ID)
        assert agent.ask("/latest/meta-data/instance-id", POD, headers={TOKEN: "wrong"}).status == 401
        head = agent.ask("/latest/meta-data/instance-id", POD, method="HEAD")
        assert (head.status, head.body) == (200, b"")
    finally:
        aws.faults()


def test_other_paths_are_not_found(agent: RunningAgent, aws: AwsProcess) -> None:
    aws.forget_calls()
    for path in ("/", "/latest/user-data", "/latest/api/token", "/latest/meta-data/"):
        assert agent.ask(path, POD).status == 404
    assert aws.imds_requests() == {}


@pytest.mark.parametrize(
    "path",
    [
        "/latest/meta-data/iam/security-credentials/node-role",
        "/latest/meta-data/iam/Security-Credentials/node-role",
        "/latest/meta-data/iam//security-credentials/node-role",
        "/latest/meta-data//iam/security-credentials/node-role",
        "//latest/meta-data/iam/security-credentials/node-role",
        "/latest/meta-data/iam%2Fsecurity-credentials/node-role",
        "/latest/meta-data/iam/%73ecurity-credentials/node-role",
        "/latest/meta-data/iam/%2573ecurity-credentials/node-role",
        "/latest/meta-data/iam/x/../security-credentials/node-role",
        "/latest/meta-data/iam/x/%2e%2e/security-credentials/node-role",
        "/latest/meta-data/iam/./security-credentials/node-role",
        "/latest/meta-data/iam/security-credentials;x/node-role",
        "/latest/meta-data/iam\\security-credentials\\node-role",
        "/latest/meta-data/iam/security-credentials%00/node-role",
        "/latest/dynamic/../meta-data/iam/security-credentials/node-role",
        "/latest/meta-data/identity-credentials/ec2/security-credentials/ec2-instance",
        "http://169.254.169.254/latest/meta-data/iam/security-credentials/node-role",
    ],
)
def test_nodes_credentials_never_come_back(agent: RunningAgent, aws: AwsProcess, path: str) -> None:
    aws.forget_calls()
    request = f"GET {path} HTTP/1.1\r\nHost: 169.254.169.254\r\nConnection: close\r\n\r\n".encode()
    answer = agent.raw(request, POD)
    assert re.match(rb"HTTP/1\.[01] (400|403|404) ", answer), answer
    assert b"AccessKeyId" not in answer
    assert aws.imds_requests() == {}


def _until(condition: object) -> bool:
    from tests.sandbox.process import wait_until

    assert callable(condition)
    return bool(wait_until(condition, "the condition"))


def test_role_that_cannot_be_one_is_shown_to_the_server_for_the_pods_event(
    agent: RunningAgent, server: ConventionalServer
) -> None:
    before = server.calls["GetPodCredentials"]
    assert agent.ask(CREDENTIALS + "x/../../admin", POD).status == 400
    assert _until(lambda: server.calls["GetPodCredentials"] == before + 1)
