"""All checks, in the order of the table."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address

from kiam.dataplane.addresses import is_local
from kiam.dataplane.contract import OwnRule, WantedState
from kiam.dataplane.iptables.backend import detect_backend
from kiam.errors import ErrorKind, UserError
from kiam.metadata import METADATA_IPV4
from kiam.netfilter.interfaces import IptablesBackend
from kiam.netfilter.packets import Packet, metadata_packet
from kiam.verify.checks import mounts, prerequisites, services
from kiam.verify.checks.classifiers import check_classifiers, read_classifiers
from kiam.verify.checks.host import check_host, fix_for_host
from kiam.verify.checks.installed import check_installed
from kiam.verify.checks.interfaces import Interface, check_interfaces, pod_interfaces
from kiam.verify.checks.precedence import check_firewall, check_precedence
from kiam.verify.checks.programs import check_programs, check_unreadable, read_programs
from kiam.verify.checks.redirect import check_redirect
from kiam.verify.discovery import AUTO, Given, Node, ask, ask_all, by_interface, discover
from kiam.verify.fix import Fix, FixKind
from kiam.verify.fixes import BY_HAND, Fixes, verify_with_rights
from kiam.verify.live.place import pods_cgroup, top
from kiam.verify.live.proof import PROOF, LiveSettings, prove
from kiam.verify.node import usable
from kiam.verify.results import CheckResult, Status, failed, skipped, warned
from kiam.verify.snapshot import Snapshot, take_snapshot
from kiam.verify.subject import Asked, Subject

SAMPLES = 4
"""Of the interfaces pods come in on, so many are followed through the rules."""


@dataclass(frozen=True, slots=True)
class VerifySettings:
    """What to verify, and how."""

    dataplane: str = AUTO
    """A name of the registry, ``none`` for a rule made by hand, or ``auto``."""
    live: bool = True
    proof: LiveSettings = field(default_factory=LiveSettings)
    host: IPv4Address | None = None
    """The node's address as the environment says."""


def verify(given: Given, settings: VerifySettings) -> Iterator[CheckResult]:
    """Run every check; lines come as soon as they are known. Raises UserError where nothing can be checked."""
    snapshot = take_snapshot()
    asked = ask_all()
    ping = functools.cache(services.ping)
    backend = _backend()
    node = Node(snapshot.tables, snapshot.interfaces, snapshot.uplinks, backend, settings.host)
    subject = discover(settings.dataplane, given, asked, node, lambda address, port: ping(address, port).is_pong)
    wanted, fixes = subject.wanted, _fixes(subject, backend)
    now = ask(subject.dataplane, wanted) if subject.dataplane != BY_HAND else Asked()
    yield from check_installed(subject, now, asked, fixes)
    yield from check_rules(snapshot, subject, fixes, _own_rules(asked))
    yield from check_bpf()
    yield from check_classifiers(read_classifiers(sampled_interfaces(snapshot, wanted)))
    by_namespace = not by_interface(subject.dataplane)
    yield from check_interfaces(snapshot.interfaces, wanted.interface, snapshot.uplinks, fixes, by_namespace)
    yield prerequisites.check_addresses(wanted, fixes)
    yield prerequisites.check_forwarding()
    yield prerequisites.check_host_network(wanted)
    yield mounts.check_cgroup2(wanted, by_namespace)
    yield mounts.check_bpf_filesystem()
    yield prerequisites.check_kernel(wanted, fixes)
    yield services.check_agent(wanted, ping(wanted.host_address, wanted.port))
    yield services.check_metadata(snapshot.best_uplink)
    if settings.live:
        yield from check_live(snapshot, wanted, fixes, settings.proof)


def _backend() -> IptablesBackend:
    """Where the node's iptables rules are; AUTO where no iptables is installed, and so nothing tells."""
    try:
        return detect_backend()
    except UserError:
        return IptablesBackend.AUTO


def _fixes(subject: Subject, backend: IptablesBackend) -> Fixes:
    chosen = backend if subject.wanted.iptables_backend is IptablesBackend.AUTO else subject.wanted.iptables_backend
    iptables = "iptables" if chosen is IptablesBackend.AUTO else f"iptables-{chosen}"
    return Fixes(subject.target, subject.dataplane, iptables, agent_keeps=subject.present)


def _own_rules(asked: dict[str, Asked]) -> frozenset[OwnRule]:
    return frozenset(rule for answer in asked.values() if answer.inspection for rule in answer.inspection.rules)


def check_rules(snapshot: Snapshot, subject: Subject, fixes: Fixes, ours: frozenset[OwnRule]) -> list[CheckResult]:
    """What follows from the listings alone."""
    wanted = subject.wanted
    packets = samples(snapshot.interfaces, wanted)
    results = [
        warned(
            "listings",
            f"{one.tool} was not looked at: {one.reason}",
            Fix(FixKind.INSTALL_PACKAGE, f"apt-get install --yes {one.package}"),
        )
        for one in snapshot.unread
    ]
    if by_interface(subject.dataplane):
        results += check_redirect(snapshot.tables, packets, wanted, fixes, ours)
        results += check_precedence(snapshot.tables, packets, wanted, fixes)
    results += check_firewall(snapshot.tables, packets, wanted)
    return results + check_host(snapshot.tables, fixes)


def samples(interfaces: Sequence[Interface], wanted: WantedState) -> list[Packet]:
    """A pod's first packet on some of the interfaces there are; with none, on one that may come."""
    found = pod_interfaces(interfaces)
    names: Sequence[str | None] = [one.name for one in found if wanted.interface.matches(one.name)][:SAMPLES]
    # On a node that has the metadata address itself, rules for local destinations take the packet as well.
    local = is_local(METADATA_IPV4)
    return [replace(metadata_packet(wanted.interface, name), local=local) for name in names or [None]]


def sampled_interfaces(snapshot: Snapshot, wanted: WantedState) -> list[str]:
    """The interfaces of the samples, as far as they exist."""
    there = {interface.name for interface in snapshot.interfaces}
    names = [packet.interface.name for packet in samples(snapshot.interfaces, wanted)]
    return [name for name in names if name in there]


def check_bpf() -> list[CheckResult]:
    """Programs of others on the hooks of the root cgroup and of the pods'."""
    root = top()
    if root is None:
        return []
    pods = pods_cgroup(root)
    try:
        return check_programs(read_programs([root] if pods is None else [root, pods]))
    except OSError as error:
        return [check_unreadable(error)]


def check_live(snapshot: Snapshot, wanted: WantedState, fixes: Fixes, settings: LiveSettings) -> list[CheckResult]:
    """The live proof; what keeps it from being made is a failure, not a pass, but for rights this process lacks."""
    if not usable(wanted.host_address):
        seen = f"{wanted.host_address} is not an address pods can be led to on this node, so there is nothing to prove"
        return [skipped(PROOF, seen, fixes.install_changed())]
    try:
        return prove(
            wanted,
            snapshot.interfaces,
            fixes,
            settings,
            lambda: fix_for_host(snapshot.tables, fixes),
            _refuses(snapshot, wanted),
        )
    except UserError as error:
        if error.kind is ErrorKind.RIGHTS:
            return [skipped(PROOF, str(error), verify_with_rights())]
        return [failed(PROOF, error.what, error.fix or "verify again; if it stays so, verify with --no-live")]
    except PermissionError as error:
        seen = f"{error.strerror}: needs root, with NET_ADMIN, NET_RAW and SYS_ADMIN"
        return [skipped(PROOF, seen, verify_with_rights())]
    except OSError as error:
        return [
            failed(PROOF, f"the proof can't be made: {error}", "verify again; if it stays so, verify with --no-live")
        ]


def _refuses(snapshot: Snapshot, wanted: WantedState) -> Callable[[str], str]:
    def refuses(interface: str) -> str:
        # Calico drops what comes in on a "cali" interface it didn't make. Where real pods' packets are dropped too, the
        # firewall is what is wrong, and the proof has to show it.
        if check_firewall(snapshot.tables, samples(snapshot.interfaces, wanted), wanted)[0].status is not Status.PASS:
            return ""
        (line,) = check_firewall(snapshot.tables, [metadata_packet(wanted.interface, interface)], wanted)
        return "" if line.status is Status.PASS else line.seen

    return refuses
