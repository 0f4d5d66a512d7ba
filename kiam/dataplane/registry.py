"""The dataplanes there are. A new one is one new module and one line here."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from kiam.dataplane.contract import Dataplane

DATAPLANES: dict[str, str] = {
    "iptables": "kiam.dataplane.iptables:IptablesDataplane",
    "nftables": "kiam.dataplane.nftables:NftablesDataplane",
    "ebpf": "kiam.dataplane.ebpf:EbpfDataplane",
}


def load_dataplane(name: str) -> Dataplane:
    """Import and make the dataplane of that name; only the chosen one's libraries are loaded.

    Raises KeyError for a name that isn't in DATAPLANES.
    """
    module, _, factory = DATAPLANES[name].partition(":")
    return cast(Dataplane, getattr(import_module(module), factory)())
