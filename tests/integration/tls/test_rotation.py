"""Certificates and authorities replaced under load, with no restart and no failed request."""

from __future__ import annotations

import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from kiam.rpc import kiam_pb2, kiam_pb2_grpc
from kiam.tls import TLSFiles
from kiam.tls.certificates import read_certificates
from kiam.tls.diagnosis import diagnose
from kiam.tls.issue import Issued
from tests.deploy.cluster import running_cluster
from tests.deploy.test_renewal import NEXT, an_hour_passes, both, store
from tests.integration.agent.conftest import CREDENTIALS, RunningAgent, running_agent
from tests.integration.tls.conftest import NAMES, ROLE, Services, kiam, running_server, secret
from tests.sandbox.certificates import Authority, MountedSecret, write
from tests.sandbox.kubeapi import write_kubeconfig
from tests.sandbox.process import free_port, wait_until


class Load:
    """Requests without a pause, on the agent and on the server itself, and what went wrong with them."""

    def __init__(self, agent: RunningAgent, server_port: int, client: TLSFiles) -> None:
        self._agent = agent
        self._stop = threading.Event()
        self.failures: list[str] = []
        self.done = 0
        material = client.read()
        # Connected once and kept: a rotation must not drop it.
        self._channel = grpc.secure_channel(
            f"localhost:{server_port}", grpc.ssl_channel_credentials(material.ca, material.key, material.cert)
        )
        self._threads = [threading.Thread(target=self._ask_agent), threading.Thread(target=self._ask_server)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        wait_until(lambda: self.done > 10, "the load")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._channel.close()

    def go_on(self) -> None:
        """Let some more requests pass, and see that none has failed."""
        before = self.done
        wait_until(lambda: self.done > before + 20 or self.failures, "more load")
        assert self.failures == []

    def _ask_agent(self) -> None:
        while not self._stop.wait(0.005):
            for path in (CREDENTIALS + ROLE, "/health?deep=1"):
                try:
                    answer = self._agent.ask(path)
                except OSError as error:
                    self.failures.append(f"{path}: {error}")
                else:
                    if answer.status != 200 and not answer.text.startswith("the instance metadata service"):
                        self.failures.append(f"{path}: {answer.status} {answer.text}")
                self.done += 1

    def _ask_server(self) -> None:
        stub = kiam_pb2_grpc.KiamServiceStub(self._channel)
        request = kiam_pb2.GetPodCredentialsRequest(ip="127.0.0.1", role=ROLE)
        while not self._stop.wait(0.005):
            try:
                stub.GetPodCredentials(request, timeout=15)
            except grpc.RpcError as error:
                self.failures.append(str(error))
            self.done += 1


class Pair:
    """A server and an agent with mounted secrets and metrics."""

    def __init__(
        self,
        server_secret: MountedSecret,
        agent_secret: MountedSecret,
        server_port: int,
        agent: RunningAgent,
        metrics: dict[str, int],
    ) -> None:
        self.server_secret, self.agent_secret = server_secret, agent_secret
        self.server_port = server_port
        self.agent = agent
        self._metrics = metrics

    def gauge(self, side: str, name: str) -> float:
        return next(iter(self._samples(side, f"grpc_{side}_tls_certificate_{name}")))

    def _samples(self, side: str, wanted: str) -> list[float]:
        url = f"http://127.0.0.1:{self._metrics[side]}/metrics"
        with urllib.request.urlopen(url, timeout=60) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
        return [sample.value for family in families for sample in family.samples if sample.name == wanted]

    def until_loaded(self, side: str, issued: Issued) -> None:
        # Certificates of one second have one expiry: until the error is gone the gauge may be the one before's.
        wait_until(
            lambda: (
                (self.gauge(side, "expiry_seconds"), self.gauge(side, "update_error"))
                == (issued.not_after.timestamp(), 0)
            ),
            f"the {side}'s swap",
        )


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.make()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, services: Services, authority: Authority) -> Iterator[Pair]:
    with running_pair(tmp_path_factory.mktemp("pair"), services, authority) as pair:
        yield pair


@contextmanager
def running_pair(tmp_path: Path, services: Services, authority: Authority) -> Iterator[Pair]:
    server_secret = secret(tmp_path / "server-tls", authority, "server")
    agent_secret = secret(tmp_path / "agent-tls", authority, "agent")
    metrics = {"server": free_port(), "client": free_port()}
    server_flags = [
        *services.server_flags(server_secret.files),
        f"--prometheus-listen-addr=127.0.0.1:{metrics['server']}",
    ]
    with (
        running_server(tmp_path, server_flags, services) as (_, server_port),
        running_agent(
            tmp_path,
            f"localhost:{server_port}",
            agent_secret.files,
            f"--prometheus-listen-addr=127.0.0.1:{metrics['client']}",
            f"--instance-metadata-url={services.aws.imds_url}",
            "--node-name=node-1",
        ) as agent,
    ):
        wait_until(lambda: agent.ask(CREDENTIALS + ROLE).status == 200, "the first credentials")
        yield Pair(server_secret, agent_secret, server_port, agent, metrics)


@contextmanager
def load(pair: Pair, tmp_path: Path, authority: Authority) -> Iterator[Load]:
    client = write(tmp_path / "client", authority.sign("client"), authority.pem)
    with Load(pair.agent, pair.server_port, client) as running:
        running.go_on()
        yield running
    assert running.failures == []


def shown(port: int, client: TLSFiles) -> str:
    """What a new connection to the server comes to: the problem, or the number of the certificate it is shown."""
    (found,) = [one for one in diagnose(f"localhost:{port}", client, 20) if one.connected]
    assert found.problem or found.certificate
    return str(found.problem or "") or str(found.certificate and found.certificate.not_after.timestamp())


def test_bad_files_change_nothing_and_show_in_the_metrics(tmp_path: Path, pair: Pair, authority: Authority) -> None:
    mismatched, good = authority.sign("server", NAMES), authority.sign("server", NAMES)
    client = write(tmp_path / "client2", authority.sign("client"), authority.pem)
    with load(pair, tmp_path, authority) as running:
        for side, mounted in (("server", pair.server_secret), ("client", pair.agent_secret)):
            mounted.swap(mismatched.cert, good.key, authority.pem)
            wait_until(lambda side=side: pair.gauge(side, "update_error") == 1, "the bad files being seen")  # type: ignore[misc]  # a lambda's default
            running.go_on()
        pair.server_secret.swap(good.cert, good.key, authority.pem)
        pair.until_loaded("server", good)
        assert shown(pair.server_port, client) == str(good.not_after.timestamp())
        running.go_on()


def test_every_certificate_and_the_authority_are_replaced_under_load(
    tmp_path: Path, pair: Pair, authority: Authority
) -> None:
    successor = Authority.make("successor")
    both = authority.pem + successor.pem
    outsider = write(tmp_path / "old", authority.sign("old agent"), both)

    with load(pair, tmp_path, authority) as running:
        for side, mounted in (("server", pair.server_secret), ("client", pair.agent_secret)):
            renewed = authority.sign(side, NAMES)
            mounted.swap(renewed.cert, renewed.key, authority.pem)
            pair.until_loaded(side, renewed)
            running.go_on()
        # The overlap: first both are trusted, then certificates come from the successor, then it alone is trusted.
        current = {
            "server": (pair.server_secret, authority.sign("server", NAMES)),
            "client": (pair.agent_secret, authority.sign("agent", NAMES)),
        }
        for issuer, trusted in ((authority, both), (successor, both), (successor, successor.pem)):
            for side, (mounted, _) in current.items():
                issued = issuer.sign(side, NAMES)
                mounted.swap(issued.cert, issued.key, trusted)
                pair.until_loaded(side, issued)
                running.go_on()
        # Only a new connection shows which authorities count now: the one above began under the old one.
        assert "our certificate" in shown(pair.server_port, outsider)
        running.go_on()
    wait_until(lambda: pair.agent.ask("/health?deep=1").status == 200, "a connection under the successor")


def test_what_the_charts_cron_job_renews_is_taken_over_under_load(tmp_path: Path, services: Services) -> None:
    """The Secrets change in a cluster's API, and reach agent and server one after the other, whichever is first."""
    authority = Authority.make("of the chart's first pair")
    with (
        running_pair(tmp_path, services, authority) as pair,
        running_cluster() as cluster,
        load(pair, tmp_path, authority) as running,
    ):
        mounted = {"server": pair.server_secret, "agent": pair.agent_secret}
        for half, folder in mounted.items():
            files = folder.files.read()
            store(cluster, f"kiam-{half}", {"ca": files.ca, "cert": files.cert, "key": files.key})
        store(cluster, NEXT, {})
        kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", cluster.url)
        for said, order in (
            ("agents and servers were told", ("agent", "server")),
            ("both certificates renewed", ("server", "agent")),
            ("both certificates renewed", ("agent", "server")),
        ):
            # Their first pair lives for 90 days, what takes over for 100.
            renewing = kiam("certs", "renew", f"--next-secret={NEXT}", "--days=100", f"--kubeconfig={kubeconfig}")
            done = subprocess.run(renewing, capture_output=True, text=True, timeout=100, check=True)
            assert done.stdout.startswith(said)
            an_hour_passes(cluster)
            renewed = both(cluster)
            for half in order:
                mounted[half].swap(*(renewed[half][name] for name in ("cert", "key", "ca")))
                side = "client" if half == "agent" else half
                end = read_certificates(renewed[half]["cert"])[0].not_after.timestamp()
                wait_until(lambda side=side, end=end: pair.gauge(side, "expiry_seconds") == end, f"the {half}'s swap")  # type: ignore[misc]  # a lambda's defaults
                assert shown(pair.server_port, pair.agent_secret.files) == str(
                    read_certificates(pair.server_secret.files.read().cert)[0].not_after.timestamp()
                )
                running.go_on()
