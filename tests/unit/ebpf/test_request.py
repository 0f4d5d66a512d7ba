"""What the short-lived loader is asked for."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from kiam.dataplane.contract import HostNetwork, WantedState
from kiam.dataplane.ebpf.request import parse_request, write_request
from kiam.netfilter.interfaces import InterfacePattern

WANTED = st.builds(
    WantedState,
    host_address=st.ip_addresses(v=4),
    port=st.integers(1, 65535),
    interface=st.sampled_from(["cali+", "!eth0", "cbr0", "+"]).map(InterfacePattern.parse),
    host_address6=st.none() | st.ip_addresses(v=6),
    host_network=st.sampled_from(HostNetwork),
    agent_cgroup=st.none() | st.text(min_size=1),
)


@settings(deadline=None)
@given(WANTED, st.text("abc/ ü", min_size=1))
def test_a_request_is_read_as_it_was_meant(wanted: WantedState, cgroup: str) -> None:
    line = write_request(wanted, Path(cgroup))
    assert "\n" not in line
    assert parse_request(line) == (wanted, Path(cgroup))
