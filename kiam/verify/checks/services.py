"""The agent, and the real instance metadata service."""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from kiam.dataplane.contract import WantedState
from kiam.metadata import METADATA_IPV4, METADATA_PORT
from kiam.verify.fix import Fix, FixKind
from kiam.verify.results import CheckResult, failed, passed, warned

SECONDS = 3.0
INSTANCE_ID_FILES = (Path("/sys/devices/virtual/dmi/id/board_asset_tag"), Path("/var/lib/cloud/data/instance-id"))
"""Where an EC2 instance's identifier stands: the firmware's tables (Nitro), and cloud-init's note."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer, or why there was none."""

    status: int = 0
    body: str = ""
    error: OSError | http.client.HTTPException | None = None

    @property
    def is_pong(self) -> bool:
        """Whether a kiam agent answered, conventional or ours."""
        return self.status == 200 and self.body.strip() == "pong"


def ask(address: str, port: int, path: str, seconds: float = SECONDS) -> Answer:
    """One GET from the host's network namespace, to a numeric address."""
    connection = http.client.HTTPConnection(address, port, timeout=seconds)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return Answer(response.status, response.read(1024).decode("latin-1"))
    except (OSError, http.client.HTTPException) as error:
        return Answer(error=error)
    finally:
        connection.close()


def ping(address: IPv4Address, port: int) -> Answer:
    """Ask what every kiam agent answers, conventional or ours."""
    return ask(str(address), port, "/ping")


def check_agent(wanted: WantedState, answer: Answer) -> CheckResult:
    """``/ping`` is answered with ``pong`` by every kiam agent, conventional or ours."""
    check = "agent"
    target = f"{wanted.host_address}:{wanted.port}"
    if answer.error is not None:
        return failed(check, f"nothing answers at {target}: {_why(answer.error)}", restart_agent())
    if answer.is_pong:
        return passed(check, f"answers at {target}")
    seen = f"what answers /ping at {target} with {answer.status} is no kiam agent"
    return failed(check, seen, show_listener(wanted.port))


def show_listener(port: int) -> Fix:
    """Who listens on a port."""
    command = f"ss --listening --tcp --numeric --processes 'sport = :{port}'"
    return Fix(FixKind.SHOW_LISTENER, command, "stop it, or give the agent another port")


def restart_agent() -> Fix:
    """Has the DaemonSet replace this node's agent, whatever its update strategy is."""
    node = os.environ.get("NODE_NAME") or socket.gethostname().lower()
    command = (
        "kubectl --namespace kube-system delete pod --selector app=kiam,component=agent "
        f"--field-selector spec.nodeName={node}"
    )
    return Fix(FixKind.RESTART_AGENT, command, "if it doesn't stay up, see its log: kubectl logs --previous")


def check_metadata(
    uplink: str = "", answer: Answer | None = None, find_instance: Callable[[], str] | None = None
) -> CheckResult:
    """The real service, which the agent's health check and the server's role base ARN come from.

    Any HTTP status will do: a service that wants a session token says 401. No credentials are asked for.
    ``uplink``: the interface a route to it should lead through.
    """
    check = "instance metadata"
    answer = answer or ask(str(METADATA_IPV4), METADATA_PORT, "/")
    if answer.error is None:
        return passed(check, f"{METADATA_IPV4} answers the host (HTTP {answer.status})")
    seen = f"{METADATA_IPV4} doesn't answer the host: {_why(answer.error)}"
    if isinstance(answer.error, OSError) and answer.error.errno in {errno.ENETUNREACH, errno.EHOSTUNREACH} and uplink:
        return warned(check, seen, Fix(FixKind.ROUTE_TO_METADATA, f"ip route replace {METADATA_IPV4}/32 dev {uplink}"))
    if instance := (find_instance or instance_id)():
        command = f"aws ec2 modify-instance-metadata-options --http-endpoint enabled --instance-id {instance}"
        return warned(check, seen, Fix(FixKind.ENABLE_METADATA, command, "if it is off for this instance"))
    return warned(check, seen, show_route())


def show_route(address: IPv4Address | IPv6Address = METADATA_IPV4) -> Fix:
    """The route the host takes to an address."""
    return Fix(FixKind.SHOW_ROUTE, f"ip -{address.version} route get {address}")


def instance_id(files: Sequence[Path] = INSTANCE_ID_FILES) -> str:
    """This EC2 instance's, as its firmware or cloud-init has written it down; empty elsewhere."""
    for path in files:
        with contextlib.suppress(OSError):
            text = path.read_text().strip()
            if re.fullmatch(r"i-[0-9a-f]{8,17}", text):
                return text
    return ""


def _why(error: OSError | http.client.HTTPException) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer in {SECONDS:g} s"
    if isinstance(error, OSError):
        return error.strerror or os.strerror(error.errno or 0)
    return f"not HTTP ({type(error).__name__})"
