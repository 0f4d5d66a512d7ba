"""What is in PEM files, and whether they make a pair, a chain and a working end of mutual TLS.

This finds and words problems. The control itself, who is let in, is the TLS library's own verification.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address, ip_address

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from kiam.errors import ErrorKind, UserError, joined
from kiam.tls import TLSFiles, TLSMaterial
from kiam.tls.summary import Problem, Severity, Side, TLSSummary, format_time

SOON = timedelta(days=30)
"""So long before its end a certificate is worth a warning."""
SHORT_LIVED = timedelta(days=2, hours=1)


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


@dataclass(frozen=True, slots=True)
class InspectedTLS:
    """What the three files hold."""

    certificate: Certificate
    intermediates: tuple[Certificate, ...]
    authorities: tuple[Certificate, ...]
    problems: tuple[Problem, ...]

    @property
    def errors(self) -> tuple[Problem, ...]:
        """The problems with which no handshake can succeed."""
        return tuple(problem for problem in self.problems if problem.severity is Severity.ERROR)

    @property
    def expiry(self) -> datetime:
        """When the first certificate of the chain up to the authority expires; our own one's, if it has no chain."""
        chain = find_chain(self.certificate, self.intermediates, self.authorities)
        return min(link.not_after for link in chain or (self.certificate,))

    @property
    def warn_after(self) -> datetime:
        """From when on whoever renews it should have done so: 30 days before the end. What lives for two days at most
        is renewed by a program, and should have been when a third of its life is left, as cert-manager does.
        """
        chain = find_chain(self.certificate, self.intermediates, self.authorities) or (self.certificate,)
        return min(link.not_after - _warned_before(link) for link in chain)

    def expires_soon(self, now: datetime) -> bool:
        """Whether that moment is past."""
        return now > self.warn_after

    @property
    def verified(self) -> bool:
        """Whether our own certificate is good in the eyes of a peer that has the same ``--ca``."""
        return not self.problems


def _warned_before(certificate: Certificate) -> timedelta:
    life = certificate.not_after - certificate.not_before
    return life / 3 if life <= SHORT_LIVED else SOON


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


def inspect(files: TLSFiles, material: TLSMaterial, side: Side, now: datetime | None = None) -> InspectedTLS:
    """Look into what was read from the files.

    Errors among the problems are what makes every handshake fail. Our own certificate not being signed by ``--ca`` is a
    warning: ``--ca`` is for the peer's certificate, and a set-up with one authority for each side is legitimate.

    Raises UserError when a file holds nothing that can be used, or the key is not the certificate's.
    """
    now = now or datetime.now(UTC)
    certificate, *intermediates = _read_flag("cert", files, material.cert)
    authorities = _read_flag("ca", files, material.ca)
    _require_pair(files, material.key, certificate)
    problems = [
        *_validity_problems("cert", str(files.cert), certificate, now),
        *_usage_problems(str(files.cert), certificate, side),
        *_authority_problems(str(files.ca), authorities, now),
    ]
    if side is Side.SERVER and not (certificate.dns_names or certificate.ip_addresses):
        problems.append(
            Problem(
                "cert",
                Severity.ERROR,
                f"{files.cert}: certificate {certificate.subject} has no subject alternative names; agents compare "
                "those, and never the common name, with the host of their --server-address",
                "issue it with the server's DNS names",
            )
        )
    if not find_chain(certificate, intermediates, authorities):
        problems.append(
            Problem(
                "cert",
                Severity.WARNING,
                _not_signed(str(files.cert), certificate, str(files.ca), authorities),
                f"issue it anew from an authority in {files.ca}, or add its issuer there",
            )
        )
    return InspectedTLS(certificate, tuple(intermediates), tuple(authorities), tuple(problems))


def load(files: TLSFiles, side: Side, now: datetime | None = None) -> tuple[TLSMaterial, InspectedTLS]:
    """Read and inspect the files. Raises UserError, in one line, for anything no handshake can succeed with."""
    material = files.read()
    return material, _inspect_usable(files, material, side, now)


def load_summary(files: TLSFiles, side: Side, now: datetime) -> tuple[TLSMaterial, TLSSummary]:
    """As load, with what a running process keeps."""
    material = files.read()
    return material, summarize(files, material, side, now)


def summarize(files: TLSFiles, material: TLSMaterial, side: Side, now: datetime) -> TLSSummary:
    """What a running process keeps of what was read from the files. Raises UserError as load."""
    inspected = _inspect_usable(files, material, side, now)
    own = inspected.certificate
    return TLSSummary(
        subject=own.subject,
        names=own.names,
        not_before=own.not_before,
        not_after=own.not_after,
        expiry=inspected.expiry,
        warn_after=inspected.warn_after,
        problems=inspected.problems,
    )


def _inspect_usable(files: TLSFiles, material: TLSMaterial, side: Side, now: datetime | None) -> InspectedTLS:
    inspected = inspect(files, material, side, now)
    if inspected.errors:
        raise joined([problem.as_error() for problem in inspected.errors])
    return inspected


def _not_signed(path: str, certificate: Certificate, ca_path: str, authorities: Iterable[Certificate]) -> str:
    """Say that a certificate has no chain to the authorities, and how the two differ."""
    authorities = tuple(authorities)
    listed = ", ".join(f"{authority.subject} (until {format_time(authority.not_after)})" for authority in authorities)
    same_name = any(authority.subject == certificate.issuer for authority in authorities)
    reason = (
        f"{ca_path} has an authority of that name, but with another key"
        if same_name
        else f"{ca_path} holds only {listed}"
    )
    return (
        f"{path}: certificate {certificate.subject} (until {format_time(certificate.not_after)}) was issued by "
        f"{certificate.issuer}, but {reason}"
    )


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


def _read_flag(flag: str, files: TLSFiles, pem: bytes) -> tuple[Certificate, ...]:
    try:
        return read_certificates(pem)
    except ValueError as error:
        raise UserError(f"--{flag}: {getattr(files, flag)}: {error}", kind=ErrorKind.CERTIFICATE) from error


def _require_pair(files: TLSFiles, pem: bytes, certificate: Certificate) -> None:
    if not pem.strip():
        raise UserError(f"--key: {files.key}: the file is empty")
    if b"PRIVATE KEY-----" not in pem:
        raise UserError(f"--key: {files.key}: holds no PEM private key, where '-----BEGIN PRIVATE KEY-----' is wanted")
    try:
        key = load_pem_private_key(pem, password=None)
    except TypeError as error:
        raise UserError(
            f"--key: {files.key}: the key is encrypted, and nobody is there to type its password",
            "write it without one, as with 'openssl pkey -in FILE -out FILE'",
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        # The library's own text is left out: nothing that was read from a key file goes into a message.
        raise UserError(f"--key: {files.key}: the private key in it can't be parsed") from error
    encoding = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*encoding) != certificate.parsed.public_key().public_bytes(*encoding):
        raise UserError(
            f"--key: {files.key} is not the key of the certificate in {files.cert} ({certificate.subject}, until "
            f"{format_time(certificate.not_after)})",
            "give the key and the certificate that were made together",
        )


def _validity_problems(flag: str, path: str, certificate: Certificate, now: datetime) -> list[Problem]:
    if now > certificate.not_after:
        what, fix = f"expired at {format_time(certificate.not_after)}", "issue a new one"
    elif now < certificate.not_before:
        what = f"is not valid before {format_time(certificate.not_before)}"
        fix = "check this machine's clock, or issue it anew"
    else:
        return []
    return [Problem(flag, Severity.ERROR, f"{path}: certificate {certificate.subject} {what}", fix)]


USAGES = "issue it with the usages 'server auth' and 'client auth'"
"""What to do about a certificate that usage_problem complains of."""


def usage_problem(certificate: Certificate, side: Side) -> str:
    """Why a certificate is refused for its extended key usage (RFC 5280, 4.2.1.12); empty if it isn't."""
    wanted = ExtendedKeyUsageOID.SERVER_AUTH if side is Side.SERVER else ExtendedKeyUsageOID.CLIENT_AUTH
    if certificate.usages is None or wanted in certificate.usages or certificate.is_for_any_usage:
        return ""
    return f"is not for '{side} auth' by its extended key usage, and is refused"


def _usage_problems(path: str, certificate: Certificate, side: Side) -> list[Problem]:
    problem = usage_problem(certificate, side)
    if not problem:
        return []
    until = format_time(certificate.not_after)
    what = f"{path}: certificate {certificate.subject} (until {until}) {problem}"
    return [Problem("cert", Severity.ERROR, what, USAGES)]


def _authority_problems(path: str, authorities: Sequence[Certificate], now: datetime) -> list[Problem]:
    problems = []
    usable = [authority for authority in authorities if authority.valid_at(now)]
    # An overlap bundle may well still hold the authority that is on its way out.
    severity = Severity.WARNING if usable else Severity.ERROR
    for authority in authorities:
        problems += [replace(found, severity=severity) for found in _validity_problems("ca", path, authority, now)]
        if not authority.is_ca:
            problems.append(
                Problem(
                    "ca",
                    Severity.WARNING,
                    f"{path}: certificate {authority.subject} is not a certificate authority's (no CA in its basic "
                    "constraints), so nothing it signed is trusted",
                    "give the authority's own certificate",
                )
            )
    return problems


def _name(name: x509.Name) -> str:
    """The common name where there is one, else the whole name, quoted."""
    common = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    text = str(common[0].value) if common else name.rfc4514_string()
    return f"'{text}'"
