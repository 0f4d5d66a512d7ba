"""kiam config check against what it reaches for: a server, the Kubernetes API, STS, instance metadata."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.integration.tls.conftest import ROLE_BASE_ARN, Services, kiam, running_server, secret, tls_flags
from tests.sandbox.certificates import Authority, MountedSecret, write
from tests.sandbox.kubeapi import write_kubeconfig

AUTHORITY = Authority.make("kiam CA")


def check(*arguments: str, environment: Mapping[str, str] | None = None) -> tuple[int, dict[str, dict[str, Any]]]:
    """The exit code, and the checks beyond the flags' own, by name."""
    done = subprocess.run(
        kiam("config", "check", *arguments, "--output=json"),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, "AWS_EC2_METADATA_DISABLED": "true", **(environment or {})},
    )
    assert done.returncode in (0, 1), done.stderr
    checks = {found["check"]: found for found in json.loads(done.stdout)["checks"]}
    return done.returncode, {name: found for name, found in checks.items() if not name.startswith("--")}


@pytest.fixture
def server_secret(tmp_path: Path) -> MountedSecret:
    return secret(tmp_path / "server-tls", AUTHORITY, "kiam-server")


def test_servers_configuration_that_works_passes_and_shows_what_it_reached(
    services: Services, server_secret: MountedSecret
) -> None:
    environment = {**services.aws.environment, "AWS_EC2_METADATA_SERVICE_ENDPOINT": services.aws.imds_url}
    flags = [flag for flag in services.server_flags(server_secret.files) if "base-arn" not in flag]
    code, checks = check("server", *flags, "--role-base-arn-autodetect", environment=environment)
    assert {name: found["status"] for name, found in checks.items()} == dict.fromkeys(
        [
            "certificate",
            "authority",
            "settings",
            "list pods",
            "watch pods",
            "list namespaces",
            "watch namespaces",
            "create events",
            "patch events",
            "base ARN",
            "STS",
        ],
        "PASS",
    )
    assert code == 0
    assert checks["base ARN"]["seen"] == ROLE_BASE_ARN
    assert services.aws.sts_url in checks["STS"]["seen"]


def test_refused_kubernetes_token_and_sts_out_of_reach_fail_with_a_fix(
    tmp_path: Path, services: Services, server_secret: MountedSecret
) -> None:
    kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", "http://127.0.0.1:9")
    flags = [
        *tls_flags(server_secret.files),
        f"--kubeconfig={kubeconfig}",
        "--session-duration=5m",
        f"--role-base-arn={ROLE_BASE_ARN}",
    ]
    environment = {**services.aws.environment, "AWS_ENDPOINT_URL_STS": "http://127.0.0.1:9"}
    code, checks = check("server", *flags, environment=environment)
    assert code == 1
    for name, says in {
        "settings": "--session-duration: 5m is not between 15m and 12h",
        "list pods": "http://127.0.0.1:9",
        "list namespaces": "http://127.0.0.1:9",
        "STS": "http://127.0.0.1:9",
    }.items():
        assert checks[name]["status"] == "FAIL", name
        assert says in checks[name]["seen"]
        assert checks[name]["fix"]["note"]
    # Nothing answers there: that says nothing about roles.
    assert "role" not in checks["STS"]["fix"]["note"]
    assert "security group" in checks["STS"]["fix"]["note"]


def test_agents_configuration_is_tried_on_a_real_server(
    tmp_path: Path, services: Services, server_secret: MountedSecret
) -> None:
    files = write(tmp_path / "agent", AUTHORITY.sign("kiam-agent"), AUTHORITY.pem)
    with running_server(tmp_path, services.server_flags(server_secret.files), services) as (_, port):
        flags = [
            *tls_flags(files),
            f"--server-address=localhost:{port}",
            "--host=127.0.0.1",
            f"--instance-metadata-url={services.aws.imds_url}",
        ]
        code, checks = check("agent", *flags)
        assert code == 0, checks
        assert checks[f"server 127.0.0.1:{port}"]["seen"].startswith("TLSv1.3, 'kiam-server' until ")
        assert checks["server's health"]["seen"] == "ok"
        assert checks["instance metadata"]["status"] == "PASS"
        assert checks["address"]["status"] == "PASS"
        code, checks = check("agent", *flags, "--allow-route-regexp=(", "--iptables", "--dataplane=ebpf")
    assert code == 1
    assert "contradict each other" in checks["settings"]["seen"]


@pytest.mark.parametrize(("refresh", "status"), [("", "PASS"), ("5m", "WARN"), ("10m", "PASS")])
def test_refresh_that_comes_too_late_for_current_sdks_is_warned_of(
    services: Services, server_secret: MountedSecret, refresh: str, status: str
) -> None:
    flags = services.server_flags(server_secret.files) + ([f"--session-refresh={refresh}"] if refresh else [])
    code, checks = check("server", *flags, environment=services.aws.environment)
    assert code == 0
    assert checks["settings"]["status"] == status
    late = "--session-refresh=5m leaves pods credentials with less than 10m to live"
    assert (late in checks["settings"]["seen"]) is (status == "WARN")
