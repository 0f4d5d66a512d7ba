"""The live proof from beginning to end."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, ip_address
from pathlib import Path

from kiam.dataplane.contract import HostNetwork, WantedState
from kiam.verify.checks.interfaces import Interface
from kiam.verify.fix import Fix, FixKind, advice
from kiam.verify.fixes import Fixes
from kiam.verify.live.attempts import Attempt, Order, Outcome
from kiam.verify.live.judge import (
    BYPASSES,
    FORWARDED,
    Evidence,
    Key,
    judge_bypass,
    judge_forwarded,
    judge_host,
    judge_host_network,
    judge_proof,
)
from kiam.verify.live.place import pods_cgroup, throwaway, top
from kiam.verify.live.probe import HOST, NEW, Probe
from kiam.verify.live.sockdiag import Endpoint, find_connection, find_in_table
from kiam.verify.live.stand_in import stand_in
from kiam.verify.live.tap import ADDRESSES, Tap
from kiam.verify.live.tunnels import KINDS, OTHER_INTERFACE, SETTLE_SECONDS, send_by_other_interface, tunnel_ends
from kiam.verify.live.wiring import CannotWireError, plan, wired
from kiam.verify.results import CheckResult, skipped

PROOF = "live: pod to agent"
SECONDS = 1.0
"""How long each attempt waits for an answer. Redirects are answered by this host and drops never; below the second
after which TCP repeats a SYN."""
STRAIGHT = 3
"""So many times as long the one attempt that has to get through: on a busy node TCP may have to repeat its SYN, once
after a second."""
PONG = "\r\n\r\npong"
LOOKUP_SECONDS = 0.5
ANSWER_SECONDS = 5.0
"""What an agent may take for its answer: it may be busy, and whether it answers at all isn't asked here."""


@dataclass(frozen=True, slots=True)
class LiveSettings:
    """What a person may choose about the proof."""

    pod_netns: Path | None = None
    """Prove it from this pod's namespace instead of from a throwaway one."""
    pod_address: IPv4Address | None = None
    """The throwaway pod's address; None: one of 198.18.0.0/15."""
    seconds: float = SECONDS


def prove(
    wanted: WantedState,
    interfaces: Sequence[Interface],
    fixes: Fixes,
    settings: LiveSettings,
    host_fix: Callable[[], Fix | None],
    refuses: Callable[[str], str],
) -> list[CheckResult]:
    """Make the pod, try everything, clean up, and judge. ``host_fix``: what to do if the host is redirected.
    ``refuses``: what of the firewall surely drops packets that come in on an interface of that name, if anything.

    Raises UserError where the node doesn't let it be tried (no root, no namespaces).
    """
    if settings.pod_netns is None:
        try:
            entry = plan(wanted.interface, interfaces)
        except CannotWireError as error:
            return [skipped(PROOF, str(error), with_real_pod())]
        if culprit := refuses(entry.bridge or entry.host_name):
            seen = f"this node's firewall drops packets of interfaces its CNI doesn't know: {culprit}"
            return [skipped(PROOF, seen, with_real_pod())]
    root = top()
    nonce = secrets.token_hex(16)
    with contextlib.ExitStack() as stack:
        tap = stack.enter_context(Tap())
        host = stack.enter_context(Probe(HOST, stack.enter_context(throwaway(root))))
        cgroup = stack.enter_context(throwaway(root and (pods_cgroup(root) or root)))
        pod = stack.enter_context(Probe(NEW if settings.pod_netns is None else str(settings.pod_netns), cgroup))
        address = address6 = ""
        if settings.pod_netns is None:
            connected = stack.enter_context(wired(entry, pod, settings.pod_address))
            address, address6 = str(connected.address), str(connected.address6 or "")
        own = host.carry_out(Order(("tcp", "tcp6"), settings.seconds, nonce))
        host_landed = {route for route in own if _landed(own[route], wanted)}
        straight = _straight(pod, Order(("tcp",), settings.seconds * STRAIGHT, nonce, address, address6), wanted)
        landed = {"tcp"} if straight.landed else set()
        others = pod.carry_out(Order(tuple(BYPASSES), settings.seconds, nonce, address, address6))
        # Before the next order, with which the probe drops these connections.
        landed |= {route for route in others if _landed(others[route], wanted)}
        forwarded = _forwarded(pod, wanted, Order((), settings.seconds, nonce, address, address6))
        on_host = _on_host_network(wanted, root, nonce, settings.seconds)
        left, arrived = _seen_by(tap)
    control, control6 = (_seen_leaving(own[route], left) for route in ("tcp", "tcp6"))
    served6 = own["tcp6"].outcome is Outcome.CONNECTED
    evidence = Evidence(left, landed, control, control6, arrived, served6)
    results = [
        judge_proof(
            straight.attempt,
            evidence,
            straight.answer,
            straight.expected,
            fixes,
            stands_in=straight.expected is not PONG,
        )
    ]
    results += [judge_bypass(route, others[route], evidence, fixes) for route in BYPASSES]
    results += [judge_forwarded(route, forwarded[route], evidence, fixes) for route in FORWARDED]
    if on_host is not None:
        attempt, at_agent = on_host
        results.append(judge_host_network(attempt, replace(evidence, landed={"tcp"} if at_agent else set()), fixes))
    seen_by_host = Evidence(left, host_landed, control, control6)
    fix = host_fix() if host_landed or not control else None
    return [*results, judge_host(own["tcp"], seen_by_host, fix or fixes.install())]


def with_real_pod() -> Fix:
    """Make the proof from a real pod's namespace."""
    pid = find_pod_process()
    if pid is None:
        return advice(
            "start a pod on this node, and verify again with --pod-netns=/proc/<pid of a process in it>/ns/net"
        )
    return Fix(FixKind.VERIFY_FROM_POD, f"kiam dataplane verify --pod-netns=/proc/{pid}/ns/net")


def find_pod_process(proc: Path = Path("/proc")) -> int | None:
    """A process in a pod that isn't on the host network: one below kubelet's cgroup, in another network namespace."""
    own = (proc / "thread-self/ns/net").stat().st_ino
    for path in proc.iterdir():
        if not path.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            if (path / "ns/net").stat().st_ino != own and "kubepods" in (path / "cgroup").read_text():
                return int(path.name)
    return None


def _on_host_network(wanted: WantedState, root: Path | None, nonce: str, seconds: float) -> tuple[Attempt, bool] | None:
    """What a pod on the host network gets: its attempt, and whether it landed on the agent.

    None where such pods are ignored, or can't be told from the host for lack of a cgroup (the cgroup2 check says so).
    """
    parent = pods_cgroup(root) if root is not None else None
    if wanted.host_network is HostNetwork.IGNORE or parent is None:
        return None
    with (
        throwaway(parent) as cgroup,
        Probe(HOST, cgroup) as pod,
        stand_in(wanted.host_address, wanted.port, nonce),
    ):
        attempt = pod.carry_out(Order(("tcp",), seconds, nonce))["tcp"]
        return attempt, _landed(attempt, wanted)


@dataclass(frozen=True, slots=True)
class _Straight:
    attempt: Attempt
    landed: bool
    answer: str
    expected: str
    """What an agent answers, and nothing else that may listen there."""


def _straight(pod: Probe, order: Order, wanted: WantedState) -> _Straight:
    """Connect as any program does, look for the connection on the host, and bring the nonce."""
    # Every agent, ours or conventional, answers this path itself, to anybody and whatever the query says; the real
    # service doesn't know it.
    path = f"/ping?verify={order.nonce}"
    with stand_in(wanted.host_address, wanted.port, order.nonce) as standing:
        attempt = pod.carry_out(order)["tcp"]
        landed = _landed(attempt, wanted)
        answer = pod.talk("tcp", path, ANSWER_SECONDS) if attempt.outcome is Outcome.CONNECTED else ""
    return _Straight(attempt, landed, answer, standing.secret if standing else PONG)


def _landed(attempt: Attempt, wanted: WantedState) -> bool:
    """Whether the host's kernel has the attempt's connection at the agent's address.

    The proof: source address and port together are the probe's alone (its address was made for it), and the table is
    the kernel's, so no program, the agent included, can claim a connection it doesn't have, or hide one.
    """
    if attempt.outcome is not Outcome.CONNECTED or not attempt.port:
        return False
    address = ip_address(attempt.address.removeprefix("::ffff:"))
    agent = wanted.host_address if address.version == 4 else wanted.host_address6
    if agent is None:
        return False
    local, peer = Endpoint(agent, wanted.port), Endpoint(address, attempt.port)
    deadline = time.monotonic() + LOOKUP_SECONDS
    while find_connection(local, peer) is None:
        # The pod is connected as soon as it has the SYN-ACK, the host when the pod's ACK has come back.
        if time.monotonic() > deadline:
            return find_in_table(local, peer)
        time.sleep(0.01)
    return True


def _forwarded(pod: Probe, wanted: WantedState, order: Order) -> dict[str, Attempt]:
    """Have packets come in on interfaces that aren't pods': one of its own, and the ends of tunnels to the node."""
    attempts = {OTHER_INTERFACE: send_by_other_interface(wanted.interface)}
    # A pod whose address isn't known (a real one's namespace was given) can still use the tunnels without a far end.
    far_end = IPv4Address(order.address) if order.address else IPv4Address("192.0.2.254")
    with tunnel_ends(wanted.host_address, far_end, wanted.interface) as ends:
        order = replace(order, routes=tuple(KINDS), node=str(wanted.host_address), tunnels=ends)
        attempts |= pod.carry_out(order)
        time.sleep(SETTLE_SECONDS)
    return attempts


def _seen_by(tap: Tap) -> tuple[set[Key], set[Key]]:
    """What left the node for a metadata address, and what came in for one."""
    seen = [one for one in tap.read() if one.packet.destination in ADDRESSES]
    return {one.packet.key for one in seen if one.outgoing}, {one.packet.key for one in seen if not one.outgoing}


def _seen_leaving(attempt: Attempt, left: set[Key]) -> bool:
    return any(key in left for key in attempt.sent)
