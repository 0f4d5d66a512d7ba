"""libnftables in a process with many open connections."""

from __future__ import annotations

import resource
from contextlib import ExitStack
from pathlib import Path

import pytest

from kiam.dataplane.nftables import NftablesDataplane
from kiam.errors import UserError


def test_an_agent_with_a_thousand_connections_gets_an_error_and_is_not_aborted() -> None:
    """libnftables' select() would end the process, at the will of any pod that opens connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
        for _ in range(1100):
            stack.enter_context(Path("/dev/null").open("rb"))
        with pytest.raises(UserError, match="1,000 files"):
            NftablesDataplane().counters()
