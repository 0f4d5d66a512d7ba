"""Checks of the certificate files and of handshakes, which agent and server have in common."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from kiam.cli.options import tls_files
from kiam.errors import UserError
from kiam.tls import TLSFiles
from kiam.tls.diagnosis import diagnose
from kiam.tls.inspection import InspectedTLS, inspect
from kiam.tls.summary import Severity, Side, format_time
from kiam.verify.results import CheckResult, Status, failed, passed, skipped, warned

TLS_FLAGS = ("--cert", "--key", "--ca")
CERTIFICATES = "make certificates with kiam certs, or as docs/tls.md says"
RENEW = "renew it ('kiam certs renew', or an upgrade of the chart, for what these made); no restart is needed"


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
        (failed if problem.severity is Severity.ERROR else warned)(
            "certificate", f"--{problem.flag}: {problem.what}", problem.fix
        )
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
        if handshake.problem is not None:
            advice = "start kiam server there, or give another --server-address"
            result = failed_with(name, handshake.problem, advice)
            # A host name may well have an address where nobody listens, as localhost does, if another one answers.
            silent = not handshake.connected and any(one.problem is None for one in handshakes)
            results.append(replace(result, status=Status.WARN) if silent else result)
        elif handshake.certificate:
            until = format_time(handshake.certificate.not_after)
            results.append(passed(name, f"{handshake.protocol}, {handshake.certificate.subject} until {until}"))
    return results


def failed_with(check: str, error: UserError, advice: str) -> CheckResult:
    """A failure in an error's words; ``advice`` where the error has none of its own."""
    return failed(check, error.what, error.fix or advice)


def needs(check: str, flags: frozenset[str]) -> CheckResult:
    """A check that can't be made before some flags are fixed."""
    listed = ", ".join(sorted(flags))
    return skipped(check, f"needs {listed}", f"fix {listed}")


def _describe(files: TLSFiles, inspected: InspectedTLS) -> Sequence[CheckResult]:
    certificate = inspected.certificate
    seen = f"{files.cert}: {certificate.subject}, {certificate.lifetime}, for {certificate.names}"
    now = datetime.now(UTC)
    results = []
    if inspected.expires_soon(now) and now < inspected.expiry:
        left = (inspected.expiry - now).days
        what = f"it, or an authority above it, expires at {format_time(inspected.expiry)}, in {left} days"
        results.append(warned("certificate", f"{seen}; {what}", RENEW))
    elif not inspected.errors:
        results.append(passed("certificate", seen))
    authorities = [
        passed("authority", f"{files.ca}: {authority.subject}, {authority.lifetime}")
        for authority in inspected.authorities
    ]
    return [*results, *authorities]
