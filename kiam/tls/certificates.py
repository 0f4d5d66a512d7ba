"""What is in certificates, and how they hang together (:mod:`kiam.tls.inspection` judges them)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from ipaddress import IPv4Address, IPv6Address, ip_address

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from kiam.tls.summary import format_time


@dataclass(frozen=True, slots=True)
class Certificate:
    """The fields of an X.509 certificate (RFC 5280) that decide over a connection."""

    subject: str
    issuer: str
    dns_names: tuple[str, ...]
    ip_addresses: tuple[IPv4Address | IPv6Address, ...]
    not_before: datetime
    not_after: datetime
    is_ca: bool
    usages: frozenset[x509.ObjectIdentifier] | None
    """Extended key usages; None: the certificate doesn't limit them."""
    parsed: x509.Certificate

    @property
    def is_for_any_usage(self) -> bool:
        """Whether its extended key usages hold anyExtendedKeyUsage."""
        return self.usages is not None and ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE in self.usages

    @property
    def names(self) -> str:
        """The subject alternative names, for people."""
        return ", ".join([*self.dns_names, *map(str, self.ip_addresses)]) or "no names"

    @property
    def lifetime(self) -> str:
        """From when until when it is valid, for people."""
        return f"valid from {format_time(self.not_before)} until {format_time(self.not_after)}"

    def valid_at(self, moment: datetime) -> bool:
        """Whether the moment is within the validity period, both ends included (RFC 5280, 4.1.2.5)."""
        return self.not_before <= moment <= self.not_after

    def covers(self, host: str) -> bool:
        """Whether a client that connects to this host name or address accepts the certificate (RFC 6125, 6.4)."""
        try:
            return ip_address(host) in self.ip_addresses
        except ValueError:
            pass
        wanted = host.rstrip(".").lower()
        for pattern in (name.lower() for name in self.dns_names):
            if pattern == wanted:
                return True
            # A wildcard stands for exactly the leftmost label.
            if pattern.startswith("*.") and wanted.partition(".")[2] == pattern[2:]:
                return True
        return False

    def issued_by(self, issuer: Certificate) -> bool:
        """Whether the issuer's key signed this certificate and the names agree."""
        try:
            self.parsed.verify_directly_issued_by(issuer.parsed)
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
            return False
        return True


def describe(certificate: x509.Certificate) -> Certificate:
    """Take the fields out of a parsed certificate."""
    dns_names: tuple[str, ...] = ()
    addresses: tuple[IPv4Address | IPv6Address, ...] = ()
    usages: frozenset[x509.ObjectIdentifier] | None = None
    is_ca = False
    extensions = certificate.extensions
    for extension in extensions:
        value = extension.value
        if isinstance(value, x509.SubjectAlternativeName):
            dns_names = tuple(value.get_values_for_type(x509.DNSName))
            addresses = tuple(
                address
                for address in value.get_values_for_type(x509.IPAddress)
                if isinstance(address, IPv4Address | IPv6Address)
            )
        elif isinstance(value, x509.ExtendedKeyUsage):
            usages = frozenset(value)
        elif isinstance(value, x509.BasicConstraints):
            is_ca = value.ca
    return Certificate(
        subject=_name(certificate.subject),
        issuer=_name(certificate.issuer),
        dns_names=dns_names,
        ip_addresses=addresses,
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        is_ca=is_ca,
        usages=usages,
        parsed=certificate,
    )


def split_pem(pem: bytes) -> list[x509.Certificate]:
    """The certificates of a PEM file that was found good before. Raises ValueError."""
    return x509.load_pem_x509_certificates(pem)


def read_certificates(pem: bytes) -> tuple[Certificate, ...]:
    """All certificates of a PEM file. Raises ValueError with a few words on what is wrong."""
    if not pem.strip():
        raise ValueError("the file is empty")
    if b"-----BEGIN CERTIFICATE-----" not in pem:
        found = "a private key" if b"PRIVATE KEY-----" in pem else "no PEM certificate"
        raise ValueError(f"holds {found}, where '-----BEGIN CERTIFICATE-----' is wanted")
    try:
        return tuple(describe(certificate) for certificate in x509.load_pem_x509_certificates(pem))
    except ValueError as error:
        raise ValueError(f"a certificate in it can't be parsed: {error}") from error


def find_chain(
    certificate: Certificate, intermediates: Sequence[Certificate], authorities: Sequence[Certificate]
) -> tuple[Certificate, ...]:
    """The certificates from this one up to one of the authorities; empty if there is no such chain."""
    return _chain((certificate,), tuple(intermediates), tuple(authorities))


def _chain(
    so_far: tuple[Certificate, ...], intermediates: tuple[Certificate, ...], authorities: tuple[Certificate, ...]
) -> tuple[Certificate, ...]:
    last = so_far[-1]
    for authority in authorities:
        if authority.parsed == last.parsed:
            return so_far
        if last.issued_by(authority):
            return (*so_far, authority)
    for position, intermediate in enumerate(intermediates):
        if last.issued_by(intermediate):
            left = intermediates[:position] + intermediates[position + 1 :]
            if chain := _chain((*so_far, intermediate), left, authorities):
                return chain
    return ()


def _name(name: x509.Name) -> str:
    """The common name where there is one, else the whole name, quoted."""
    common = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    text = str(common[0].value) if common else name.rfc4514_string()
    return f"'{text}'"
