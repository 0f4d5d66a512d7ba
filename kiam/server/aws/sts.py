"""AWS STS through boto3. Everything here blocks, and runs in threads of its own."""

from __future__ import annotations

import logging
import os
from collections.abc import MutableMapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import boto3
import botocore.session
from botocore import UNSIGNED
from botocore.config import Config
from botocore.credentials import AssumeRoleCredentialFetcher, DeferredRefreshableCredentials
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    EndpointConnectionError,
    HTTPClientError,
    InvalidRegionError,
)
from botocore.parsers import ResponseParserError

from kiam.arns import resolve_role_arn
from kiam.errors import ErrorKind, UserError
from kiam.identity import Identity
from kiam.proxies import bypassed, proxy_for
from kiam.server.aws.contract import Issued, STSError

log = logging.getLogger(__name__)

GLOBAL_REGION = "us-east-1"
"""Requests to the global endpoint, https://sts.amazonaws.com, are signed for this region."""
UNREADABLE = "UnreadableAnswer"
CONNECT_TIMEOUT = 3.0
READ_TIMEOUT = 10.0
INSTANCE_METADATA = ("169.254.169.254", "fd00:ec2::254")
OWN_SESSION_NAME = "kiam-server"
"""Of the role in --assume-role-arn."""


class BotoSTS:
    """STS as boto3 reaches it. boto3 clients may be shared between threads, so one serves all fetchers.

    botocore retries nothing here: a refusal retried per request is what floods STS, so waiting and asking again
    is left to the credentials manager, which does it once for all pods of a role.
    """

    def __init__(
        self,
        region: str,
        assume_role_arn: str,
        duration_seconds: int,
        fetchers: int,
        base_arn: str = "",
        transitive_tags: bool = False,
    ) -> None:
        """Make the client: reads files and parses JSON, but sends nothing.

        ``region`` empty: the global endpoint. ``assume_role_arn`` empty: the server's own identity. ``base_arn`` is put
        before a role that isn't an ARN; empty: not known yet. ``transitive_tags``: session tags stay when the session
        assumes another role. Raises UserError.
        """
        self._transitive_tags = transitive_tags
        self._duration = duration_seconds
        self._own_role = assume_role_arn
        self.base_arn = base_arn
        config = Config(
            retries={"total_max_attempts": 1},
            connect_timeout=CONNECT_TIMEOUT,
            read_timeout=READ_TIMEOUT,
            max_pool_connections=fetchers,
            tcp_keepalive=True,
        )
        _spare_instance_metadata(os.environ)
        try:
            session = botocore.session.get_session()
            if not region:
                # us-east-1 then means the global endpoint (AWS SDKs and tools reference, "AWS STS Regional endpoints").
                session.set_config_variable("sts_regional_endpoints", "legacy")
            proxies = _proxies(session, region or GLOBAL_REGION)
            config = config.merge(proxies)
            # Also for what botocore itself asks STS for, such as a service account's web identity.
            session.set_default_client_config(proxies)
            if assume_role_arn:
                self._assume(session, region or GLOBAL_REGION, config)
            self._client = boto3.Session(botocore_session=session).client(
                "sts", region_name=region or GLOBAL_REGION, config=config
            )
        except InvalidRegionError as error:
            raise UserError(f"--region: '{region}' is not a region's name", "write it like eu-west-1") from error
        except BotoCoreError as error:
            raise UserError(f"AWS configuration can't be used: {error}", "fix the AWS_* variables or files") from error

    @property
    def endpoint(self) -> str:
        """The URL that is asked."""
        return str(self._client.meta.endpoint_url)

    def check(self) -> str:
        """See whether STS answers and the server has credentials for it; the ARN it is to AWS, or empty.

        GetCallerIdentity needs no permission. A refusal counts as an answer: STS is there, and what it refuses it
        says again, and clearer, to whoever asks for a role. Raises STSError.
        """
        try:
            return str(self._client.get_caller_identity()["Arn"])
        except ClientError as error:
            # Signing may have needed another call before, for --assume-role-arn.
            if error.operation_name != "GetCallerIdentity":
                raise _to_sts_error(error) from error
            log.warning("STS answers, but not as it should: %s", _to_sts_error(error))
            return ""
        except (BotoCoreError, OSError) as error:
            raise _to_sts_error(error) from error

    def assume_role(self, identity: Identity) -> Issued:
        """AssumeRole, once. Raises STSError."""
        request: dict[str, Any] = {
            "RoleArn": identity.role_arn,
            "RoleSessionName": identity.session_name,
            "DurationSeconds": self._duration,
        }
        if identity.external_id:
            request["ExternalId"] = identity.external_id
        if identity.tags:
            request["Tags"] = [{"Key": key, "Value": value} for key, value in identity.tags]
            if self._transitive_tags:
                request["TransitiveTagKeys"] = [key for key, _ in identity.tags]
        if identity.source_identity:
            request["SourceIdentity"] = identity.source_identity
        now = datetime.now(UTC)
        try:
            credentials = self._client.assume_role(**request)["Credentials"]
            return Issued(
                access_key_id=credentials["AccessKeyId"],
                secret_access_key=credentials["SecretAccessKey"],
                token=credentials["SessionToken"],
                expires=credentials["Expiration"].astimezone(UTC),
                issued=now,
            )
        except (BotoCoreError, ClientError, OSError) as error:
            raise _to_sts_error(error) from error
        except (ResponseParserError, KeyError, TypeError, AttributeError, ValueError):
            # Not "from" it: its text has the answer in it, and so perhaps a secret key.
            raise STSError(UNREADABLE, "STS's answer can't be parsed; is something else at its address?") from None

    def _assume(self, session: Any, region: str, config: Config) -> None:
        """Have a session use the server's role, whose credentials botocore renews when they are about to expire."""

        def make_client(service: str, **arguments: Any) -> Any:
            return session.create_client(service, region_name=region, config=config, **arguments)

        source = session.get_credentials()
        if source is None:
            raise UserError(
                "--assume-role-arn: the server has no AWS credentials of its own to assume it with; "
                "give the instance a role, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )

        def fetch() -> Any:
            if not self.base_arn and not self._own_role.startswith("arn:"):
                raise CredentialRetrievalError(provider="assume-role", error_msg="the role base ARN is not known yet")
            fetcher = AssumeRoleCredentialFetcher(
                client_creator=make_client,
                source_credentials=source,
                role_arn=resolve_role_arn(self._own_role, self.base_arn),
                extra_args={"RoleSessionName": OWN_SESSION_NAME},
            )
            return fetcher.fetch_credentials()

        # The session's attribute is where botocore's own assume-role profiles end up; there is no public setter that
        # takes refreshable credentials.
        session._credentials = DeferredRefreshableCredentials(fetch, "assume-role")  # noqa: SLF001  # see above


def _proxies(session: Any, region: str) -> Config:
    """The way to STS as Go's programs read it from the environment; botocore knows neither ranges nor ports."""
    unsigned = Config(signature_version=UNSIGNED)
    endpoint = session.create_client("sts", region_name=region, config=unsigned).meta.endpoint_url
    proxy = proxy_for(endpoint)
    return Config(proxies={} if proxy is None else {urlsplit(endpoint).scheme: proxy})


def _spare_instance_metadata(environment: MutableMapping[str, str]) -> None:
    """Have botocore fetch the instance's own credentials straight from it.

    The attack stopped: a proxy answers for the instance that it runs on, whose role it then would be.
    """
    if environment.get("HTTP_PROXY") or environment.get("http_proxy"):
        direct = bypassed(INSTANCE_METADATA, environment)
        environment["NO_PROXY"] = environment["no_proxy"] = direct


def _to_sts_error(error: Exception) -> STSError:
    """AWS's code and message on one line; botocore's own errors under their class's name."""
    if isinstance(error, ClientError):
        details = error.response.get("Error", {})
        code, message = str(details.get("Code", "Unknown")), str(details.get("Message", ""))
    else:
        code, message = type(error).__name__, str(error)
    away = isinstance(error, HTTPClientError | EndpointConnectionError | OSError)
    return STSError(code, " ".join(message.split())[:512], ErrorKind.UNREACHABLE if away else ErrorKind.OTHER)
