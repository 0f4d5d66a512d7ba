"""What the iptables dataplane writes, as plain functions of the wanted state and of what is there.

Three kinds of rules, for each address family:

- ``nat PREROUTING``: the documented redirect, its text exactly the documentation's, so no comment marks it as ours.
  What makes it ours is a copy of it in the chain ``KIAM-INSTALLED``, which no packet ever visits.
- ``mangle FORWARD`` and ``mangle INPUT``: after the nat table a packet that was redirected carries the agent's address,
  so whatever still carries the metadata address has got past the redirect, one way or another, and is dropped: other
  ports and protocols, packets that conntrack calls INVALID or doesn't track (nat never sees those), connections older
  than the redirect. On every interface: a pod's packet may come out of a tunnel's, or of one that the pattern doesn't
  match. mangle and not filter, because CNI plugins keep accepting rules on top of filter.
- ``mangle POSTROUTING`` and ``nat OUTPUT``: pods on the host network, when they are to be denied or redirected.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address

from kiam.dataplane.cgroups import HostPods
from kiam.dataplane.contract import HostNetwork, WantedState
from kiam.metadata import METADATA_IPV4, METADATA_IPV6, METADATA_PORT
from kiam.netfilter.interfaces import InterfacePattern
from kiam.netfilter.xtables import Packet, Rule, Ruleset, Table, takers

PREFIX = "KIAM-"
INSTALLED = "KIAM-INSTALLED"
"""Holds a copy of each of our rules that stands in a built-in chain without naming a chain of ours."""
TO_METADATA = "KIAM-TO-METADATA"
FROM_METADATA = "KIAM-FROM-METADATA"
HOST_NETWORK = "KIAM-HOST-NETWORK"
MADE = "made:"
"""Starts the comment in INSTALLED that lists what iptables-nft made of the table so that we could use it."""

BUILT_IN = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
CLOSED_PORT = 1
"""A port of the node on which nobody listens (tcpmux, RFC 1078): the kernel answers with a reset."""

TABLES = ("mangle", "nat")
"""In the order of installing: pods are kept from the real service before they are led to the agent."""


@dataclass(frozen=True, slots=True)
class TableRules:
    """What one table has to hold of ours."""

    chains: Mapping[str, tuple[Rule, ...]]
    """Our own chains."""
    hooks: tuple[Rule, ...]
    """Our rules in the built-in chains, where they have to be reached first."""

    @property
    def hooks_in(self) -> frozenset[str]:
        """The built-in chains that hold a rule of ours."""
        return frozenset(rule.chain for rule in self.hooks)


def _interface_words(flag: str, interface: InterfacePattern) -> tuple[str, ...]:
    # iptables -S leaves out an interface that matches every name.
    if not interface.name:
        return ()
    name = interface.name + ("+" if interface.wildcard else "")
    return ("!", flag, name) if interface.inverted else (flag, name)


def _metadata(ipv6: bool) -> str:
    return f"{METADATA_IPV6}/128" if ipv6 else f"{METADATA_IPV4}/32"


_HTTP = ("-p", "tcp", "-m", "tcp", "--dport", str(METADATA_PORT))


def _to_agent(wanted: WantedState, ipv6: bool) -> tuple[str, ...]:
    if not ipv6:
        return ("-j", "DNAT", "--to-destination", f"{wanted.host_address}:{wanted.port}")
    if wanted.host_address6 is not None:
        return ("-j", "DNAT", "--to-destination", f"[{wanted.host_address6}]:{wanted.port}")
    # Refused at once, so that a program that prefers IPv6 falls back to IPv4 without waiting. (REJECT can't be used: it
    # is for the filter table alone, where others' ACCEPT may come first.)
    return ("-j", "REDIRECT", "--to-ports", str(CLOSED_PORT))


def redirect_rule(wanted: WantedState, ipv6: bool = False) -> Rule:
    """The documented rule. IPv4, cali+: ``-d 169.254.169.254/32 -i cali+ -p tcp -m tcp --dport 80 -j DNAT ...``."""
    words = ("-d", _metadata(ipv6), *_interface_words("-i", wanted.interface), *_HTTP, *_to_agent(wanted, ipv6))
    return Rule("PREROUTING", words)


def _reason(chain: str, reason: str, *match: str) -> Rule:
    return Rule(chain, (*match, "-m", "comment", "--comment", reason, "-j", "DROP"))


def _allowed(chain: str, flag: str, wanted: WantedState) -> tuple[Rule, ...]:
    if wanted.forward_from is None:
        return ()
    return (Rule(chain, (*_interface_words(flag, wanted.forward_from), "-j", "RETURN")),)


def _not_of_pods(chain: str, pods: InterfacePattern) -> tuple[Rule, ...]:
    if not pods.name:
        return ()
    return (_reason(chain, "other-interface", *_interface_words("-i", replace(pods, inverted=not pods.inverted))),)


def _from_pod_pods(cgroups: HostPods, chain: str, match: Sequence[str]) -> tuple[Rule, ...]:
    return tuple(
        Rule(chain, (*match, "-m", "cgroup", "--path", pods.name, "-j", HOST_NETWORK)) for pods in cgroups.pods
    )


def _agent_passes(cgroups: HostPods) -> tuple[Rule, ...]:
    if cgroups.agent is None:
        return ()
    return (Rule(HOST_NETWORK, ("-m", "cgroup", "--path", cgroups.agent.name, "-j", "RETURN")),)


def nat_rules(wanted: WantedState, host_pods: HostPods, ipv6: bool) -> TableRules:
    """What the nat table has to hold."""
    hooks: tuple[Rule, ...] = (redirect_rule(wanted, ipv6),)
    if wanted.forward_from is not None:
        # The documented rule's text stays, so what it isn't for has to leave ahead of it.
        interface = _interface_words("-i", wanted.forward_from)
        hooks = (Rule("PREROUTING", ("-d", _metadata(ipv6), *interface, "-j", "ACCEPT")), *hooks)
    chains: dict[str, tuple[Rule, ...]] = {INSTALLED: tuple(Rule(INSTALLED, rule.words) for rule in hooks)}
    if wanted.host_network is HostNetwork.REDIRECT and (not ipv6 or wanted.host_address6 is not None):
        chains[HOST_NETWORK] = (*_agent_passes(host_pods), Rule(HOST_NETWORK, (*_HTTP, *_to_agent(wanted, ipv6))))
        hooks += _from_pod_pods(host_pods, "OUTPUT", ("-d", _metadata(ipv6), *_HTTP))
    return TableRules(chains, hooks)


def mangle_rules(wanted: WantedState, host_pods: HostPods, ipv6: bool) -> TableRules:
    """What the mangle table has to hold."""
    address = _metadata(ipv6)
    refused = ipv6 and wanted.host_address6 is None
    chains: dict[str, tuple[Rule, ...]] = {
        INSTALLED: (),
        TO_METADATA: (
            *_allowed(TO_METADATA, "-i", wanted),
            *_not_of_pods(TO_METADATA, wanted.interface),
            _reason(TO_METADATA, "ipv6" if refused else "bypass", *_HTTP),
            _reason(TO_METADATA, "ipv6" if refused else "other-port", "-p", "tcp"),
            _reason(TO_METADATA, "ipv6" if refused else "other-protocol"),
        ),
        # What the real service answers: to a request that left the node by a way nobody thought of.
        FROM_METADATA: (*_allowed(FROM_METADATA, "-o", wanted), _reason(FROM_METADATA, "bypass")),
    }
    hooks: tuple[Rule, ...] = (
        Rule("FORWARD", ("-d", address, "-j", TO_METADATA)),
        Rule("FORWARD", ("-s", address, "-j", FROM_METADATA)),
        # A node may have the address itself. What comes in on lo is the host's own.
        Rule("INPUT", ("-d", address, "!", "-i", "lo", "-j", TO_METADATA)),
    )
    if wanted.host_network is not HostNetwork.IGNORE:
        # After the OUTPUT hooks, so that what nat OUTPUT redirected doesn't carry this address any more.
        chains[HOST_NETWORK] = (*_agent_passes(host_pods), _reason(HOST_NETWORK, "host-network"))
        hooks += _from_pod_pods(host_pods, "POSTROUTING", ("-d", address))
    return TableRules(chains, hooks)


def table_rules(table: str, wanted: WantedState, host_pods: HostPods, ipv6: bool) -> TableRules:
    """What that table has to hold."""
    return (nat_rules if table == "nat" else mangle_rules)(wanted, host_pods, ipv6)


def own_hooks(table: Table) -> list[Rule]:
    """Our rules in the built-in chains: those that lead to a chain of ours, and those with a copy in INSTALLED.

    A rule that reads like one of INSTALLED but is there more often than INSTALLED says was written by hand, and stays
    until an install finds it (see :func:`adopted`).
    """
    owned = [rule for chain in BUILT_IN for rule in table.get(chain, ()) if (rule.target or "").startswith(PREFIX)]
    present = list(table.get("PREROUTING", ()))
    for copy in table.get(INSTALLED, ()):
        rule = Rule("PREROUTING", copy.words)
        if rule in present:
            owned.append(present.pop(present.index(rule)))
    return owned


def adopted(table: Table, rules: TableRules) -> list[Rule]:
    """Rules of others that an install takes over, because they read as ours do.

    A conventional agent's, or the documentation's command's: two rules alike would be one too many, and the second
    would go on leading pods to the agent's port after ours is removed.
    """
    wanted = [rule for rule in rules.hooks if not (rule.target or "").startswith(PREFIX)]
    alike = [rule for chain in BUILT_IN for rule in table.get(chain, ()) if rule in wanted]
    for rule in own_hooks(table):
        if rule in alike:
            alike.remove(rule)
    return alike


def own_chains(table: Table) -> dict[str, Sequence[Rule]]:
    """Our own chains, of whatever version of ours."""
    return {chain: rules for chain, rules in table.items() if chain.startswith(PREFIX)}


def made_by_us(table: Table) -> tuple[str, ...]:
    """What the comment in INSTALLED lists: ``table`` and names of built-in chains."""
    for rule in table.get(INSTALLED, ()):
        if (rule.comment or "").startswith(MADE):
            return tuple((rule.comment or "").removeprefix(MADE).split())
    return ()


def _with_made(rules: TableRules, made: Sequence[str]) -> TableRules:
    if not made:
        return rules
    note = Rule(INSTALLED, ("-m", "comment", "--comment", f"{MADE} {' '.join(made)}"))
    return TableRules({**rules.chains, INSTALLED: (*rules.chains[INSTALLED], note)}, rules.hooks)


def packet_of(rule: Rule, interface: InterfacePattern, destination_is_local: bool = False) -> Packet | None:
    """The packet a rule of ours in a built-in chain is there for; None for host-network pods and for answers."""
    address = (rule.value("-d") or "").partition("/")[0]
    if rule.chain in ("OUTPUT", "POSTROUTING") or not address:
        return None
    metadata = METADATA_IPV6 if ":" in address else METADATA_IPV4
    return Packet(metadata, interface, destination_is_local=destination_is_local)


def taken_first(
    table: Table, rule: Rule, interface: InterfacePattern, destination_is_local: bool = False
) -> Rule | None:
    """The rule of others, ahead of ours, that could take a packet meant for ours; None if there is none."""
    packet = packet_of(rule, interface, destination_is_local)
    if packet is None:
        return None
    ahead: list[Rule] = []
    ours = own_hooks(table)
    for other in table.get(rule.chain, ()):
        if other == rule:
            break
        if other not in ours:
            ahead.append(other)
    return next(takers(table, ahead, packet), None)


def problems_of(
    table_name: str,
    table: Table,
    rules: TableRules,
    interface: InterfacePattern,
    destination_is_local: bool = False,
) -> Iterator[str]:
    """What differs in a table from what it has to hold, one line each."""
    present = own_hooks(table)
    for rule in rules.hooks:
        count = present.count(rule)
        if count == 0:
            by_hand = rule in table.get(rule.chain, ())
            yield f"missing in {table_name}: {rule}" + (" (there is one alike that isn't ours)" if by_hand else "")
        elif count > 1:
            yield f"{count} times in {table_name}: {rule}"
        elif taker := taken_first(table, rule, interface, destination_is_local):
            yield f"in {table_name} {rule.chain}, behind a rule that could take the packet first: {taker}"
    for rule in dict.fromkeys(present):
        if rule not in rules.hooks:
            yield f"of an older version of ours in {table_name}: {rule}"
    chains = own_chains(table)
    wanted = _with_made(rules, made_by_us(table)).chains
    for chain, content in wanted.items():
        if list(chains.get(chain, ())) != list(content) or chain not in chains:
            yield f"the chain {chain} of {table_name} " + ("differs" if chain in chains else "is missing")
    for chain in chains:
        if chain not in wanted:
            yield f"the chain {chain} of {table_name} is of an older version of ours"


def _line(command: str, rule: Rule, position: str = "") -> str:
    return f"[{rule.packets}:{rule.bytes}] {command} {rule.chain} {position}{rule.text}"


def _counted(rule: Rule, known: Mapping[Rule, Rule]) -> Rule:
    before = known.get(rule)
    return rule if before is None else before


def install_script(table_name: str, table: Table, rules: TableRules, made: Sequence[str]) -> str:
    """Input for ``iptables-restore --noflush --counters`` that brings one table to what it has to hold.

    One table is one transaction: packets see the rules before or the rules after. What was ours is taken out in the
    same step, and counters of rules that stay are carried over.
    """
    present = [*own_hooks(table), *adopted(table, rules)]
    chains = own_chains(table)
    wanted = _with_made(rules, made)
    known = {rule: rule for rule in (*present, *(rule for content in chains.values() for rule in content))}
    lines = [f"*{table_name}"]
    lines += _start_record(table)
    lines += [f":{chain} - [0:0]" for chain in wanted.chains if chain != INSTALLED]
    # By text, not by number: numbers change when another program writes, texts don't. Deleting comes before inserting,
    # because -D takes the first rule that reads so.
    lines += [f"-D {rule.chain} {rule.text}" for rule in present]
    lines += [_line("-A", _counted(rule, known)) for content in wanted.chains.values() for rule in content]
    lines += [_line("-I", _counted(rule, known), "1 ") for rule in reversed(wanted.hooks)]
    lines += _drop_chains(chain for chain in chains if chain not in wanted.chains)
    return "\n".join([*lines, "COMMIT", ""])


def _start_record(table: Table) -> list[str]:
    # Not by flushing, which always succeeds: of two installs at the same time each would write its rule, and the second
    # forget that the first one's is ours. Making a chain that has come into being meanwhile fails, and so does deleting
    # a copy that has gone.
    if INSTALLED not in table:
        return [f"-N {INSTALLED}"]
    return [f"-D {INSTALLED} {copy.text}" for copy in table[INSTALLED]]


def _drop_chains(chains: Iterable[str]) -> list[str]:
    names = list(chains)
    return [f"-F {chain}" for chain in names] + [f"-X {chain}" for chain in names]


def remove_script(table_name: str, table: Table) -> str | None:
    """Input for ``iptables-restore --noflush`` that takes out all that is ours; None when nothing is."""
    hooks, chains = own_hooks(table), own_chains(table)
    if not hooks and not chains:
        return None
    lines = [f"-D {rule.chain} {rule.text}" for rule in hooks]
    return "\n".join([f"*{table_name}", *lines, *_drop_chains(chains), "COMMIT", ""])


def found_lines(ruleset: Ruleset) -> list[str]:
    """Ours as ``iptables -S`` prints it, the table in front."""
    lines: list[str] = []
    for name in TABLES:
        table = ruleset.get(name, {})
        lines += [f"-t {name} {rule}" for rule in own_hooks(table)]
        lines += [
            f"-t {name} {rule}" for chain, rules in own_chains(table).items() if chain != INSTALLED for rule in rules
        ]
    return lines


def redirects_counted(ruleset: Ruleset) -> int:
    """Connections redirected: nat sees the first packet of each."""
    nat = ruleset.get("nat", {})
    rules = [rule for rule in own_hooks(nat) if rule.chain == "PREROUTING"] + list(nat.get(HOST_NETWORK, ()))
    return sum(rule.packets for rule in rules if rule.target == "DNAT")


def drops_counted(ruleset: Ruleset) -> dict[str, int]:
    """Packets dropped, by reason; a refused IPv6 connection counts once."""
    drops: dict[str, int] = {}
    for chain in (TO_METADATA, FROM_METADATA, HOST_NETWORK):
        for rule in ruleset.get("mangle", {}).get(chain, ()):
            if rule.target == "DROP" and rule.comment:
                drops[rule.comment] = drops.get(rule.comment, 0) + rule.packets
    for rule in own_hooks(ruleset.get("nat", {})):
        if rule.target == "REDIRECT":
            drops["ipv6"] = drops.get("ipv6", 0) + rule.packets
    return drops


def documented_command(host_address: IPv4Address, port: int, interface: InterfacePattern) -> str:
    """The command of the documentation, for a person to run."""
    return f"iptables -t nat {redirect_rule(WantedState(host_address, port, interface))}"
