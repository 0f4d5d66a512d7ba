"""All checks, in the order of the table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from kiam.dataplane.addresses import is_local
from kiam.dataplane.contract import WantedState
from kiam.dataplane.iptables.programs import detect_backend
from kiam.errors import UserError
from kiam.metadata import METADATA_IPV4
from kiam.netfilter.interfaces import IptablesBackend
from kiam.netfilter.packets import Packet, metadata_packet
from kiam.verify.checks import prerequisites
from kiam.verify.checks.classifiers import check_classifiers, read_classifiers
from kiam.verify.checks.host import check_host, host_hits
from kiam.verify.checks.installed import AUTO, ask_all, check_installed, choose
from kiam.verify.checks.interfaces import Interface, check_interfaces, pod_interfaces
from kiam.verify.checks.precedence import check_firewall, check_precedence
from kiam.verify.checks.programs import check_programs, check_unreadable, read_programs
from kiam.verify.checks.redirects import check_redirect
from kiam.verify.fixes import BY_HAND, Mends, delete_rule
from kiam.verify.live.place import pods_cgroup, top
from kiam.verify.live.proof import PROOF, LiveSettings, prove
from kiam.verify.results import CheckResult, Status, failed, warned
from kiam.verify.snapshot import Snapshot, take_snapshot

SAMPLES = 4
"""Of the interfaces pods come in on, so many are followed through the rules."""


@dataclass(frozen=True, slots=True)
class VerifySettings:
    """What to verify, and how."""

    dataplane: str = AUTO
    """A name of the registry, ``none`` for a rule made by hand, or ``auto``."""
    live: bool = True
    proof: LiveSettings = field(default_factory=LiveSettings)


def verify(wanted: WantedState, settings: VerifySettings) -> Iterator[CheckResult]:
    """Run every check; lines come as soon as they are known. Raises UserError where nothing can be checked."""
    snapshot = take_snapshot()
    asked = ask_all(wanted)
    dataplane = choose(settings.dataplane, asked)
    mends = Mends(wanted, dataplane, iptables_command(wanted))
    yield from check_installed(dataplane, asked, mends)
    yield from check_rules(snapshot, wanted, mends)
    yield from check_bpf()
    yield from check_classifiers(read_classifiers([packet.interface for packet in samples_there(snapshot, wanted)]))
    yield from check_interfaces(snapshot.interfaces, wanted.interface, snapshot.uplinks, mends)
    yield prerequisites.check_host_address(wanted, mends)
    yield prerequisites.check_forwarding()
    yield prerequisites.check_cgroup2(wanted, dataplane)
    yield prerequisites.check_bpf_filesystem()
    yield prerequisites.check_kernel(wanted, mends)
    yield prerequisites.check_agent(wanted, mends)
    yield prerequisites.check_metadata(tuple(snapshot.uplinks))
    if settings.live:
        yield from check_live(snapshot, wanted, mends, settings.proof)


def iptables_command(wanted: WantedState) -> str:
    """``iptables-nft`` or ``iptables-legacy``: the backend the node's rules are in."""
    backend = wanted.iptables_backend
    if backend is IptablesBackend.AUTO:
        try:
            backend = detect_backend()
        except UserError:
            return "iptables"
    return f"iptables-{backend}"


def check_rules(snapshot: Snapshot, wanted: WantedState, mends: Mends) -> list[CheckResult]:
    """What follows from the listings alone."""
    packets = samples(snapshot.interfaces, wanted)
    results = [
        warned("listings", f"{one.tool} was not looked at: {one.reason}", f"apt-get install --yes {one.package}")
        for one in snapshot.unread
    ]
    if mends.dataplane != "ebpf":
        results += check_redirect(snapshot.tables, packets, wanted, mends)
        results += check_precedence(snapshot.tables, packets, wanted, mends)
    results += check_firewall(snapshot.tables, packets, wanted)
    return results + check_host(snapshot.tables)


def samples(interfaces: Sequence[Interface], wanted: WantedState) -> list[Packet]:
    """A pod's first packet on some of the interfaces there are; with none, on one that may come."""
    found = pod_interfaces(interfaces)
    names: Sequence[str | None] = [one.name for one in found if wanted.interface.matches(one.name)][:SAMPLES]
    # On a node that has the metadata address itself, rules for local destinations take the packet as well.
    local = is_local(METADATA_IPV4)
    return [replace(metadata_packet(wanted.interface, name), local=local) for name in names or [None]]


def samples_there(snapshot: Snapshot, wanted: WantedState) -> list[Packet]:
    """As samples, but only on interfaces that exist."""
    names = {interface.name for interface in snapshot.interfaces}
    return [packet for packet in samples(snapshot.interfaces, wanted) if packet.interface in names]


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


def check_live(snapshot: Snapshot, wanted: WantedState, mends: Mends, settings: LiveSettings) -> list[CheckResult]:
    """The live proof; what keeps it from being made is a failure, not a pass."""
    try:
        return prove(
            wanted, snapshot.interfaces, mends, settings, _host_mend(snapshot, mends), _refuses(snapshot, wanted)
        )
    except UserError as error:
        return [failed(PROOF, str(error), f"sudo {mends.verify()}")]
    except PermissionError as error:
        seen = f"{error.strerror}: needs root, with NET_ADMIN, NET_RAW and SYS_ADMIN"
        return [failed(PROOF, seen, f"sudo {mends.verify()}")]


def _refuses(snapshot: Snapshot, wanted: WantedState) -> Callable[[str], str]:
    def refuses(interface: str) -> str:
        # Calico drops what comes in on a "cali" interface it didn't make. Where real pods' packets are dropped too, the
        # firewall is what is wrong, and the proof has to show it.
        if check_firewall(snapshot.tables, samples(snapshot.interfaces, wanted), wanted)[0].status is not Status.PASS:
            return ""
        (line,) = check_firewall(snapshot.tables, [metadata_packet(wanted.interface, interface)], wanted)
        return "" if line.status is Status.PASS else line.seen

    return refuses


def _host_mend(snapshot: Snapshot, mends: Mends) -> Callable[[], str]:
    def mend() -> str:
        hits = host_hits(snapshot.tables)
        if hits:
            return delete_rule(hits[0].table, hits[0].rule)
        return mends.install() if mends.dataplane != BY_HAND else ""

    return mend
