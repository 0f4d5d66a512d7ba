"""Why a pod gets its role, or doesn't, step by step, each with what fixes it. No I/O, and no secrets.

The server and ``kiam explain --kubeconfig`` both say what comes out of here, so they can't say different things; they
differ in what they know besides (:class:`Facts`).
"""

from __future__ import annotations

from collections.abc import Iterator
from shlex import quote

import msgspec

from kiam.arns import resolve_role_arn, role_problem, shown
from kiam.identity import external_id_problem
from kiam.server.kubernetes.objects import (
    DEFAULT_ROLE_ANNOTATION,
    EXTERNAL_ID_ANNOTATION,
    PERMITTED_ANNOTATION,
    ROLE_ANNOTATION,
    Namespace,
    Pod,
)
from kiam.server.policy import surroundings
from kiam.server.policy.expressions import expression_problem, is_cheap, literal
from kiam.server.policy.judge import Judge, unknown_namespace
from kiam.server.policy.permitted import Refusal
from kiam.server.policy.steps import Outcome, Step
from kiam.server.policy.surroundings import NOTHING, Facts


def explain(pod: Pod, namespace: Namespace | None, policy: Judge, facts: Facts = NOTHING) -> tuple[Step, ...]:
    """All steps from the pod's annotation to its agent. The first that fails is the one to fix first."""
    with_role = pod
    if not pod.role and namespace is not None and namespace.default_role:
        with_role = msgspec.structs.replace(pod, role=namespace.default_role)
    return (
        *_pod(pod),
        *surroundings.host_network(pod, facts),
        *_role(pod, namespace, facts),
        *(_arn(with_role, pod, policy) if with_role.role else ()),
        *_permission(with_role, namespace, policy),
        *(_session(with_role, policy) if with_role.role else ()),
        *(_sts(with_role, policy, facts) if with_role.role else ()),
        *surroundings.address(pod, facts),
        *surroundings.node(pod, facts),
        *surroundings.tokens(pod, namespace),
    )


def no_pod(namespace: str, name: str) -> tuple[Step, ...]:
    """The only step there is for a pod that isn't known."""
    return (
        Step(
            "pod",
            Outcome.FAILED,
            "no such pod is known: there is none, it has finished, it is on the host network of a node whose "
            "agent lacks --host-network=redirect, or its node is none that the certificate speaks for",
            f"kubectl get pod {quote(name)} --namespace {quote(namespace)} --output wide",
        ),
    )


def permitting(namespace: Namespace, arn: str, policy: Judge) -> str:
    """The ``permitted`` expression that permits an ARN and what is permitted already.

    Empty: it is to be edited by hand. The attack stopped: a tenant's costly expression would be compiled here, on the
    server's event loop. An expression that is invalid, and so permits nothing, isn't kept.
    """
    now = namespace.permitted
    if now is None:
        globs = namespace.allowed_roles if policy.settings.kube2iam_annotations else None
        now = policy.settings.default_permitted if globs is None else ""
    wanted = f"^{literal(arn)}$"
    if not now:
        return wanted
    if not is_cheap(now):
        return ""
    if expression_problem(now):
        return wanted
    both = f"(?:{now})|{wanted}"
    return "" if expression_problem(both) else both


def _pod(pod: Pod) -> Iterator[Step]:
    if not pod.active:
        yield Step("pod", Outcome.FAILED, "it has finished: pods that have get no credentials", "start it anew")
    else:
        yield Step("pod", Outcome.OK, f"pod with UID {pod.uid}{', being deleted' if pod.deleting else ''}")


def _role(pod: Pod, namespace: Namespace | None, facts: Facts) -> Iterator[Step]:
    if facts.written is not None and facts.written != pod.role:
        yield Step("written", Outcome.NOTE, f"{ROLE_ANNOTATION} is written '{shown(facts.written)}', and trimmed")
    if pod.role:
        yield Step("role", Outcome.OK, f"annotated with {ROLE_ANNOTATION} '{shown(pod.role)}'")
    elif namespace is not None and namespace.default_role:
        default = shown(namespace.default_role)
        yield Step("role", Outcome.OK, f"not annotated; its namespace's {DEFAULT_ROLE_ANNOTATION} is '{default}'")
    elif namespace is not None:
        what = f"{ROLE_ANNOTATION} and, on its namespace, {DEFAULT_ROLE_ANNOTATION} are missing or empty"
        yield Step("role", Outcome.FAILED, what, _annotate_pod(pod, ROLE_ANNOTATION, "ROLE"))
    else:
        yield Step("role", Outcome.UNDECIDED, "not annotated, and its namespace, which may have a default, isn't known")


def _arn(with_role: Pod, pod: Pod, policy: Judge) -> Iterator[Step]:
    arn = resolve_role_arn(with_role.role, policy.base_arn)
    if not (problem := role_problem(arn)):
        yield Step("arn", Outcome.OK, f"the role is {arn}")
    else:
        fix = (
            _annotate_pod(pod, ROLE_ANNOTATION, "ROLE")
            if pod.role
            else _annotate_namespace(pod.namespace, DEFAULT_ROLE_ANNOTATION, "ROLE")
        )
        yield Step("arn", Outcome.FAILED, f"'{shown(arn)}' can't be an IAM role: {problem}", fix)


def _permission(with_role: Pod, namespace: Namespace | None, policy: Judge) -> Iterator[Step]:
    if namespace is None:
        fix = f"kubectl get namespace {quote(with_role.namespace)}"
        yield Step("permission", Outcome.UNDECIDED, unknown_namespace(with_role).explanation, fix)
        return
    arn = resolve_role_arn(with_role.role, policy.base_arn)
    if not with_role.role or role_problem(arn):
        return
    decision = policy.decide_namespace(namespace, arn)
    if decision.allowed:
        yield Step("permission", Outcome.OK, f"{_permitted_by(namespace, policy)} permits it")
    elif decision.refusal is Refusal.UNDECIDED:
        yield Step("permission", Outcome.UNDECIDED, decision.explanation, "ask again")
    else:
        expression = permitting(namespace, arn, policy)
        fix = (
            _annotate_namespace(namespace.name, PERMITTED_ANNOTATION, expression)
            if expression
            else f"kubectl edit namespace {quote(namespace.name)}"
        )
        yield Step("permission", Outcome.FAILED, decision.explanation, fix)


def _permitted_by(namespace: Namespace, policy: Judge) -> str:
    said = []
    if namespace.permitted is not None:
        said.append(f"its namespace's {PERMITTED_ANNOTATION} '{shown(namespace.permitted)}'")
    if policy.settings.kube2iam_annotations and namespace.allowed_roles is not None:
        said.append(f"its namespace's allowed-roles '{shown(namespace.allowed_roles)}'")
    return " or ".join(said) or f"--default-permitted '{shown(policy.settings.default_permitted)}'"


def _session(with_role: Pod, policy: Judge) -> Iterator[Step]:
    if problem := external_id_problem(with_role.external_id):
        fix = _annotate_pod(with_role, EXTERNAL_ID_ANNOTATION, "ID")
        yield Step("external-id", Outcome.FAILED, f"its {EXTERNAL_ID_ANNOTATION} {problem}", fix)
        return
    identity = policy.identity(with_role)
    said = [f"session name {identity.session_name}"]
    if identity.external_id:
        said.append("its external id")
    if identity.source_identity:
        said.append(f"source identity {identity.source_identity}")
    if identity.tags:
        said.append("tags " + ", ".join(f"{key}={shown(value)}" for key, value in identity.tags))
    yield Step("session", Outcome.OK, f"STS is asked with {'; '.join(said)}")


def _sts(with_role: Pod, policy: Judge, facts: Facts) -> Iterator[Step]:
    if facts.failure is None:
        return
    name = resolve_role_arn(with_role.role, policy.base_arn).rpartition("/")[2]
    look = f"aws iam get-role --role-name {quote(name)} --query Role.AssumeRolePolicyDocument"
    if facts.issued_until and facts.failure:
        what = f"credentials until {facts.issued_until}, but they can't be renewed: {shown(facts.failure)}"
        yield Step("sts", Outcome.NOTE, what, look)
    elif facts.issued_until:
        yield Step("sts", Outcome.OK, f"credentials are there, until {facts.issued_until}")
    elif facts.failure:
        yield Step("sts", Outcome.FAILED, f"AWS refused AssumeRole: {shown(facts.failure)}", look)
    else:
        yield Step("sts", Outcome.NOTE, "this server has no credentials of it yet, and no refusal")


def _annotate_pod(pod: Pod, annotation: str, value: str) -> str:
    where = f"{quote(pod.name)} --namespace {quote(pod.namespace)}"
    return f"kubectl annotate --overwrite pod {where} {quote(f'{annotation}={value}')}"


def _annotate_namespace(name: str, annotation: str, value: str) -> str:
    return f"kubectl annotate --overwrite namespace {quote(name)} {quote(f'{annotation}={value}')}"
