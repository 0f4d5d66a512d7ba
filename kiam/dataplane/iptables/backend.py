"""In which of iptables' two rule stores a node's rules are, and what ours have counted there."""

from __future__ import annotations

from kiam.dataplane.iptables.ours import own_hooks
from kiam.dataplane.iptables.rules import FROM_METADATA, HOST_NETWORK, INSTALLED, PREFIX, TO_METADATA
from kiam.errors import UserError
from kiam.netfilter.interfaces import IptablesBackend
from kiam.netfilter.iptables import INSTALL, Programs, find_programs, has_legacy_tables
from kiam.netfilter.model import NO_TABLE, Ruleset

_KUBELET_CHAINS = ("KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY")


def count_ours(programs: Programs) -> Ruleset:
    """Our chains with counters, and nat's built-in one; cheap beside thousands of others' rules."""
    mangle = programs.chains("mangle", TO_METADATA, FROM_METADATA, HOST_NETWORK)
    nat = programs.chains("nat", INSTALLED, "PREROUTING", HOST_NETWORK)
    return {"mangle": mangle, "nat": nat}


def _rule_count(ruleset: Ruleset) -> int:
    # Our own rules say nothing about where the host's rules are.
    return sum(
        sum(len(chain.rules) for name, chain in table.chains.items() if not name.startswith(PREFIX))
        - len(own_hooks(table))
        for table in ruleset.values()
    )


def choose_backend(nft: list[Ruleset], legacy: list[Ruleset]) -> IptablesBackend:
    """Where the host's rules are, found as kube-proxy's image finds it (kubernetes-sigs/iptables-wrappers).

    Kubelet's hint chains in mangle decide; without any, the backend with more rules; when they are even, the one with
    ours, which may be all that is there after an install that adopted the only rule of others; else nft.
    """

    def hinted(rulesets: list[Ruleset]) -> bool:
        return any(chain in ruleset.get("mangle", NO_TABLE).chains for ruleset in rulesets for chain in _KUBELET_CHAINS)

    if hinted(nft):
        return IptablesBackend.NFT

    def ours(rulesets: list[Ruleset]) -> bool:
        return any(own_hooks(table) for ruleset in rulesets for table in ruleset.values())

    in_legacy, in_nft = sum(map(_rule_count, legacy)), sum(map(_rule_count, nft))
    if hinted(legacy) or in_legacy > in_nft or (in_legacy == in_nft and ours(legacy) and not ours(nft)):
        return IptablesBackend.LEGACY
    return IptablesBackend.NFT


def detect_backend() -> IptablesBackend:
    """The backend to use on this node when no flag says so. Raises UserError when no iptables is installed."""
    saves: dict[IptablesBackend, list[Ruleset]] = {}
    for backend in (IptablesBackend.NFT, IptablesBackend.LEGACY):
        found = [programs for ipv6 in (False, True) if (programs := find_programs(backend, ipv6))]
        if any(not programs.ipv6 for programs in found):
            saves[backend] = [
                programs.save()
                for programs in found
                if backend is IptablesBackend.NFT or has_legacy_tables(programs.ipv6)
            ]
    if not saves:
        raise UserError(f"iptables isn't installed: {INSTALL}")
    if len(saves) == 1:
        return next(iter(saves))
    return choose_backend(saves[IptablesBackend.NFT], saves[IptablesBackend.LEGACY])
