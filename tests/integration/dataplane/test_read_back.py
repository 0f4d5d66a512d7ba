"""What is installed is read back from the kernel: inspect() alone tells what it was installed for."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv6Address

import pytest

from kiam.dataplane.contract import Condition, HostNetwork, WantedState
from kiam.dataplane.registry import DATAPLANES, load_dataplane
from kiam.netfilter.interfaces import EVERY_INTERFACE, InterfacePattern, IptablesBackend
from tests.integration.verify.conftest import calico_site, site
from tests.integration.verify.site import Site
from tests.sandbox.netns import NODE_IPV4, NODE_IPV6

__all__ = ["calico_site", "site"]

PLAIN = WantedState(NODE_IPV4, 8181, InterfacePattern.parse("cali+"))
WANTED = {
    "plain": PLAIN,
    "inverted": replace(PLAIN, port=3100, interface=InterfacePattern.parse("!eth0")),
    "every interface": replace(PLAIN, interface=EVERY_INTERFACE),
    "one interface, IPv6": replace(PLAIN, interface=InterfacePattern.parse("weave"), host_address6=NODE_IPV6),
    "forwarding": replace(PLAIN, forward_from=InterfacePattern.parse("virbr+")),
    "deny": replace(PLAIN, host_network=HostNetwork.DENY),
    "redirect": replace(PLAIN, host_network=HostNetwork.REDIRECT, host_address6=IPv6Address(NODE_IPV6)),
}


@pytest.mark.parametrize("wanted", WANTED.values(), ids=list(WANTED))
@pytest.mark.parametrize("dataplane", list(DATAPLANES))
def test_what_was_installed_is_read_back(site: Site, dataplane: str, wanted: WantedState) -> None:
    agent = site.cgroups.pod("0a1b2c3d-0000-4000-8000-123456789abc")
    if wanted.host_network is not HostNetwork.IGNORE:
        wanted = replace(wanted, agent_cgroup=str(agent.relative_to(site.cgroups.root.parent)))
    site.install(dataplane, wanted)
    inspect = load_dataplane(dataplane).inspect
    found = site.node.call(inspect)
    assert found.condition is Condition.INSTALLED
    expected = wanted
    if dataplane == "ebpf":
        expected = replace(expected, interface=EVERY_INTERFACE)
    if dataplane == "iptables":
        expected = replace(expected, iptables_backend=IptablesBackend.NFT)
    assert found.installed == expected
    # And comparing with it finds no difference, whoever asks.
    assert site.node.call(inspect, found.installed).condition is Condition.INSTALLED


@pytest.mark.parametrize("dataplane", list(DATAPLANES))
def test_nothing_installed_is_nothing_read_back(site: Site, dataplane: str) -> None:
    found = site.node.call(load_dataplane(dataplane).inspect)
    assert (found.condition, found.installed) == (Condition.ABSENT, None)


def test_the_other_backend_is_read_back(site: Site) -> None:
    site.install("iptables", replace(PLAIN, iptables_backend=IptablesBackend.LEGACY))
    found = site.node.call(load_dataplane("iptables").inspect)
    assert found.installed == replace(PLAIN, iptables_backend=IptablesBackend.LEGACY)
