"""Who is asking: the pod at the connection's address, and the pod whose cgroup the kernel says the client's socket has.

The address is what the network says and a pod with ``NET_RAW`` may be able to forge on a bridge; the cgroup is what the
kernel wrote down when the socket was made, in a place that kubelet named after the pod's UID, and no pod can change it.
"""

from __future__ import annotations

import enum
from typing import Protocol

from kiam.agent.core.pods import NodePod


class PodUidMode(enum.StrEnum):
    """What the kernel's word on the client's pod is good for (``--pod-uid``)."""

    OFF = "off"
    """It isn't asked."""
    CHECK = "check"
    """It must agree with the address where there is one, and is enough where the address isn't known yet."""
    REQUIRE = "require"
    """As ``check``, and who has none isn't answered."""


class PeerIdentification(Protocol):
    """Finds out the pod at the other end of a connection by something else than its address.

    Asked once a connection, when it is made, in the event loop: an answer may take some 60 µs.
    """

    def uid_of(
        self, client: tuple[str, int], server: tuple[str, int], original: tuple[str, int] | None = None
    ) -> str | None:
        """The UID of the pod whose socket is at ``client`` (canonical address and port); ``server`` is our end.

        ``original``: what netfilter says the client's packets were addressed to; None: nothing.

        None: the socket isn't a pod's, or that can't be told. Never raises.
        """


class Verdict(enum.Enum):
    """How much is known of who asks."""

    BY_ADDRESS = "by address"
    """The address alone says it, under the rules for addresses."""
    BY_UID = "by UID"
    """The kernel says it, and nothing contradicts it: no more than the server's word on that pod is needed."""
    NOT_YET = "not yet"
    """Address and UID don't fit together, which the server's next word may explain: nobody is answered."""
    IMPOSTOR = "impostor"
    """The address is another pod's for certain."""


def judge(
    uid: str | None,
    by_uid: NodePod | None,
    by_address: NodePod | None,
    address: str,
    *,
    is_settled: bool,
    mode: PodUidMode,
) -> Verdict:
    """Decide whom to believe.

    ``uid``: the kernel's word, None if it has none; ``by_uid`` and ``by_address``: the pods that the server pushed
    under that UID and at that address; ``is_settled``: the kernel's route to the address is the one to
    ``by_address``'s own interface, so it isn't just changing hands.
    """
    if mode is PodUidMode.OFF:
        return Verdict.BY_ADDRESS
    if uid is None:
        # Which attack: a pod with NET_RAW speaks TCP by itself from a forged address, so that no socket is found.
        return Verdict.NOT_YET if mode is PodUidMode.REQUIRE else Verdict.BY_ADDRESS
    if by_address is not None:
        if by_address.uid == uid:
            return Verdict.BY_UID
        # Which attack: a pod takes another one's address, to be given its credentials.
        return Verdict.IMPOSTOR if is_settled else Verdict.NOT_YET
    if by_uid is None:
        return Verdict.BY_ADDRESS
    if by_uid.is_on_host_network:
        return Verdict.BY_UID
    # Known since it was scheduled, its address not reported yet. With other addresses, nothing explains this one.
    has_others = any((":" in other) == (":" in address) for other in by_uid.addresses)
    return Verdict.NOT_YET if has_others else Verdict.BY_UID
