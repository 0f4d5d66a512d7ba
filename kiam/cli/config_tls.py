"""Checks of the certificate files and of handshakes, which agent and server have in common."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from kiam.cli.options import tls_files
from kiam.errors import UserError
from kiam.tls import TLSFiles
from kiam.tls.certificates import InspectedTLS, Severity, Side, format_time, inspect
from kiam.tls.diagnosis import diagnose
from kiam.verify.results import CheckResult, failed, passed, skipped, warned

TLS_FLAGS = ("--cert", "--key", "--ca")
CERTIFICATES = "make certificates with kiam certs, or as docs/tls.md says"
SOON = timedelta(days=14)
"""A certificate that ends sooner than this is worth a warning."""


def check_files(arguments: argparse.Namespace, side: Side, unusable: frozenset[str]) -> Sequence[CheckResult]:
    """What the three files hold, and whether they belong together."""
    if bad := unusable.intersection(TLS_FLAGS):
        return [needs("certificate", bad)]
    files = tls_files(arguments)
    try:
        inspected = inspect(files, files.read(), side)
    except UserError as error:
        return [failed_with("certificate", error, CERTIFICATES)]
    results = [
        (failed if problem.severity is Severity.ERROR else warned)("certificate", str(problem), CERTIFICATES)
        for problem in inspected.problems
    ]
    return [*results, *_describe(files, inspected)]


def check_handshakes(address: str, files: TLSFiles, timeout: float) -> Sequence[CheckResult]:
    """A handshake with each address of the server, as an agent makes it."""
    try:
        handshakes = diagnose(address, files, timeout)
    except UserError as error:
        return [failed_with("server", error, "give another --server-address")]
    results = []
    for handshake in handshakes:
        name = f"server {handshake.endpoint}"
        if handshake.problem:
            problem = UserError(handshake.problem)
            results.append(failed_with(name, problem, "start kiam server there, or give another --server-address"))
        elif handshake.certificate:
            until = format_time(handshake.certificate.not_after)
            results.append(passed(name, f"{handshake.protocol}, {handshake.certificate.subject} until {until}"))
    reached = any(not handshake.problem for handshake in handshakes)
    return [_tolerate_silence(result, reached) for result in results]


def failed_with(check: str, error: Exception, mend: str) -> CheckResult:
    """A failure in an error's words; what follows its last semicolon is the mend, else ``mend``."""
    what, semicolon, advice = str(error).rpartition("; ")
    return failed(check, what, advice) if semicolon else failed(check, str(error), mend)


def needs(check: str, flags: frozenset[str]) -> CheckResult:
    """A check that can't be made before some flags are mended."""
    listed = ", ".join(sorted(flags))
    return skipped(check, f"needs {listed}", f"mend {listed}")


def _tolerate_silence(result: CheckResult, reached: bool) -> CheckResult:
    """A host name may well have an address where nobody listens, as localhost does, if another one answers."""
    silent = "can't be connected to" in result.seen
    return warned(result.check, result.seen, result.mend) if silent and reached else result


def _describe(files: TLSFiles, inspected: InspectedTLS) -> Sequence[CheckResult]:
    certificate = inspected.certificate
    seen = f"{files.cert}: {certificate.subject}, {certificate.lifetime}, for {certificate.names}"
    left = inspected.expiry - datetime.now(UTC)
    results = []
    if timedelta(0) < left < SOON:
        what = f"it, or an authority above it, expires at {format_time(inspected.expiry)}"
        results.append(warned("certificate", f"{seen}; {what}", "renew it; kiam takes it over without a restart"))
    elif not inspected.errors:
        results.append(passed("certificate", seen))
    authorities = [
        passed("authority", f"{files.ca}: {authority.subject}, {authority.lifetime}")
        for authority in inspected.authorities
    ]
    return [*results, *authorities]
