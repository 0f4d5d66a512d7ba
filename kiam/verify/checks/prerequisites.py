"""What the node has to have for the redirect, whichever dataplane makes it."""

from __future__ import annotations

import http.client
import os
import platform
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from kiam.dataplane.addresses import is_local
from kiam.dataplane.cgroups import find_cgroup2_root, find_pod_cgroups
from kiam.dataplane.contract import HostNetwork, WantedState
from kiam.errors import UserError
from kiam.metadata import METADATA_IPV4, METADATA_PORT
from kiam.verify.fixes import Mends
from kiam.verify.results import CheckResult, failed, passed, skipped, warned

SECONDS = 3.0
SYSCTL = Path("/proc/sys/net")
BPF_FILESYSTEM = Path("/sys/fs/bpf")
OLDEST_KERNELS = {"iptables": (3, 10), "nftables": (5, 2), "ebpf": (5, 8)}
"""The oldest Linux each dataplane works with: nat chains of inet tables came in 5.2, getpeername hooks in 5.8."""
OLDEST_FOR_HOST_NETWORK = {"iptables": (4, 15), "nftables": (5, 13), "ebpf": (5, 8)}
"""With ``--host-network`` other than ignore: nftables' ``socket cgroupv2`` came in 5.13."""


def check_host_address(wanted: WantedState, mends: Mends) -> CheckResult:
    """Pods must be sent to this node and not to another machine that happens to have the address."""
    check = "host address"
    address = wanted.host_address
    if address.is_loopback:
        seen = f"{address} can't be reached from pods: the kernel drops packets from outside to 127.0.0.0/8"
    elif is_local(address):
        return passed(check, f"{address} is an address of this node")
    else:
        seen = f"{address} is not an address of this node"
    own = own_address()
    if own is None:
        return failed(check, seen, "ip -4 address show  # then: kiam dataplane install --host=<one of these>")
    return failed(check, seen, mends.for_host(own))


def own_address() -> IPv4Address | None:
    """The address packets leave the node with; None without a route."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as chooser:
            chooser.connect(("192.0.2.1" if not is_local(IPv4Address("192.0.2.1")) else "198.51.100.1", 9))
            return IPv4Address(chooser.getsockname()[0])
    except OSError:
        return None


def check_forwarding(sysctl: Path = SYSCTL) -> CheckResult:
    """Without forwarding pods reach nothing but the node; the redirect itself, to the node, still works."""
    check = "forwarding"
    try:
        value = (sysctl / "ipv4/ip_forward").read_text().strip()
    except OSError as error:
        return skipped(check, f"can't read net.ipv4.ip_forward: {error.strerror}", "sysctl net.ipv4.ip_forward")
    if value == "1":
        return passed(check, "net.ipv4.ip_forward = 1")
    seen = f"net.ipv4.ip_forward = {value}: pods can reach this node only"
    return warned(check, seen, "sysctl -w net.ipv4.ip_forward=1")


def check_cgroup2(wanted: WantedState, dataplane: str, find: Callable[[], Path] = find_cgroup2_root) -> CheckResult:
    """The eBPF programs are attached to a cgroup, and pods on the host network are told by theirs."""
    check = "cgroup2"
    needed = dataplane == "ebpf" or wanted.host_network is not HostNetwork.IGNORE
    mount = "mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified"
    try:
        root = find()
    except UserError as error:
        if needed:
            return failed(check, str(error), mount)
        return skipped(check, "not mounted; this dataplane doesn't need it", mount)
    if wanted.host_network is not HostNetwork.IGNORE:
        pods = find_pod_cgroups(root)
        if not pods:
            seen = f"no kubepods cgroup below {root}: pods on the host network can't be told from the host"
            return failed(check, seen, "systemctl start kubelet")
        return passed(check, f"{root}, pods in {', '.join(found.name for found in pods)}")
    return passed(check, str(root))


def check_bpf_filesystem(mountinfo: str | None = None) -> CheckResult:
    """A file system other tools pin eBPF objects in. Our programs are held by the cgroup and don't need it."""
    check = "bpffs"
    text = Path("/proc/thread-self/mountinfo").read_text() if mountinfo is None else mountinfo
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        if after.split(" ", 1)[0] == "bpf":
            return passed(check, f"mounted at {before.split(' ')[4]}")
    seen = "not mounted; no dataplane of ours needs it, as the cgroup holds the eBPF programs"
    return skipped(check, seen, f"mount -t bpf bpf {BPF_FILESYSTEM}")


def kernel_version(release: str) -> tuple[int, int]:
    """``6.1.0-18-cloud-amd64`` as (6, 1); (0, 0) for what isn't a version."""
    numbers = re.match(r"(\d+)\.(\d+)", release)
    return (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)


def check_kernel(wanted: WantedState, mends: Mends, release: str | None = None) -> CheckResult:
    """Whether the kernel is new enough; whether it has what is needed built in shows in the installed state."""
    check = "kernel"
    release = platform.release() if release is None else release
    table = OLDEST_KERNELS if wanted.host_network is HostNetwork.IGNORE else OLDEST_FOR_HOST_NETWORK
    oldest = table.get(mends.dataplane, OLDEST_KERNELS["iptables"])
    needed = ".".join(map(str, oldest))
    what = mends.dataplane if mends.dataplane in table else "a rule made by hand"
    if kernel_version(release) >= oldest:
        return passed(check, f"Linux {release}; {what} needs {needed}")
    seen = f"Linux {release} is older than {needed}, which {what} needs"
    return failed(check, seen, mends.with_dataplane("iptables").install())


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer, or why there was none."""

    status: int = 0
    body: str = ""
    error: OSError | http.client.HTTPException | None = None


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


def check_agent(wanted: WantedState, mends: Mends, answer: Answer | None = None) -> CheckResult:
    """``/ping`` is answered with ``pong`` by every kiam agent, conventional or ours."""
    check = "agent"
    target = f"{wanted.host_address}:{wanted.port}"
    answer = answer or ask(str(wanted.host_address), wanted.port, "/ping")
    restart = "kubectl --namespace kube-system rollout restart daemonset/kiam-agent"
    if answer.error is not None:
        return failed(check, f"nothing answers at {target}: {_why(answer.error)}", restart)
    if answer.status == 200 and answer.body.strip() == "pong":
        return passed(check, f"answers at {target}")
    seen = f"what answers /ping at {target} with {answer.status} is no kiam agent"
    return failed(check, seen, f"ss --listening --tcp --processes 'sport = :{wanted.port}'")


def check_metadata(uplinks: tuple[str, ...] = (), answer: Answer | None = None) -> CheckResult:
    """The real service, which the agent's health check and the server's role base ARN come from.

    Any HTTP status will do: a service that wants a session token says 401. No credentials are asked for.
    """
    check = "instance metadata"
    answer = answer or ask(str(METADATA_IPV4), METADATA_PORT, "/")
    if answer.error is None:
        return passed(check, f"{METADATA_IPV4} answers the host (HTTP {answer.status})")
    seen = f"{METADATA_IPV4} doesn't answer the host: {_why(answer.error)}"
    unreachable = isinstance(answer.error, OSError) and answer.error.errno in {101, 113}
    if unreachable and uplinks:
        return warned(check, seen, f"ip route replace {METADATA_IPV4}/32 dev {uplinks[0]}")
    command = "aws ec2 modify-instance-metadata-options --http-endpoint enabled --instance-id <this instance>"
    return warned(check, seen, command)


def _why(error: OSError | http.client.HTTPException) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer in {SECONDS:g} s"
    if isinstance(error, OSError):
        return error.strerror or os.strerror(error.errno or 0)
    return f"not HTTP ({type(error).__name__})"
