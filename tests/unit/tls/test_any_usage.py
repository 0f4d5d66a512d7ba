"""Certificates for 'any' usage: taken, and nothing else that OpenSSL refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import SSL

from kiam.tls.anyusage import make_context, peer_certificate
from kiam.tls.inspection import load
from kiam.tls.relay import endpoint
from kiam.tls.summary import Side
from tests.sandbox.certificates import Authority, days, key_usage, write

ANY = [ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]
CLIENT, SERVER = [ExtendedKeyUsageOID.CLIENT_AUTH], [ExtendedKeyUsageOID.SERVER_AUTH]
EMAIL = [ExtendedKeyUsageOID.EMAIL_PROTECTION]
BOTH = [*CLIENT, *SERVER]


def _shake(server: SSL.Connection, client: SSL.Connection) -> None:
    """A handshake in memory, until both are done. Raises SSL.Error of the side that refuses."""
    done = set()
    for _ in range(10):
        for number, (end, other) in enumerate(((client, server), (server, client))):
            try:
                end.do_handshake()
                done.add(number)
            except SSL.WantReadError:
                pass
            while True:
                try:
                    other.bio_write(end.bio_read(65536))
                except SSL.WantReadError:
                    break
        if len(done) == 2:
            # TLS 1.3: the client is done before the server has judged it.
            return
    raise AssertionError("the handshake never ended")


class Ends:
    """A server's and an agent's end, with certificates of an authority."""

    def __init__(self, folder: Path, server: object, agent: object, server_ca: bytes, agent_ca: bytes) -> None:
        self.files = {
            Side.SERVER: write(folder / "server", server, server_ca),  # type: ignore[arg-type]  # Issued
            Side.CLIENT: write(folder / "agent", agent, agent_ca),  # type: ignore[arg-type]  # Issued
        }

    def connect(self) -> tuple[SSL.Connection, SSL.Connection]:
        server_context = make_context(self.files[Side.SERVER].read(), Side.CLIENT)
        client_context = make_context(self.files[Side.CLIENT].read(), Side.SERVER)
        server = endpoint(server_context, server=True)
        client = endpoint(client_context, server=False, host="localhost")
        _shake(server, client)
        return server, client


PLAIN = Authority.make()


@pytest.mark.parametrize("authority", [Authority.for_any_usage(), PLAIN], ids=["any CA", "plain CA"])
@pytest.mark.parametrize("server", [ANY, BOTH, []], ids=["server any", "server both", "server none"])
@pytest.mark.parametrize("agent", [ANY, CLIENT, []], ids=["agent any", "agent client", "agent none"])
def test_any_usage_is_taken_on_either_side_and_mixed(
    tmp_path: Path,
    authority: Authority,
    server: list[x509.ObjectIdentifier],
    agent: list[x509.ObjectIdentifier],
) -> None:
    issued = authority.sign_for_usages(server, addresses=["127.0.0.1"]), authority.sign_for_usages(agent, ["node-1"])
    ends = Ends(tmp_path, *issued, authority.pem, authority.pem)
    for side, files in ends.files.items():
        load(files, side)
    server_end, client_end = ends.connect()
    assert peer_certificate(server_end).dns_names == ("node-1",)
    assert peer_certificate(client_end).covers("127.0.0.1")
    assert client_end.get_alpn_proto_negotiated() == b"h2"


BAD = {
    "for mail only": PLAIN.sign_for_usages(EMAIL),
    "expired": PLAIN.sign_for_usages(ANY, period=days(-9, -2)),
    "not valid yet": PLAIN.sign_for_usages(ANY, period=days(2, 9)),
    "of another authority": Authority.make("stranger").sign_for_usages(ANY),
    "of a namesake": Authority.make().sign_for_usages(ANY),
    "any, but for signing certificates only": PLAIN.sign_for_usages(ANY, key_usage=key_usage(key_cert_sign=True)),
    "any, but for encipherment only": PLAIN.sign_for_usages(ANY, key_usage=key_usage(data_encipherment=True)),
    "signed by a certificate that is no authority": Authority(PLAIN.sign_for_usages(ANY)).sign_for_usages(ANY),
}


@pytest.mark.parametrize("defect", [*BAD, "server auth only"])
def test_agent_with_anything_else_wrong_is_refused(tmp_path: Path, defect: str) -> None:
    agent = PLAIN.sign_for_usages(SERVER) if defect == "server auth only" else BAD[defect]
    if defect.startswith("signed by"):
        middle = PLAIN.sign_for_usages(ANY)
        signed = Authority(middle).sign_for_usages(ANY)
        agent = type(signed)(signed.cert + middle.cert, signed.key, signed.not_after)
    ends = Ends(tmp_path, PLAIN.sign_for_usages(BOTH), agent, PLAIN.pem, PLAIN.pem)
    with pytest.raises(SSL.Error, match=r"certificate|unknown ca"):
        ends.connect()


@pytest.mark.parametrize("defect", [*BAD, "client auth only"])
def test_server_with_anything_else_wrong_is_refused(tmp_path: Path, defect: str) -> None:
    bad = PLAIN.sign_for_usages(CLIENT) if defect == "client auth only" else BAD[defect]
    with pytest.raises(SSL.Error, match=r"certificate|unknown ca"):
        Ends(tmp_path, bad, PLAIN.sign_for_usages(CLIENT), PLAIN.pem, PLAIN.pem).connect()


def test_rsa_keys_of_1024_bits_are_taken_as_conventional_kiam_takes_them(tmp_path: Path) -> None:
    issued = PLAIN.sign_for_usages(BOTH, key=rsa.generate_private_key(65537, 1024))
    Ends(tmp_path, issued, issued, PLAIN.pem, PLAIN.pem).connect()


def test_client_without_a_certificate_is_refused(tmp_path: Path) -> None:
    files = write(tmp_path, PLAIN.sign_for_usages(BOTH), PLAIN.pem)
    server = endpoint(make_context(files.read(), Side.CLIENT), server=True)
    bare = SSL.Context(SSL.TLS_CLIENT_METHOD)
    with pytest.raises(SSL.Error, match="peer did not return a certificate"):
        _shake(server, endpoint(bare, server=False))
