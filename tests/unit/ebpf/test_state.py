"""The layout that kiam.c and Python share, and how two configurations are compared."""

from __future__ import annotations

import dataclasses
import re
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kiam.dataplane.contract import HostNetwork
from kiam.dataplane.ebpf.state import (
    ALL_HOOKS,
    CONFIG_SIZE,
    DROP_REASONS,
    EGRESS_HOOK,
    MAX_FORWARD,
    MAX_POD_CGROUPS,
    PREFIX,
    PROBE_HOOK,
    REDIRECTS,
    SOCKET_HOOKS,
    SOURCE,
    UPLINK_HOOK,
    CgroupPlace,
    Config,
    differences,
    source_digest,
    wanted_hooks,
)

PLACES = st.builds(CgroupPlace, st.integers(1, 2**64 - 1), st.integers(1, 32))
CONFIGS = st.builds(
    Config,
    host_netns=st.integers(1, 2**64 - 1),
    host_address=st.ip_addresses(v=4),
    port=st.integers(1, 65535),
    host_address6=st.none() | st.ip_addresses(v=6),
    host_network=st.sampled_from(HostNetwork),
    agent=st.none() | PLACES,
    pods=st.lists(PLACES, max_size=MAX_POD_CGROUPS).map(tuple),
    digest=st.binary(min_size=16, max_size=16),
    forward_from=st.lists(st.integers(1, 2**31 - 1), max_size=MAX_FORWARD).map(tuple),
)
CONFIG = Config(
    host_netns=4711,
    host_address=IPv4Address("192.0.2.10"),
    port=8181,
    host_address6=IPv6Address("2001:db8::10"),
    host_network=HostNetwork.DENY,
    agent=CgroupPlace(77, 4),
    pods=(CgroupPlace(12, 1), CgroupPlace(13, 2)),
    digest=bytes(range(16)),
)


@settings(deadline=None)
@given(CONFIGS)
def test_what_is_packed_is_read_back(config: Config) -> None:
    assert Config.unpack(config.pack()) == config


def test_addresses_and_ports_are_packed_in_network_byte_order() -> None:
    raw = CONFIG.pack()
    assert raw[8:12] == bytes([192, 0, 2, 10])
    assert raw[12:16] == bytes([8181 >> 8, 8181 & 255, 0, 0])
    assert raw[16:32] == CONFIG.host_address6.packed  # type: ignore[union-attr]  # it is set, see above


@settings(deadline=None)
@given(st.binary(max_size=2 * CONFIG_SIZE).filter(lambda raw: len(raw) != CONFIG_SIZE))
def test_another_versions_layout_is_not_read(raw: bytes) -> None:
    with pytest.raises(ValueError, match="another version"):
        Config.unpack(raw)


@settings(deadline=None)
@given(CONFIGS)
def test_a_configuration_does_not_differ_from_itself(config: Config) -> None:
    assert differences(config, config) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"host_netns": 1}, "the programs take another network namespace for the host's"),
        ({"host_address": IPv4Address("192.0.2.11")}, "host address is 192.0.2.11, wanted is 192.0.2.10"),
        ({"port": 80}, "port is 80, wanted is 8181"),
        ({"host_address6": None}, "host IPv6 address is none, wanted is 2001:db8::10"),
        ({"host_network": HostNetwork.IGNORE}, "host network is ignore, wanted is deny"),
        ({"pods": (CgroupPlace(12, 1),)}, "kubelet's cgroup has been made anew since the programs were installed"),
        ({"digest": bytes(16)}, "the programs are another version's"),
    ],
)
def test_each_difference_is_one_line(change: dict[str, object], problem: str) -> None:
    assert differences(CONFIG, dataclasses.replace(CONFIG, **change)) == [problem]  # type: ignore[arg-type]  # by case


def test_the_order_of_kubelets_cgroups_and_the_agents_pod_make_no_difference() -> None:
    found = dataclasses.replace(CONFIG, pods=CONFIG.pods[::-1], agent=None)
    assert differences(CONFIG, found) == []


def test_a_cookie_the_kernel_does_not_tell_is_not_compared() -> None:
    assert differences(dataclasses.replace(CONFIG, host_netns=None), CONFIG) == []


def test_every_program_of_the_source_has_a_hook_and_a_name_the_kernel_keeps_whole() -> None:
    programs = re.findall(r"^int (\w+)\(struct", SOURCE.read_text(), re.MULTILINE)
    assert sorted(programs) == sorted(hook.program for hook in (*ALL_HOOKS, UPLINK_HOOK, PROBE_HOOK))
    # BPF_OBJ_NAME_LEN is 16 with the terminating NUL.
    assert all(name.startswith(PREFIX) and len(name) < 16 for name in programs)


def test_the_counters_are_numbered_as_in_the_source() -> None:
    (body,) = re.findall(r"enum count \{(.*?)\}", SOURCE.read_text(), re.DOTALL)
    names = [name.strip().lower().replace("_", "-") for name in body.split(",") if name.strip()]
    assert names == ["redirects", *DROP_REASONS.values(), "counts"]
    assert REDIRECTS == 0
    assert list(DROP_REASONS) == list(range(1, len(DROP_REASONS) + 1))


def test_packets_are_looked_at_only_when_pods_on_the_host_network_matter() -> None:
    assert wanted_hooks(HostNetwork.IGNORE) == SOCKET_HOOKS
    for mode in (HostNetwork.DENY, HostNetwork.REDIRECT):
        assert wanted_hooks(mode) == (*SOCKET_HOOKS, EGRESS_HOOK)


def test_the_digest_is_the_sources() -> None:
    assert source_digest() == source_digest()
    assert len(source_digest()) == 16
