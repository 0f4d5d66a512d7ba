"""Each client, from inside a pod, through the redirect: whose credentials does AWS see it use?"""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from kiam.server.kubernetes.objects import IMDS_TOKENS_ANNOTATION
from kiam.server.kubernetes.tokens import AUDIENCE
from kiam.server.webhook.injection import FILE, URI
from tests.clients.table import BUCKET, CLIENTS, ENVIRONMENT, Client
from tests.sandbox.aws import ROLE_BASE_ARN
from tests.sandbox.netns import AWS_IPV4
from tests.sandbox.node import CREDENTIALS, NodeInABox, Pod, fetch, needs_root
from tests.sandbox.process import wait_until

LATE = 2.0
"""Seconds after a client's first request at which its pod becomes known."""
METADATA_SOCKET = "FEA9FEA9:0050"
"""169.254.169.254:80, as /proc/net/tcp writes it."""

FOR_THE_REGION = "--allow-route-regexp=^/latest/(meta-data/placement/.*|dynamic/instance-identity/document)$"
"""The flag of docs/clients.md."""


def those(wanted: Callable[[Client], bool]) -> pytest.MarkDecorator:
    """Run a test for each client that ...; those that have to be installed first are left to make test-clients."""
    return pytest.mark.parametrize(
        "client",
        [
            pytest.param(client, id=client.name.replace(" ", "-"), marks=[pytest.mark.clients] if client.kit else [])
            for client in CLIENTS
            if wanted(client)
        ],
    )


clients = those(lambda client: True)


@pytest.fixture(scope="module")
def box() -> Iterator[NodeInABox]:
    """A node with kiam, and a bucket in S3."""
    why = needs_root()
    if why is not None:
        pytest.skip(why)
    with NodeInABox("iptables") as made:
        made.start_server("--container-credentials")
        made.start_agent(FOR_THE_REGION, "--container-credentials")
        furnish(made)
        yield made


@pytest.fixture(scope="module")
def uid_box() -> Iterator[NodeInABox]:
    """A node whose agent also asks the kernel which pod's socket a client has."""
    why = needs_root()
    if why is not None:
        pytest.skip(why)
    with NodeInABox("iptables", needs_cgroups=True) as made:
        made.start_server()
        made.start_agent("--pod-uid=check", "--node-name=node-1")
        furnish(made)
        yield made


def furnish(box: NodeInABox) -> None:
    """Make the namespace that pods are in, and the bucket that clients look into."""
    box.add_namespace("default")
    signature = {"Authorization": "AWS4-HMAC-SHA256 Credential=AKID/20260101/us-east-1/s3/aws4_request"}
    box.node.call(fetch, str(AWS_IPV4), 8000, f"/{BUCKET}", "PUT", signature)


@dataclass(slots=True)
class Trial:
    """A pod in which clients are tried."""

    box: NodeInABox
    pod: Pod
    home: Path

    def announce(self, role: str, annotations: Mapping[str, str] | None = None) -> None:
        """Make the pod known, and wait until the agent has its credentials: some clients give up after a second."""
        self.box.announce(self.pod, role, annotations)
        # 401: what needs a token is known.
        wait_until(lambda: self.pod.ask(CREDENTIALS + role.removeprefix("/")).status in (200, 401), "its credentials")

    def start(self, client: Client, *wrapper: str) -> subprocess.Popen[str]:
        """Start a client; what AWS saw before is forgotten."""
        self.box.aws.forget_calls()
        environment = {**ENVIRONMENT, "HOME": str(self.home), **client.environment}
        return self.pod.start([*wrapper, *client.command], environment)

    def finish(self, running: subprocess.Popen[str]) -> tuple[int, str]:
        """Its exit code and all that it wrote."""
        try:
            output, errors = running.communicate(timeout=90)
        finally:
            running.kill()
        return running.returncode, output + errors

    def run(self, client: Client, *wrapper: str) -> tuple[int, str]:
        """Run a client to its end."""
        return self.finish(self.start(client, *wrapper))

    def run_late(self, client: Client, *wrapper: str) -> tuple[int, str]:
        """Run a client whose pod becomes known only :data:`LATE` seconds after its first question."""
        running = self.start(client, *wrapper)
        wait_until(lambda: asks(self.pod) or running.poll() is not None, "its first question", 60, interval=0.005)
        with contextlib.suppress(subprocess.TimeoutExpired):
            # What is tried, not a wait for something to happen: a busy cluster takes as long.
            running.wait(timeout=LATE)
        self.box.announce(self.pod, "cart")
        return self.finish(running)

    def roles(self) -> set[str]:
        """The roles that AWS saw requests signed with; an empty name stands for credentials nobody issued."""
        return {request.role_arn.removeprefix(ROLE_BASE_ARN) for request in self.box.aws.signed()}


@pytest.fixture
def trial(box: NodeInABox, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Trial]:
    """A pod for one test."""
    with trial_in(box, tmp_path, request.getfixturevalue("client")) as made:
        yield made


@pytest.fixture
def uid_trial(uid_box: NodeInABox, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Trial]:
    """A pod for one test, on a node whose agent knows pods by their UIDs."""
    with trial_in(uid_box, tmp_path, request.getfixturevalue("client")) as made:
        yield made


@contextlib.contextmanager
def trial_in(box: NodeInABox, home: Path, client: Client) -> Iterator[Trial]:
    """A pod of a box, which the API doesn't know."""
    assert client.kit is None or client.kit.ready, f"{client.kit.name} isn't installed; 'make test-clients' does it"
    pod = box.add_pod(f"trial-{next(_numbers)}", known=False)
    yield Trial(box, pod, home)
    box.aws.faults()
    box.remove_pod(pod)


_numbers = iter(range(1, 1_000_000))


@clients
def test_it_signs_with_its_pods_role(client: Client, trial: Trial) -> None:
    trial.announce("cart")
    code, output = trial.run(client)
    assert (code, trial.roles()) == (0, {"cart"}), output


@clients
def test_it_signs_with_its_pods_role_where_tokens_are_demanded_if_it_asks_for_one(client: Client, trial: Trial) -> None:
    trial.announce("cart", {IMDS_TOKENS_ANNOTATION: "required"})
    code, output = trial.run(client)
    if client.tokens:
        assert (code, trial.roles()) == (0, {"cart"}), output
    else:
        refused(client, trial, code, output)
        assert trial.roles() == set()


@clients
def test_it_signs_with_its_pods_role_when_the_real_service_gives_no_tokens(client: Client, trial: Trial) -> None:
    trial.announce("cart")
    trial.box.aws.faults(tokens=False)
    code, output = trial.run(client)
    assert (code, trial.roles()) == (0, {"cart"}), output


@clients
def test_it_does_without_a_token_that_nobody_gives_it(client: Client, trial: Trial) -> None:
    trial.announce("cart", {IMDS_TOKENS_ANNOTATION: "passed-on"})
    trial.box.aws.faults(tokens=False)
    code, output = trial.run(client)
    if client.without_tokens:
        assert (code, trial.roles()) == (0, {"cart"}), output
    else:
        refused(client, trial, code, output)


@clients
def test_it_signs_with_a_role_that_has_a_path(client: Client, trial: Trial) -> None:
    trial.announce("/team/billing")
    code, output = trial.run(client)
    assert (code, trial.roles()) == (0, {"team/billing"}), output


@clients
def test_it_gets_credentials_though_its_pod_is_known_late(client: Client, trial: Trial) -> None:
    code, output = trial.run_late(client)
    if client.patient is False or (client.patient is None and code):
        refused(client, trial, code, output)
        trial.announce("cart")
        code, output = trial.run(client)
    assert (code, trial.roles()) == (0, {"cart"}), output


@clients
def test_it_gets_credentials_though_nobody_knows_its_address_where_the_kernel_tells_whose_socket_it_is(
    client: Client, uid_trial: Trial
) -> None:
    # A role of its own, whose credentials are there before the client asks: kubelet takes longer to start a container.
    # The address isn't late here: it never comes, so that no client gets through by being patient.
    role = uid_trial.pod.name
    uid_trial.box.schedule(uid_trial.pod, role)
    wait_until(
        lambda: uid_trial.box.aws.count(ROLE_BASE_ARN + role), "the credentials of a scheduled pod to be fetched"
    )
    code, output = uid_trial.run(client)
    assert (code, uid_trial.roles()) == (0, {role}), output


@those(lambda client: bool(client.patience))
def test_the_documented_setting_gives_it_patience(client: Client, trial: Trial) -> None:
    code, output = trial.run_late(client, "env", *(f"{name}={value}" for name, value in client.patience.items()))
    assert (code, trial.roles()) == (0, {"cart"}), output


@those(lambda client: client.asks_region)
def test_the_documented_route_tells_it_its_region(client: Client, trial: Trial) -> None:
    trial.announce("cart")
    code, output = trial.run(client, "env", "--unset=AWS_REGION", "--unset=AWS_DEFAULT_REGION")
    assert (code, trial.roles()) == (0, {"cart"}), output
    assert any("placement" in asked for asked in trial.box.aws.imds_requests())


@those(lambda client: client.containers)
def test_it_signs_with_its_pods_role_by_its_service_account_token(client: Client, trial: Trial) -> None:
    trial.announce("cart")
    token = trial.home / FILE
    token.write_text(trial.box.api.issue_token(trial.pod.name, trial.pod.namespace, AUDIENCE))
    settings = {
        "AWS_CONTAINER_CREDENTIALS_FULL_URI": URI,
        "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": str(token),
        # Else it might have them from instance metadata after all.
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    before = container_answers(trial.box)
    code, output = trial.run(client, "env", *(f"{name}={value}" for name, value in settings.items()))
    assert (code, trial.roles()) == (0, {"cart"}), output
    assert container_answers(trial.box) > before


@clients
def test_it_says_that_it_has_no_credentials_if_its_pod_has_no_role(client: Client, trial: Trial) -> None:
    trial.box.announce(trial.pod, None)
    code, output = trial.run(client)
    refused(client, trial, code, output)
    assert trial.roles() == set()


def refused(client: Client, trial: Trial, code: int, output: str) -> None:
    """It failed, in words that say why, and had nobody else's credentials."""
    assert code != 0, output
    assert re.search(client.refusal, output), output
    assert trial.roles() <= {"cart"}


def asks(pod: Pod) -> bool:
    """Whether a connection to instance metadata is open inside the pod."""
    return METADATA_SOCKET in pod.net.netns.call(Path("/proc/thread-self/net/tcp").read_text)


def container_answers(box: NodeInABox) -> float:
    """How many requests the container credentials endpoint has answered with credentials."""
    counted = re.search(
        r'^kiam_metadata_success_total\{handler="containerCredentials"\} (\S+)', box.metrics("agent"), re.M
    )
    assert counted is not None
    return float(counted[1])
