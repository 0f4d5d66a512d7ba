"""Making an authority and certificates, for ``kiam certs`` and the tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from kiam.tls.certificates import Certificate

CLOCK_SKEW = timedelta(minutes=5)
"""Backdating, so that a node whose clock is a little behind accepts a certificate made this moment."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate and its private key, as PEM."""

    cert: bytes
    key: bytes = field(repr=False)
    not_after: datetime


@dataclass(frozen=True, slots=True)
class Period:
    """When a certificate is to be valid."""

    not_before: datetime
    not_after: datetime

    @classmethod
    def lasting(cls, duration: timedelta) -> Period:
        """From a little before now, for so long from now."""
        now = datetime.now(UTC)
        return cls(now - CLOCK_SKEW, now + duration)


def make_authority(common_name: str, period: Period) -> Issued:
    """A self-signed authority (RFC 5280, 4.2.1.9) that signs end certificates only."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(common_name)
    certificate = (
        _builder(name, name, key, period)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _issued(certificate, key)


def make_certificate(
    common_name: str, names: Sequence[str], period: Period, authority: bytes, authority_key: bytes
) -> Issued:
    """A certificate for DNS names and IP addresses, good as client's and as server's.

    ``authority`` and ``authority_key`` are PEM. It never outlives the authority. Raises ValueError when the authority
    isn't one or its key isn't its own.
    """
    issuer = x509.load_pem_x509_certificate(authority)
    signing_key = load_pem_private_key(authority_key, password=None)
    if not isinstance(signing_key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise ValueError("the authority's key is neither an RSA nor an elliptic curve key")
    public_key = signing_key.public_key()
    if public_key != issuer.public_key():
        raise ValueError("the authority's key is not the key of the authority's certificate")
    if issuer.not_valid_after_utc < datetime.now(UTC):
        raise ValueError(f"the authority expired at {issuer.not_valid_after_utc:%Y-%m-%d %H:%M:%SZ}; make a new one")
    period = Period(period.not_before, min(period.not_after, issuer.not_valid_after_utc))
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        _builder(_name(common_name), issuer.subject, key, period)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(public_key),
            critical=False,
        )
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), False)
    return _issued(builder.sign(signing_key, hashes.SHA256()), key)


def make_successor(old: Certificate, period: Period, authority: bytes, authority_key: bytes) -> Issued:
    """A certificate with the names of an old one, and a key of its own. Raises as :func:`make_certificate`."""
    names = [*old.dns_names, *map(str, old.ip_addresses)]
    return make_certificate(old.subject.strip("'"), names, period, authority, authority_key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, period: Period
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(period.not_before)
        .not_valid_after(period.not_after)
    )


def _issued(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Issued:
    return Issued(
        cert=certificate.public_bytes(Encoding.PEM),
        key=key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        not_after=certificate.not_valid_after_utc,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _key_usage(authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )
