"""What the agent was told on its command line."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import IPv4Address, IPv6Address

from kiam.agent.core.askers import PodUidMode
from kiam.dataplane.contract import HostNetwork
from kiam.netfilter.interfaces import InterfacePattern, IptablesBackend
from kiam.tls import TLSFiles

INSTANCE_METADATA_URL = "http://169.254.169.254"
"""Where the real service is."""


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """How to reach the server."""

    address: str
    tls: TLSFiles
    creation_timeout: timedelta
    keepalive_time: timedelta
    keepalive_timeout: timedelta
    keepalive_without_calls: bool


@dataclass(frozen=True, slots=True)
class DataplaneSettings:
    """Which redirection to install, and what becomes of it when the agent stops."""

    name: str
    interface: InterfacePattern
    host_network: HostNetwork
    remove_at_exit: bool
    host6: IPv6Address | None = None
    agent_cgroup: str | None = None
    iptables_backend: IptablesBackend = IptablesBackend.AUTO
    forward_from: InterfacePattern | None = None
    keep_others: bool = False
    """Whether dataplanes that were in before stay."""


class TokenMode(enum.Enum):
    """What becomes of IMDSv2 session tokens."""

    OPTIONAL = "optional"
    """The agent issues them. A request without one is served; one with a wrong one is not."""
    REQUIRED = "required"
    """The agent issues them. A request without one is not served."""
    PASSED_ON = "passed-on"
    """The real service issues them, and checks them on what is passed on, as with conventional kiam."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one pod, or one request, may take up. Seconds, bytes and counts."""

    line: int = 4096
    """Longest request line; a role's ARN and a query fit in well."""
    field: int = 8190
    """Longest header line."""
    fields: int = 64
    head: int = 32768
    """Of a request line and all its header lines together, while they aren't complete."""
    body: int = 65536
    """Longest body of a request that is passed on."""
    passed_response: int = 1024 * 1024
    """Longest response of the real service that is passed on; user data is at most 16 KB."""
    passed_per_second: float = 50.0
    """Requests of one client that are passed on; the real service takes some 1,000 packets a second from a node."""
    passed_burst: int = 100
    """So many of them at once, after a pause."""
    header_time: float = 5.0
    """From the start of a connection, or from the first byte of a further request, to its end."""
    idle_time: float = 75.0
    """How long a connection may stay open between requests."""
    stall_time: float = 10.0
    """How long a client may leave an answer unread."""
    connections: int = 512
    """Open connections of one client (:func:`kiam.agent.http.messages.asker_of`)."""
    all_connections: int = 8192
    """Open connections of all clients; an idle one takes some 5 KB."""
    waiting: int = 512
    """Requests of one client that wait for the server or the real service at the same time."""


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """Everything :func:`kiam.agent.run.run_agent` needs."""

    port: int
    host: IPv4Address | IPv6Address
    node_name: str
    pod_namespace: str
    pod_name: str
    """The pod that the agent is in; both empty outside a cluster."""
    interface: InterfacePattern
    """The interfaces that pods come in on, also where something else redirects them."""
    allow_ip_query: bool
    allow_route_regexp: str
    instance_metadata_url: str
    imds_tokens: TokenMode
    container_credentials: bool
    """Whether the container credentials endpoint is served."""
    outage_grace: timedelta
    pod_uid: PodUidMode
    drain_time: timedelta
    ready_file: str | None
    server: ServerSettings
    dataplane: DataplaneSettings | None
    prometheus_listen_addr: str | None
    pprof_listen_addr: str | None
    limits: Limits = Limits()

    @property
    def serves_host_network_pods(self) -> bool:
        """Whether pods on the host network get their own roles: they come here, and the kernel tells them apart."""
        if self.pod_uid is PodUidMode.OFF or self.dataplane is None:
            return False
        return self.dataplane.host_network is HostNetwork.REDIRECT
