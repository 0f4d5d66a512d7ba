"""The diagnosis against real gRPC servers, whose TLS library is not the one that diagnoses."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from kiam.errors import UserError
from kiam.tls import split_address
from kiam.tls.diagnosis import diagnose, explain_failure, needs_lenient_tls
from kiam.tls.issue import Issued
from tests.sandbox.certificates import Authority, days, grpc_server, write

AUTHORITY = Authority.make()
SERVER = AUTHORITY.sign("kiam-server", ["localhost", "kiam-server"])
AGENT = AUTHORITY.sign("agent", ["agent"])


def serving(certificate: Issued, client_ca: bytes = AUTHORITY.pem) -> AbstractContextManager[int]:
    return grpc_server(certificate, client_ca)


def explain(directory: Path, port: int, agent: Issued = AGENT, ca: bytes = AUTHORITY.pem) -> str:
    return str(explain_failure(f"localhost:{port}", write(directory, agent, ca), timeout=20) or "")


def when(issued: Issued) -> str:
    return f"{issued.not_after:%Y-%m-%d %H:%M:%SZ}"


def test_a_good_server_has_no_problem(tmp_path: Path) -> None:
    with serving(SERVER) as port:
        (found,) = [
            one
            for one in diagnose(f"localhost:{port}", write(tmp_path, AGENT, AUTHORITY.pem), 20)
            if one.endpoint == f"127.0.0.1:{port}"
        ]
    assert found.problem is None
    assert found.protocol in ("TLSv1.2", "TLSv1.3")
    assert found.certificate is not None
    assert found.certificate.names == "localhost, kiam-server"


def test_nothing_is_wrong_when_one_of_the_addresses_works(tmp_path: Path) -> None:
    with serving(SERVER) as port:
        assert explain(tmp_path, port) == ""


def test_expired_server_certificate_says_until_when(tmp_path: Path) -> None:
    expired = AUTHORITY.sign("kiam-server", period=days(-9, -2))
    with serving(expired) as port:
        problem = explain(tmp_path, port)
    assert "the certificate 'kiam-server' of server 'localhost'" in problem
    assert f"expired at {when(expired)}" in problem


def test_server_certificate_of_the_future_says_from_when(tmp_path: Path) -> None:
    future = AUTHORITY.sign("kiam-server", period=days(2, 9))
    with serving(future) as port:
        assert "is not valid before" in explain(tmp_path, port)


def test_wrong_host_lists_the_names_it_is_for(tmp_path: Path) -> None:
    wrong = AUTHORITY.sign("kiam-server", ["kiam-server", "kiam-server.kube-system", "10.0.0.1"])
    with serving(wrong) as port:
        problem = explain(tmp_path, port)
    assert "is for kiam-server, kiam-server.kube-system, 10.0.0.1 and not for 'localhost'" in problem
    assert f"valid until {when(wrong)}" in problem


def test_common_name_is_no_host_name_and_the_reason_says_so(tmp_path: Path) -> None:
    with serving(AUTHORITY.sign("localhost", [])) as port:
        problem = explain(tmp_path, port)
    assert "has no subject alternative names; those are compared with 'localhost', and never the common name" in problem


def test_wrong_authority_names_both_and_their_dates(tmp_path: Path) -> None:
    stranger = Authority.make("stranger")
    wrong = stranger.sign("kiam-server")
    with serving(wrong) as port:
        problem = explain(tmp_path, port)
    assert "was issued by 'stranger' and is not signed by an authority in --ca" in problem
    assert f"valid until {when(wrong)}" in problem
    assert f"('test authority' until {when(AUTHORITY.issued)})" in problem


def test_server_with_a_certificate_for_any_usage_is_well_but_needs_another_tls_than_grpcs(tmp_path: Path) -> None:
    """What conventional kiam's documentation has cert-manager issue."""
    files = write(tmp_path / "own", AGENT, AUTHORITY.pem)
    for usages, lenient in (([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE], True), ([], False)):
        with serving(AUTHORITY.sign_for_usages(usages)) as port:
            address = f"localhost:{port}"
            assert explain_failure(address, files) is None
            assert needs_lenient_tls(address, files) is lenient
    for bad in (
        AUTHORITY.sign_for_usages([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE], ["elsewhere"]),
        AUTHORITY.sign_for_usages([ExtendedKeyUsageOID.CLIENT_AUTH]),
    ):
        with serving(bad) as port:
            assert not needs_lenient_tls(f"localhost:{port}", files)


def test_expired_authority_of_the_server_is_named(tmp_path: Path) -> None:
    authority = Authority.make("old authority")
    expired = authority.as_of(days(-20, -1))
    with serving(authority.sign("kiam-server")) as port:
        problem = explain(tmp_path, port, ca=expired.pem + AUTHORITY.pem)
    assert "was issued by 'old authority', whose certificate in --ca" in problem
    assert f"expired at {when(expired.issued)}" in problem


def test_server_that_refuses_our_certificate_names_ours(tmp_path: Path) -> None:
    stranger = Authority.make("stranger")
    with serving(SERVER, client_ca=stranger.pem) as port:
        problem = explain(tmp_path, port)
    assert "closed the connection on seeing our certificate, which is" in problem
    assert f"--cert {tmp_path / 'cert.pem'}: 'agent', valid until {when(AGENT)}, issued by 'test authority'" in problem


def test_own_expired_certificate_is_said_without_asking_the_server(tmp_path: Path) -> None:
    expired = AUTHORITY.sign("agent", period=days(-9, -2))
    assert f"certificate 'agent' expired at {when(expired)}" in explain(tmp_path, 1, expired)


def test_port_that_nobody_serves_is_said(tmp_path: Path) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        assert "can't be connected to: Connection refused" in explain(tmp_path, reserved.getsockname()[1])


def test_server_that_speaks_no_tls_is_said(tmp_path: Path) -> None:
    with plain_server(lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as port:
        assert "check the port of --server-address" in explain(tmp_path, port)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_server_that_speaks_only_tls_1_1_is_refused(tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    files = write(tmp_path / "server", SERVER, AUTHORITY.pem)
    context.load_cert_chain(files.cert, files.key)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1

    def greet(connection: socket.socket) -> None:
        with pytest.raises(OSError):
            context.wrap_socket(connection, server_side=True)

    with plain_server(greet) as port:
        assert "doesn't complete a TLS 1.2 or 1.3 handshake" in explain(tmp_path, port)


def test_host_that_does_not_resolve_is_named(tmp_path: Path) -> None:
    files = write(tmp_path, AGENT, AUTHORITY.pem)
    assert "--server-address: 'nowhere.invalid' can't be resolved" in str(explain_failure("nowhere.invalid:443", files))


@pytest.mark.parametrize(
    ("address", "split"),
    [
        ("kiam-server:443", ("kiam-server", 443)),
        ("dns:///kiam-server:443", ("kiam-server", 443)),
        ("[::1]:9610", ("::1", 9610)),
    ],
)
def test_addresses_are_split_into_host_and_port(address: str, split: tuple[str, int]) -> None:
    assert split_address(address) == split


@pytest.mark.parametrize("address", ["", "kiam-server", "kiam-server:", ":443", "kiam-server:http", "x:0", "x:65536"])
def test_address_without_host_or_port_names_the_flag(address: str) -> None:
    with pytest.raises(UserError, match=r"^--server-address: "):
        split_address(address)


@contextmanager
def plain_server(talk: object) -> Iterator[int]:
    """Accepts connections one after another and hands them to ``talk``."""
    assert callable(talk)
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def accept_all() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    talk(connection)

        accepting = threading.Thread(target=accept_all, daemon=True)
        accepting.start()
        try:
            yield listening.getsockname()[1]
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            accepting.join()


def test_alert_of_a_server_that_sends_one_is_repeated(tmp_path: Path) -> None:
    """As conventional kiam's Go does."""
    files = write(tmp_path / "server", SERVER, Authority.make("stranger").pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.cert, files.key)
    context.load_verify_locations(files.ca)
    context.verify_mode = ssl.CERT_REQUIRED

    def greet(connection: socket.socket) -> None:
        with pytest.raises(ssl.SSLError):
            context.wrap_socket(connection, server_side=True)

    with plain_server(greet) as port:
        assert "refused our certificate (unknown ca), which is --cert" in explain(tmp_path, port)
