"""A real server and a real agent on loopback, with certificates in folders like mounted secrets."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kiam.tls import TLSFiles
from tests.sandbox.aws import AwsProcess
from tests.sandbox.certificates import Authority, MountedSecret
from tests.sandbox.kubeapi import KubeApiProcess, namespace, pod, write_kubeconfig
from tests.sandbox.process import Process

NAMES = ("localhost", "127.0.0.1")
ROLE_BASE_ARN = "arn:aws:iam::123456789012:role/"
ROLE = "reader"


@dataclass(frozen=True, slots=True)
class Services:
    """What a server needs, and a pod at 127.0.0.1 that may have a role."""

    kubeconfig: Path
    aws: AwsProcess
    kube: KubeApiProcess

    def server_flags(self, files: TLSFiles) -> list[str]:
        """The flags of a server that works with these."""
        return [
            *tls_flags(files),
            f"--kubeconfig={self.kubeconfig}",
            f"--role-base-arn={ROLE_BASE_ARN}",
        ]

    def events_of(self, name: str) -> list[dict[str, Any]]:
        """The Events on a pod."""
        return [event for event in self.kube.events() if event["involvedObject"]["name"] == name]


def tls_flags(files: TLSFiles) -> list[str]:
    """The three flags."""
    return [f"--cert={files.cert}", f"--key={files.key}", f"--ca={files.ca}"]


def kiam(*arguments: str) -> list[str]:
    """The command line that runs kiam from this checkout."""
    return [sys.executable, "-m", "kiam", *arguments]


@contextmanager
def running_server(
    directory: Path, flags: Sequence[str], services: Services | None = None
) -> Iterator[tuple[Process, int]]:
    """A server, and its port."""
    environment = services.aws.environment if services else {"AWS_EC2_METADATA_DISABLED": "true"}
    with Process(kiam("server", "--bind=127.0.0.1:0", *flags), directory / "server.log", env=environment) as process:
        port = int(process.wait_for_output(r"\(port (\d+)\)").group(1))
        if services:
            process.wait_for_output(r" ready( |$)")
        yield process, port


def secret(directory: Path, authority: Authority, name: str, ca: bytes | None = None) -> MountedSecret:
    """A mounted secret with a certificate of this authority."""
    issued = authority.sign(name, NAMES)
    return MountedSecret(directory, issued.cert, issued.key, authority.pem if ca is None else ca)


@pytest.fixture(scope="package")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """The Kubernetes API and STS."""
    directory = tmp_path_factory.mktemp("services")
    with KubeApiProcess(directory / "kube") as kube, AwsProcess(directory / "aws") as aws:
        kube.apply(namespace("apps", permitted=".*"), pod("app", "127.0.0.1", ROLE, namespace="apps"))
        yield Services(write_kubeconfig(directory / "kubeconfig", kube.url), aws, kube)
