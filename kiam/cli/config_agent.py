"""What ``kiam config check agent`` tries."""

from __future__ import annotations

import argparse
import asyncio
import socket
from collections.abc import Sequence
from datetime import timedelta

from kiam.agent.core.failures import UpstreamFailed
from kiam.agent.http.instance_metadata import InstanceMetadata
from kiam.agent.http.proxy import RouteFilter
from kiam.agent.settings import AgentSettings
from kiam.cli import health
from kiam.cli.agent import settings_from
from kiam.cli.config_tls import TLS_FLAGS, check_files, check_handshakes, failed_with, needs
from kiam.cli.options import actions, tls_files
from kiam.errors import UserError
from kiam.tls.certificates import read_certificates
from kiam.tls.summary import Side
from kiam.verify.results import CheckResult, Status, failed, passed, warned

TIMEOUT = 3.0
"""Seconds for each thing that is reached."""
HEALTH = "server's health"


def checks(arguments: argparse.Namespace, unusable: frozenset[str]) -> Sequence[CheckResult]:
    """All checks beyond the flags' own values."""
    results = [*check_files(arguments, Side.CLIENT, unusable)]
    if bad := unusable.intersection((*TLS_FLAGS, "--server-address")):
        results.append(needs("server", bad))
    else:
        files = tls_files(arguments)
        handshakes = check_handshakes(arguments.server_address, files, TIMEOUT)
        results += handshakes
        if any(result.status is Status.PASS for result in handshakes):
            results.append(_check_health(arguments))
    if unusable:
        return [*results, needs("settings", unusable)]
    try:
        settings = settings_from(arguments)
    except UserError as error:
        return [*results, failed_with("settings", error, "see kiam agent --help")]
    if any(result.check == HEALTH and result.status is Status.PASS for result in results):
        # Imported late: grpc isn't needed where nothing answers.
        from kiam.cli.config_stream import check_stream

        results.append(check_stream(settings, TIMEOUT))
    return [
        *results,
        *_check_node(settings),
        _check_host(settings),
        _check_routes(settings),
        asyncio.run(_check_metadata(settings)),
    ]


def _check_health(arguments: argparse.Namespace) -> CheckResult:
    """Ask as kubelet's probe does."""
    probe = argparse.ArgumentParser()
    health.configure(probe)
    defaults = {action.dest: action.default for action in actions(probe)}
    given = {**defaults, **vars(arguments), "timeout": timedelta(seconds=TIMEOUT)}
    try:
        health.run(argparse.Namespace(**given))
    except UserError as error:
        return failed(HEALTH, str(error), "see the server's log, and kiam config check server")
    return passed(HEALTH, "ok")


def _check_node(settings: AgentSettings) -> Sequence[CheckResult]:
    """Whether a server with --node-authorization would take this certificate for this node's."""
    check = "node"
    try:
        certificate, *_ = read_certificates(settings.server.tls.read().cert)
    except (UserError, ValueError):
        # Said by the check of the files.
        return []
    if not settings.node_name:
        return []
    if settings.node_name in certificate.dns_names:
        return [passed(check, f"the certificate is for {settings.node_name}")]
    return [
        warned(
            check,
            f"the certificate is for {certificate.names} and not for the node {settings.node_name}: "
            "servers with --node-authorization refuse it",
            f"kiam certs agent --node {settings.node_name}, or leave the server's --node-authorization off",
        )
    ]


def _check_host(settings: AgentSettings) -> CheckResult:
    """Pods are redirected to this address; it has to be the node's, or they are redirected elsewhere."""
    family = socket.AF_INET if settings.host.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((str(settings.host), 0))
        except OSError:
            seen = f"{settings.host} is no address of this machine; fine if you check from elsewhere"
            return warned("address", seen, "on the node: give --host the node's own address")
    return passed("address", f"{settings.host} is this machine's")


def _check_routes(settings: AgentSettings) -> CheckResult:
    try:
        RouteFilter(settings.allow_route_regexp)
    except UserError as error:
        return failed("routes", str(error), "give another --allow-route-regexp, such as ^/latest/meta-data/placement/")
    return passed("routes", f"{settings.allow_route_regexp} is a regular expression")


async def _check_metadata(settings: AgentSettings) -> CheckResult:
    check = "instance metadata"
    try:
        async with InstanceMetadata(settings.instance_metadata_url, TIMEOUT) as metadata:
            return passed(check, f"{settings.instance_metadata_url} says this is {await metadata.instance_id()}")
    except UpstreamFailed as error:
        # The agent serves credentials without it; only its /health and what it passes on need it.
        seen = f"{settings.instance_metadata_url}: {error}"
        return warned(check, seen, "run this on the node, outside a redirected pod")
