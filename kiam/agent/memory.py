"""Keeping an agent's memory small: every node has one.

What is done here changes no behaviour; where it doesn't work, the agent is only heavier.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from contextlib import suppress
from types import ModuleType

_SERVERS = ("http.server", "urllib.request", "wsgiref.simple_server")
"""What prometheus_client imports to serve metrics and to push them, neither of which it is asked to do here."""
# malloc.h; mallopt(3)
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_ARENA_MAX = -1, -2, -8


class _Unused(ModuleType):
    """Stands for a module of which nothing is called: each of its names is a class of its own."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def use_one_arena() -> None:
    """Have malloc serve all threads from one arena, and give back what is free: 1.3 MiB.

    By default each thread of gRPC's has an arena of its own, for a speed that nothing in this process needs.
    """
    with suppress(AttributeError, OSError):  # not glibc
        libc = ctypes.CDLL(None)
        for parameter, value in ((_M_ARENA_MAX, 1), (_M_TRIM_THRESHOLD, 1 << 16), (_M_TOP_PAD, 1 << 14)):
            libc.mallopt(parameter, value)


def import_prometheus_client() -> None:
    """Import it without its web servers, which bring a parser of mails: 3.5 MiB. To be called before anybody else does.

    Whoever imports one of these modules later gets the real one.
    """
    absent = [name for name in _SERVERS if name not in sys.modules]
    sys.modules.update({name: _Unused(name) for name in absent})
    try:
        import prometheus_client  # noqa: F401  # to have it imported is the point
    finally:
        for name in absent:
            del sys.modules[name]


def start_is_over() -> None:
    """Give back what only the start needed, and let the collector leave alone what is there for good."""
    gc.collect()
    gc.freeze()
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
