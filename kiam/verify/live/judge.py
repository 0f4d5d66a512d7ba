"""What the attempts and the host's evidence together say: plain functions, no I/O."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass

from kiam.dataplane.contract import HostNetwork
from kiam.metadata import METADATA_IPV4, METADATA_IPV6, METADATA_PORT
from kiam.verify.checks.services import show_listener, show_route
from kiam.verify.fix import Fix, advice
from kiam.verify.fixes import BY_HAND, Fixes, verify_with_rights
from kiam.verify.live.attempts import Attempt, Outcome
from kiam.verify.results import CheckResult, failed, passed, skipped, warned

Key = tuple[int, str]


@dataclass(frozen=True, slots=True)
class RouteInfo:
    """What a route is called, and what follows if it leads to the metadata service."""

    title: str
    ipv6: bool = False
    credentials: bool = True
    """Whether credentials are to be had on it: EC2 serves them over TCP, port 80, only."""
    raw: bool = False
    """Whether trying it takes NET_RAW."""


NOTHING_TO_DO = advice("nothing to do: while this node can't do it, its pods can't either")
BYPASSES: Mapping[str, RouteInfo] = {
    "mapped": RouteInfo(f"IPv4-mapped address, [::ffff:{METADATA_IPV4}]:80"),
    "tcp6": RouteInfo(f"IPv6, [{METADATA_IPV6}]:80", ipv6=True),
    "fastopen": RouteInfo("TCP Fast Open, sendto without connect"),
    "mptcp": RouteInfo("Multipath TCP"),
    "mptcp-mapped": RouteInfo("Multipath TCP to the IPv4-mapped address"),
    "io_uring": RouteInfo("connect by io_uring"),
    "raw": RouteInfo("raw socket, a SYN made by hand", raw=True),
    "packet": RouteInfo("packet socket, a frame made by hand", raw=True),
    "packet6": RouteInfo("packet socket over IPv6", ipv6=True),
    "other-port": RouteInfo("another TCP port (443)", credentials=False),
    "udp": RouteInfo("UDP, port 80", credentials=False),
    "icmp": RouteInfo("ICMP echo", credentials=False, raw=True),
    "vlan0": RouteInfo("a frame with a VLAN priority tag"),
    "vlan": RouteInfo("a frame with a VLAN tag"),
}
"""The routes that try to bypass the redirect, in the order of the table."""


FORWARDED: Mapping[str, RouteInfo] = {
    "other-interface": RouteInfo("an interface that is no pod's", raw=True),
    "vxlan": RouteInfo("inside VXLAN to the node"),
    "geneve": RouteInfo("inside Geneve to the node"),
    "ipip": RouteInfo("inside IPIP to the node", raw=True),
    "gre": RouteInfo("inside GRE to the node", raw=True),
    "sit": RouteInfo("IPv6 inside IPv4 (sit) to the node", ipv6=True, raw=True),
}
"""The routes on which the node forwards what comes in on an interface that isn't a pod's."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the host's side saw."""

    left_node: Set[Key]
    """Packets for a metadata address that left through an interface."""
    landed: Set[str]
    """Routes whose connection the kernel of the host has, from the pod's own address and port, at the agent's."""
    control: bool
    """Whether the host's own SYN to the IPv4 address was seen leaving: only then would a pod's have been seen too."""
    control6: bool
    """The same over IPv6."""
    arrived: Set[Key] = frozenset()
    """Packets for a metadata address that came in through an interface."""
    served6: bool = True
    """Whether the service answered the host over IPv6: on instances where it is off, nothing is to be had there."""

    def reached(self, attempt: Attempt) -> bool:
        """Whether a packet of the attempt left the node for the metadata service."""
        return any(key in self.left_node for key in attempt.sent)


def judge_proof(
    attempt: Attempt, evidence: Evidence, answer: str, expected: str, fixes: Fixes, *, stands_in: bool = False
) -> CheckResult:
    """The straight route: it has to land on the agent, or on what stands in for one that isn't running."""
    check = "live: pod to agent"
    target = f"{fixes.target.host_address}:{fixes.target.port}"
    who = f"{attempt.address}:{attempt.port}"
    if evidence.reached(attempt):
        return failed(check, f"the pod's SYN left the node for {METADATA_IPV4}: the real service", fixes.install())
    if attempt.outcome is Outcome.CONNECTED and attempt.route in evidence.landed:
        if expected not in answer:
            seen = f"{who} landed on {target}, but what listens there isn't a kiam agent: it doesn't answer /ping"
            return warned(check, seen, show_listener(fixes.target.port))
        by = "verify's own listener answered it, as no agent runs" if stands_in else "a kiam agent answered it"
        return passed(check, f"the pod's connection {who} is the host's at {target}, and {by}")
    if attempt.outcome is Outcome.CONNECTED:
        if expected in answer:
            seen = f"the agent answered {who}, but {target} has no connection from there: its source was rewritten"
        else:
            seen = f"{who} connected to something that isn't {target}"
        return failed(check, seen, fixes.install())
    if attempt.outcome is Outcome.UNSUPPORTED:
        return failed(check, f"the pod can't connect at all: {attempt.detail}", fixes.install())
    seen = f"the pod's connection to {METADATA_IPV4}:{METADATA_PORT} didn't land on {target}: {attempt.detail}"
    return failed(check, seen, fixes.install())


def judge_bypass(route: str, attempt: Attempt, evidence: Evidence, fixes: Fixes) -> CheckResult:
    """A bypass: it may be refused, dropped or led to the agent, but must not reach the real service."""
    info = BYPASSES[route]
    check = f"live: {info.title}"
    agent = f"{fixes.target.host_address}:{fixes.target.port}"
    if attempt.outcome is Outcome.UNSUPPORTED:
        return skipped(
            check, f"not possible here: {attempt.detail}", verify_with_rights() if info.raw else NOTHING_TO_DO
        )
    if evidence.reached(attempt):
        return _reached(check, info, evidence, "its packet left the node for the real service", fixes)
    if attempt.outcome is Outcome.CONNECTED and route not in evidence.landed:
        return _reached(check, info, evidence, f"connected to something that isn't the agent at {agent}", fixes)
    if attempt.outcome is Outcome.ANSWERED and route in {"udp", "icmp"}:
        return _reached(check, info, evidence, "something answered", fixes)
    if attempt.outcome is Outcome.CONNECTED:
        return passed(check, "landed on the agent")
    if attempt.outcome is Outcome.BLOCKED:
        return passed(check, f"refused by the kernel: {attempt.detail}")
    control = evidence.control6 if info.ipv6 else evidence.control
    if attempt.port and not attempt.sent and attempt.outcome is Outcome.REFUSED:
        # Nothing for the metadata address left the pod, so nothing of it can have got further.
        return passed(check, f"led elsewhere, and refused there: {attempt.detail}")
    if not control:
        address = METADATA_IPV6 if info.ipv6 else METADATA_IPV4
        seen = f"{attempt.detail}; but the host's own packets don't get out to {address} either, so it proves nothing"
        return skipped(check, seen, show_route(address))
    if attempt.outcome is Outcome.ANSWERED:
        return passed(check, f"answered by the agent's side ({attempt.detail}); nothing left the node")
    return passed(check, f"{attempt.detail}; nothing left the node")


def judge_forwarded(route: str, attempt: Attempt, evidence: Evidence, fixes: Fixes) -> CheckResult:
    """What comes in elsewhere than on a pod's interface: the node must not forward it to the real service."""
    info = FORWARDED[route]
    check = f"live: {info.title}"
    if attempt.outcome is Outcome.UNSUPPORTED:
        return skipped(check, f"not possible here: {attempt.detail}", NOTHING_TO_DO)
    if attempt.outcome is Outcome.BLOCKED:
        return passed(check, f"refused by the kernel: {attempt.detail}")
    if evidence.reached(attempt):
        seen = "the node forwarded its packet to the real service"
        if fixes.dataplane == BY_HAND:
            text = f"{seen} (the documented rule leaves it open to whoever can send it)"
            return warned(check, text, fixes.install_with_drops())
        return failed(check, seen, fixes.install())
    if not any(key in evidence.arrived for key in attempt.sent):
        return skipped(check, "the node let it in nowhere, so there was nothing to forward", NOTHING_TO_DO)
    if not (evidence.control6 if info.ipv6 else evidence.control):
        address = METADATA_IPV6 if info.ipv6 else METADATA_IPV4
        seen = f"not forwarded; but the host's own packets don't get out to {address} either, so it proves nothing"
        return skipped(check, seen, show_route(address))
    return passed(check, "came in on another interface, and was not forwarded")


def _reached(check: str, info: RouteInfo, evidence: Evidence, seen: str, fixes: Fixes) -> CheckResult:
    if fixes.dataplane == BY_HAND and not info.credentials:
        text = f"{seen} (the documented rule leaves it open; EC2 serves no credentials this way)"
        return warned(check, text, fixes.install_with_drops())
    if fixes.dataplane == BY_HAND and info.ipv6 and not evidence.served6:
        text = f"{seen} (the documented rule leaves it open; nothing answers the host there either)"
        return warned(check, text, fixes.install_with_drops())
    return failed(check, seen, fixes.install_with_drops())


def judge_host_network(attempt: Attempt, evidence: Evidence, fixes: Fixes) -> CheckResult:
    """A pod on the host network: with ``deny`` nowhere, with ``redirect`` to the agent."""
    check = "live: host-network pod"
    wanted = fixes.target.host_network
    if evidence.reached(attempt):
        return failed(
            check, f"its SYN left the node for the real service, with --host-network={wanted}", fixes.install()
        )
    if attempt.outcome is Outcome.CONNECTED and attempt.route in evidence.landed:
        if wanted is HostNetwork.REDIRECT:
            return passed(check, "landed on the agent")
        return failed(check, "was redirected to the agent, with --host-network=deny", fixes.install())
    if attempt.outcome is Outcome.CONNECTED:
        return failed(check, "connected to something that isn't the agent", fixes.install())
    if wanted is HostNetwork.REDIRECT:
        return failed(check, f"didn't land on the agent: {attempt.detail}", fixes.install())
    return passed(check, f"refused: {attempt.detail}")


def judge_host(attempt: Attempt, evidence: Evidence, fix: Fix) -> CheckResult:
    """The host's own connection: it must get out to the real service, and not to the agent."""
    check = "live: host to metadata"
    if attempt.route in evidence.landed:
        return failed(check, "the host's own connection was redirected to the agent", fix)
    if evidence.reached(attempt):
        answer = "answered" if attempt.outcome is Outcome.CONNECTED else attempt.detail
        return passed(check, f"the host's own connection left for {METADATA_IPV4} ({answer})")
    if attempt.outcome is Outcome.CONNECTED:
        return failed(check, "the host's own connection was answered without leaving the node", fix)
    if attempt.outcome is Outcome.BLOCKED:
        return failed(check, f"the host's own connection is refused by the kernel: {attempt.detail}", fix)
    seen = f"the host's own connection to {METADATA_IPV4} doesn't get out: {attempt.detail}"
    return warned(check, seen, show_route())
