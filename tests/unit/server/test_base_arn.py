"""The base ARN from an instance profile's, and from an instance metadata service that is not always well."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from kiam.server.aws import base_arn as module
from kiam.server.aws.base_arn import DetectionError, base_arn_of_profile, detect_base_arn


@pytest.mark.parametrize("partition", ["aws", "aws-cn", "aws-us-gov", "aws-iso", "aws-iso-b", "aws-eusc"])
def test_base_arn_has_the_profiles_partition_and_account(partition: str) -> None:
    profile = f"arn:{partition}:iam::123456789012:instance-profile/some/path/x"
    assert base_arn_of_profile(profile) == f"arn:{partition}:iam::123456789012:role/"


@pytest.mark.parametrize("text", ["", "arn:aws:iam::1:role/x", "x", "arn:aws:iam::a:instance-profile/x"])
def test_other_arns_are_refused_with_what_to_do(text: str) -> None:
    with pytest.raises(DetectionError, match="give --role-base-arn instead"):
        base_arn_of_profile(text)


class Metadata:
    """IMDSv2 as the EC2 user guide has it; answers the first requests with failures."""

    def __init__(self) -> None:
        self.failures: list[int] = []
        self.body = json.dumps({"InstanceProfileArn": "arn:aws:iam::123456789012:instance-profile/x"})
        self.requests: list[str] = []

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.requests.append(f"{request.method} {request.path}")
        if self.failures:
            return web.Response(status=self.failures.pop(0))
        if request.method == "PUT":
            assert request.headers["X-aws-ec2-metadata-token-ttl-seconds"]
            return web.Response(text="a-token")
        if request.headers.get("X-aws-ec2-metadata-token") != "a-token":
            return web.Response(status=401)
        return web.Response(text=self.body)


@pytest.fixture
async def metadata(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Metadata]:
    service = Metadata()
    runner = web.ServerRunner(web.Server(service.answer))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    monkeypatch.setenv(module.ENDPOINT_VARIABLE, f"http://127.0.0.1:{runner.addresses[0][1]}/")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setattr(module, "BACKOFF", lambda state: 0.01)
    yield service
    await runner.cleanup()


async def test_token_is_fetched_and_presented(metadata: Metadata) -> None:
    assert await detect_base_arn() == "arn:aws:iam::123456789012:role/"
    assert metadata.requests == ["PUT /latest/api/token", "GET /latest/meta-data/iam/info"]


async def test_failures_are_asked_again_until_it_works(metadata: Metadata, caplog: pytest.LogCaptureFixture) -> None:
    metadata.failures = [500, 503, 403]
    assert await detect_base_arn() == "arn:aws:iam::123456789012:role/"
    assert len(caplog.records) == 3
    assert "HTTP 500" in caplog.text


@pytest.mark.parametrize("body", ["", "{}", "[1]", "<html>"])
async def test_answer_that_cannot_be_understood_is_asked_for_again(
    metadata: Metadata, body: str, caplog: pytest.LogCaptureFixture
) -> None:
    good, metadata.body = metadata.body, body

    def mend(record: object) -> bool:
        metadata.body = good
        return True

    caplog.handler.addFilter(mend)
    try:
        assert await detect_base_arn() == "arn:aws:iam::123456789012:role/"
    finally:
        caplog.handler.removeFilter(mend)


async def test_instance_without_a_profile_is_told(metadata: Metadata, caplog: pytest.LogCaptureFixture) -> None:
    metadata.failures = [404]
    await detect_base_arn()
    assert "has the instance a profile?" in caplog.text
