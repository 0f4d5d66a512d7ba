"""What the node has to have for the redirect, whichever dataplane makes it."""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from kiam.dataplane.contract import HostNetwork, WantedState, kernel_words
from kiam.dataplane.registry import DATAPLANES, documented, traits_of
from kiam.verify.fix import Fix, FixKind
from kiam.verify.fixes import Fixes
from kiam.verify.node import usable
from kiam.verify.results import CheckResult, failed, passed, skipped, warned

SYSCTL = Path("/proc/sys/net")
SHOW_FORWARDING = Fix(FixKind.SHOW_FORWARDING, "sysctl net.ipv4.ip_forward")


def check_addresses(wanted: WantedState, fixes: Fixes) -> CheckResult:
    """Pods must be sent to this node and not to another machine that happens to have the address."""
    check = "host address"
    addresses: list[IPv4Address | IPv6Address] = [wanted.host_address]
    if wanted.host_address6 is not None:
        addresses.append(wanted.host_address6)
    wrong = [address for address in addresses if not usable(address)]
    if not wrong:
        return passed(
            check, f"{_listed(addresses)} {'is an address' if len(addresses) == 1 else 'are addresses'} of this node"
        )
    seen = "; ".join(_why_unusable(address) for address in wrong)
    if not usable(fixes.target.host_address):
        return failed(
            check, seen, Fix(FixKind.SHOW_ADDRESSES, "ip -4 address show", "install with --host=<one of these>")
        )
    return failed(check, seen, fixes.install_changed())


def _listed(addresses: Sequence[IPv4Address | IPv6Address]) -> str:
    return " and ".join(map(str, addresses))


def _why_unusable(address: IPv4Address | IPv6Address) -> str:
    if address.is_loopback:
        return f"{address} can't be reached from pods: the kernel drops packets from outside to loopback addresses"
    return f"{address} is not an address of this node"


def check_forwarding(sysctl: Path = SYSCTL) -> CheckResult:
    """Without forwarding pods reach nothing but the node; the redirect itself, to the node, still works."""
    check = "forwarding"
    try:
        value = (sysctl / "ipv4/ip_forward").read_text().strip()
    except OSError as error:
        return skipped(check, f"can't read net.ipv4.ip_forward: {error.strerror}", SHOW_FORWARDING)
    if value == "1":
        return passed(check, "net.ipv4.ip_forward = 1")
    seen = f"net.ipv4.ip_forward = {value}: pods can reach this node only"
    return warned(check, seen, Fix(FixKind.ENABLE_FORWARDING, "sysctl -w net.ipv4.ip_forward=1"))


def check_host_network(wanted: WantedState) -> CheckResult:
    """What becomes of pods that share the node's network, said plainly: some of it no dataplane can close."""
    check = "host network"
    if wanted.host_network is HostNetwork.IGNORE:
        return passed(
            check, "pods on the host network count as the host and reach the real service (--host-network=ignore)"
        )
    done = "denied" if wanted.host_network is HostNetwork.DENY else "redirected"
    seen = (
        f"pods on the host network are {done}; with NET_RAW such a pod is as good as the node: what it can still send "
        "past every rule is in docs/security.md"
    )
    return passed(check, seen)


def kernel_version(release: str) -> tuple[int, int]:
    """``6.1.0-18-cloud-amd64`` as (6, 1); (0, 0) for what isn't a version."""
    numbers = re.match(r"(\d+)\.(\d+)", release)
    return (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)


def check_kernel(wanted: WantedState, fixes: Fixes, release: str | None = None) -> CheckResult:
    """Whether the kernel is new enough; whether it has what is needed built in shows in the installed state."""
    check = "kernel"
    release = platform.release() if release is None else release
    known = fixes.dataplane in DATAPLANES
    oldest = traits_of(fixes.dataplane if known else documented()).needed_kernel(wanted.host_network)
    needed = kernel_words(oldest)
    what = fixes.dataplane if known else "a rule made by hand"
    if kernel_version(release) >= oldest:
        return passed(check, f"Linux {release}; {what} needs {needed}")
    seen = f"Linux {release} is older than {needed}, which {what} needs"
    return failed(check, seen, fixes.with_dataplane(documented()).install_changed())
