"""What takes a pod's packet before the redirect does, and what drops it behind the redirect."""

from __future__ import annotations

from collections.abc import Sequence

from kiam.dataplane.contract import WantedState
from kiam.dataplane.registry import documented
from kiam.netfilter.conditions import Tri
from kiam.netfilter.model import Action, Chain, Table
from kiam.netfilter.packets import Packet
from kiam.netfilter.walk import Hit, base_chains, hits_at, walk
from kiam.verify.fix import Fix, FixKind
from kiam.verify.fixes import BY_HAND, Fixes, in_shell, nft_interface
from kiam.verify.results import CheckResult, failed, passed, warned

CHECK = "taken first"
FIREWALL = "host firewall"

OWNERS = (
    ("KUBE-", "kube-proxy"),
    ("kube-proxy", "kube-proxy"),
    ("DOCKER", "Docker"),
    ("docker", "Docker"),
    ("CILIUM", "Cilium"),
    ("OLD_CILIUM", "Cilium"),
    ("cali-", "Calico"),
    ("WEAVE", "Weave Net"),
    ("AWS-", "the AWS VPC CNI"),
    ("FLANNEL", "flannel"),
    ("CNI-", "a CNI plugin"),
)
ON_THE_WAY = frozenset({Action.DNAT, Action.REDIRECT, Action.TPROXY, Action.DROP, Action.REJECT, Action.NOTRACK})


def owner(hit: Hit) -> str:
    """Who keeps the rule, by the names of its chain and table."""
    for name in (hit.rule.chain, hit.rule.target_chain, hit.table.name):
        for prefix, who in OWNERS:
            if name.startswith(prefix):
                return who
    return "a hand-made rule"


def sends_to_agent(hit: Hit, wanted: WantedState) -> bool:
    """Whether the rule is a redirect to the agent."""
    return hit.rule.action is Action.DNAT and (hit.rule.to_address, hit.rule.to_port) == (
        wanted.host_address,
        wanted.port,
    )


def ahead_of_redirect(tables: Sequence[Table], packet: Packet, wanted: WantedState) -> list[Hit]:
    """What the packet meets in prerouting before a redirect to the agent, and that keeps it from getting there."""
    ahead: list[Hit] = []
    for hit in hits_at(tables, packet, "prerouting"):
        if sends_to_agent(hit, wanted) and hit.certain is Tri.YES:
            return ahead
        if not sends_to_agent(hit, wanted) and _hinders(hit, tables, packet, wanted):
            ahead.append(hit)
    return ahead


def _hinders(hit: Hit, tables: Sequence[Table], packet: Packet, wanted: WantedState) -> bool:
    if hit.base.kind == "nat":
        if hit.rule.action not in {Action.ACCEPT, Action.RETURN, Action.GOTO}:
            return True
        # An ACCEPT, or a RETURN or GOTO from the base chain, ends only its own chain: it matters where the redirect is
        # further down in that same chain.
        return any(
            sends_to_agent(later, wanted)
            for rule in hit.base.rules
            for later in [Hit(hit.table, hit.base, rule, rule.matches(packet))]
            if later.certain is not Tri.NO
        )
    # Elsewhere only what surely stops a packet counts: firewalls are full of drops a listing can't decide, and
    # whether one of them hits a pod is what the live proof shows.
    return hit.sure and hit.rule.action in ON_THE_WAY


def check_precedence(
    tables: Sequence[Table], packets: Sequence[Packet], wanted: WantedState, fixes: Fixes
) -> list[CheckResult]:
    """One line for each rule that takes a pod's packet first; one PASS where none does."""
    seen: dict[tuple[str, str, str], CheckResult] = {}
    for packet in packets:
        for hit in ahead_of_redirect(tables, packet, wanted):
            key = hit.table.tool, hit.table.name, hit.rule.text
            seen.setdefault(key, _report(hit, tables, packet, wanted, fixes))
    return list(seen.values()) or [passed(CHECK, "nothing takes a pod's packet before the redirect")]


def _report(hit: Hit, tables: Sequence[Table], packet: Packet, wanted: WantedState, fixes: Fixes) -> CheckResult:
    what = f"{owner(hit)} in {hit.table.tool} {hit.table.name} {hit.rule.chain}: {hit.rule.text}"
    if hit.certain is Tri.YES:  # what may come before it doesn't lead to the agent either
        return failed(CHECK, f"{what} takes the packet before the redirect", _fix(hit, fixes))
    return warned(CHECK, f"{what} may take the packet before the redirect", _fix(hit, fixes))


def _fix(hit: Hit, fixes: Fixes) -> Fix:
    in_the_same_table = hit.base.kind == "nat" and hit.table.tool == fixes.iptables
    if fixes.dataplane in {documented(), BY_HAND} and in_the_same_table:
        # To the head of the chain. By hand that is a second copy; the one further down is harmless, and deleting it
        # first would leave a gap.
        return fixes.install()
    # Whoever made the rule wants it for other traffic, so it stays.
    return fixes.let_pass(hit.table, hit.rule, from_pods=True)


def check_firewall(tables: Sequence[Table], packets: Sequence[Packet], wanted: WantedState) -> list[CheckResult]:
    """Whether the host's own firewall drops what was redirected, in the chains of the input hook."""
    target = f"{wanted.host_address}:{wanted.port}"
    for packet in packets:
        arrived = packet.redirected(wanted.host_address, wanted.port)
        for table, base in base_chains(tables, arrived, "input"):
            culprit = _dropped_by(table, base, arrived)
            if culprit:
                seen = f"{table.tool} {table.name} {base.name} drops pods' packets to {target}: {culprit}"
                return [failed(FIREWALL, seen, Fix(FixKind.OPEN_FIREWALL, _accept(table, base, wanted)))]
    return [passed(FIREWALL, f"lets packets of pods to {target} in")]


def _dropped_by(table: Table, base: Chain, packet: Packet) -> str:
    hits = walk(table, base, packet)
    for hit in hits:
        if hit.rule.action in {Action.DROP, Action.REJECT} and hit.sure:
            return hit.rule.text
        if hit.rule.action is Action.RETURN and hit.sure:
            break
        if hit.rule.action in {Action.ACCEPT, Action.UNDECIDED}:
            # Sure or not: a listing can't say that it is dropped.
            return ""
    return "its policy" if base.policy is Action.DROP else ""


def _accept(table: Table, base: Chain, wanted: WantedState) -> str:
    if table.tool == "nft":
        interface = f"{nft_interface(wanted.interface)} " if wanted.interface.name else ""
        words = f"{interface}ip daddr {wanted.host_address} tcp dport {wanted.port} accept"
        return f"nft insert rule {table.family} {table.name} {base.name} '{words}'"
    interface = " ".join([*wanted.interface.iptables_words(), ""])
    specification = f"{interface}-d {wanted.host_address}/32 -p tcp -m tcp --dport {wanted.port} -j ACCEPT"
    return f"{table.tool} -t {table.name} -I {base.name} 1 {in_shell(specification)}"
