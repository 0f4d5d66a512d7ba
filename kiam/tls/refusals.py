"""What to say of a handshake that failed: which certificate is wrong, until when it was right, and what to do."""

from __future__ import annotations

import enum
import ssl
from datetime import UTC, datetime

from kiam.errors import ErrorKind, UserError
from kiam.tls import TLSFiles
from kiam.tls.certificates import Certificate
from kiam.tls.inspection import USAGES, InspectedTLS, usage_problem
from kiam.tls.summary import Side, format_time


class VerifyCode(enum.IntEnum):
    """Why OpenSSL refuses a certificate: X509_V_ERR_… of x509_vfy.h, those that are told apart here."""

    UNABLE_TO_GET_ISSUER_CERT = 2
    CERT_SIGNATURE_FAILURE = 7
    DEPTH_ZERO_SELF_SIGNED_CERT = 18
    SELF_SIGNED_CERT_IN_CHAIN = 19
    UNABLE_TO_GET_ISSUER_CERT_LOCALLY = 20
    UNABLE_TO_VERIFY_LEAF_SIGNATURE = 21
    INVALID_PURPOSE = 26


_NO_CHAIN = frozenset(VerifyCode) - {VerifyCode.INVALID_PURPOSE}
"""There is no chain to a trusted authority."""


class Refusals:
    """Words for what went wrong between us, with our own files, and a server; ``server`` says which, for people."""

    def __init__(self, files: TLSFiles, own: InspectedTLS, host: str) -> None:
        """``own``: what is in our files. ``host``: the server's, which its certificate has to name."""
        self._files = files
        self._own = own
        self._host = host

    def untrusted(self, certificate: Certificate, server: str, refusal: ssl.SSLCertVerificationError) -> UserError:
        """Of the certificate that the server has shown and that was refused."""
        now = datetime.now(UTC)
        what = f"the certificate {certificate.subject} of {server}"
        until = f"valid until {format_time(certificate.not_after)}"
        if now > certificate.not_after:
            return wrong(f"{what} expired at {format_time(certificate.not_after)}", "issue a new one for the server")
        if now < certificate.not_before:
            since = format_time(certificate.not_before)
            return wrong(f"{what} is not valid before {since}", "check the clocks of both machines")
        if usage := usage_problem(certificate, Side.SERVER):
            return wrong(f"{what}, {until}, {usage}", USAGES)
        if refusal.verify_code in _NO_CHAIN:
            listed = ", ".join(
                f"{authority.subject} until {format_time(authority.not_after)}" for authority in self._own.authorities
            )
            return wrong(
                f"{what}, {until}, was issued by {certificate.issuer} and is not signed by an authority in "
                f"--ca {self._files.ca} ({listed})",
                "put the server's authority there, or issue its certificate anew",
            )
        if not (certificate.dns_names or certificate.ip_addresses):
            return wrong(
                f"{what}, {until}, has no subject alternative names; those are compared with '{self._host}', "
                "and never the common name",
                "issue it with the server's DNS names",
            )
        if not certificate.covers(self._host):
            return wrong(
                f"{what}, {until}, is for {certificate.names} and not for '{self._host}'",
                "use one of these names in --server-address, or issue it with that name",
            )
        expired = [authority for authority in self._own.authorities if now > authority.not_after]
        if expired and certificate.issuer in [authority.subject for authority in expired]:
            return wrong(
                f"{what} was issued by {certificate.issuer}, whose certificate in --ca {self._files.ca} expired at "
                f"{format_time(expired[0].not_after)}",
                "renew the authority and what it signed",
            )
        return wrong(f"{what}, {until}, is refused: {refusal.verify_message}")

    def broken_off(self, error: ssl.SSLError, server: str) -> UserError:
        """Of a handshake that TLS itself has ended."""
        reason = error.reason or str(error)
        if "ALERT" in reason and any(word in reason for word in ("CERT", "UNKNOWN_CA", "ACCESS_DENIED", "DECRYPT")):
            alert = reason.partition("ALERT_")[2].replace("_", " ").lower()
            return self._refused(f"{server} refused our certificate ({alert})")
        alert = reason.replace("_", " ").lower()
        what = f"{server} doesn't complete a TLS 1.2 or 1.3 handshake ({alert})"
        return UserError(what, "check the port of --server-address")

    def closed(self, server: str) -> UserError:
        """gRPC's C core, and so a Python server, closes without an alert when it doesn't accept a certificate."""
        return self._refused(f"{server} closed the connection on seeing our certificate")

    def _refused(self, what: str) -> UserError:
        own = self._own.certificate
        return wrong(
            f"{what}, which is --cert {self._files.cert}: {own.subject}, valid until {format_time(own.not_after)}, "
            f"issued by {own.issuer}",
            "the server's --ca has to hold that authority",
        )


def wrong(what: str, fix: str = "") -> UserError:
    """An error of a certificate."""
    return UserError(what, fix, ErrorKind.CERTIFICATE)
