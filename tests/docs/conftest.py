from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.docs.node import DocumentedNode, documented_node


@pytest.fixture(scope="module")
def node() -> Iterator[DocumentedNode]:
    """The node that the pages' commands run on."""
    with documented_node() as made:
        yield made
