"""Request targets: from what a pod wrote to one canonical path, or a refusal.

Pods are hostile, and the real metadata service may read an odd spelling differently from us. So there is exactly one
spelling of every path: it is made here, it decides which handler answers, it is what ``--allow-route-regexp`` is
matched against, and it is what is sent on. Whatever would need interpreting is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qs

from kiam.addresses import canonical_address
from kiam.agent.core.failures import Unparsable, UnusableRole

# Characters that stand for themselves in a path (RFC 3986, section 3.3: pchar), less ";", which some servers take for
# the start of path parameters and cut off.
_PLAIN = re.compile(r"[A-Za-z0-9\-._~!$&'()*+,=:@]*")
# A role also comes from annotations, where a path may hold any printable ASCII character (IAM: [!-~]+); it is compared,
# never sent on as part of a path. Still nothing that may end a line of a log, or that something may decode again.
_ROLE = re.compile(r"[!-~]*")
_REFUSED_IN_ROLE = frozenset("\\;%")
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})?")
_QUERY = re.compile(r"[!\"$-~]*")
_CREDENTIALS_SEGMENTS = ["meta-data", "iam", "security-credentials"]
_TOKEN = re.compile(r"/[^/]+/api/token")
# Every place where instance metadata gives out credentials of the node itself: iam/security-credentials/<role> and
# identity-credentials/ec2/security-credentials/ec2-instance (Amazon EC2 user guide, "Instance metadata categories").
_NODE_CREDENTIALS = ("security-credentials", "identity-credentials")
MAX_ROLE_LENGTH = 1024
"""A role's ARN is at most about 630 characters: path 512, name 64 (IAM quotas), account and partition."""


@dataclass(frozen=True, slots=True)
class Target:
    """A request target taken apart."""

    path: str
    """Canonical, and but for a role at its end made of characters that need neither decoding nor encoding."""
    query: str
    is_credentials: bool = False
    """The path is ``/<version>/meta-data/iam/security-credentials``, with or without more behind it."""
    role: str | None = None
    """What stands behind ``security-credentials/``, decoded, perhaps empty; None: not even that slash is there."""


def _decode(text: str) -> str:
    """Undo percent-encoding once. Raises Unparsable for a broken escape."""

    def character(escape: re.Match[str]) -> str:
        if escape[1] is None:
            raise Unparsable("broken percent-encoding in the path")
        return chr(int(escape[1], 16))

    return _ESCAPE.sub(character, text) if "%" in text else text


def _canonical_segment(raw: str) -> str:
    segment = _decode(raw)
    # An encoded slash, backslash, NUL, "%" (so something encoded twice), "?" or "#" all end here.
    if not _PLAIN.fullmatch(segment):
        raise Unparsable("the path holds characters that aren't allowed in it")
    if segment in (".", ".."):
        raise Unparsable("dot segments in the path")
    return segment


def _canonical_role(raw: str) -> str:
    role = _decode(raw)
    if len(role) > MAX_ROLE_LENGTH or not _ROLE.fullmatch(role) or not _REFUSED_IN_ROLE.isdisjoint(role):
        raise UnusableRole("that can't be a role's name", role[:MAX_ROLE_LENGTH])
    if any(segment in (".", "..") for segment in role.split("/")):
        raise UnusableRole("dot segments in the path", role)
    return role


def parse_target(raw: str) -> Target:
    """Take a request target apart, as it stands in the request line.

    Raises Unparsable for absolute-form targets, encoded slashes, dot segments, doubled slashes, backslashes,
    semicolons, NUL and other control characters, and for anything encoded twice. In a role, which is compared and
    never sent on, slashes may be encoded or doubled: ``/team/app`` is an annotation people use.
    """
    path, _, query = raw.partition("?")
    if not path.startswith("/"):
        # An absolute-form target names a host, and a proxy would send the request there.
        raise Unparsable("the request target must be a path")
    if not _QUERY.fullmatch(query):
        raise Unparsable("the query holds characters that need percent-encoding")
    first, *parts = path.split("/", 5)[1:]
    segments = [_canonical_segment(part) for part in (first, *parts[:3])]
    if segments[0] and segments[1:] == _CREDENTIALS_SEGMENTS:
        role = _canonical_role(parts[3]) if len(parts) == 4 else None
        canonical = "/" + "/".join(segments)
        return Target(canonical if role is None else f"{canonical}/{role}", query, True, role)
    if len(parts) == 4:
        segments += [_canonical_segment(part) for part in parts[3].split("/")]
    # Only the last segment may be empty: "/a/" and "/" are paths, "/a//b" is two spellings of one.
    if "" in segments[:-1]:
        raise Unparsable("doubled slashes in the path")
    return Target("/" + "/".join(segments), query)


def is_token_path(path: str) -> bool:
    """Whether a canonical path is where IMDSv2 gives out session tokens."""
    return _TOKEN.fullmatch(path) is not None


def gives_node_credentials(path: str) -> bool:
    """Whether the real service could answer a canonical path with credentials of the node itself.

    Such a path is never sent on, whatever ``--allow-route-regexp`` says. Case is ignored, and the words are looked for
    anywhere, in case the service is more forgiving than its documentation.
    """
    folded = path.casefold()
    return any(word in folded for word in _NODE_CREDENTIALS)


def normalise_address(text: str) -> str:
    """An IP address as the server knows it: an IPv4 address that comes mapped into IPv6 is that IPv4 address.

    Raises Unparsable for anything else.
    """
    try:
        return canonical_address(text.partition("%")[0])
    except ValueError:
        raise Unparsable("that isn't an IP address") from None


def query_value(query: str, name: str) -> str:
    """The first value of a query's field; empty when it isn't there."""
    return parse_qs(query, keep_blank_values=True, max_num_fields=64).get(name, [""])[0]
