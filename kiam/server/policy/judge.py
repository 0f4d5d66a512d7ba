"""The policy applied to pods: what identity a pod has, and whether it may have it."""

from __future__ import annotations

from functools import lru_cache

from kiam.arns import resolve_role_arn, shown
from kiam.identity import Identity, external_id_problem, session_name
from kiam.server.kubernetes.objects import Pod
from kiam.server.kubernetes.store import NamespaceStore
from kiam.server.policy.evaluator import Evaluator
from kiam.server.policy.permitted import Decision, Refusal, check_request

MOST_IDENTITIES = 65_536
"""Identities remembered by what pods are annotated with."""


class Judge:
    """Applies the policy to pods: what identity a pod has, and whether it may have it."""

    def __init__(self, namespaces: NamespaceStore, evaluator: Evaluator, base_arn: str, default_session: str) -> None:
        """``default_session``: for pods without a session-name annotation (``--session``)."""
        self._namespaces = namespaces
        self._evaluator = evaluator
        self.base_arn = base_arn
        self._default_session = default_session
        # One object for all pods with an identity: they are kept by pod, and each would cost the garbage collector.
        self._identity = lru_cache(maxsize=MOST_IDENTITIES)(self._make_identity)

    def identity(self, pod: Pod) -> Identity:
        """What STS is asked for on behalf of an annotated pod."""
        return self._identity(pod.role, pod.session_name, pod.external_id)

    def _make_identity(self, role: str, session: str, external_id: str) -> Identity:
        return Identity(
            role_arn=resolve_role_arn(role, self.base_arn),
            session_name=session_name(session or self._default_session),
            external_id=external_id,
        )

    def decide(self, pod: Pod, requested: str) -> Decision:
        """Whether the pod may have a role. Undecided while its namespace isn't known: pods may be seen before it."""
        expression = self._namespaces.permitted(pod.namespace)
        if expression is None:
            return Decision(False, f"namespace '{pod.namespace}' is not known yet", Refusal.UNDECIDED)
        if problem := external_id_problem(pod.external_id):
            return Decision(False, f"external id '{shown(pod.external_id)}' {problem}; forbidden", Refusal.UNUSABLE)
        arn = check_request(requested, pod.role, self.base_arn)
        return arn if isinstance(arn, Decision) else self._evaluator.decide(pod.namespace, arn, expression)
