"""The clients: how each is run, and what it is known to do."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypedDict, Unpack

from tests.clients.kits import AWSCLI, DEBIAN, GO, NODE, PROGRAMS, PYTHON, PYTHON_OLD, Kit
from tests.sandbox.netns import AWS_IPV4

ENDPOINT = f"http://{AWS_IPV4}:8000"
BUCKET = "shelf"
ENVIRONMENT = {
    "ENDPOINT": ENDPOINT,
    "BUCKET": BUCKET,
    "RESTIC_PASSWORD": "sandbox",
    "LANG": "C.UTF-8",
}
"""What every client's program finds, beside HOME and the region."""


@dataclass(frozen=True, slots=True)
class Client:
    """One client. Its command makes one signed request to S3 or STS and fails, with words, if it can't."""

    name: str
    language: str
    command: tuple[str, ...]
    version: tuple[str, ...]
    """Prints its version."""
    refusal: str
    """A regular expression: what it says when there are no credentials for it."""
    kit: Kit | None = None
    """None: it comes with ``make setup``."""
    tokens: bool = True
    """Whether it asks for a session token before anything else; s3fs asks for its role's name without."""
    without_tokens: bool = True
    """Whether it does without a token if it is given none (``--imds-tokens=passed-on``)."""
    patient: bool | None = True
    """Whether it waits, or asks again, for the two seconds that a new pod may take to be known; it gives up after one
    otherwise, and has to be started again. None: it gives up after just about two."""
    patience: Mapping[str, str] = field(default_factory=dict)
    """Settings, from docs/clients.md, with which it does wait."""
    asks_region: bool = False
    """Whether it asks instance metadata for its region if no setting says which."""
    containers: bool = False
    """Whether it knows the container credentials endpoint of EKS Pod Identity."""
    environment: Mapping[str, str] = field(default_factory=dict)


BOTOCORE = {"AWS_METADATA_SERVICE_TIMEOUT": "6"}
"""What gives clients with botocore inside patience; in seconds."""


class _Known(TypedDict, total=False):
    patience: Mapping[str, str]
    asks_region: bool
    containers: bool
    tokens: bool
    without_tokens: bool
    patient: bool | None


def _python(
    name: str, package: str, program: str, refusal: str, kit: Kit | None = PYTHON, **known: Unpack[_Known]
) -> Client:
    python = sys.executable if kit is None else str(kit.folder / "bin" / "python")
    version = (python, "-c", f"from importlib.metadata import version; print(version('{package}'))")
    return Client(name, "Python", (python, str(PROGRAMS / program)), version, refusal, kit, **known)


def _debian(
    name: str, language: str, command: tuple[str, ...], package: str, refusal: str, **known: Unpack[_Known]
) -> Client:
    version = ("dpkg-query", "-W", "-f", "${Version}", package)
    return Client(name, language, command, version, refusal, DEBIAN, **known)


def _npm(name: str, package: str, program: str, refusal: str, **known: Unpack[_Known]) -> Client:
    modules = NODE.folder / "node_modules"
    version = ("node", "-p", f"require('{modules / package}/package.json').version")
    environment = {"NODE_PATH": str(modules)}
    command = ("node", str(PROGRAMS / program))
    return Client(name, "JavaScript", command, version, refusal, NODE, environment=environment, **known)


RCLONE = (
    "--config=/dev/null",
    "--retries=1",
    "lsd",
    f":s3,provider=AWS,env_auth,region=us-east-1,endpoint='{ENDPOINT}':",
)
CLIENTS = (
    _python(
        "boto3",
        "boto3",
        "boto3_new.py",
        "Unable to locate credentials",
        None,
        patient=False,
        patience=BOTOCORE,
        containers=True,
    ),
    _python(
        "boto3, old",
        "boto3",
        "boto3_old.py",
        "Unable to locate credentials",
        PYTHON_OLD,
        patient=False,
        patience=BOTOCORE,
        tokens=False,
    ),
    _python(
        "aiobotocore",
        "aiobotocore",
        "aiobotocore_list.py",
        "Unable to locate credentials",
        containers=True,
        patient=False,
        patience=BOTOCORE,
    ),
    Client(
        "awscli 1",
        "Python",
        (str(AWSCLI.folder / "bin" / "aws"), "sts", "get-caller-identity", "--endpoint-url", ENDPOINT),
        (str(AWSCLI.folder / "bin" / "aws"), "--version"),
        "Unable to locate credentials",
        AWSCLI,
        containers=True,
        patient=False,
        patience=BOTOCORE,
    ),
    _debian(
        "awscli 2",
        "Python",
        ("/usr/bin/aws", "sts", "get-caller-identity", "--endpoint-url", ENDPOINT),
        "awscli",
        "Unable to locate credentials",
        patient=False,
        patience=BOTOCORE,
        asks_region=True,
    ),
    _debian(
        "s3cmd",
        "Python",
        ("s3cmd", "--config=/dev/null", f"--host={AWS_IPV4}:8000", f"--host-bucket={AWS_IPV4}:8000", "--no-ssl", "ls"),
        "s3cmd",
        "Consider using --configure",
        patient=None,
    ),
    _python("awscrt", "awscrt", "awscrt_sign.py", "AWS_AUTH", containers=True, patient=None),
    _python("pyarrow", "pyarrow", "pyarrow_list.py", "ACCESS_DENIED|credentials", containers=True),
    _python(
        "rasterio", "rasterio", "rasterio_list.py", "credentials|AWS_SECRET_ACCESS_KEY", containers=True, patient=False
    ),
    _python(
        "minio", "minio", "minio_list.py", "credentials|404|no role|empty role", containers=True, without_tokens=False
    ),
    _python("obstore", "obstore", "obstore_list.py", "404|credential", containers=True, without_tokens=False),
    _npm("aws-sdk 2", "aws-sdk", "js_v2.js", "CredentialsError|Missing credentials", containers=True),
    _npm(
        "aws-sdk 3",
        "@aws-sdk/client-sts",
        "js_v3.js",
        "CredentialsProviderError",
        containers=True,
        patient=False,
        asks_region=True,
    ),
    _debian(
        "aws-sdk-go 1",
        "Go",
        (str(DEBIAN.folder / "go_v1"),),
        "golang-github-aws-aws-sdk-go-dev",
        "NoCredentialProviders",
    ),
    _debian(
        "aws-sdk-go 2",
        "Go",
        (str(DEBIAN.folder / "go_v2"),),
        "golang-github-aws-aws-sdk-go-v2-dev",
        "failed to refresh|no EC2 IMDS role",
    ),
    _debian(
        "rclone",
        "Go",
        ("rclone", *RCLONE),
        "rclone",
        "NoCredentialProviders",
    ),
    Client(
        "rclone, new",
        "Go",
        (str(GO.folder / "bin" / "rclone"), *RCLONE),
        (str(GO.folder / "bin" / "rclone"), "version"),
        "failed to refresh|no EC2 IMDS role",
        GO,
        containers=True,
    ),
    _debian(
        "restic",
        "Go",
        ("sh", "-c", f"exec restic --no-cache -r s3:{ENDPOINT}/{BUCKET}/${{HOME##*/}} init"),
        "restic",
        "Access Denied|credential",
        without_tokens=False,
    ),
    _debian(
        "aws-sdk 3 for Ruby", "Ruby", ("ruby", str(PROGRAMS / "ruby_v3.rb")), "ruby-aws-sdk-core", "MissingCredentials"
    ),
    _debian(
        "s3fs",
        "C++",
        ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", str(PROGRAMS / "s3fs.sh")),
        "s3fs",
        "IAM",
        tokens=False,
    ),
)
