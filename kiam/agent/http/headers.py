"""Which header fields are passed on between a pod and the instance metadata service."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

_HOP_BY_HOP = frozenset(
    {
        # RFC 9110, section 7.6.1, and what older proxies add to it.
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authentication-info",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_MADE_ANEW = frozenset({"host", "content-length", "expect", "date", "server"})
# No pod may say on whose behalf we ask.
_FORWARDING = frozenset({"forwarded", "via", "x-real-ip", "client-ip", "true-client-ip"})


def passed_headers(fields: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """The fields that go on, in either direction: end-to-end ones that nobody named in ``Connection``."""
    fields = list(fields)
    named = {
        token.strip().casefold()
        for name, value in fields
        if name.casefold() == "connection"
        for token in value.split(",")
    }
    dropped = _HOP_BY_HOP | _MADE_ANEW | _FORWARDING | named
    for name, value in fields:
        folded = name.casefold()
        # "X_Forwarded_For" is the same as "X-Forwarded-For" to servers that turn names into variables.
        if "_" in folded or folded in dropped or folded.startswith("x-forwarded"):
            continue
        yield name, value


def was_forwarded(fields: Iterable[tuple[str, str]]) -> bool:
    """Whether a reverse proxy passed a request on, by the names of its fields in lower case.

    ``X-Forwarded-For`` is what the real service looks for; ``Forwarded`` is the same in RFC 7239. ``Via`` is not looked
    at, as the real service doesn't: forward proxies send it, which pods are set up to use.
    """
    return any(name in ("x-forwarded-for", "forwarded") for name, _ in fields)
