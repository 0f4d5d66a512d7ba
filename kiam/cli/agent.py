"""``kiam agent``: the proxy on each node."""

from __future__ import annotations

import argparse
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING

from kiam.agent.core.askers import PodUidMode
from kiam.agent.settings import INSTANCE_METADATA_URL, AgentSettings, DataplaneSettings, ServerSettings, TokenMode
from kiam.cli.dataplane_options import add_keep_others, add_redirect
from kiam.cli.options import (
    add_boolean,
    add_common,
    add_server_client,
    add_telemetry,
    duration,
    flag_type,
    flags_without_effect,
    tls_files,
)
from kiam.dataplane.registry import DATAPLANES, documented
from kiam.errors import UserError
from kiam.grpc_core import prepare_grpc
from kiam.tls import TLSFiles

if TYPE_CHECKING:
    from kiam.tls.reload import TLSReloader

NO_DATAPLANE = "none"


def _address(text: str) -> IPv4Address | IPv6Address:
    try:
        address = ip_address(text)
    except ValueError:
        raise ValueError(f"'{text}' is not an IP address; give the node's own, such as 10.0.0.1") from None
    if address.is_unspecified or address.is_multicast:
        raise ValueError(f"'{text}' is no address of a node; give the node's own, such as 10.0.0.1")
    return address


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the agent's flags."""
    add_common(parser)
    add_telemetry(parser)
    add_server_client(parser)
    parser.add_argument(
        "--host",
        type=flag_type(_address, "address"),
        metavar="ADDRESS",
        help="the node's IP address, to which pods are redirected (required; or environment HOST_IP)",
    )
    parser.add_argument("--node-name", metavar="NAME", help="the node's name (or NODE_NAME; else found by --host)")
    add_boolean(parser, "--iptables", False, "the same as --dataplane=iptables")
    add_boolean(parser, "--iptables-remove", True, "with --iptables: take the rules out when the agent stops")
    parser.add_argument(
        "--dataplane",
        choices=(NO_DATAPLANE, *DATAPLANES),
        help="how pods are redirected to the agent; none: something else does it",
    )
    add_boolean(parser, "--dataplane-remove", False, "with --dataplane: take the redirection out when the agent stops")
    add_redirect(parser)
    add_keep_others(parser)
    add_boolean(parser, "--allow-ip-query", False, "let clients say who they are with ?ip= (for debugging only)")
    parser.add_argument(
        "--allow-route-regexp",
        "--whitelist-route-regexp",
        default="^$",
        metavar="REGEXP",
        help="paths to pass on to the instance metadata service (the second name is v3's)",
    )
    parser.add_argument(
        "--imds-tokens",
        choices=[mode.value for mode in TokenMode],
        default=TokenMode.OPTIONAL.value,
        help="IMDSv2 session tokens: issued here and checked where they are sent (optional), demanded of every request "
        "(required), or the real service's business (passed-on)",
    )
    add_boolean(
        parser,
        "--container-credentials",
        False,
        "serve EKS Pod Identity's container credentials endpoint, http://169.254.170.23/v1/credentials, by service "
        "account tokens (the server needs the flag too)",
    )
    parser.add_argument(
        "--pod-uid",
        choices=[mode.value for mode in PodUidMode],
        default=PodUidMode.OFF.value,
        help="ask the kernel which pod's socket each connection is; check: it must agree with the address, and is "
        "enough where the address isn't reported yet; require: who has no such socket isn't answered",
    )
    parser.add_argument(
        "--outage-grace",
        type=duration,
        default=timedelta(minutes=15),
        metavar="DURATION",
        help="how long known pods are answered from memory while the server is away; 0s: not at all",
    )
    parser.add_argument(
        "--drain-time",
        type=duration,
        default=timedelta(seconds=10),
        metavar="DURATION",
        help="how long open connections are still answered after SIGTERM",
    )
    parser.add_argument(
        "--ready-file", metavar="FILE", help="exists while the agent serves its port, for a readiness probe"
    )
    # For tests and for clusters that reach the service some other way.
    parser.add_argument(
        "--instance-metadata-url", default=INSTANCE_METADATA_URL, metavar="URL", help="the real metadata service"
    )


def settings_from(arguments: argparse.Namespace) -> AgentSettings:
    """The agent's settings from parsed arguments and the environment. Raises UserError."""
    return AgentSettings(
        port=arguments.port,
        host=_host(arguments),
        node_name=arguments.node_name or os.environ.get("NODE_NAME", ""),
        pod_namespace=os.environ.get("POD_NAMESPACE", ""),
        pod_name=os.environ.get("POD_NAME", ""),
        interface=arguments.host_interface,
        allow_ip_query=arguments.allow_ip_query,
        allow_route_regexp=arguments.allow_route_regexp,
        instance_metadata_url=arguments.instance_metadata_url,
        imds_tokens=TokenMode(arguments.imds_tokens),
        container_credentials=arguments.container_credentials,
        outage_grace=arguments.outage_grace,
        pod_uid=PodUidMode(arguments.pod_uid),
        drain_time=arguments.drain_time,
        ready_file=arguments.ready_file,
        server=ServerSettings(
            address=arguments.server_address,
            tls=tls_files(arguments),
            creation_timeout=arguments.gateway_timeout_creation,
            keepalive_time=arguments.grpc_keepalive_time_duration,
            keepalive_timeout=arguments.grpc_keepalive_timeout_duration,
            keepalive_without_calls=arguments.grpc_keepalive_permit_without_stream,
        ),
        dataplane=_dataplane(arguments),
        prometheus_listen_addr=arguments.prometheus_listen_addr,
        pprof_listen_addr=arguments.pprof_listen_addr,
    )


def _host(arguments: argparse.Namespace) -> IPv4Address | IPv6Address:
    if arguments.host is not None:
        host: IPv4Address | IPv6Address = arguments.host
        return host
    text = os.environ.get("HOST_IP", "")
    if not text:
        raise UserError(
            "--host is missing", "give the node's IP address, or set HOST_IP (status.hostIP) in the pod spec"
        )
    try:
        return _address(text)
    except ValueError as error:
        raise UserError(f"HOST_IP: {error}") from error


def _dataplane(arguments: argparse.Namespace) -> DataplaneSettings | None:
    name = arguments.dataplane
    if arguments.iptables:
        if name not in (None, documented()):
            raise UserError(f"--iptables and --dataplane={name} contradict each other", "give one of them")
        name = documented()
    if name in (None, NO_DATAPLANE):
        return None
    # --iptables keeps the conventional default of cleaning up; a dataplane asked for by name stays and fails closed.
    remove = arguments.dataplane_remove or (arguments.iptables and arguments.iptables_remove)
    return DataplaneSettings(
        name,
        arguments.host_interface,
        arguments.host_network,
        remove,
        arguments.host6,
        arguments.agent_cgroup,
        arguments.iptables_backend,
        arguments.forward_metadata,
        arguments.keep_others,
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the agent until it is told to stop."""
    prepare_grpc()
    # Imported here, as only a running agent needs them: kiam --help stays light.
    from kiam.agent.http.listener import is_served, listen
    from kiam.agent.memory import import_prometheus_client, use_one_arena
    from kiam.logs import configure_logging

    configure_logging(arguments.level, arguments.json_log)
    for line in flags_without_effect(arguments):
        logging.getLogger(__name__).warning("%s", line)
    settings = settings_from(arguments)
    # Before the rest is imported, which takes longer than some SDKs wait: connections queue from now on.
    sock = None if is_served(settings.port) else listen(settings.port)
    # Before there is a second thread, and before anybody else imports it.
    use_one_arena()
    import_prometheus_client()

    with ThreadPoolExecutor(1) as beside:
        # A process of its own inspects the certificates while this one imports.
        reloading = beside.submit(_follow_certificates, settings.server.tls)

        import uvloop

        from kiam.agent.run import run_agent

        reloader = reloading.result()
    uvloop.run(run_agent(settings, reloader, sock))
    return 0


def _follow_certificates(files: TLSFiles) -> TLSReloader:
    from kiam.tls.helper import load_in_helper
    from kiam.tls.metrics import TLSMetrics
    from kiam.tls.reload import TLSReloader
    from kiam.tls.summary import Side

    return TLSReloader(files, Side.CLIENT, load_in_helper, TLSMetrics(Side.CLIENT))
