"""Who gets a session token, who needs one, and who may have anything from the real service."""

from __future__ import annotations

from collections.abc import Callable
from time import time

from kiam.agent.core.failures import Forbidden, Unauthorized, Unparsable
from kiam.agent.core.identities import KnownPod, PodIdentities
from kiam.agent.http.headers import was_forwarded
from kiam.agent.http.messages import TOKEN_FIELD, Request, Response, text
from kiam.agent.http.paths import Target, is_token_path
from kiam.agent.http.tokens import SessionTokens
from kiam.agent.metrics import AgentMetrics
from kiam.agent.settings import TokenMode

_TTL_FIELD = "x-aws-ec2-metadata-token-ttl-seconds"
_TTL_ANSWER = "X-Aws-Ec2-Metadata-Token-Ttl-Seconds"
_MODES = {mode.value: mode for mode in TokenMode}


class TokenDesk:
    """Applies ``--imds-tokens``, or what a pod or its namespace is annotated with."""

    def __init__(
        self,
        identities: PodIdentities,
        tokens: SessionTokens,
        mode: TokenMode,
        is_ours: Callable[[str], bool],
        metrics: AgentMetrics,
    ) -> None:
        """``is_ours``: whether a pod of this node, or the node, has an address at which the server names nobody."""
        self._identities = identities
        self._tokens = tokens
        self._mode = mode
        self._is_ours = is_ours
        self._metrics = metrics

    def issues(self, request: Request, target: Target) -> bool:
        """Whether a request is for a token of the agent's own."""
        return (
            request.method == "PUT"
            and is_token_path(target.path)
            and self._mode_of(self._identities.known_pod(request.client, request.uid)) is not TokenMode.PASSED_ON
        )

    def issue(self, request: Request) -> Response:
        """Answer a request for a token. Raises Forbidden and Unparsable where the real service does."""
        self.require_ours(request)
        require_direct(request)
        ttl = request.values(_TTL_FIELD)
        if len(ttl) != 1:
            raise Unparsable("give the token's life once, in X-aws-ec2-metadata-token-ttl-seconds")
        pod = self._identities.known_pod(request.client, request.uid)
        token = self._tokens.issue(ttl[0].strip(), request.client, _bound_to(pod, request.uid), time())
        return text(token, 200, (_TTL_ANSWER, str(int(ttl[0]))))

    def check(self, pod: KnownPod | None, client: str, token: str | None, uid: str | None = None) -> None:
        """Refuse a request whose token is missing or wrong.

        ``pod``: who memory says asks, ``uid`` being the kernel's word on it. Which attack, if the UID were left out: a
        pod that is known by it alone (``--pod-uid``) has an annotation too, and its tokens aren't its neighbour's.

        Raises Unauthorized.
        """
        mode = self._mode_of(pod)
        if mode is TokenMode.PASSED_ON:
            return
        if not token:
            if mode is TokenMode.REQUIRED:
                raise Unauthorized("a session token is required; get one by PUT /latest/api/token")
            return
        if not self._tokens.accepts(token, client, _bound_to(pod, uid), time()):
            raise Unauthorized("the session token isn't good, or not any more; get one by PUT /latest/api/token")

    def check_request(self, request: Request) -> None:
        """As :meth:`check`, for a request that may have several tokens. Raises Unauthorized."""
        tokens = request.values(TOKEN_FIELD)
        if len(tokens) > 1:
            raise Unauthorized("more than one session token")
        pod = self._identities.known_pod(request.client, request.uid)
        self.check(pod, request.client, tokens[0] if tokens else None, request.uid)

    def replaces(self, request: Request, target: Target) -> bool:
        """Whether the agent's own token for the real service goes along with what is passed on.

        Raises Unauthorized, and Forbidden for what is passed on to get a token.
        """
        if self._mode_of(self._identities.known_pod(request.client, request.uid)) is not TokenMode.PASSED_ON:
            self.check_request(request)
            return True
        if request.method == "PUT" and is_token_path(target.path):
            require_direct(request)
        return False

    def require_ours(self, request: Request) -> None:
        """Refuse another host. Raises Forbidden.

        Which attack: the port is open to whoever can reach the node, and a token of the node's, or a path that
        ``--allow-route-regexp`` lets through, is for its own pods.
        """
        if self._identities.known_pod(request.client, request.uid) is None and not self._is_ours(request.client):
            self._metrics.foreign_requests.inc()
            raise Forbidden("only pods of this node are served here")

    def _mode_of(self, pod: KnownPod | None) -> TokenMode:
        if pod is None or not pod.imds_tokens:
            return self._mode
        # Somebody wanted something else than the default, and most likely not less.
        return _MODES.get(pod.imds_tokens, TokenMode.REQUIRED)


def _bound_to(pod: KnownPod | None, uid: str | None) -> str:
    """The UID that a client's tokens carry; empty: nobody knows it yet.

    The kernel's word goes first: it is the same before and after the server has told of the pod.
    """
    return uid or ("" if pod is None else pod.uid)


def require_direct(request: Request) -> None:
    """Refuse a token to a reverse proxy. Raises Forbidden.

    Which attack: a reverse proxy in a pod that forwards whatever path it is asked for. The real service refuses tokens
    to it (Amazon EC2 user guide, "How Instance Metadata Service Version 2 works").
    """
    if was_forwarded(request.fields):
        raise Forbidden("a token isn't given to a request that a proxy has forwarded")
