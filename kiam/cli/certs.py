"""``kiam certs init|server|agent``: an authority and certificates for trying kiam out."""

from __future__ import annotations

import argparse
import os
import re
import shlex
from collections.abc import Callable
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path

from kiam.cli.options import flag_type
from kiam.errors import UserError

CA = "ca.pem"
CA_KEY = "ca-key.pem"

# Kubernetes node and Service names are RFC 1123 subdomains (k8s.io/apimachinery, IsDNS1123Subdomain).
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the three steps and their flags."""
    parser.description = (
        "Make an authority (init), and with it certificates for the server and the agents. Meant for trying out: a "
        "cluster that lasts wants certificates that are renewed, such as cert-manager's (docs/tls.md)."
    )
    steps = parser.add_subparsers(dest="step", required=True, metavar="STEP")
    init = steps.add_parser("init", help=f"make an authority: {CA}, {CA_KEY}; never overwrites one", allow_abbrev=False)
    _add_directory(init, "where to write the authority")
    init.add_argument(
        "--common-name", type=_common_name, default="kiam CA", metavar="NAME", help="the authority's name (%(default)s)"
    )
    _add_days(init, 3650)

    server = steps.add_parser("server", help="make server.pem and server-key.pem", allow_abbrev=False)
    _add_leaf_flags(server, "server")
    server.add_argument(
        "--service",
        type=_host,
        default="kiam-server",
        metavar="NAME",
        help="the Service agents connect to; its name, also with namespace, goes into the certificate (%(default)s)",
    )
    server.add_argument(
        "--host",
        type=_host,
        action="append",
        default=[],
        dest="hosts",
        metavar="NAME",
        help="one more DNS name or IP address that --server-address of an agent may hold; may be repeated",
    )

    agent = steps.add_parser("agent", help="make agent.pem and agent-key.pem", allow_abbrev=False)
    _add_leaf_flags(agent, "agent")
    agent.add_argument(
        "--node",
        type=_node,
        metavar="NAME",
        help="the one node this certificate is for, as 'kubectl get nodes' names it (for --node-authorization)",
    )

    renew = steps.add_parser(
        "renew", help="renew the certificates in a folder, names and lifetime kept", allow_abbrev=False
    )
    _add_directory(renew, f"where {CA}, {CA_KEY} and the certificates are")


def run(arguments: argparse.Namespace) -> int:
    """Write the files of one step and say what was written and what to do with it."""
    steps: dict[str, Callable[[argparse.Namespace], None]] = {
        "init": _init,
        "server": _server,
        "agent": _agent,
        "renew": _renew,
    }
    steps[arguments.step](arguments)
    return 0


def _init(arguments: argparse.Namespace) -> None:
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
    _write(directory / CA_KEY, issued.key, 0o600, overwrite=False)
    _write(directory / CA, issued.cert, 0o644, overwrite=False)
    print(f"wrote {directory / CA}: authority '{arguments.common_name}', until {format_time(issued.not_after)}")
    print(f"wrote {directory / CA_KEY}: its private key; keep it off the cluster")
    print("next:")
    for step in ("server", "agent"):
        print(f"  kiam certs {step}{_dir_flag(directory)}")


def _server(arguments: argparse.Namespace) -> None:
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


def _agent(arguments: argparse.Namespace) -> None:
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
    authority, authority_key = _read_authority(directory)
    try:
        issued = make_certificate(common_name, names, Period.lasting(arguments.days), authority, authority_key)
    except (ValueError, TypeError) as error:
        raise UserError(f"--dir: {directory / CA}, {directory / CA_KEY}: {error}") from error
    # The key first: whoever watches the folder meets a pair that doesn't match, and waits, rather than a new
    # certificate that it would take for good.
    _write(key, issued.key, 0o600, overwrite=arguments.overwrite)
    _write(cert, issued.cert, 0o644, overwrite=arguments.overwrite)
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


def _renew(arguments: argparse.Namespace) -> None:
    """New certificates in the place of those that the folder's authority signed; what runs takes them over by itself.

    The old ones stay good until their own end, so there is no moment without one.
    """
    from kiam.tls.certificates import read_certificates
    from kiam.tls.issue import Period, make_certificate
    from kiam.tls.summary import format_time

    directory: Path = arguments.dir
    authority, authority_key = _read_authority(directory)
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
            names = [*old.dns_names, *map(str, old.ip_addresses)]
            period = Period.lasting(old.not_after - old.not_before)
            issued = make_certificate(old.subject.strip("'"), names, period, authority, authority_key)
            _write(key, issued.key, 0o600, overwrite=True)
            _write(path, issued.cert, 0o644, overwrite=True)
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


def _read_authority(directory: Path) -> tuple[bytes, bytes]:
    contents = []
    for path in (directory / CA, directory / CA_KEY):
        try:
            contents.append(path.read_bytes())
        except OSError as error:
            raise UserError(
                f"--dir: {path}: {error.strerror}; make an authority with 'kiam certs init{_dir_flag(directory)}'"
            ) from error
    return contents[0], contents[1]


def _write(path: Path, content: bytes, mode: int, overwrite: bool) -> None:
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


def _add_directory(parser: argparse.ArgumentParser, help_text: str) -> None:
    parser.add_argument("--dir", type=Path, default=Path(), metavar="DIR", help=f"{help_text} (the current folder)")


def _add_days(parser: argparse.ArgumentParser, default: int) -> None:
    parser.add_argument(
        "--days",
        type=_days,
        default=timedelta(days=default),
        metavar="N",
        help=f"how many days it is valid ({default})",
    )


def _add_leaf_flags(parser: argparse.ArgumentParser, name: str) -> None:
    _add_directory(parser, f"where {CA} and {CA_KEY} are, and the new files go")
    parser.add_argument(
        "--out", type=_file_name, default=name, metavar="NAME", help="write NAME.pem and NAME-key.pem (%(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the files of an earlier certificate")
    parser.add_argument(
        "--namespace", type=_host, default="kube-system", help="the namespace kiam is installed in (%(default)s)"
    )
    _add_days(parser, 365)


def _parse_days(text: str) -> timedelta:
    if not text.isdecimal() or not 0 < int(text) <= 36500:
        raise ValueError(f"'{text}' is not a number of days from 1 to 36500")
    return timedelta(days=int(text))


def _parse_node(text: str) -> str:
    if len(text) > 253 or not _SUBDOMAIN.fullmatch(text):
        raise ValueError(f"'{text}' can't be a node's name; give it as 'kubectl get nodes' prints it")
    return text


def _parse_host(text: str) -> str:
    try:
        return str(ip_address(text))
    except ValueError:
        pass
    if len(text) > 253 or not _SUBDOMAIN.fullmatch(text.removeprefix("*.").lower()):
        raise ValueError(f"'{text}' is neither a DNS name nor an IP address (and goes without a port)")
    return text


def _parse_common_name(text: str) -> str:
    if not 0 < len(text) <= 64:
        raise ValueError("a common name has 1 to 64 characters (RFC 5280, ub-common-name)")
    return text


def _parse_file_name(text: str) -> str:
    if not text or "/" in text or text.startswith(".") or text in ("ca", "ca-key"):
        raise ValueError(f"'{text}' can't be the name of the new files; give one without folder, such as server")
    return text


_days = flag_type(_parse_days, "days")
_node = flag_type(_parse_node, "node")
_host = flag_type(_parse_host, "host")
_common_name = flag_type(_parse_common_name, "name")
_file_name = flag_type(_parse_file_name, "name")
