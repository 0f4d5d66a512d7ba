"""The policy applied to pods: which role a pod has by default, what identity, and whether it may have it."""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

import msgspec

from kiam.arns import resolve_role_arn, shown
from kiam.identity import Identity, external_id_problem
from kiam.server.kubernetes.objects import Namespace, Pod
from kiam.server.kubernetes.store import NamespaceStore
from kiam.server.policy.kube2iam import allowed_roles_expression
from kiam.server.policy.permitted import Decision, Refusal, check_request
from kiam.server.policy.sessions import Sessions
from kiam.server.settings import PolicySettings

MOST_IDENTITIES = 65_536
"""Identities remembered by what pods are annotated with."""


class Expressions(Protocol):
    """Evaluates namespaces' expressions: :class:`kiam.server.policy.evaluator.Evaluator`."""

    def decide(self, namespace: str, role_arn: str, expression: str) -> Decision:
        """Whether the expression permits the ARN; it may be undecided for a while."""


class Judge:
    """Applies the policy to pods."""

    def __init__(
        self,
        namespaces: NamespaceStore,
        evaluator: Expressions,
        base_arn: str,
        sessions: Sessions,
        settings: PolicySettings,
    ) -> None:
        self._namespaces = namespaces
        self._evaluator = evaluator
        self.base_arn = base_arn
        self._sessions = sessions
        self.settings = settings
        # One object for all pods with an identity: they are kept by pod, and each would cost the garbage collector.
        self._one_identity = lru_cache(maxsize=MOST_IDENTITIES)(Identity)

    def with_role(self, pod: Pod) -> Pod | None:
        """The pod with the role it has, which may be its namespace's default; None: that can't be told yet."""
        if pod.role:
            return pod
        namespace = self._namespaces.get(pod.namespace)
        if namespace is None:
            return None
        return msgspec.structs.replace(pod, role=namespace.default_role) if namespace.default_role else pod

    def identity(self, pod: Pod) -> Identity:
        """What STS is asked for on behalf of a pod that has a role."""
        return self._one_identity(
            role_arn=resolve_role_arn(pod.role, self.base_arn),
            session_name=self._sessions.name(pod),
            external_id=pod.external_id,
            tags=self._sessions.tags(pod),
            source_identity=self._sessions.source_identity(pod),
        )

    def decide(self, pod: Pod, requested: str) -> Decision:
        """Whether the pod may have a role. Undecided while its namespace isn't known: pods may be seen before it."""
        namespace = self._namespaces.get(pod.namespace)
        if namespace is None:
            return unknown_namespace(pod)
        if problem := external_id_problem(pod.external_id):
            return Decision(False, f"external id '{shown(pod.external_id)}' {problem}; forbidden", Refusal.UNUSABLE)
        arn = check_request(requested, pod.role, self.base_arn)
        return arn if isinstance(arn, Decision) else self.decide_namespace(namespace, arn)

    def decide_namespace(self, namespace: Namespace, arn: str) -> Decision:
        """Whether one of the namespace's annotations permits the role."""
        allowed = namespace.allowed_roles if self.settings.kube2iam_annotations else None
        if namespace.permitted is None and allowed is None:
            return self._evaluator.decide(namespace.name, arn, self.settings.default_permitted)
        decision = None
        if namespace.permitted is not None:
            decision = self._evaluator.decide(namespace.name, arn, namespace.permitted)
        if allowed is not None and (decision is None or (decision.refusal is Refusal.POLICY and not decision.allowed)):
            decision = self._decide_allowed_roles(namespace.name, arn, allowed)
        assert decision is not None, "there is one annotation at least"
        return decision

    def _decide_allowed_roles(self, namespace: str, arn: str, allowed: str) -> Decision:
        try:
            expression = allowed_roles_expression(allowed, self.base_arn, self.settings.restriction_format)
        except ValueError as error:
            return Decision(
                False,
                f"namespace annotation allowed-roles '{shown(allowed)}' is invalid: {error}; it permits no role",
                Refusal.UNUSABLE,
            )
        decision = self._evaluator.decide(namespace, arn, expression)
        if decision.allowed or decision.refusal is not Refusal.POLICY:
            return decision
        return Decision(False, f"namespace annotation allowed-roles '{shown(allowed)}' forbids role '{arn}'")


def unknown_namespace(pod: Pod) -> Decision:
    """The answer while a pod's namespace isn't known."""
    return Decision(False, f"namespace '{pod.namespace}' is not known yet", Refusal.UNDECIDED)
