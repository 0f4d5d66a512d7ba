"""What all tests share."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

# Tests fork to call functions in a pod's cgroup, and some have used gRPC before; see kiam.grpc_core.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

# A shell starts what it runs in the background with SIGINT ignored, and that is inherited all the way down: the tests
# that interrupt a program would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No test's outcome depends on how busy the machine is.
settings.register_profile("kiam", deadline=None)
settings.load_profile("kiam")

TESTS = Path(__file__).parent
BEGIN_EARLY = ("integration", "attacks", "clients", "sandbox")
"""Where tests start servers and make networks; what is left for the end is short, and no process is left with it."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order tests for ``-n N --dist=loadgroup``: a module's stay together, as they share what it takes long to make."""

    def rank(item: pytest.Item) -> int:
        if item.get_closest_marker("long"):
            return 0
        return 1 if item.path.relative_to(TESTS).parts[0] in BEGIN_EARLY else 2

    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(str(item.path.relative_to(TESTS))))
    items.sort(key=rank)
