from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from kiam.errors import UserError
from kiam.tls.certificates import Certificate, find_chain, read_certificates
from kiam.tls.inspection import inspect, load
from kiam.tls.issue import Issued
from kiam.tls.summary import Severity, Side
from tests.sandbox.certificates import Authority, days, write

AUTHORITY = Authority.make()
SERVER = AUTHORITY.sign("kiam-server", ["kiam-server", "127.0.0.1"])


def test_good_files_have_no_problems_and_show_their_names(tmp_path: Path) -> None:
    _, inspected = load(write(tmp_path, SERVER, AUTHORITY.pem), Side.SERVER)
    assert inspected.problems == ()
    assert inspected.verified
    assert inspected.certificate.names == "kiam-server, 127.0.0.1"
    assert inspected.certificate.subject == "'kiam-server'"
    assert inspected.certificate.not_after == SERVER.not_after.replace(microsecond=0)


@pytest.mark.parametrize(
    ("flag", "content", "says"),
    [
        ("cert", b"", "the file is empty"),
        ("cert", b"hello", "no PEM certificate"),
        ("cert", SERVER.key, "holds a private key"),
        ("cert", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "can't be parsed"),
        ("ca", b" \n", "the file is empty"),
        ("ca", b"junk", "no PEM certificate"),
        ("key", b"", "the file is empty"),
        ("key", SERVER.cert, "no PEM private key"),
        ("key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "can't be parsed"),
        ("key", AUTHORITY.issued.key, "is not the key of the certificate in"),
    ],
)
def test_unusable_file_is_named_with_its_flag(tmp_path: Path, flag: str, content: bytes, says: str) -> None:
    files = write(tmp_path, SERVER, AUTHORITY.pem)
    path: Path = getattr(files, flag)
    path.write_bytes(content)
    with pytest.raises(UserError) as raised:
        load(files, Side.SERVER)
    message = str(raised.value)
    assert message.startswith(f"--{flag}: {path}")
    assert says in message
    assert "\n" not in message


def test_missing_file_is_named_with_its_flag(tmp_path: Path) -> None:
    files = write(tmp_path, SERVER, AUTHORITY.pem)
    files.key.unlink()
    with pytest.raises(UserError, match=r"^--key: .*key.pem: No such file or directory"):
        load(files, Side.SERVER)


def test_encrypted_key_is_called_so(tmp_path: Path) -> None:
    files = write(tmp_path, SERVER, AUTHORITY.pem)
    key = load_pem_private_key(SERVER.key, None)
    files.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
    with pytest.raises(UserError, match="the key is encrypted"):
        load(files, Side.SERVER)


def test_mismatched_pair_says_which_certificate_and_until_when(tmp_path: Path) -> None:
    other = AUTHORITY.sign("kiam-server")
    files = write(tmp_path, Issued(SERVER.cert, other.key, SERVER.not_after), AUTHORITY.pem)
    with pytest.raises(UserError, match=rf"'kiam-server', until {SERVER.not_after:%Y-%m-%d %H:%M:%S}Z"):
        load(files, Side.SERVER)


@pytest.mark.parametrize(
    ("start", "end", "says"), [(-9, -1, "expired at"), (1, 9, "is not valid before")], ids=["expired", "not yet valid"]
)
def test_certificate_outside_its_validity_is_an_error_that_says_when(
    tmp_path: Path, start: int, end: int, says: str
) -> None:
    period = days(start, end)
    files = write(tmp_path, AUTHORITY.sign("kiam-server", period=period), AUTHORITY.pem)
    with pytest.raises(UserError) as raised:
        load(files, Side.SERVER)
    when = period.not_after if end < 0 else period.not_before
    assert f"{files.cert}: certificate 'kiam-server' {says} {when:%Y-%m-%d %H:%M:%SZ}" in str(raised.value)


def test_expired_authority_is_an_error_alone_and_a_warning_in_an_overlap_bundle(tmp_path: Path) -> None:
    expired = Authority.make("old", days(-20, -10))
    files = write(tmp_path, SERVER, expired.pem)
    inspected = inspect(files, files.read(), Side.SERVER)
    assert [problem.flag for problem in inspected.errors] == ["ca"]
    assert "certificate 'old' expired at" in str(inspected.errors[0])
    files.ca.write_bytes(expired.pem + AUTHORITY.pem)
    inspected = inspect(files, files.read(), Side.SERVER)
    assert [(problem.flag, problem.severity) for problem in inspected.problems] == [("ca", Severity.WARNING)]


def test_certificate_of_an_unknown_authority_is_a_warning_that_names_both(tmp_path: Path) -> None:
    stranger = Authority.make("stranger")
    files = write(tmp_path, SERVER, stranger.pem)
    (problem,) = inspect(files, files.read(), Side.SERVER).problems
    assert problem.severity is Severity.WARNING
    assert "was issued by 'test authority'" in problem.message
    assert f"holds only 'stranger' (until {stranger.issued.not_after:%Y-%m-%d %H:%M:%S}Z)" in problem.message


def test_authority_of_the_same_name_with_another_key_is_told_apart(tmp_path: Path) -> None:
    namesake = Authority.make("test authority")
    files = write(tmp_path, SERVER, namesake.pem)
    (problem,) = inspect(files, files.read(), Side.SERVER).problems
    assert "has an authority of that name, but with another key" in problem.message


def test_leaf_given_as_authority_is_called_so(tmp_path: Path) -> None:
    files = write(tmp_path, SERVER, SERVER.cert + AUTHORITY.pem)
    (problem,) = inspect(files, files.read(), Side.SERVER).problems
    assert "is not a certificate authority's" in problem.message


@pytest.mark.parametrize("side", list(Side))
@pytest.mark.parametrize("usages", [[ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE], []], ids=["any", "none"])
def test_any_usage_and_none_at_all_are_good(tmp_path: Path, side: Side, usages: list[x509.ObjectIdentifier]) -> None:
    files = write(tmp_path, AUTHORITY.sign_for_usages(usages), AUTHORITY.pem)
    assert load(files, side)[1].problems == ()


def test_usage_of_the_other_side_only_is_refused(tmp_path: Path) -> None:
    files = write(tmp_path, AUTHORITY.sign_for_usages([ExtendedKeyUsageOID.CLIENT_AUTH]), AUTHORITY.pem)
    load(files, Side.CLIENT)
    with pytest.raises(UserError, match="not for 'server auth'"):
        load(files, Side.SERVER)


def test_server_certificate_with_a_common_name_and_no_alternative_name_is_refused_and_an_agents_is_not(
    tmp_path: Path,
) -> None:
    files = write(tmp_path, AUTHORITY.sign("kiam-server", []), AUTHORITY.pem)
    with pytest.raises(UserError, match="no subject alternative names; agents compare those, and never the common"):
        load(files, Side.SERVER)
    assert inspect(files, files.read(), Side.CLIENT).problems == ()


def test_chain_through_an_intermediate_is_found_and_the_earliest_expiry_counts(tmp_path: Path) -> None:
    root_key, sub_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root = _sign("root", "root", root_key, root_key, ca=True, end=300)
    sub = _sign("sub", "root", sub_key, root_key, ca=True, end=5)
    leaf = _sign("leaf", "sub", ec.generate_private_key(ec.SECP256R1()), sub_key, ca=False, end=30)
    certificates = [read_certificates(one.public_bytes(Encoding.PEM))[0] for one in (leaf, sub, root)]
    assert find_chain(certificates[0], certificates[1:2], certificates[2:]) == tuple(certificates)
    assert find_chain(certificates[0], (), certificates[2:]) == ()


@pytest.mark.parametrize(
    ("host", "covered"),
    [
        ("kiam-server", True),
        ("KIAM-SERVER.", True),
        ("127.0.0.1", True),
        ("127.0.0.2", False),
        ("kiam-server.kube-system", False),
        ("a.example.com", True),
        ("a.b.example.com", False),
        ("example.com", False),
        ("2001:db8::1", True),
    ],
)
def test_hosts_are_matched_as_tls_clients_match_them(host: str, covered: bool) -> None:
    (certificate,) = read_certificates(
        AUTHORITY.sign("x", ["kiam-server", "127.0.0.1", "2001:db8::1", "*.example.com"]).cert
    )
    assert certificate.covers(host) is covered


@given(host=st.text(alphabet="ab.*-", max_size=12))
def test_a_wildcard_never_covers_more_than_one_label(host: str) -> None:
    certificate: Certificate = _WILDCARD
    if certificate.covers(host):
        assert host.rstrip(".").count(".") == 1


_WILDCARD = read_certificates(AUTHORITY.sign("x", ["*.ab"]).cert)[0]


def test_nothing_of_a_key_file_is_repeated_in_a_message(tmp_path: Path) -> None:
    files = write(tmp_path, SERVER, AUTHORITY.pem)
    files.key.write_bytes(b"-----BEGIN PRIVATE KEY-----\nU0VDUkVU\n-----END PRIVATE KEY-----\n")
    with pytest.raises(UserError) as raised:
        load(files, Side.SERVER)
    assert "U0VDUkVU" not in str(raised.value)
    assert "SECRET" not in str(raised.value)


def _sign(
    subject: str,
    issuer: str,
    key: ec.EllipticCurvePrivateKey,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    ca: bool,
    end: float,
    usages: list[x509.ObjectIdentifier] | None = None,
) -> x509.Certificate:
    period = days(0, end)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(period.not_before)
        .not_valid_after(period.not_after)
        .add_extension(x509.BasicConstraints(ca, None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    )
    if usages:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())
