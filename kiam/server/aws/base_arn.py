"""``--role-base-arn-autodetect``: the account's role prefix, from the instance's own profile.

IMDSv2 as the EC2 user guide has it ("Use the Instance Metadata Service"): a token by PUT, then ``iam/info``.
"""

from __future__ import annotations

import logging
import os
import re

import aiohttp
import msgspec
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_exponential_jitter

log = logging.getLogger(__name__)

DEFAULT_ENDPOINT = "http://169.254.169.254"
ENDPOINT_VARIABLE = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
"""Where AWS's own SDKs look for another address of the instance metadata service."""
SESSION_SECONDS = "60"
BACKOFF = wait_exponential_jitter(multiplier=0.5, max=15, jitter=0.5)
TIMEOUT = aiohttp.ClientTimeout(total=5.0)
_PROFILE = re.compile(r"(arn:[^:]+:iam::\d+:)instance-profile/.+")


class DetectionError(Exception):
    """Instance metadata can't be reached, or doesn't tell."""


class _Info(msgspec.Struct):
    arn: str = msgspec.field(default="", name="InstanceProfileArn")


def base_arn_of_profile(profile_arn: str) -> str:
    """``arn:aws:iam::1:role/`` for ``arn:aws:iam::1:instance-profile/x``, in any partition. Raises DetectionError."""
    match = _PROFILE.fullmatch(profile_arn)
    if match is None:
        raise DetectionError(f"'{profile_arn}' is not the ARN of an instance profile; give --role-base-arn instead")
    return f"{match.group(1)}role/"


async def detect_base_arn() -> str:
    """Ask until instance metadata answers, for ever if need be."""

    def log_failure(state: RetryCallState) -> None:
        log.warning("base ARN not detected: %s", state.outcome.exception() if state.outcome else "")

    retrying = AsyncRetrying(
        retry=retry_if_exception_type(DetectionError),
        wait=BACKOFF,
        before_sleep=log_failure,
    )
    return str(await retrying(detect_base_arn_once))


async def detect_base_arn_once() -> str:
    """Ask instance metadata once. Raises DetectionError."""
    endpoint = os.environ.get(ENDPOINT_VARIABLE, "").rstrip("/") or DEFAULT_ENDPOINT
    try:
        # Not through a proxy: instance metadata is on the link, and a proxy would answer for its own instance.
        async with aiohttp.ClientSession(timeout=TIMEOUT, trust_env=False) as session:
            token = await _text(
                session,
                "PUT",
                f"{endpoint}/latest/api/token",
                {"X-aws-ec2-metadata-token-ttl-seconds": SESSION_SECONDS},
            )
            body = await _text(
                session, "GET", f"{endpoint}/latest/meta-data/iam/info", {"X-aws-ec2-metadata-token": token}
            )
        return base_arn_of_profile(msgspec.json.decode(body, type=_Info).arn)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise DetectionError(f"{endpoint}: {type(error).__name__}: {error}") from error
    except msgspec.DecodeError as error:
        raise DetectionError(f"{endpoint}: iam/info can't be understood: {error}") from error


async def _text(session: aiohttp.ClientSession, method: str, url: str, headers: dict[str, str]) -> str:
    async with session.request(method, url, headers=headers) as response:
        if response.status != 200:
            hint = "; has the instance a profile?" if response.status == 404 else ""
            raise DetectionError(f"{method} {url}: HTTP {response.status}{hint}")
        return await response.text()
