"""What the loader is asked for, as one line of JSON."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

from kiam.dataplane.contract import HostNetwork, WantedState
from kiam.netfilter.interfaces import InterfacePattern


def write_request(wanted: WantedState, cgroup: Path) -> str:
    """The line that asks the loader for a wanted state on a cgroup."""
    return json.dumps(
        {
            "cgroup": str(cgroup),
            "host_address": str(wanted.host_address),
            "host_address6": None if wanted.host_address6 is None else str(wanted.host_address6),
            "port": wanted.port,
            "interface": str(wanted.interface),
            "host_network": wanted.host_network.value,
            "agent_cgroup": wanted.agent_cgroup,
            "forward_from": None if wanted.forward_from is None else str(wanted.forward_from),
        }
    )


def parse_request(line: str) -> tuple[WantedState, Path]:
    """What ``write_request`` wrote."""
    fields: dict[str, Any] = json.loads(line)
    address6, forward_from = fields["host_address6"], fields["forward_from"]
    wanted = WantedState(
        host_address=IPv4Address(fields["host_address"]),
        port=fields["port"],
        interface=InterfacePattern.parse(fields["interface"]),
        host_address6=None if address6 is None else IPv6Address(address6),
        host_network=HostNetwork(fields["host_network"]),
        agent_cgroup=fields["agent_cgroup"],
        forward_from=None if forward_from is None else InterfacePattern.parse(forward_from),
    )
    return wanted, Path(fields["cgroup"])
