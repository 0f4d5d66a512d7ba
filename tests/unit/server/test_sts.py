"""Endpoints by region and partition, and AWS's errors in one line."""

from __future__ import annotations

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from kiam.errors import UserError
from kiam.server.aws.contract import STSError
from kiam.server.aws.sts import BotoSTS, _to_sts_error


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_STS", "AWS_PROFILE", "AWS_STS_REGIONAL_ENDPOINTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKID")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "made-up")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.mark.parametrize(
    ("region", "endpoint"),
    [
        ("", "https://sts.amazonaws.com"),
        ("us-east-1", "https://sts.us-east-1.amazonaws.com"),
        ("eu-west-1", "https://sts.eu-west-1.amazonaws.com"),
        ("cn-north-1", "https://sts.cn-north-1.amazonaws.com.cn"),
        ("us-gov-west-1", "https://sts.us-gov-west-1.amazonaws.com"),
        ("us-iso-east-1", "https://sts.us-iso-east-1.c2s.ic.gov"),
        ("us-isob-east-1", "https://sts.us-isob-east-1.sc2s.sgov.gov"),
        ("eusc-de-east-1", "https://sts.eusc-de-east-1.amazonaws.eu"),
        ("us-east-1-fips", "https://sts-fips.us-east-1.amazonaws.com"),
        ("fips-us-west-2", "https://sts-fips.us-west-2.amazonaws.com"),
    ],
)
def test_region_decides_the_endpoint(region: str, endpoint: str) -> None:
    assert BotoSTS(region, "", 900, 2).endpoint == endpoint


def test_region_of_the_environment_does_not_replace_the_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    assert BotoSTS("", "", 900, 2).endpoint == "https://sts.amazonaws.com"


def test_endpoint_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", "https://vpce.example.internal")
    assert BotoSTS("eu-west-1", "", 900, 2).endpoint == "https://vpce.example.internal"


@pytest.mark.parametrize("region", ["not a region", "eu_west_1", "x/y"])
def test_region_that_cannot_be_one_is_one_clear_line(region: str) -> None:
    with pytest.raises(UserError, match=f"--region: '{region}' is not a region's name"):
        BotoSTS(region, "", 900, 2)


def test_assume_role_needs_an_identity_to_begin_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(UserError, match="--assume-role-arn: the server has no AWS credentials of its own"):
        BotoSTS("", "arn:aws:iam::123456789012:role/server", 900, 2)


def test_refusal_is_code_and_message_on_one_line() -> None:
    error = ClientError({"Error": {"Code": "AccessDenied", "Message": "User: x\nis not  authorized"}}, "AssumeRole")
    assert str(_to_sts_error(error)) == "AccessDenied: User: x is not authorized"


def test_botocores_own_errors_go_by_their_name() -> None:
    error = _to_sts_error(EndpointConnectionError(endpoint_url="https://sts"))
    assert isinstance(error, STSError)
    assert error.code == "EndpointConnectionError"
    assert str(error) == 'EndpointConnectionError: Could not connect to the endpoint URL: "https://sts"'
