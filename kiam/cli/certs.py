"""``kiam certs init|server|agent|renew``: an authority and certificates for trying kiam out, and their renewal."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path

from kiam.cli import certs_issue, certs_renew, certs_secrets
from kiam.cli.certs_issue import CA, CA_KEY
from kiam.cli.options import flag_type

# Kubernetes node and Service names are RFC 1123 subdomains (k8s.io/apimachinery, IsDNS1123Subdomain).
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
# What a Secret's entries may be called (k8s.io/apimachinery, IsConfigMapKey).
_KEY = re.compile(r"[-._a-zA-Z0-9]{1,253}")


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
        "renew",
        help="renew the certificates in a folder, or those that the chart made",
        allow_abbrev=False,
        description=(
            "Renew the certificates in a folder with the authority in it, names and lifetime kept. With --next-secret, "
            "renew those that the chart made, in the cluster's Secrets, as its CronJob does."
        ),
    )
    _add_directory(renew, f"where {CA}, {CA_KEY} and the certificates are")
    cluster = renew.add_argument_group("in a cluster")
    cluster.add_argument(
        "--next-secret",
        type=_subdomain,
        metavar="NAME",
        help="the Secret with the pair that takes over, such as kiam-next-certificates",
    )
    for half in certs_secrets.HALVES:
        cluster.add_argument(
            f"--{half}-secret",
            type=_secret,
            default=certs_secrets.Location(f"kiam-{half}"),
            metavar="NAME[:CA,CERT,KEY]",
            help=f"the Secret the {half}s mount, and the names of its files (kiam-{half}:ca,cert,key)",
        )
    cluster.add_argument("--namespace", type=_host, default="kube-system", help="where the Secrets are (%(default)s)")
    cluster.add_argument(
        "--kubeconfig", default="", metavar="FILE", help="how to reach the Kubernetes API; empty: as the pod it runs in"
    )
    cluster.add_argument(
        "--renew-before",
        type=_days,
        default=timedelta(days=180),
        metavar="DAYS",
        help="renew so many days before the first of both ends (180)",
    )
    _add_days(cluster, 3650)


def run(arguments: argparse.Namespace) -> int:
    """Write the files of one step and say what was written and what to do with it."""
    steps: dict[str, Callable[[argparse.Namespace], None]] = {
        "init": certs_issue.init,
        "server": certs_issue.server,
        "agent": certs_issue.agent,
        "renew": certs_renew.renew if getattr(arguments, "next_secret", None) is None else certs_secrets.renew,
    }
    steps[arguments.step](arguments)
    return 0


def _add_directory(parser: argparse.ArgumentParser, help_text: str) -> None:
    parser.add_argument("--dir", type=Path, default=Path(), metavar="DIR", help=f"{help_text} (the current folder)")


def _add_days(parser: argparse._ActionsContainer, default: int) -> None:
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


def _parse_subdomain(text: str) -> str:
    if len(text) > 253 or not _SUBDOMAIN.fullmatch(text):
        raise ValueError(f"'{text}' can't be a Secret's name; give it as 'kubectl get secrets' prints it")
    return text


def _parse_secret(text: str) -> certs_secrets.Location:
    name, _, names = text.partition(":")
    files = names.split(",") if names else ["ca", "cert", "key"]
    if len(files) != len(set(files)) or len(files) != 3 or not all(_KEY.fullmatch(file) for file in files):
        raise ValueError(f"'{text}' doesn't name three files; write it like kiam-agent:ca.pem,cert.pem,key.pem")
    return certs_secrets.Location(_parse_subdomain(name), *files)


def _parse_file_name(text: str) -> str:
    if not text or "/" in text or text.startswith(".") or text in ("ca", "ca-key"):
        raise ValueError(f"'{text}' can't be the name of the new files; give one without folder, such as server")
    return text


_days = flag_type(_parse_days, "days")
_node = flag_type(_parse_node, "node")
_host = flag_type(_parse_host, "host")
_common_name = flag_type(_parse_common_name, "name")
_file_name = flag_type(_parse_file_name, "name")
_subdomain = flag_type(_parse_subdomain, "name")
_secret = flag_type(_parse_secret, "secret")
