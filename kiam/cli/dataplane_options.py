"""Flags that say where pods' metadata traffic has to go, with conventional kiam's names and defaults."""

from __future__ import annotations

import argparse
import os
from ipaddress import IPv4Address, IPv6Address

from kiam.cli.options import flag_type
from kiam.dataplane.contract import HostNetwork, WantedState
from kiam.errors import UserError
from kiam.netfilter.interfaces import InterfacePattern, IptablesBackend, parse_forward_metadata


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 65536:
        raise ValueError(f"'{text}' is not a port; give a number from 1 to 65535")
    return int(text)


def _ipv4(text: str) -> IPv4Address:
    try:
        return IPv4Address(text)
    except ValueError:
        raise ValueError(f"'{text}' is not an IPv4 address; give the node's own, such as 10.0.0.1") from None


ipv4_address = flag_type(_ipv4, "address")


def _ipv6(text: str) -> IPv6Address:
    try:
        return IPv6Address(text)
    except ValueError:
        raise ValueError(f"'{text}' is not an IPv6 address; give the node's own, such as 2001:db8::1") from None


def add_wanted_state(parser: argparse.ArgumentParser) -> None:
    """Add every flag a wanted state is made of."""
    parser.add_argument(
        "--host",
        type=ipv4_address,
        metavar="ADDRESS",
        help="the node's IPv4 address, to which pods are redirected (or environment HOST_IP)",
    )
    add_redirect(parser)


def add_redirect(parser: argparse.ArgumentParser) -> None:
    """Add all of them but the host's address, which the agent wants for more than the redirect."""
    parser.add_argument("--port", type=flag_type(_port, "port"), default=3100, help="port of the agent")
    parser.add_argument(
        "--host-interface",
        type=flag_type(InterfacePattern.parse, "interface"),
        default=InterfacePattern.parse("docker0"),
        metavar="PATTERN",
        help="interfaces pods come in on; a trailing + is a wildcard, a leading ! inverts",
    )
    parser.add_argument(
        "--host-network",
        type=HostNetwork,
        choices=tuple(HostNetwork),
        default=HostNetwork.IGNORE,
        help="what becomes of host-network pods' metadata traffic",
    )
    parser.add_argument(
        "--host6",
        type=flag_type(_ipv6, "address"),
        metavar="ADDRESS",
        help="the node's IPv6 address, if the agent listens there; without it pods are refused over IPv6",
    )
    parser.add_argument(
        "--agent-cgroup",
        metavar="PATH",
        help="with --host-network other than ignore: the agent's cgroup, which reaches the real service "
        "(default: the pod this command runs in)",
    )
    parser.add_argument(
        "--forward-metadata",
        type=flag_type(parse_forward_metadata, "policy"),
        metavar="drop|allow:INTERFACE",
        help="what the node does with metadata traffic it would forward for others than pods: drop (default), or let "
        "through what comes in on that interface",
    )
    parser.add_argument(
        "--iptables-backend",
        type=IptablesBackend,
        choices=tuple(IptablesBackend),
        default=IptablesBackend.AUTO,
        help="the rule store iptables writes to; auto: where the host's rules are",
    )


def add_keep_others(parser: argparse.ArgumentParser) -> None:
    """Add the flag that keeps other dataplanes from being taken out."""
    parser.add_argument(
        "--keep-others",
        action="store_true",
        help="leave other dataplanes in place; by default they are taken out once this one is in",
    )


def host_of_environment() -> IPv4Address | None:
    """HOST_IP, as a pod's specification sets it from status.hostIP; None where it isn't set. Raises UserError."""
    text = os.environ.get("HOST_IP", "")
    try:
        return _ipv4(text) if text else None
    except ValueError as error:
        raise UserError(f"HOST_IP: {error}") from error


def find_wanted_state(arguments: argparse.Namespace) -> WantedState | None:
    """The wanted state of parsed arguments and the environment; None without a host address. Raises UserError."""
    host = arguments.host or host_of_environment()
    if host is None:
        return None
    return WantedState(
        host,
        arguments.port,
        arguments.host_interface,
        arguments.host6,
        arguments.host_network,
        arguments.agent_cgroup,
        arguments.iptables_backend,
        arguments.forward_metadata,
    )


def wanted_state(arguments: argparse.Namespace) -> WantedState:
    """As find_wanted_state. Raises UserError without a host address."""
    wanted = find_wanted_state(arguments)
    if wanted is None:
        raise UserError(
            "--host is missing", "give the node's IP address, or set HOST_IP (status.hostIP) in the pod spec"
        )
    return wanted
