"""Which pod a projected service account token is bound to, by the Kubernetes API's word (TokenReview).

A token is a JWT that names its audience, its service account and the pod it was projected into. What it claims is read
first, which costs nothing and spares the API most nonsense; what counts is the review, which also knows of signatures,
deleted pods and deleted service accounts
(https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/, "TokenReview").
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from kiam.server.kubernetes.objects import UNREADABLE

AUDIENCE = "pods.eks.amazonaws.com"
"""What AWS SDKs' tokens are for (Amazon EKS user guide, "EKS Pod Identity")."""
REVIEWS = "/apis/authentication.k8s.io/v1/tokenreviews"
LONGEST_TOKEN = 16 << 10
"""Characters; a projected token has about 1,000."""
LONGEST_KEPT = 60.0
"""Seconds a review is believed, if the token lives that long: a revoked token is worth no more."""
MOST_KEPT = 4096
MOST_AT_ONCE = 8
_USER = "system:serviceaccount:"
_POD_NAME, _POD_UID = "authentication.kubernetes.io/pod-name", "authentication.kubernetes.io/pod-uid"


class TokenRefusedError(Exception):
    """The token proves nothing; the message says why, in words that may be told to the pod."""


@dataclass(frozen=True, slots=True)
class BoundToken:
    """What a token that holds says of its pod."""

    namespace: str
    service_account: str
    pod_name: str
    pod_uid: str


class ReviewApi(Protocol):
    """The part of the Kubernetes API that is needed."""

    async def post(self, path: str, body: dict[str, Any]) -> bytes:
        """Create an object; the answer's body. Raises KubeError."""


class _BoundPod(msgspec.Struct, gc=False):
    uid: str = ""


class _KubernetesClaims(msgspec.Struct, gc=False):
    pod: _BoundPod = msgspec.field(default_factory=_BoundPod)


class _Claims(msgspec.Struct, gc=False):
    aud: str | list[str] = ""
    exp: float = 0.0
    kubernetes: _KubernetesClaims = msgspec.field(name="kubernetes.io", default_factory=_KubernetesClaims)


class _User(msgspec.Struct, gc=False):
    username: str = ""
    extra: dict[str, list[str]] = {}


class _Status(msgspec.Struct, gc=False):
    authenticated: bool = False
    user: _User = msgspec.field(default_factory=_User)
    audiences: list[str] = []


class _Review(msgspec.Struct, gc=False):
    status: _Status = msgspec.field(default_factory=_Status)


def read_claims(token: str) -> tuple[float, str]:
    """A token's expiry (seconds since 1970) and its pod's UID, as it claims them. Raises TokenRefusedError."""
    parts = token.split(".")
    if len(token) > LONGEST_TOKEN or len(parts) != 3:
        raise TokenRefusedError("the token is no projected service account token")
    try:
        payload = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
        claims = msgspec.json.decode(payload, type=_Claims)
    except (binascii.Error, ValueError, msgspec.DecodeError, RecursionError):
        raise TokenRefusedError("the token is no projected service account token") from None
    if AUDIENCE not in ([claims.aud] if isinstance(claims.aud, str) else claims.aud):
        raise TokenRefusedError(f"the token is not for the audience {AUDIENCE}")
    if not claims.kubernetes.pod.uid:
        raise TokenRefusedError("the token is not bound to a pod")
    return claims.exp, claims.kubernetes.pod.uid


def read_review(body: bytes) -> BoundToken:
    """Who the API says the token is. Raises TokenRefusedError."""
    try:
        status = msgspec.json.decode(body, type=_Review).status
    except UNREADABLE:
        raise TokenRefusedError("the Kubernetes API's review of the token can't be read") from None
    # The attack stopped: an API server that knows nothing of audiences authenticates a token made for another service
    # and returns none (TokenReview, status.audiences).
    if not status.authenticated or AUDIENCE not in status.audiences:
        raise TokenRefusedError("the Kubernetes API doesn't accept the token")
    namespace, _, account = status.user.username.removeprefix(_USER).partition(":")
    names, uids = status.user.extra.get(_POD_NAME, []), status.user.extra.get(_POD_UID, [])
    if not status.user.username.startswith(_USER) or not account or len(names) != 1 or len(uids) != 1:
        raise TokenRefusedError("the token is not bound to a pod")
    return BoundToken(namespace, account, names[0], uids[0])


class _Shared:
    """A review under way, and how many wait for it."""

    __slots__ = ("task", "waiting")

    def __init__(self, task: asyncio.Task[BoundToken]) -> None:
        self.task = task
        self.waiting = 0


class _Lane:
    """The reviews for one asker: one at a time."""

    __slots__ = ("length", "turn")

    def __init__(self) -> None:
        self.turn = asyncio.Semaphore(1)
        self.length = 0


class TokenReviewer:
    """Asks the API once for each token, and again when the answer is a minute old."""

    def __init__(self, api: ReviewApi, now: Callable[[], float] = time.time) -> None:
        self._api = api
        self._now = now
        self._kept: OrderedDict[bytes, tuple[float, BoundToken]] = OrderedDict()
        """By the token's hash, as a memory image must not hold usable tokens; until when, in seconds since 1970."""
        self._under_way: dict[bytes, _Shared] = {}
        self._turn = asyncio.Semaphore(MOST_AT_ONCE)
        self._lanes: dict[str, _Lane] = {}

    async def review(self, token: str, asker: str) -> BoundToken:
        """Who a token is. Raises TokenRefusedError; KubeError when the API can't say.

        ``asker``: the UID of the pod it came from, or the address if that is all that is known. Which attack: a pod
        makes up tokens by the thousand, which only the API can tell from good ones, to hold up all other pods. It holds
        up itself: an asker has one review at a time, and one that nobody waits for any more isn't asked for.
        """
        expires, _ = read_claims(token)
        now = self._now()
        if expires <= now:
            raise TokenRefusedError("the token has expired")
        digest = hashlib.sha256(token.encode()).digest()
        until, bound = self._kept.get(digest, (0.0, None))
        # An until that is further ahead than any can be was set by a clock that has been set back since.
        if bound is not None and now < until <= now + LONGEST_KEPT:
            return bound
        shared = self._under_way.get(digest)
        if shared is None:
            shared = self._under_way[digest] = _Shared(
                asyncio.create_task(self._in_turn(asker, token, digest, expires))
            )
        shared.waiting += 1
        try:
            return await asyncio.shield(shared.task)
        finally:
            shared.waiting -= 1
            if shared.task.done() or not shared.waiting:
                shared.task.cancel()
                if self._under_way.get(digest) is shared:
                    del self._under_way[digest]

    async def _in_turn(self, asker: str, token: str, digest: bytes, expires: float) -> BoundToken:
        lane = self._lanes.setdefault(asker, _Lane())
        lane.length += 1
        try:
            async with lane.turn, self._turn:
                return await self._ask(token, digest, expires)
        finally:
            lane.length -= 1
            if not lane.length:
                del self._lanes[asker]

    async def _ask(self, token: str, digest: bytes, expires: float) -> BoundToken:
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [AUDIENCE]},
        }
        asked_at = self._now()
        bound = read_review(await self._api.post(REVIEWS, body))
        self._kept[digest] = (min(expires, asked_at + LONGEST_KEPT), bound)
        self._kept.move_to_end(digest)
        while len(self._kept) > MOST_KEPT:
            self._kept.popitem(last=False)
        return bound
