"""``kiam certs init``, ``server`` and ``agent``: files of an authority, and of certificates it signs."""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path

from kiam.errors import UserError

CA = "ca.pem"
CA_KEY = "ca-key.pem"


def init(arguments: argparse.Namespace) -> None:
    """Make an authority. Raises UserError, as all here do."""
    from kiam.tls.issue import Period, make_authority
    from kiam.tls.summary import format_time

    directory: Path = arguments.dir
    _make_directory(directory)
    for path in (directory / CA, directory / CA_KEY):
        if path.exists():
            raise UserError(
                f"--dir: {path} is there already, and an authority is never overwritten (all certificates it signed "
                "would stop working); give another folder, or move the old one away"
            )
    issued = make_authority(arguments.common_name, Period.lasting(arguments.days))
    write(directory / CA_KEY, issued.key, 0o600, overwrite=False)
    write(directory / CA, issued.cert, 0o644, overwrite=False)
    print(f"wrote {directory / CA}: authority '{arguments.common_name}', until {format_time(issued.not_after)}")
    print(f"wrote {directory / CA_KEY}: its private key; keep it off the cluster")
    print("next:")
    for step in ("server", "agent"):
        print(f"  kiam certs {step}{_dir_flag(directory)}")


def server(arguments: argparse.Namespace) -> None:
    """Make a server's certificate, for every name it is reached by."""
    names = [
        arguments.service,
        f"{arguments.service}.{arguments.namespace}",
        f"{arguments.service}.{arguments.namespace}.svc",
        f"{arguments.service}.{arguments.namespace}.svc.cluster.local",
        # The probes of the server's own pod (kiam health) go there.
        "localhost",
        "127.0.0.1",
        *arguments.hosts,
    ]
    _issue(arguments, "kiam-server", list(dict.fromkeys(names)))


def agent(arguments: argparse.Namespace) -> None:
    """Make an agent's certificate, for one node or any."""
    _issue(arguments, "kiam-agent", [arguments.node] if arguments.node else [])


def _issue(arguments: argparse.Namespace, common_name: str, names: list[str]) -> None:
    from kiam.tls.issue import Period, make_certificate
    from kiam.tls.summary import format_time

    directory: Path = arguments.dir
    cert, key = directory / f"{arguments.out}.pem", directory / f"{arguments.out}-key.pem"
    if not arguments.overwrite:
        for path in (cert, key):
            if path.exists():
                raise UserError(
                    f"--out: {path} is there already; add --overwrite to replace it, or give another --out NAME"
                )
    authority, authority_key = read_authority(directory)
    try:
        issued = make_certificate(common_name, names, Period.lasting(arguments.days), authority, authority_key)
    except (ValueError, TypeError) as error:
        raise UserError(f"--dir: {directory / CA}, {directory / CA_KEY}: {error}") from error
    # The key first: whoever watches the folder meets a pair that doesn't match, and waits, rather than a new
    # certificate that it would take for good.
    write(key, issued.key, 0o600, overwrite=arguments.overwrite)
    write(cert, issued.cert, 0o644, overwrite=arguments.overwrite)
    print(
        f"wrote {cert}: certificate '{common_name}' for {', '.join(names) or 'any node'}, "
        f"until {format_time(issued.not_after)}"
    )
    print(f"wrote {key}: its private key")
    print("next:")
    print(f"  kubectl create secret generic kiam-{arguments.step}-tls -n {arguments.namespace} \\")
    for name, path in ((CA, directory / CA), (f"{arguments.step}.pem", cert), (f"{arguments.step}-key.pem", key)):
        source = path.name if directory == Path() else str(path)
        given = source if path.name == name else f"{name}={source}"
        print(f"    --from-file={shlex.quote(given)}" + ("" if path == key else " \\"))


def read_authority(directory: Path) -> tuple[bytes, bytes]:
    """The authority's certificate and key. Raises UserError."""
    contents = []
    for path in (directory / CA, directory / CA_KEY):
        try:
            contents.append(path.read_bytes())
        except OSError as error:
            raise UserError(
                f"--dir: {path}: {error.strerror}; make an authority with 'kiam certs init{_dir_flag(directory)}'"
            ) from error
    return contents[0], contents[1]


def write(path: Path, content: bytes, mode: int, overwrite: bool) -> None:
    """Write a file that never exists half, nor for a moment with wider permissions than it is to have."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
        if overwrite:
            temporary.replace(path)
        else:
            # Fails if the file has come into being meanwhile, where a rename would replace it.
            path.hardlink_to(temporary)
    except OSError as error:
        raise UserError(f"--dir: {path} can't be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--dir: {directory} can't be made: {error.strerror}") from error


def _dir_flag(directory: Path) -> str:
    return "" if directory == Path() else f" --dir {shlex.quote(str(directory))}"
