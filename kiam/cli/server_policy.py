"""Flags of ``kiam server`` about what namespaces permit, and what sessions are called and tagged with."""

from __future__ import annotations

import argparse
import re

from kiam.cli.options import add_boolean, flag_type
from kiam.server.settings import (
    PolicySettings,
    RestrictionFormat,
    SessionSettings,
    TagScope,
    cluster_name_problem,
    template_problem,
)

_BASE_ARN = re.compile(r"arn:[^:\s]+:iam::\d+:role/\S*")


def _base_arn(text: str) -> str:
    if text and not _BASE_ARN.fullmatch(text):
        raise ValueError(f"'{text}' is not a role prefix; write it like arn:aws:iam::123456789012:role/")
    return text


def _expression(text: str) -> str:
    if not text:
        return text
    from kiam.server.policy.expressions import expression_problem

    if problem := expression_problem(text):
        raise ValueError(f"'{text}' is not an expression: {problem}")
    return text


def _template(text: str) -> str:
    if problem := template_problem(text):
        raise ValueError(f"'{text}': {problem}")
    return text


def _cluster_name(text: str) -> str:
    if text and (problem := cluster_name_problem(text)):
        raise ValueError(f"'{text}' is not a cluster's name: {problem}")
    return text


def add_base_arn(parser: argparse.ArgumentParser) -> None:
    """What roles that aren't ARNs are."""
    parser.add_argument(
        "--role-base-arn",
        type=flag_type(_base_arn, "ARN"),
        default="",
        metavar="ARN",
        help="put before a role that isn't an ARN, as in arn:aws:iam::123456789012:role/",
    )


def add_policy(parser: argparse.ArgumentParser) -> None:
    """What namespaces permit."""
    add_boolean(
        parser,
        "--disable-strict-namespace-regexp",
        False,
        "let a namespace's expression match anywhere in a role's ARN, not only the whole of it",
    )
    parser.add_argument(
        "--default-permitted",
        type=flag_type(_expression, "EXPRESSION"),
        default="",
        metavar="EXPRESSION",
        help="what namespaces permit that aren't annotated about it; empty: nothing",
    )
    add_boolean(
        parser,
        "--kube2iam-annotations",
        False,
        "let a namespace permit by kube2iam's iam.amazonaws.com/allowed-roles too",
    )
    parser.add_argument(
        "--namespace-restriction-format",
        choices=[known.value for known in RestrictionFormat],
        default=RestrictionFormat.GLOB.value,
        help="with --kube2iam-annotations: how allowed-roles are written; expressions are matched as 'permitted' is",
    )


def add_sessions(parser: argparse.ArgumentParser) -> None:
    """What STS is told of who uses a role."""
    parser.add_argument(
        "--session",
        type=flag_type(_template, "TEMPLATE"),
        default="kiam",
        metavar="NAME",
        help="STS session name, after 'kiam-'; may hold {cluster}, {namespace}, {serviceaccount} and {pod}",
    )
    parser.add_argument(
        "--cluster-name",
        type=flag_type(_cluster_name, "NAME"),
        default="",
        metavar="NAME",
        help="the cluster's name in session tags and templates",
    )
    parser.add_argument(
        "--session-tags",
        choices=[scope.value for scope in TagScope],
        default=TagScope.NONE.value,
        help="tag sessions with the cluster and namespace, also the service account, also the pod; "
        "roles must allow sts:TagSession",
    )
    add_boolean(
        parser, "--session-tags-transitive", False, "have the tags stay when a pod assumes another role with its own"
    )
    parser.add_argument(
        "--source-identity",
        type=flag_type(_template, "TEMPLATE"),
        default="",
        metavar="TEMPLATE",
        help="STS source identity, a template as --session; roles must allow sts:SetSourceIdentity; empty: none",
    )


def sessions(arguments: argparse.Namespace) -> SessionSettings:
    """The flags about sessions."""
    return SessionSettings(
        arguments.session, arguments.cluster_name, TagScope(arguments.session_tags), arguments.source_identity
    )


def policy(arguments: argparse.Namespace) -> PolicySettings:
    """The flags about what namespaces permit."""
    return PolicySettings(
        arguments.default_permitted,
        arguments.kube2iam_annotations,
        RestrictionFormat(arguments.namespace_restriction_format),
    )
