"""A pod's request as it stands in the log."""

from __future__ import annotations

import logging
from ipaddress import ip_address
from time import monotonic
from typing import Any

from kiam.agent.core.failures import RequestFailure
from kiam.agent.core.identities import PodIdentities
from kiam.agent.http.messages import Request

log = logging.getLogger(__name__)

_LOG_EVERY = 1.0
_MOST_REMEMBERED = 4096

_LONGEST = 200
"""Characters of a target or a header's value: the log is the node's, and pods write it."""
_MOST_HEADERS = 32
_SECRET = frozenset({"authorization", "cookie", "proxy-authorization", "x-aws-ec2-metadata-token"})
_VISIBLE = {code: f"\\x{code:02x}" for code in (*range(0x20), 0x7F)}


def printable(text: str) -> str:
    """Text from a pod as it may stand in a log: on one line, and not endless."""
    return text[:_LONGEST].encode("ascii", "backslashreplace").decode().translate(_VISIBLE)


def log_fields(request: Request, status: int, identities: PodIdentities) -> dict[str, object]:
    """The request and its pod in the fields that conventional kiam logs, with its names.

    Header values that are worth something to a reader of the log (tokens) are left out.
    """
    shown: dict[str, list[str]] = {}
    for name, value in request.fields[:_MOST_HEADERS]:
        shown.setdefault(printable(_canonical(name)), []).append("***" if name in _SECRET else printable(value))
    fields: dict[str, object] = {
        "addr": _host_and_port(request.peer),
        "method": printable(request.method),
        "path": printable(request.target.partition("?")[0]),
        "status": status,
        "headers": shown,
        "pod.ip": request.client,
    }
    pod = identities.known_pod(request.client, request.uid)
    if pod is not None:
        fields |= {"pod.namespace": pod.namespace, "pod.name": pod.name, "pod.iam.role": pod.role}
    return fields


class RefusalLog:
    """Logs refusals: one a second for each client and status, so that no pod floods the log."""

    def __init__(self) -> None:
        self._told: dict[str, float] = {}

    def tell(self, request: Request, failure: RequestFailure, identities: PodIdentities) -> None:
        """Log one, if it is news."""
        is_news = failure.status != 404 and self._is_news(f"{request.asker} {failure.status}")
        level = logging.WARNING if is_news else logging.DEBUG
        if log.isEnabledFor(level):
            log.log(level, "request refused: %s", failure, extra=log_fields(request, failure.status, identities))

    def _is_news(self, kind: str) -> bool:
        now = monotonic()
        if now - self._told.get(kind, -_LOG_EVERY) < _LOG_EVERY:
            return False
        if len(self._told) > _MOST_REMEMBERED:
            self._told.clear()
        self._told[kind] = now
        return True


def _canonical(name: str) -> str:
    """As Go writes a field's name, whatever its case was."""
    return "-".join(part.capitalize() for part in name.split("-"))


def _host_and_port(peer: Any) -> str:
    """As Go writes a remote address: the host in brackets if it is an IPv6 one."""
    if not peer:
        return ""
    address = ip_address(peer[0].partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    host = str(mapped or address)
    return f"[{host}]:{peer[1]}" if ":" in host else f"{host}:{peer[1]}"
