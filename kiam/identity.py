"""What STS is asked for on a pod's behalf."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256

from kiam.rpc import kiam_pb2

SESSION_NAME_LENGTH, LONGEST_EXTERNAL_ID = 64, 1224
"""Characters of RoleSessionName (and SourceIdentity) and of ExternalId (AWS STS API reference, AssumeRole)."""
_EXTERNAL_ID = re.compile(r"[\w+=,.@:/-]{2,}", re.ASCII)
_NOT_ALLOWED = re.compile(r"[^A-Za-z0-9_+=,.@-]")
_HASH_LENGTH = 8
_SEPARATOR = "|"
"""In no external id that STS takes."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The key that credentials are shared under: pods alike in all of this have the same credentials."""

    role_arn: str
    session_name: str
    external_id: str
    tags: tuple[tuple[str, str], ...] = ()
    """Session tags, names and values."""
    source_identity: str = ""

    @classmethod
    def of(cls, message: kiam_pb2.Identity) -> Identity:
        """From the wire."""
        return cls(
            message.role_arn,
            message.session_name,
            message.external_id.partition(_SEPARATOR)[0],
            tuple((tag.key, tag.value) for tag in message.session_tags),
            message.source_identity,
        )

    def message(self) -> kiam_pb2.Identity:
        """To the wire."""
        return kiam_pb2.Identity(
            role_arn=self.role_arn,
            session_name=self.session_name,
            external_id=self.wire_external_id(),
            session_tags=[kiam_pb2.SessionTag(key=key, value=value) for key, value in self.tags],
            source_identity=self.source_identity,
        )

    def wire_external_id(self) -> str:
        """The external id, with a hash of everything else if there is more than agents of all releases know.

        The attack stopped: an agent of an older release knows no tags, and would hand one pod the credentials that
        carry another pod's. So what is tagged or named is told apart by a field that every release compares.
        """
        if not self.tags and not self.source_identity:
            return self.external_id
        digest = sha256(repr((self.external_id, self.tags, self.source_identity)).encode()).hexdigest()
        return f"{self.external_id}{_SEPARATOR}{digest[:32]}"


@lru_cache(maxsize=4096)
def session_name(name: str) -> str:
    """The STS session name: ``kiam-`` and the name, what STS doesn't take replaced by ``-``, 64 characters at most."""
    return sts_word(f"kiam-{name}")[:SESSION_NAME_LENGTH]


def sts_word(text: str) -> str:
    """A text with what STS takes in no name replaced by ``-``."""
    return _NOT_ALLOWED.sub("-", text)


@lru_cache(maxsize=4096)
def hashed_name(text: str) -> str:
    """A name of at most 64 characters that STS takes. A longer one is cut, and ends with a hash of the whole.

    Two long names so stay two, where pods of one Deployment differ at their end only.
    """
    word = sts_word(text)
    if len(word) <= SESSION_NAME_LENGTH:
        return word
    return f"{word[: SESSION_NAME_LENGTH - _HASH_LENGTH - 1]}-{sha256(text.encode()).hexdigest()[:_HASH_LENGTH]}"


def external_id_problem(external_id: str) -> str:
    """Why STS takes no such external id; empty: it takes it, or there is none."""
    if not external_id:
        return ""
    if len(external_id) > LONGEST_EXTERNAL_ID:
        return f"has more than {LONGEST_EXTERNAL_ID} characters"
    if not _EXTERNAL_ID.fullmatch(external_id):
        return "has a character that none has: it is two or more letters, digits and _+=,.@:/- only"
    return ""
