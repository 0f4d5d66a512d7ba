"""Server and agent with certificates as conventional kiam's cert-manager example makes them: ``usages: ["any"]``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from kiam.rpc import kiam_pb2, kiam_pb2_grpc
from kiam.tls import TLSFiles
from tests.integration.agent.conftest import CREDENTIALS, RunningAgent, running_agent
from tests.integration.tls.conftest import ROLE, Services, kiam, running_server, tls_flags
from tests.sandbox.certificates import Authority, MountedSecret, write
from tests.sandbox.process import Process, wait_until

ANY = [ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]
CLIENT = [ExtendedKeyUsageOID.CLIENT_AUTH]
BOTH = [*CLIENT, ExtendedKeyUsageOID.SERVER_AUTH]
MANIFEST, PLAIN = Authority.for_any_usage(), Authority.make()
NODE = "node-1"


@contextmanager
def pair(
    tmp_path: Path, services: Services, server: TLSFiles, agent: TLSFiles, *flags: str
) -> Iterator[tuple[RunningAgent, int, Process]]:
    """A server and an agent of one node."""
    with (
        running_server(tmp_path, [*services.server_flags(server), *flags], services) as (process, port),
        running_agent(
            tmp_path,
            f"localhost:{port}",
            agent,
            f"--instance-metadata-url={services.aws.imds_url}",
            f"--node-name={NODE}",
        ) as running,
    ):
        yield running, port, process


def _has_credentials(agent: RunningAgent) -> bool:
    return agent.ask(CREDENTIALS + ROLE).status == 200


@pytest.mark.parametrize(
    ("authority", "server", "agent"),
    [(MANIFEST, ANY, ANY), (MANIFEST, BOTH, CLIENT), (PLAIN, ANY, CLIENT), (PLAIN, BOTH, ANY), (PLAIN, [], [])],
    ids=["as the manifests", "any CA only", "any server", "any agent", "none at all"],
)
def test_pods_get_credentials_and_every_command_works(
    tmp_path: Path, services: Services, authority: Authority, server: list[object], agent: list[object]
) -> None:
    # dnsNames and ipAddresses as in the manifests; the agent's has a common name only.
    servers = authority.sign_for_usages(server, ["localhost", "kiam-server"], addresses=["127.0.0.1"])  # type: ignore[arg-type]  # OIDs
    agents = authority.sign_for_usages(agent, [])  # type: ignore[arg-type]  # OIDs
    server_files = write(tmp_path / "server-tls", servers, authority.pem)
    agent_files = write(tmp_path / "agent-tls", agents, authority.pem)
    with pair(tmp_path, services, server_files, agent_files) as (running, port, process):
        wait_until(lambda: _has_credentials(running), "credentials")
        running.process.wait_for_output("the server streams")
        assert running.ask("/health?deep=1").status == 200
        address = f"--server-address=localhost:{port}"
        for files in (agent_files, server_files):
            health = Process(kiam("health", address, *tls_flags(files), "--timeout=10s"), tmp_path / "health.log")
            # With the server's as well, as the chart's probes do.
            assert health.wait(60) == 0, health.output()
        checks = ("config", "check", "agent", address, "--host=127.0.0.1", *tls_flags(agent_files))
        checked = Process(kiam(*checks, f"--instance-metadata-url={services.aws.imds_url}"), tmp_path / "check.log")
        assert checked.wait(60) == 0, checked.output()
        assert "Traceback" not in process.output() + running.process.output()


def test_identity_in_a_certificate_for_any_usage_decides_over_nodes(tmp_path: Path, services: Services) -> None:
    server = write(tmp_path / "server-tls", MANIFEST.sign_for_usages(ANY), MANIFEST.pem)
    for name, welcome in ((NODE, True), ("node-2", False)):
        folder = tmp_path / name
        folder.mkdir()
        agent = write(folder / "agent-tls", MANIFEST.sign_for_usages(ANY, [name]), MANIFEST.pem)
        with pair(folder, services, server, agent, "--node-authorization") as (running, _, _):
            if welcome:
                running.process.wait_for_output("the server streams node node-1")
            else:
                running.process.wait_for_output("the certificate speaks for node-2, not for 'node-1'")
                assert not _has_credentials(running)


def test_rotation_between_any_and_proper_usages_in_both_directions(tmp_path: Path, services: Services) -> None:
    def issue(usages: list[object], name: str) -> tuple[bytes, bytes]:
        issued = PLAIN.sign_for_usages(usages, ["localhost", name])  # type: ignore[arg-type]  # OIDs
        return issued.cert, issued.key

    server = MountedSecret(tmp_path / "server-tls", *issue(list(BOTH), "server"), PLAIN.pem)
    agent = MountedSecret(tmp_path / "agent-tls", *issue(list(CLIENT), NODE), PLAIN.pem)
    with pair(tmp_path, services, server.files, agent.files) as (running, port, process):
        wait_until(lambda: _has_credentials(running), "credentials")
        for usages, agents in ((ANY, ANY), (BOTH, CLIENT)):
            server.swap(*issue(list(usages), "server"), PLAIN.pem)
            agent.swap(*issue(list(agents), NODE), PLAIN.pem)
            loaded = process.output().count("TLS certificate")
            wait_until(lambda before=loaded: process.output().count("TLS certificate") >= before, "the swap")  # type: ignore[misc]  # a lambda's default
            for files in (server.files, agent.files):
                wait_until(lambda files=files: _is_well(port, files, tmp_path), "a new connection")  # type: ignore[misc]  # a lambda's default
            assert _has_credentials(running)
        assert re.search("Traceback|no connection", process.output()) is None


def _is_well(port: int, files: TLSFiles, folder: Path) -> bool:
    flags = (f"--server-address=localhost:{port}", "--timeout=5s")
    with Process(kiam("health", *flags, *tls_flags(files)), folder / "health.log") as health:
        return health.wait(60) == 0


def _stub(channel: grpc.Channel) -> Any:
    made: Any = kiam_pb2_grpc.KiamServiceStub
    return made(channel)


def test_unix_socket_behind_the_port_serves_nobody_else(tmp_path: Path, services: Services) -> None:
    server = write(tmp_path / "server-tls", MANIFEST.sign_for_usages(ANY), MANIFEST.pem)
    with running_server(tmp_path, services.server_flags(server), services) as (process, _):
        listening = Path("/proc/net/unix").read_text()
        inodes = {
            Path(f"/proc/{process.pid}/fd/{fd.name}").readlink().name
            for fd in Path(f"/proc/{process.pid}/fd").iterdir()
        }
        paths = {
            words[-1]
            for words in map(str.split, listening.splitlines()[1:])
            if len(words) == 8 and f"socket:[{words[6]}]" in inodes
        }
        assert paths
        for path in paths:
            assert Path(path).parent.stat().st_mode & 0o077 == 0
            with grpc.insecure_channel(f"unix:{path}") as channel:
                stub = _stub(channel)
                with pytest.raises(grpc.RpcError) as error:
                    stub.GetPodRole(kiam_pb2.GetPodRoleRequest(ip="127.0.0.1"), timeout=5)
                assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED
                with pytest.raises(grpc.RpcError) as error:
                    next(stub.WatchNode(kiam_pb2.WatchNodeRequest(node_name=NODE), timeout=5))
                assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED
