"""A fourth dataplane: one module, and one line in the registry."""

from __future__ import annotations

from kiam.dataplane.contract import Condition, Counters, HostNetwork, Inspection, Traits, WantedState


class FakeDataplane:
    """Never installed."""

    name = "fake"
    traits = Traits(
        tells_pods_by="their good looks",
        needs="`fakery`",
        rights="none",
        oldest_kernel=(4, 2),
        oldest_kernel_for_host_network=(4, 7),
        why_these_kernels="they are fake",
        by_interface=False,
        host_network=frozenset({HostNetwork.IGNORE, HostNetwork.DENY}),
        rank=99,
    )

    def install(self, wanted: WantedState) -> None:
        """Does nothing."""

    def remove(self) -> None:
        """Does nothing."""

    def inspect(self, wanted: WantedState | None = None) -> Inspection:
        """Never there."""
        return Inspection(Condition.ABSENT)

    def counters(self) -> Counters:
        """Never counted."""
        return Counters()
