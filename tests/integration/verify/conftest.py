"""One node a module, clean for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.verify.site import Site


@pytest.fixture(scope="module")
def calico_site() -> Iterator[Site]:
    """A node with Calico's interfaces."""
    with Site("calico") as site:
        yield site


@pytest.fixture
def site(calico_site: Site) -> Iterator[Site]:
    """The node, with no rules yet."""
    yield calico_site
    calico_site.reset()
