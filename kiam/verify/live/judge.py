"""What the attempts and the host's evidence together say: plain functions, no I/O."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass

from kiam.dataplane.contract import HostNetwork
from kiam.metadata import METADATA_IPV4, METADATA_IPV6, METADATA_PORT
from kiam.verify.fixes import BY_HAND, Mends
from kiam.verify.live.attempts import Attempt, Outcome
from kiam.verify.results import CheckResult, failed, passed, skipped, warned

Key = tuple[int, str]


@dataclass(frozen=True, slots=True)
class WayInfo:
    """What a way is called, and what follows if it leads to the metadata service."""

    title: str
    ipv6: bool = False
    credentials: bool = True
    """Whether credentials are to be had this way: EC2 serves them over TCP, port 80, only."""
    needs: str = ""
    """The command that makes the kernel or the node able to try it."""


IPV6 = "sysctl -w net.ipv6.conf.all.disable_ipv6=0"
MPTCP = "sysctl -w net.mptcp.enabled=1  # pods can't use it while it is off"
ROUND: Mapping[str, WayInfo] = {
    "mapped": WayInfo(f"IPv4-mapped address, [::ffff:{METADATA_IPV4}]:80", needs=IPV6),
    "tcp6": WayInfo(f"IPv6, [{METADATA_IPV6}]:80", ipv6=True, needs=IPV6),
    "fastopen": WayInfo("TCP Fast Open, sendto without connect", needs="sysctl -w net.ipv4.tcp_fastopen=1"),
    "mptcp": WayInfo("Multipath TCP", needs=MPTCP),
    "mptcp-mapped": WayInfo("Multipath TCP to the IPv4-mapped address", needs=MPTCP),
    "io_uring": WayInfo(
        "connect by io_uring", needs="sysctl -w kernel.io_uring_disabled=0  # pods can't use it while it is off"
    ),
    "raw": WayInfo("raw socket, a SYN made by hand", needs="kiam dataplane verify  # as root, with NET_RAW"),
    "packet": WayInfo("packet socket, a frame made by hand", needs="kiam dataplane verify  # as root, with NET_RAW"),
    "packet6": WayInfo("packet socket over IPv6", ipv6=True, needs=IPV6),
    "other-port": WayInfo("another TCP port (443)", credentials=False),
    "udp": WayInfo("UDP, port 80", credentials=False),
    "icmp": WayInfo("ICMP echo", credentials=False, needs="kiam dataplane verify  # as root, with NET_RAW"),
}
"""The ways round the redirect, in the order of the table."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the host's side saw."""

    left_node: Set[Key]
    """Packets for a metadata address that left through an interface."""
    landed: Set[str]
    """Ways whose connection the kernel of the host has, from the pod's own address and port, at the agent's."""
    control: bool
    """Whether the host's own SYN to the IPv4 address was seen leaving: only then would a pod's have been seen too."""
    control6: bool
    """The same over IPv6."""
    served6: bool = True
    """Whether the service answered the host over IPv6: on instances where it is off, nothing is to be had there."""

    def reached(self, attempt: Attempt) -> bool:
        """Whether a packet of the attempt left the node for the metadata service."""
        return any(key in self.left_node for key in attempt.sent)


def judge_proof(attempt: Attempt, evidence: Evidence, answer: str, expected: str, mends: Mends) -> CheckResult:
    """The straight way: it has to land on the agent, and the agent has to know the nonce."""
    check = "live: pod to agent"
    target = f"{mends.wanted.host_address}:{mends.wanted.port}"
    who = f"{attempt.address}:{attempt.port}"
    if evidence.reached(attempt):
        return failed(check, f"the pod's SYN left the node for {METADATA_IPV4}: the real service", mends.install())
    if attempt.outcome is Outcome.CONNECTED and attempt.way in evidence.landed:
        if expected not in answer:
            seen = f"{who} landed on {target}, but what listens there isn't a kiam agent: it didn't know the nonce"
            return warned(check, seen, f"ss --listening --tcp --processes 'sport = :{mends.wanted.port}'")
        return passed(check, f"the pod's connection {who} is the host's at {target}, and the nonce came back")
    if attempt.outcome is Outcome.CONNECTED:
        if expected in answer:
            seen = f"the agent answered {who}, but {target} has no connection from there: its source was rewritten"
        else:
            seen = f"{who} connected to something that isn't {target}"
        return failed(check, seen, mends.install())
    if attempt.outcome is Outcome.UNSUPPORTED:
        return failed(check, f"the pod can't connect at all: {attempt.detail}", mends.install())
    seen = f"the pod's connection to {METADATA_IPV4}:{METADATA_PORT} didn't land on {target}: {attempt.detail}"
    return failed(check, seen, mends.install())


def judge_way(way: str, attempt: Attempt, evidence: Evidence, mends: Mends) -> CheckResult:
    """A way round: it may be refused, dropped or led to the agent, but must not reach the real service."""
    info = ROUND[way]
    check = f"live: {info.title}"
    agent = f"{mends.wanted.host_address}:{mends.wanted.port}"
    if attempt.outcome is Outcome.UNSUPPORTED:
        return skipped(check, f"not possible here: {attempt.detail}", info.needs or mends.verify())
    if evidence.reached(attempt):
        return _reached(check, info, evidence, "its packet left the node for the real service", mends)
    if attempt.outcome is Outcome.CONNECTED and way not in evidence.landed:
        return _reached(check, info, evidence, f"connected to something that isn't the agent at {agent}", mends)
    if attempt.outcome is Outcome.ANSWERED and way in {"udp", "icmp"}:
        return _reached(check, info, evidence, "something answered", mends)
    if attempt.outcome is Outcome.CONNECTED:
        return passed(check, "landed on the agent")
    if attempt.outcome is Outcome.BLOCKED:
        return passed(check, f"refused by the kernel: {attempt.detail}")
    control = evidence.control6 if info.ipv6 else evidence.control
    if attempt.port and not attempt.sent and attempt.outcome is Outcome.REFUSED:
        # Nothing for the metadata address left the pod, so nothing of it can have got further.
        return passed(check, f"led elsewhere, and refused there: {attempt.detail}")
    if not control:
        version = "-6" if info.ipv6 else "-4"
        address = METADATA_IPV6 if info.ipv6 else METADATA_IPV4
        seen = f"{attempt.detail}; but the host's own packets don't get out to {address} either, so it proves nothing"
        return skipped(check, seen, f"ip {version} route get {address}")
    if attempt.outcome is Outcome.ANSWERED:
        return passed(check, f"answered by the agent's side ({attempt.detail}); nothing left the node")
    return passed(check, f"{attempt.detail}; nothing left the node")


def _reached(check: str, info: WayInfo, evidence: Evidence, seen: str, mends: Mends) -> CheckResult:
    if mends.dataplane == BY_HAND and not info.credentials:
        text = f"{seen} (the documented rule leaves it open; EC2 serves no credentials this way)"
        return warned(check, text, mends.install_with_drops())
    if mends.dataplane == BY_HAND and info.ipv6 and not evidence.served6:
        text = f"{seen} (the documented rule leaves it open; nothing answers the host there either)"
        return warned(check, text, mends.install_with_drops())
    return failed(check, seen, mends.install_with_drops())


def judge_host_network(attempt: Attempt, evidence: Evidence, mends: Mends) -> CheckResult:
    """A pod on the host network: with ``deny`` nowhere, with ``redirect`` to the agent."""
    check = "live: host-network pod"
    wanted = mends.wanted.host_network
    if evidence.reached(attempt):
        return failed(
            check, f"its SYN left the node for the real service, with --host-network={wanted}", mends.install()
        )
    if attempt.outcome is Outcome.CONNECTED and attempt.way in evidence.landed:
        if wanted is HostNetwork.REDIRECT:
            return passed(check, "landed on the agent")
        return failed(check, "was redirected to the agent, with --host-network=deny", mends.install())
    if attempt.outcome is Outcome.CONNECTED:
        return failed(check, "connected to something that isn't the agent", mends.install())
    if wanted is HostNetwork.REDIRECT:
        return failed(check, f"didn't land on the agent: {attempt.detail}", mends.install())
    return passed(check, f"refused: {attempt.detail}")


def judge_host(attempt: Attempt, evidence: Evidence, mend: str) -> CheckResult:
    """The host's own connection: it must get out to the real service, and not to the agent."""
    check = "live: host to metadata"
    if attempt.way in evidence.landed:
        return failed(check, "the host's own connection was redirected to the agent", mend)
    if evidence.reached(attempt):
        answer = "answered" if attempt.outcome is Outcome.CONNECTED else attempt.detail
        return passed(check, f"the host's own connection left for {METADATA_IPV4} ({answer})")
    if attempt.outcome is Outcome.CONNECTED:
        return failed(check, "the host's own connection was answered without leaving the node", mend)
    if attempt.outcome is Outcome.BLOCKED:
        return failed(check, f"the host's own connection is refused by the kernel: {attempt.detail}", mend)
    seen = f"the host's own connection to {METADATA_IPV4} doesn't get out: {attempt.detail}"
    return warned(check, seen, f"ip -4 route get {METADATA_IPV4}")
