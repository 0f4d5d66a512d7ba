"""What ``kiam config check server`` tries."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Sequence
from datetime import timedelta
from functools import partial

from kiam.cli import server
from kiam.cli.config_tls import check_files, failed_with, needs
from kiam.errors import ErrorKind, UserError
from kiam.server.aws.base_arn import DetectionError, detect_base_arn_once
from kiam.server.aws.contract import STSError
from kiam.server.aws.sts import BotoSTS
from kiam.server.kubernetes.api import KubeApi, KubeError
from kiam.tls.summary import Side
from kiam.verify.results import CheckResult, Status, failed, passed, warned

_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
_READS = ("list", "watch")
STS_AWAY = "open the way there (security group, VPC endpoint, proxy: HTTPS_PROXY, NO_PROXY), or give another --region"
_RBAC = "give the server's service account get, list, watch on pods and namespaces and create, patch on events"


def checks(arguments: argparse.Namespace, unusable: frozenset[str]) -> Sequence[CheckResult]:
    """All checks beyond the flags' own values."""
    results = [*check_files(arguments, Side.SERVER, unusable)]
    if unusable:
        results.append(needs("settings", unusable))
    else:
        results.append(_check_settings(arguments))
    return [*results, *asyncio.run(_reach(arguments, unusable))]


def _check_settings(arguments: argparse.Namespace) -> CheckResult:
    try:
        server.check(arguments)
    except UserError as error:
        return failed_with("settings", error, "see kiam server --help")
    if doubts := list(server.doubts(arguments)):
        whats, fixes = zip(*doubts, strict=True)
        return warned("settings", "; ".join(whats), "; ".join(fixes))
    return passed("settings", "the flags go together")


async def _reach(arguments: argparse.Namespace, unusable: frozenset[str]) -> Sequence[CheckResult]:
    """The services the server lives on."""
    results = []
    if bad := unusable & {"--kubeconfig"}:
        results.append(needs("Kubernetes API", bad))
    else:
        results += await _check_kubernetes(arguments.kubeconfig)
    base_arn = arguments.role_base_arn if "--role-base-arn" not in unusable else ""
    if arguments.role_base_arn_autodetect and "--role-base-arn-autodetect" not in unusable:
        found = await _check_base_arn()
        base_arn = found.seen if found.status is Status.PASS else ""
        results.append(found)
    if bad := unusable & {"--region", "--assume-role-arn", "--session-duration"}:
        results.append(needs("STS", bad))
    else:
        results.append(await asyncio.to_thread(_check_sts, arguments, base_arn))
    return results


async def _check_kubernetes(kubeconfig: str) -> Sequence[CheckResult]:
    check = "Kubernetes API"
    try:
        api = await KubeApi.connect(kubeconfig)
    except UserError as error:
        return [failed_with(check, error, "give --kubeconfig the path of a kubeconfig")]
    try:
        results = []
        for resource in ("pods", "namespaces"):
            results.append(await _check_list(api, resource))
            results += [await _check_access(api, resource, verb) for verb in _READS if verb != "list"]
        results += [await _check_access(api, "events", verb) for verb in ("create", "patch")]
        return results
    finally:
        await api.close()


async def _check_list(api: KubeApi, resource: str) -> CheckResult:
    check = f"list {resource}"
    try:
        listed = json.loads(await api.get(f"/api/v1/{resource}", {"limit": "1"}))
    except KubeError as error:
        advice = _RBAC if error.status == 403 else "see whether --kubeconfig is for this cluster, and its API is up"
        return failed(check, str(error), advice)
    except ValueError:
        return failed(check, "the answer is not JSON", "see whether --kubeconfig points at a Kubernetes API")
    metadata = listed.get("metadata", {})
    count = len(listed.get("items") or []) + (metadata.get("remainingItemCount") or 0)
    return passed(check, f"{count} there")


async def _check_access(api: KubeApi, resource: str, verb: str) -> CheckResult:
    """Ask what is allowed, rather than do it."""
    check = f"{verb} {resource}"
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {"verb": verb, "resource": resource, "version": "v1"}},
    }
    try:
        status = json.loads(await api.post(_REVIEWS, review)).get("status", {})
    except (KubeError, ValueError) as error:
        return warned(check, f"can't be asked: {error}", f"kubectl auth can-i {verb} {resource} --all-namespaces")
    if status.get("allowed"):
        return passed(check, "allowed")
    return failed(check, f"not allowed {status.get('reason', '')}".strip(), _RBAC)


async def _check_base_arn() -> CheckResult:
    check = "base ARN"
    try:
        return passed(check, await detect_base_arn_once())
    except DetectionError as error:
        return failed(check, str(error), "give the instance a profile, or give --role-base-arn instead")


def _check_sts(arguments: argparse.Namespace, base_arn: str) -> CheckResult:
    check = "STS"
    # The duration is for AssumeRole, which isn't called.
    duration = int(timedelta(minutes=15).total_seconds())
    try:
        sts = BotoSTS(arguments.region, arguments.assume_role_arn, duration, 1, base_arn)
    except UserError as error:
        return failed_with(check, error, "give another --region or --assume-role-arn")
    unwell = partial(failed, check, fix="give the server's instance or service account a role (docs/iam.md)")
    try:
        identity = sts.check()
    except STSError as error:
        if error.kind is ErrorKind.UNREACHABLE:
            return failed(check, f"{sts.endpoint}: {error}", STS_AWAY)
        return unwell(f"{sts.endpoint}: {error}")
    return (
        passed(check, f"{sts.endpoint} says the server is {identity}")
        if identity
        else unwell(f"{sts.endpoint} answers, but not who the server is")
    )
