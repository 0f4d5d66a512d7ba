"""The dataplanes in a process with many open connections, as any pod can have the agent hold them."""

from __future__ import annotations

import resource
from contextlib import ExitStack
from pathlib import Path

from kiam.dataplane.contract import Condition
from tests.integration.dataplane.conftest import Plane


def test_each_can_be_looked_at_and_removed_in_a_process_with_thousands_of_descriptors(plane: Plane) -> None:
    # select() takes no descriptor above 1,023: libnftables' would abort the process.
    plane.install()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
        for _ in range(1100):
            stack.enter_context(Path("/dev/null").open("rb"))
        assert plane.inspect(plane.wanted).condition is Condition.INSTALLED
        plane.counters()
        plane.remove()
        assert plane.inspect().condition is Condition.ABSENT
