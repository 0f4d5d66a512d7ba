"""``kiam certs renew``: the certificates in a folder, by the authority in it."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from kiam.cli.certs_issue import CA, read_authority, write
from kiam.errors import UserError


def renew(arguments: argparse.Namespace) -> None:
    """New certificates in the place of those that the folder's authority signed; what runs takes them over by itself.

    The old ones stay good until their own end, so there is no moment without one.
    """
    from kiam.tls.certificates import read_certificates
    from kiam.tls.issue import Period, make_successor
    from kiam.tls.summary import format_time

    directory: Path = arguments.dir
    authority, authority_key = read_authority(directory)
    renewed = []
    try:
        issuer = read_certificates(authority)[0]
        for path in sorted(directory.glob("*.pem")):
            key = path.with_name(f"{path.stem}-key.pem")
            if path.name == CA or not key.exists():
                continue
            old = read_certificates(path.read_bytes())[0]
            if not old.issued_by(issuer):
                print(f"left {path}: it isn't of this authority, but of {old.issuer}")
                continue
            period = Period.lasting(old.not_after - old.not_before)
            issued = make_successor(old, period, authority, authority_key)
            write(key, issued.key, 0o600, overwrite=True)
            write(path, issued.cert, 0o644, overwrite=True)
            renewed.append(path)
            print(
                f"wrote {path}: for {old.names}, until {format_time(issued.not_after)} "
                f"(it was {format_time(old.not_after)})"
            )
    except (ValueError, TypeError, OSError) as error:
        raise UserError(f"--dir: {directory}: {error}") from error
    if not renewed:
        raise UserError(
            f"--dir: no certificate of {directory / CA} in {directory}", "make one with kiam certs server or agent"
        )
    print("next, for each secret they are in; kiam takes them over without a restart:")
    for path in renewed:
        files = " ".join(
            f"--from-file={shlex.quote(f'{file.name}={file}')}"
            for file in (directory / CA, path, path.with_name(f"{path.stem}-key.pem"))
        )
        print(
            f"  kubectl create secret generic kiam-{path.stem}-tls -n kube-system --dry-run=client -o yaml {files} "
            "| kubectl apply -f -"
        )
