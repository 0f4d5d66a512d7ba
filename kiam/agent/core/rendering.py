"""The credentials document, as instance metadata and as the container credentials endpoint give it."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from kiam.rpc import kiam_pb2


def render_credentials(credentials: kiam_pb2.Credentials) -> bytes:
    """The document, keys in the conventional order, with its newline."""
    document = {
        "Code": credentials.code,
        "Type": credentials.type,
        "AccessKeyId": credentials.access_key_id,
        "SecretAccessKey": credentials.secret_access_key,
        "Token": credentials.token,
        "Expiration": credentials.expiration,
        "LastUpdated": credentials.last_updated,
    }
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


def render_container_credentials(answer: kiam_pb2.ContainerCredentials) -> bytes:
    """The document that the container credentials endpoint gives (AWS SDKs and Tools reference, "Container credential
    provider")."""
    document = {
        "AccessKeyId": answer.credentials.access_key_id,
        "SecretAccessKey": answer.credentials.secret_access_key,
        "Token": answer.credentials.token,
        "AccountId": answer.account_id,
        "Expiration": answer.credentials.expiration,
    }
    return json.dumps(document, separators=(",", ":")).encode()


def expiry(credentials: kiam_pb2.Credentials) -> float:
    """When credentials expire, in seconds since the epoch. Raises ValueError for a time that isn't in RFC 3339 UTC."""
    moment = datetime.strptime(credentials.expiration, "%Y-%m-%dT%H:%M:%SZ")
    return moment.replace(tzinfo=UTC).timestamp()
