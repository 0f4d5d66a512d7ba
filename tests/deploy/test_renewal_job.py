"""The CronJob that renews the chart's certificates: its command, with its rights, against the API of an install."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import helm_python
import pytest
from cryptography import x509

from tests.deploy.chart import GIVEN_CERTIFICATES, Values, at, find, identity, manifests, merged, notes
from tests.deploy.cluster import Cluster, Request, install, running_cluster, upgrade
from tests.deploy.test_renewal import (
    HALVES,
    NEXT,
    accept_each_other_in_any_order,
    an_hour_passes,
    both,
    contexts,
    end,
    put_old_release,
)
from tests.deploy.test_tls import shake_hands
from tests.integration.verify.site import KIAM
from tests.sandbox.kubeapi import write_kubeconfig

JOB = "kiam-renewal"
SECRETS = ["kiam-next-certificates", "kiam-agent", "kiam-server"]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture
def helm(cluster: Cluster) -> Iterator[helm_python.Config]:
    with cluster.helm() as helm:
        yield helm


def run_job(cluster: Cluster, folder: Path) -> subprocess.CompletedProcess[str]:
    """What its pod does: the command, as the pod's service account."""
    pod = cluster.find("CronJob", JOB)["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    kubeconfig = write_kubeconfig(folder / "kubeconfig", cluster.url, cluster.token(pod["serviceAccountName"]))
    assert container["command"][0] == "/kiam"
    command = [KIAM, *container["command"][1:], *container["args"], f"--kubeconfig={kubeconfig}"]
    cluster.requests.clear()
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def authorities(cluster: Cluster) -> list[int]:
    return [len(x509.load_pem_x509_certificates(files["ca"])) for files in both(cluster).values()]


def test_it_renews_what_an_old_release_left_with_a_pair_that_was_trusted_before(
    cluster: Cluster, helm: helm_python.Config, tmp_path: Path
) -> None:
    put_old_release(cluster, days=65)
    install(helm)
    introduced = both(cluster)
    early = run_job(cluster, tmp_path)
    assert (early.returncode, early.stderr) == (0, "")
    assert early.stdout.startswith("nothing to do; the certificates in use are good until ")
    assert both(cluster) == introduced
    an_hour_passes(cluster)
    done = run_job(cluster, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("both certificates renewed by the pair that was trusted already; ")
    renewed = both(cluster)
    for half in HALVES:
        assert end(renewed[half]["cert"]) > datetime.now(UTC) + timedelta(days=3640)
    accept_each_other_in_any_order(introduced, renewed, tmp_path / "renewed")
    # Helm goes on from there, with what is due and without a conflict over whose field it is.
    values = at("agent.log.level", "debug")
    upgrade(helm, values)
    assert both(cluster) == renewed
    an_hour_passes(cluster)
    upgrade(helm, values, at("selfSigned", {"renewBeforeDays": 3660}))
    again = both(cluster)
    assert all(again[half]["cert"] != renewed[half]["cert"] for half in HALVES)
    accept_each_other_in_any_order(renewed, again, tmp_path / "again")


def test_it_needs_no_other_rights_than_it_has(cluster: Cluster, helm: helm_python.Config, tmp_path: Path) -> None:
    install(helm, at("selfSigned", {"validityDays": 100}))
    an_hour_passes(cluster)
    assert run_job(cluster, tmp_path).returncode == 0
    path = "/api/v1/namespaces/kube-system/secrets/"
    assert sorted(cluster.requests) == sorted(f"{verb} {path}{name}" for verb in ("get", "patch") for name in SECRETS)
    assert cluster.find("Role", JOB)["rules"] == [
        {"apiGroups": [""], "resources": ["secrets"], "resourceNames": SECRETS, "verbs": ["get", "patch"]}
    ]
    assert not cluster.may(JOB, "get", f"{path}another")


def test_it_goes_on_and_on_with_a_bundle_that_stays_small(
    cluster: Cluster, helm: helm_python.Config, tmp_path: Path
) -> None:
    install(helm, at("selfSigned", {"validityDays": 100, "renewBeforeDays": 180}))
    before = both(cluster)
    for number in range(4):
        an_hour_passes(cluster)
        assert run_job(cluster, tmp_path).returncode == 0
        after = both(cluster)
        assert all(after[half]["cert"] != before[half]["cert"] for half in HALVES)
        accept_each_other_in_any_order(before, after, tmp_path / str(number))
        before = after
    assert max(authorities(cluster)) <= 4


def test_somebody_elses_change_at_the_same_time_is_not_overwritten(
    cluster: Cluster, helm: helm_python.Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(helm, at("selfSigned", {"validityDays": 100}))
    an_hour_passes(cluster)
    before = both(cluster)
    answer = cluster.answer

    def meanwhile(request: Request) -> tuple[int, dict[str, Any] | str]:
        status, found = answer(request)
        found = deepcopy(found)
        if request.account:
            metadata = cluster.find("Secret", NEXT)["metadata"]
            metadata["resourceVersion"] = str(int(metadata["resourceVersion"]) + 1)
        return status, found

    monkeypatch.setattr(cluster, "answer", meanwhile)
    done = run_job(cluster, tmp_path)
    assert done.returncode == 1
    assert "HTTP 409: " in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert both(cluster) == before


def test_a_secret_that_is_gone_is_named(cluster: Cluster, helm: helm_python.Config, tmp_path: Path) -> None:
    install(helm)
    del cluster.objects["/api/v1/namespaces/kube-system/secrets/kiam-agent"]
    done = run_job(cluster, tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("kiam certs: Kubernetes API ")
    assert done.stderr.endswith("HTTP 404: not found; helm upgrade makes Secrets that are missing\n")


@pytest.mark.parametrize(
    "values",
    [
        at("selfSigned.cronJob.enabled", False),
        at("rbac.create", False),
        at("agent.tlsSecret", "mine"),
        at("certManager.enabled", True),
        GIVEN_CERTIFICATES,
    ],
)
def test_there_is_none_where_it_has_nothing_to_renew_or_no_rights(values: Values) -> None:
    objects = manifests(values)
    assert [o for o in objects if JOB in identity(o)] == []
    assert "CronJob" not in notes(values)


def test_it_is_told_the_files_names_and_terms_and_when() -> None:
    values = merged(
        at("agent.tlsCerts", {"caFileName": "ca.pem", "certFileName": "a.pem", "keyFileName": "a-key.pem"}),
        at("selfSigned", {"validityDays": 90, "renewBeforeDays": 30, "cronJob": {"schedule": "@hourly"}}),
        at("server.nodeSelector", {"pool": "kiam"}),
    )
    spec = find(manifests(values, release="blue"), "CronJob/blue-kiam-renewal")["spec"]
    assert spec["schedule"] == "@hourly"
    pod = spec["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"pool": "kiam"}
    assert pod["containers"][0]["args"] == [
        "--namespace=kube-system",
        "--next-secret=blue-kiam-next-certificates",
        "--agent-secret=blue-kiam-agent:ca.pem,a.pem,a-key.pem",
        "--server-secret=blue-kiam-server:ca,cert,key",
        "--renew-before=30",
        "--days=90",
    ]


def test_the_notes_name_it() -> None:
    assert "The CronJob kiam-renewal, and an upgrade, renew both in the last 180 days" in notes()
    assert "An upgrade, and nothing else, renews both" in notes(at("selfSigned.cronJob.enabled", False))


def test_its_name_is_short_enough_for_a_cron_job() -> None:
    """52 characters (k8s.io/kubernetes, ValidateCronJobCreate): a Job's name has 11 more."""
    names = [o["metadata"]["name"] for o in manifests(release="r" * 53) if o["kind"] == "CronJob"]
    assert [len(name) <= 52 for name in names] == [True]


def test_certificates_that_have_ended_are_made_anew(cluster: Cluster, helm: helm_python.Config, tmp_path: Path) -> None:
    install(helm)
    put_old_release(cluster, days=-1)
    done = run_job(cluster, tmp_path)
    assert done.stdout.startswith("both certificates made anew, because one had ended; ")
    made = both(cluster)
    shake_hands(*contexts(made["agent"], made["server"], tmp_path / "made"), "kiam-server")
    assert run_job(cluster, tmp_path).stdout.startswith("nothing to do; ")
