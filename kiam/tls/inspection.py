"""Whether three PEM files make a pair, a chain and a working end of mutual TLS.

This finds and words problems. The control itself, who is let in, is the TLS library's own verification.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from kiam.errors import ErrorKind, UserError, joined
from kiam.tls import TLSFiles, TLSMaterial
from kiam.tls.certificates import Certificate, find_chain, read_certificates
from kiam.tls.summary import Problem, Severity, Side, TLSSummary, format_time

SOON = timedelta(days=30)
"""So long before its end a certificate is worth a warning."""
SHORT_LIVED = timedelta(days=2, hours=1)


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
