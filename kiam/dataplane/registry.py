"""The dataplanes there are. A new one is one new module and one line here."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from kiam.dataplane.contract import Dataplane, Traits

DATAPLANES: dict[str, str] = {
    "iptables": "kiam.dataplane.iptables:IptablesDataplane",
    "nftables": "kiam.dataplane.nftables:NftablesDataplane",
    "ebpf": "kiam.dataplane.ebpf:EbpfDataplane",
}


def load_dataplane(name: str) -> Dataplane:
    """Import and make the dataplane of that name; only the chosen one's libraries are loaded.

    Raises KeyError for a name that isn't in DATAPLANES.
    """
    return _class_of(name)()


def traits_of(name: str) -> Traits:
    """What that dataplane declares of itself; nothing is asked of the kernel. Raises KeyError as load_dataplane."""
    return _class_of(name).traits


def all_traits() -> dict[str, Traits]:
    """Every dataplane's traits, by name."""
    return {name: traits_of(name) for name in DATAPLANES}


def recommended() -> list[str]:
    """Names, the one to take first in front; without those that are for special cases."""
    ranked = sorted(all_traits().items(), key=lambda item: -item[1].rank)
    return [name for name, traits in ranked if traits.rank]


def documented() -> str:
    """The name of the dataplane that makes the documentation's rule: what conventional kiam's ``--iptables`` means."""
    return next(name for name, traits in all_traits().items() if traits.documented_rule)


def _class_of(name: str) -> type[Dataplane]:
    module, _, factory = DATAPLANES[name].partition(":")
    return cast(type[Dataplane], getattr(import_module(module), factory))
