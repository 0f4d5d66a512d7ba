"""Behind a company's proxy: what NO_PROXY lists is asked straight, and everything else through the proxy."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.sandbox.aws import ROLE_BASE_ARN, AwsProcess
from tests.sandbox.kubeapi import KubeApiProcess, write_kubeconfig
from tests.sandbox.netns import NetNs
from tests.sandbox.pki import Pki
from tests.sandbox.process import Process

SERVICES, PROXY = "192.0.2.1", "192.0.2.9"


@dataclass
class Site:
    """Kubernetes API and STS at an address that is not loopback, and a proxy."""

    netns: NetNs
    kube: KubeApiProcess
    aws: AwsProcess
    proxy: Process
    flags: list[str]

    def check(self, **environment: str) -> dict[str, str]:
        """``kiam config check server``: the status of each check that reaches for something."""
        variables = {
            **self.aws.environment,
            "HTTP_PROXY": f"http://user:secret@{PROXY}:3128",
            "HTTPS_PROXY": f"http://user:secret@{PROXY}:3128",
            **environment,
        }
        command = ["config", "check", "server", *self.flags, "--output=json"]
        assignments = [f"{name}={value}" for name, value in variables.items()]
        done = self.netns.run("env", *assignments, sys.executable, "-m", "kiam", *command, check=False, timeout=100)
        assert done.returncode in (0, 1), done.stderr
        return {check["check"]: check["status"] for check in json.loads(done.stdout)["checks"]}

    def asked(self) -> str:
        """What the proxy was asked."""
        return "\n".join(line for line in self.proxy.output().splitlines() if line.startswith("asked:"))


@pytest.fixture
def site(tmp_path: Path, pki: Pki) -> Iterator[Site]:
    with NetNs("proxied") as netns:
        for address in (SERVICES, PROXY):
            netns.ip(f"addr add {address}/32 dev lo")
        with (
            KubeApiProcess(tmp_path / "kube", host=SERVICES, netns=netns.name) as kube,
            AwsProcess(tmp_path / "aws", netns=netns.name, sts_host=SERVICES) as aws,
            Process(
                [sys.executable, "-m", "tests.sandbox.forward_proxy", "--host", PROXY, "--credentials=user:secret"],
                tmp_path / "proxy.log",
                netns=netns.name,
            ) as proxy,
        ):
            proxy.wait_for_output("^listening$")
            kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", kube.url)
            files = [f"--{name}={getattr(pki.server, name)}" for name in ("cert", "key", "ca")]
            flags = [*files, f"--kubeconfig={kubeconfig}", f"--role-base-arn={ROLE_BASE_ARN}"]
            yield Site(netns, kube, aws, proxy, flags)


@pytest.mark.parametrize("no_proxy", ["192.0.2.0/29", "10.0.0.0/8, 192.0.2.1", "*"])
def test_api_and_sts_in_no_proxy_are_asked_straight(site: Site, no_proxy: str) -> None:
    checks = site.check(NO_PROXY=no_proxy)
    assert (checks["list pods"], checks["STS"]) == ("PASS", "PASS")
    assert site.asked() == ""


def test_what_no_proxy_does_not_list_goes_through_the_proxy_with_its_password(site: Site) -> None:
    checks = site.check(NO_PROXY="192.0.2.2,192.0.2.128/25")
    assert (checks["list pods"], checks["STS"]) == ("PASS", "PASS")
    assert f"asked: GET {site.kube.url}/api/v1/pods" in site.asked()
    assert f"asked: POST {site.aws.sts_url}" in site.asked()


def test_proxy_of_another_kind_is_one_clear_line(site: Site) -> None:
    checks = site.check(HTTP_PROXY="socks5://192.0.2.9:1080", HTTPS_PROXY="socks5://192.0.2.9:1080")
    assert checks["Kubernetes API"] == checks["STS"] == "FAIL"
