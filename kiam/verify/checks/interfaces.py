"""The interface pattern against the interfaces there are, and which CNI they tell of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kiam.netfilter.interfaces import InterfacePattern
from kiam.verify.fixes import Fixes, verify_again
from kiam.verify.results import CheckResult, failed, passed, skipped, warned

CHECK = "interface pattern"

POD_PREFIXES = ("cali", "eni", "lxc", "azv", "gke", "veth", "nk", "ovn-k8s-", "antrea-")
BRIDGES = ("cbr0", "cni0", "kube-bridge", "weave", "docker0")
NOT_PODS = ("lxc_health", "veth-weave", "vethwe-")

CNIS = (
    # name of an interface, whether it is a prefix, the CNI, and the pattern for it
    ("cali", True, "Calico", "cali+"),
    ("lxc", True, "Cilium", "lxc+"),
    ("eni", True, "AWS VPC CNI", "eni+"),
    ("azv", True, "Azure CNI", "azv+"),
    ("gke", True, "GKE", "gke+"),
    ("weave", False, "Weave Net", "weave"),
    ("kube-bridge", False, "kube-router", "kube-bridge"),
    ("cbr0", False, "kubenet", "cbr0"),
    ("cni0", False, "flannel or the bridge plugin", "cni0"),
    ("veth", True, "the ptp plugin (kindnet)", "veth+"),
    ("docker0", False, "Docker's own bridge", "docker0"),
)
"""As conventional kiam's documentation names them per CNI; for the AWS VPC CNI it has ``!eth0``, which works where the
node's own interface is called so."""


@dataclass(frozen=True, slots=True)
class Interface:
    """One interface of the host."""

    name: str
    kind: str = ""
    """``veth``, ``bridge``, ``netkit``...; empty for a physical one."""
    master: str = ""
    """The bridge it is a port of."""
    other_namespace: bool = False
    """Whether its peer is in another network namespace."""
    ports: int = 0
    """Of a bridge: how many veths are on it."""

    @property
    def is_bridge(self) -> bool:
        """Whether other interfaces can be its ports."""
        return self.kind == "bridge"

    @property
    def looks_like_pod(self) -> bool:
        """Whether packets of pods come in on it, as ``-i`` sees it: a port is seen as its bridge."""
        if self.name.startswith(NOT_PODS) or self.master:
            return False
        if self.is_bridge:
            return self.ports > 0
        return self.kind in {"veth", "netkit"} and (self.other_namespace or self.name.startswith(POD_PREFIXES))


def pod_interfaces(interfaces: Sequence[Interface], uplinks: Sequence[str] = ()) -> list[Interface]:
    """Those packets of pods come in on. Docker's bridges count only where there is nothing else.

    A node that is itself a container (kind) has a veth as its uplink; that one is no pod's.
    """
    found = [interface for interface in interfaces if interface.looks_like_pod and interface.name not in uplinks]
    others = [interface for interface in found if not _is_dockers(interface)]
    return others or found


def _is_dockers(interface: Interface) -> bool:
    return interface.is_bridge and (interface.name == "docker0" or interface.name.startswith("br-"))


def guess_cni(interfaces: Sequence[Interface], uplinks: Sequence[str] = ()) -> tuple[str, str] | None:
    """The CNI the interfaces tell of and the pattern for it; None without a sign of one."""
    names = [interface.name for interface in pod_interfaces(interfaces, uplinks)]
    names += [interface.name for interface in interfaces if interface.is_bridge and interface.name in BRIDGES[:-1]]
    for sign, is_prefix, cni, pattern in CNIS:
        if any(name.startswith(sign) if is_prefix else name == sign for name in names):
            return cni, pattern
    return None


def recommended_pattern(
    interfaces: Sequence[Interface], pattern: InterfacePattern, uplinks: Sequence[str]
) -> InterfacePattern:
    """The pattern itself where it finds the pods there are and nothing else, else one that does."""
    pods = [interface.name for interface in pod_interfaces(interfaces, uplinks)]
    guess = guess_cni(interfaces, uplinks)
    missed = [name for name in pods if not pattern.matches(name)]
    if missed or any(pattern.matches(name) for name in uplinks):
        return InterfacePattern.parse(_suggestion(pods, guess, uplinks))
    if not pods and _is_of_another_cni(guess, pattern):
        return InterfacePattern.parse(guess[1] if guess else str(pattern))
    return pattern


def _is_of_another_cni(guess: tuple[str, str] | None, pattern: InterfacePattern) -> bool:
    return guess is not None and not InterfacePattern.parse(guess[1]).matches(_example(pattern))


def check_interfaces(
    interfaces: Sequence[Interface],
    pattern: InterfacePattern,
    uplinks: Sequence[str],
    fixes: Fixes,
    by_namespace: bool = False,
) -> list[CheckResult]:
    """What the pattern matches, and which pods' interfaces it misses: those pods are not redirected.

    ``by_namespace``: the dataplane tells pods by their network namespace instead.
    """
    if by_namespace:
        text = (
            f"the {fixes.dataplane} dataplane tells pods by their network namespace, whatever their interface is called"
        )
        return [passed(CHECK, text)]
    pods = pod_interfaces(interfaces, uplinks)
    matched = [interface.name for interface in interfaces if pattern.matches(interface.name) and not interface.master]
    missed = [interface.name for interface in pods if not pattern.matches(interface.name)]
    guess = guess_cni(interfaces, uplinks)
    cni = f"; these are the interfaces of {guess[0]}" if guess else ""
    if missed:
        seen = f"{pattern} misses {_some(missed)}, on which pods come in{cni}"
        return [failed(CHECK, seen, fixes.install_changed())]
    taken = [name for name in uplinks if pattern.matches(name)]
    if taken:
        seen = f"{pattern} matches {_some(taken)}, the node's own uplink, where no pod is"
        return [warned(CHECK, seen, fixes.install_changed())]
    if not pods:
        if guess and _is_of_another_cni(guess, pattern):
            seen = f"{pattern} is not for {guess[0]}, whose interface is here, with no pod on it yet"
            return [warned(CHECK, seen, fixes.install_changed())]
        seen = f"no pod's interface is here yet, so nothing can be said of {pattern}"
        return [skipped(CHECK, seen, verify_again("once a pod runs on this node"))]
    return [passed(CHECK, f"{pattern} matches {_some([n for n in matched if n in {p.name for p in pods}])}{cni}")]


def _example(pattern: InterfacePattern) -> str:
    return pattern.name + "0" if pattern.wildcard else pattern.name


def _suggestion(pods: Sequence[str], guess: tuple[str, str] | None, uplinks: Sequence[str] = ()) -> str:
    if guess and all(InterfacePattern.parse(guess[1]).matches(name) for name in pods):
        return guess[1]
    if len(set(pods)) == 1:
        return pods[0]
    prefix = _common_prefix(pods)
    if prefix and not any(name.startswith(prefix) for name in uplinks):
        return prefix + "+"
    return f"!{uplinks[0]}" if uplinks else (guess[1] if guess else "!eth0")


def _common_prefix(names: Sequence[str]) -> str:
    if not names:
        return ""
    first, last = min(names), max(names)
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(map(len, names)))
    return first[:length].rstrip("0123456789")


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"
