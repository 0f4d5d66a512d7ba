"""STS and the instance metadata service: moto's server behind a proxy that can misbehave.

STS answers are moto's own. Instance metadata is moto's too, except for what moto 5 lacks or leaves open, which the
proxy adds after the EC2 user guide ("Use the Instance Metadata Service"):

- IMDSv2: ``PUT /latest/api/token`` with ``X-aws-ec2-metadata-token-ttl-seconds`` (1 to 21600) gives a token that
  expires; a request with an unknown token is 401, and so is one without a token when IMDSv2 is required;
- a token request that carries ``X-Forwarded-For`` is 403;
- ``iam/info``, and under ``iam/security-credentials/`` the node's own role with credentials that moto's STS issued,
  so that GetCallerIdentity tells whose they are.

Both can be slow, refuse or fail on demand (:class:`Faults`), and AssumeRole calls are counted by role.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import secrets
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import aiohttp
import boto3
from aiohttp import web
from botocore.config import Config

from tests.sandbox.control import Control, serve_control
from tests.sandbox.process import Process

ACCOUNT = "123456789012"
NODE_ROLE = "node-role"
NODE_ROLE_ARN = f"arn:aws:iam::{ACCOUNT}:role/{NODE_ROLE}"
INSTANCE_PROFILE_ARN = f"arn:aws:iam::{ACCOUNT}:instance-profile/node-profile"
ROLE_BASE_ARN = f"arn:aws:iam::{ACCOUNT}:role/"
INSTANCE_ID = "i-fake"
"""moto's."""
TOKEN_TTL = "X-aws-ec2-metadata-token-ttl-seconds"  # header names
TOKEN = "X-aws-ec2-metadata-token"

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "content-encoding", "host", "date"}


@dataclass(slots=True)
class Faults:
    """What goes wrong on purpose. ``roles`` is a regular expression on the ARN that AssumeRole is asked for."""

    roles: str = ".*"
    sts: str = ""
    """Empty: well. ``denied``, ``throttled``, ``unavailable`` (HTTP 503), ``reset`` (connection cut) or ``garbage``."""
    sts_delay: float = 0.0
    """Seconds before STS answers."""
    lifetime: int = 0
    """Seconds until credentials that STS issues expire, as written in the answer; 0: as asked for."""
    imds: str = ""
    """Empty: well. ``unavailable`` (HTTP 503) or ``reset``."""
    imds_delay: float = 0.0
    tokens: bool = True
    """Whether IMDSv2 gives out session tokens; otherwise a request for one is 404, as services that know IMDSv1 only
    answer it."""
    require_token: bool = False
    """Whether IMDSv1 (no token) is refused, as ``HttpTokens=required`` does."""
    instance_profile: str = INSTANCE_PROFILE_ARN
    """What ``iam/info`` says; empty: the instance has none, 404."""


@dataclass(slots=True)
class AssumeRoleCall:
    """One AssumeRole as STS saw it."""

    role_arn: str
    session_name: str
    external_id: str
    tags: dict[str, str]
    transitive_tags: list[str]
    source_identity: str
    duration: int
    outcome: str
    """``ok`` or the fault."""
    region: str
    """From the signature's credential scope."""
    host: str
    """The Host header."""
    started: float
    ended: float
    """On the machine's monotonic clock, which all processes share."""


@dataclass(slots=True)
class SignedRequest:
    """A request to AWS's API that somebody signed, other than AssumeRole."""

    access_key_id: str
    role_arn: str
    """Whose credentials these are: the role that STS issued them for, if the session token is theirs; else empty."""
    service: str
    """From the signature's credential scope; empty for version 2 signatures."""
    user_agent: str


_CREDENTIAL = re.compile(r"Credential=([^/]+)/\d+/[^/]+/([^/]+)/|^AWS ([^:]+):")

_STS_ERRORS = {
    "denied": (403, "AccessDenied", "User is not authorized to perform: sts:AssumeRole on resource: {role}"),
    "throttled": (400, "Throttling", "Rate exceeded"),
    "unavailable": (503, "ServiceUnavailable", "the sandbox was told to fail"),
}


def _sts_error(fault: str, role: str) -> web.Response:
    status, code, message = _STS_ERRORS[fault]
    kind = "Sender" if status < 500 else "Receiver"
    body = (
        '<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error>'
        f"<Type>{kind}</Type><Code>{code}</Code><Message>{message.format(role=role)}</Message></Error>"
        "<RequestId>00000000-0000-4000-8000-000000000000</RequestId></ErrorResponse>"
    )
    return web.Response(status=status, text=body, content_type="text/xml")


def _unsigned() -> web.Response:
    """What S3 says to the anonymous, whom moto would let in."""
    body = "<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
    return web.Response(status=403, text=body, content_type="application/xml")


def _faulty_answer(request: web.Request, fault: str, role: str) -> web.Response:
    if fault == "reset":
        return _cut(request)
    if fault == "garbage":
        return web.Response(text="<AssumeRoleResponse><SecretAccessKey>hush\x1b</Secret", content_type="text/xml")
    return _sts_error(fault, role)


class Front:
    """The proxy in front of moto."""

    def __init__(self, moto: str) -> None:
        self.moto = moto
        self.faults = Faults()
        self.calls: list[AssumeRoleCall] = []
        self.signed: list[SignedRequest] = []
        self._issued: dict[str, tuple[str, str]] = {}
        """Access key: the role and the session token it was issued with."""
        self.imds_requests: Counter[str] = Counter()
        """``<method> <path>``: how often."""
        self.forwarded_for = 0
        """Instance metadata requests that carried X-Forwarded-For or Forwarded."""
        self._tokens: dict[str, float] = {}
        self._node: dict[str, str] | None = None
        self.session: aiohttp.ClientSession | None = None

    # ---- STS

    async def sts(self, request: web.Request) -> web.StreamResponse:
        """An AWS API call: to STS, or to S3, which clients are tried with."""
        body = await request.read()
        form = {key: values[0] for key, values in parse_qs(body.decode(errors="replace")).items()}
        if form.get("Action") != "AssumeRole":
            return await self._pass_on(request, body) if self._note_signature(request) else _unsigned()
        role = form.get("RoleArn", "")
        faults = self.faults
        hit = re.search(faults.roles, role) is not None
        started = time.monotonic()
        if hit and faults.sts_delay:
            await asyncio.sleep(faults.sts_delay)
        scope = re.search(r"Credential=[^/]+/\d+/([^/]+)/", request.headers.get("Authorization", ""))
        if hit and faults.sts:
            answer = _faulty_answer(request, faults.sts, role)
        else:
            answer = await self._pass_on(request, body)
        if isinstance(answer, web.Response) and isinstance(answer.body, bytes):
            self._note_issued(role, answer.body.decode(errors="replace"))
        if hit and faults.lifetime and isinstance(answer.body, bytes):
            expiry = (datetime.now(UTC) + timedelta(seconds=faults.lifetime)).strftime("%Y-%m-%dT%H:%M:%SZ")
            answer.body = re.sub(rb"<Expiration>[^<]*<", f"<Expiration>{expiry}<".encode(), answer.body)
        self.calls.append(
            AssumeRoleCall(
                role_arn=role,
                session_name=form.get("RoleSessionName", ""),
                external_id=form.get("ExternalId", ""),
                tags=dict(zip(_members(form, "Tags", ".Key"), _members(form, "Tags", ".Value"), strict=True)),
                transitive_tags=_members(form, "TransitiveTagKeys"),
                source_identity=form.get("SourceIdentity", ""),
                duration=int(form.get("DurationSeconds", 3600)),
                outcome=faults.sts if hit and faults.sts else "ok",
                region=scope.group(1) if scope else "",
                host=request.headers.get("Host", ""),
                started=started,
                ended=time.monotonic(),
            )
        )
        return answer

    def _note_issued(self, role: str, answer: str) -> None:
        key, token = (re.search(f"<{tag}>([^<]+)<", answer) for tag in ("AccessKeyId", "SessionToken"))
        if key and token:
            self._issued[key[1]] = (role, unescape(token[1]))

    def _note_signature(self, request: web.Request) -> bool:
        found = _CREDENTIAL.search(request.headers.get("Authorization", ""))
        if found is None:
            return False
        key = found[1] or found[3]
        role, token = self._issued.get(key, ("", ""))
        if token != request.headers.get("X-Amz-Security-Token"):
            role = ""
        self.signed.append(SignedRequest(key, role, found[2] or "", request.headers.get("User-Agent", "")))
        return True

    # ---- instance metadata

    async def imds(self, request: web.Request) -> web.StreamResponse:
        """An instance metadata request."""
        faults = self.faults
        self.imds_requests[f"{request.method} {request.path}"] += 1
        if "X-Forwarded-For" in request.headers or "Forwarded" in request.headers:
            self.forwarded_for += 1
        if faults.imds_delay:
            await asyncio.sleep(faults.imds_delay)
        if faults.imds == "reset":
            return _cut(request)
        if faults.imds:
            return web.Response(status=503, text="the sandbox was told to fail")
        if request.method == "PUT":
            return self._issue_token(request)
        if request.method not in ("GET", "HEAD"):
            return web.Response(status=405)
        token = request.headers.get(TOKEN)
        if token is None and faults.require_token:
            return web.Response(status=401)
        if token is not None and self._tokens.get(token, 0) < time.monotonic():
            return web.Response(status=401)
        return await self._metadata(request)

    def _issue_token(self, request: web.Request) -> web.Response:
        if not re.fullmatch(r"/[^/]+/api/token", request.path):
            return web.Response(status=405)
        if not self.faults.tokens:
            return web.Response(status=404)
        if "X-Forwarded-For" in request.headers:
            return web.Response(status=403)
        ttl = request.headers.get(TOKEN_TTL, "")
        if not ttl.isdigit() or not 1 <= int(ttl) <= 21600:
            return web.Response(status=400)
        token = secrets.token_urlsafe(40)
        self._tokens[token] = time.monotonic() + int(ttl)
        return web.Response(text=token, headers={TOKEN_TTL: ttl})

    async def _metadata(self, request: web.Request) -> web.Response:
        _, _, path = request.path.strip("/").partition("/meta-data/")
        if path.rstrip("/") == "iam/info":
            if not self.faults.instance_profile:
                return web.Response(status=404)
            return web.json_response(
                {
                    "Code": "Success",
                    "LastUpdated": _now(),
                    "InstanceProfileArn": self.faults.instance_profile,
                    "InstanceProfileId": "AIPAEXAMPLE",
                }
            )
        if path.rstrip("/") == "iam/security-credentials":
            return web.Response(text=NODE_ROLE)
        if path == f"iam/security-credentials/{NODE_ROLE}":
            return web.json_response(await self._node_credentials(), content_type="text/plain")
        if path.startswith("iam/"):
            return web.Response(status=404)
        return await self._pass_on(request, b"", host="169.254.169.254")

    async def _node_credentials(self) -> dict[str, str]:
        if self._node is None:
            self._node = await asyncio.to_thread(_assume_node_role, self.moto)
            self._issued[self._node["AccessKeyId"]] = (NODE_ROLE_ARN, self._node["Token"])
        return self._node

    async def _pass_on(self, request: web.Request, body: bytes, host: str | None = None) -> web.Response:
        assert self.session is not None
        headers = {key: value for key, value in request.headers.items() if key.lower() not in _HOP_BY_HOP}
        headers["Host"] = host or request.host
        # The real service answers for a value with and without a last slash; moto without.
        target = request.path_qs.rstrip("/") if host and not request.path.endswith("/meta-data/") else request.path_qs
        url = f"{self.moto}{target}"
        async with self.session.request(request.method, url, data=body, headers=headers) as answer:
            status = 404 if host and answer.status >= 500 else answer.status
            kept = {key: value for key, value in answer.headers.items() if key.lower() not in _HOP_BY_HOP}
            return web.Response(status=status, body=await answer.read(), headers=kept)


def _members(form: dict[str, str], name: str, field: str = "") -> list[str]:
    """A list in AWS's query protocol: ``Tags.member.1.Key``, ``Tags.member.2.Key``, ..."""
    return [form[key] for number in range(1, 51) if (key := f"{name}.member.{number}{field}") in form]


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _cut(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


def _assume_node_role(moto: str) -> dict[str, str]:
    issued = sts_client(moto).assume_role(RoleArn=NODE_ROLE_ARN, RoleSessionName=INSTANCE_ID)["Credentials"]
    return {
        "Code": "Success",
        "LastUpdated": _now(),
        "Type": "AWS-HMAC",
        "AccessKeyId": issued["AccessKeyId"],
        "SecretAccessKey": issued["SecretAccessKey"],
        "Token": issued["SessionToken"],
        "Expiration": issued["Expiration"].strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def sts_client(endpoint: str, region: str = "us-east-1", **credentials: str) -> Any:
    """A boto3 STS client for an endpoint; without credentials it uses made-up ones, which moto takes."""
    keys = credentials or {"aws_access_key_id": "AKIDSANDBOX", "aws_secret_access_key": "sandbox"}
    settings = Config(connect_timeout=5, read_timeout=10, retries={"max_attempts": 2})
    return boto3.client("sts", region_name=region, endpoint_url=endpoint, config=settings, **keys)


# ---- as a process of its own


class AwsProcess:
    """moto and the proxy as processes, in a network namespace if wanted. A context manager: leaving it ends both."""

    def __init__(
        self,
        directory: Path,
        *,
        netns: str | None = None,
        sts_host: str = "127.0.0.1",
        sts_port: int = 0,
        imds_hosts: tuple[str, ...] = ("127.0.0.1",),
        imds_port: int = 0,
    ) -> None:
        """Instance metadata listens on each of ``imds_hosts``; ``sts_url`` and ``imds_url`` say where both are."""
        directory.mkdir(parents=True, exist_ok=True)
        self._control = Control(directory / "aws.sock")
        self._processes: list[Process] = []
        try:
            # Port 0 and one thread for each connection: werkzeug prints the port that it was given.
            moto = Process(
                [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", "0"],
                directory / "moto.log",
                netns=netns,
            )
            self._processes.append(moto)
            moto_url = moto.wait_for_output(r"Running on (http://127\.0\.0\.1:\d+)").group(1)
            self.process = Process(
                [
                    *(sys.executable, "-m", "tests.sandbox.aws", "--moto", moto_url),
                    *("--sts-host", sts_host, "--sts-port", str(sts_port)),
                    *("--imds-hosts", ",".join(imds_hosts), "--imds-port", str(imds_port)),
                    *("--control", str(self._control.path)),
                ],
                directory / "aws.log",
                netns=netns,
            )
            self._processes.append(self.process)
            listening = self.process.wait_for_output(r"^listening: sts (\S+) imds (\S+)$")
        except BaseException:
            self.stop()
            raise
        self.sts_url, self.imds_url = listening.groups()

    def __enter__(self) -> AwsProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End both processes."""
        for process in reversed(self._processes):
            process.stop()

    @property
    def environment(self) -> dict[str, str]:
        """Variables that send a program's boto3 to this STS, with an identity of its own that STS accepts."""
        return {
            "AWS_ENDPOINT_URL_STS": self.sts_url,
            "AWS_ACCESS_KEY_ID": "AKIDKIAMSERVER",
            "AWS_SECRET_ACCESS_KEY": "sandbox",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        }

    def faults(self, **values: Any) -> None:
        """Set fields of :class:`Faults`; the others stay. Without arguments: all well again."""
        self._control.call("faults", values=values)

    def calls(self) -> list[AssumeRoleCall]:
        """AssumeRole calls so far, oldest first."""
        return [AssumeRoleCall(**call) for call in self._control.call("calls")]

    def signed(self) -> list[SignedRequest]:
        """Signed requests so far, oldest first: who really used which credentials."""
        return [SignedRequest(**request) for request in self._control.call("signed")]

    def count(self, role: str) -> int:
        """How many AssumeRole calls there were for a role's name or ARN."""
        return sum(call.role_arn == role or call.role_arn == ROLE_BASE_ARN + role for call in self.calls())

    def forget_calls(self) -> None:
        """Start counting anew, signed and instance metadata requests too."""
        self._control.call("forget_calls")

    def imds_requests(self) -> dict[str, int]:
        """``<method> <path>``: how often instance metadata was asked for it."""
        return dict(self._control.call("imds_requests"))

    def forwarded_for(self) -> int:
        """How many instance metadata requests carried X-Forwarded-For or Forwarded."""
        return int(self._control.call("forwarded_for"))


@dataclass(slots=True)
class _Operations:
    front: Front
    well: Faults = field(default_factory=Faults)

    async def faults(self, values: dict[str, Any]) -> None:
        current = asdict(self.front.faults) if values else asdict(self.well)
        self.front.faults = Faults(**{**current, **values})

    async def calls(self) -> list[dict[str, Any]]:
        return [asdict(call) for call in self.front.calls]

    async def signed(self) -> list[dict[str, Any]]:
        return [asdict(request) for request in self.front.signed]

    async def forget_calls(self) -> None:
        self.front.calls.clear()
        self.front.signed.clear()
        self.front.imds_requests.clear()
        self.front.forwarded_for = 0

    async def imds_requests(self) -> dict[str, int]:
        return dict(self.front.imds_requests)

    async def forwarded_for(self) -> int:
        return self.front.forwarded_for


async def _listen(handler: Any, hosts: list[str], port: int) -> str:
    """Serve on every host; the URL of the first."""
    server = web.Server(handler, access_log=None)
    runner = web.ServerRunner(server)
    await runner.setup()
    for host in hosts:
        await web.TCPSite(runner, host, port).start()
    host, port = runner.addresses[0][:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def _main() -> None:
    parser = argparse.ArgumentParser(description="fault-injecting proxy before moto")
    parser.add_argument("--moto", required=True)
    parser.add_argument("--sts-host", required=True)
    parser.add_argument("--sts-port", type=int, required=True)
    parser.add_argument("--imds-hosts", required=True)
    parser.add_argument("--imds-port", type=int, required=True)
    parser.add_argument("--control", type=Path, required=True)
    arguments = parser.parse_args()
    front = Front(arguments.moto)
    async with (
        aiohttp.ClientSession(auto_decompress=False) as session,
        serve_control(arguments.control, _Operations(front)),
    ):
        front.session = session
        sts = await _listen(front.sts, [arguments.sts_host], arguments.sts_port)
        imds = await _listen(front.imds, arguments.imds_hosts.split(","), arguments.imds_port)
        print(f"listening: sts {sts} imds {imds}", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main())
