"""An agent's certificate that expires soon: the server tells the Kubernetes API, which agents have no access to."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.agent.conftest import CREDENTIALS, running_agent
from tests.integration.tls.conftest import NAMES, ROLE, Services, running_server
from tests.sandbox.certificates import Authority, days, write
from tests.sandbox.kubeapi import pod
from tests.sandbox.process import wait_until

AGENT = "kiam-agent-x7k2p"


@pytest.mark.parametrize("left", [3, 80])
def test_an_event_on_the_agents_own_pod_says_that_its_certificate_expires_soon(
    tmp_path: Path, services: Services, left: int
) -> None:
    name = f"{AGENT}-{left}"
    services.kube.apply(pod(name, f"127.0.1.{left}", namespace="kube-system"))
    authority = Authority.make("for a decade", days(-400, 3650))
    server = write(tmp_path / "server", authority.sign("server", NAMES), authority.pem)
    agent = write(tmp_path / "agent", authority.sign("agent", period=days(left - 90, left)), authority.pem)
    environment = {"POD_NAMESPACE": "kube-system", "POD_NAME": name}
    with (
        running_server(tmp_path, services.server_flags(server), services) as (_, port),
        running_agent(tmp_path, f"localhost:{port}", agent, "--node-name=node-1", environment=environment) as running,
    ):
        wait_until(lambda: running.ask(CREDENTIALS + ROLE).status == 200, "the agent's stream")
        if left == 3:
            (event,) = wait_until(lambda: services.events_of(name), "the Event")
            assert (event["reason"], event["type"]) == ("KiamCertificateExpiring", "Warning")
            assert event["involvedObject"]["namespace"] == "kube-system"
            assert "this agent's TLS certificate" in event["message"]
    assert len(services.events_of(name)) == (left == 3)
