"""The targets: one for each door that somebody else's bytes come in by. What each promises stands in its docstring."""

from __future__ import annotations

from collections.abc import Callable

from fuzz.cluster import agent, tenant, watch
from fuzz.listings import listing
from fuzz.pods import request, target

TARGETS: dict[str, Callable[[bytes], None]] = {
    "request": request,
    "target": target,
    "annotations": tenant,
    "watch": watch,
    "agent": agent,
    "listing": listing,
}
