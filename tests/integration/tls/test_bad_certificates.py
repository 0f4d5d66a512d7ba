"""Expired, for another host, of another authority: each is told apart, with the date, wherever a person looks."""

from __future__ import annotations

import socket
import ssl
import subprocess
import warnings
from contextlib import suppress
from pathlib import Path

import pytest

from kiam.tls import TLSFiles
from tests.integration.agent.conftest import running_agent
from tests.integration.tls.conftest import NAMES, kiam, running_server, secret, tls_flags
from tests.sandbox.certificates import Authority, days, grpc_server, write
from tests.sandbox.kubeapi import write_kubeconfig

AUTHORITY = Authority.make("kiam CA")
STRANGER = Authority.make("other CA")
AGENT = AUTHORITY.sign("kiam-agent")
BAD = {
    "expired": AUTHORITY.sign("kiam-server", NAMES, days(-9, -2)),
    "wrong host": AUTHORITY.sign("kiam-server", ["kiam-server", "10.0.0.1"]),
    "wrong authority": STRANGER.sign("kiam-server", NAMES),
}
WORDS = {
    "expired": "the certificate 'kiam-server' of server 'localhost' at 127.0.0.1:{port} expired at {until}",
    "wrong host": "valid until {until}, is for kiam-server, 10.0.0.1 and not for 'localhost'",
    "wrong authority": "valid until {until}, was issued by 'other CA' and is not signed by an authority in --ca",
}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(kiam(*arguments), capture_output=True, text=True, timeout=120, check=False)


def tls_versions(port: int, files: TLSFiles) -> set[str | None]:
    """The versions in which a handshake succeeds, each tried alone and with any cipher."""
    spoken = set()
    for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.load_cert_chain(files.cert, files.key)
        context.load_verify_locations(files.ca)
        context.set_alpn_protocols(["h2"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = context.maximum_version = version
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection, suppress(ssl.SSLError):
            spoken.add(context.wrap_socket(connection, server_hostname="localhost").version())
    return spoken


@pytest.fixture
def agent_files(tmp_path: Path) -> TLSFiles:
    return write(tmp_path / "agent", AGENT, AUTHORITY.pem)


@pytest.mark.parametrize("defect", BAD)
def test_health_check_and_log_say_which_certificate_is_wrong_and_until_when(
    tmp_path: Path, agent_files: TLSFiles, defect: str
) -> None:
    # A server of ours refuses to start with some of these; one that ran into its expiry shows it all the same.
    with grpc_server(BAD[defect], AUTHORITY.pem) as port:
        wanted = WORDS[defect].format(port=port, until=f"{BAD[defect].not_after:%Y-%m-%d %H:%M:%SZ}")
        address = f"--server-address=localhost:{port}"
        with running_agent(tmp_path, f"localhost:{port}", agent_files) as agent:
            health = run("health", address, *tls_flags(agent_files), "--timeout=5s")
            assert health.returncode == 1
            assert wanted in health.stderr
            checked = run("config", "check", "agent", "--output=json", address, *tls_flags(agent_files))
            assert checked.returncode == 1
            assert wanted in checked.stdout
            logged = agent.process.wait_for_output(r"no connection to the server at .*")
            assert wanted in logged.group(0)


def test_agents_certificate_of_another_authority_is_named(tmp_path: Path) -> None:
    server_secret = secret(tmp_path / "server", AUTHORITY, "kiam-server")
    stranger = STRANGER.sign("kiam-agent")
    files = write(tmp_path / "agent", stranger, AUTHORITY.pem)
    kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", "http://127.0.0.1:9")
    flags = [
        *tls_flags(server_secret.files),
        f"--kubeconfig={kubeconfig}",
        "--role-base-arn=arn:aws:iam::123456789012:role/",
    ]
    # The server starts without Kubernetes and STS.
    with running_server(tmp_path, flags) as (_, port):
        # While there is a server: it speaks TLS 1.2 and 1.3 and nothing older.
        good = write(tmp_path / "good", AGENT, AUTHORITY.pem)
        assert tls_versions(port, good) == {"TLSv1.2", "TLSv1.3"}
        health = run("health", f"--server-address=localhost:{port}", *tls_flags(files), "--timeout=10s")
    assert health.returncode == 1
    until = f"{stranger.not_after:%Y-%m-%d %H:%M:%SZ}"
    assert f"--cert {files.cert}: 'kiam-agent', valid until {until}, issued by 'other CA'" in health.stderr


@pytest.mark.parametrize("command", ["agent", "server"])
def test_own_expired_certificate_ends_the_start_with_one_line(tmp_path: Path, command: str) -> None:
    expired = AUTHORITY.sign("mine", NAMES, days(-9, -2))
    files = write(tmp_path, expired, AUTHORITY.pem)
    more = {
        "agent": ["--host=127.0.0.1"],
        "server": ["--role-base-arn=arn:aws:iam::123456789012:role/", "--kubeconfig=/dev/null"],
    }
    done = run(command, *tls_flags(files), *more[command])
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert f"--cert: {files.cert}: certificate 'mine' expired at {expired.not_after:%Y-%m-%d %H:%M:%SZ}" in line
