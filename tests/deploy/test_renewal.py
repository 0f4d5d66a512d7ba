"""Certificates that the chart makes, or finds from conventional kiam's release: upgrades renew them, without a gap."""

from __future__ import annotations

import base64
import ssl
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import helm_python
import pytest
from cryptography import x509

from kiam.tls.issue import Period, make_authority, make_certificate
from tests.deploy.chart import CHART, at, notes
from tests.deploy.cluster import Cluster, install, running_cluster, upgrade
from tests.deploy.test_tls import context, shake_hands

Pem = dict[str, bytes]
HALVES = ("agent", "server")
NEXT = "kiam-next-certificates"


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture
def helm(cluster: Cluster) -> Iterator[helm_python.Config]:
    with cluster.helm() as helm:
        yield helm


def files(cluster: Cluster, half: str) -> Pem:
    data = cluster.find("Secret", f"kiam-{half}")["data"]
    return {name: base64.b64decode(text) for name, text in data.items()}


def both(cluster: Cluster) -> dict[str, Pem]:
    return {half: files(cluster, half) for half in HALVES}


def period(days: float, since: float = 300) -> Period:
    now = datetime.now(UTC).replace(microsecond=0)
    return Period(now - timedelta(days=since), now + timedelta(days=days))


def put_old_release(cluster: Cluster, days: float) -> dict[str, Pem]:
    """The secrets of a conventional release whose certificates end in so many days."""
    lifetime = period(days)
    authority = make_authority("kiam-ca", period(max(days, 30)))
    names: dict[str, Any] = {"agent": ["kiam-agent"], "server": ["kiam-server", "127.0.0.1"]}
    made = {}
    for half in HALVES:
        issued = make_certificate(f"kiam-{half}", names[half], lifetime, authority.cert, authority.key)
        made[half] = {"ca": authority.cert, "cert": issued.cert, "key": issued.key}
        store(cluster, f"kiam-{half}", made[half])
    return made


def store(cluster: Cluster, name: str, data: Pem) -> None:
    release = {"meta.helm.sh/release-name": "kiam", "meta.helm.sh/release-namespace": "kube-system"}
    metadata = {
        "name": name,
        "namespace": "kube-system",
        "labels": {"app.kubernetes.io/managed-by": "Helm"},
        "annotations": release,
        "resourceVersion": "1",
    }
    encoded = {key: base64.b64encode(text).decode() for key, text in data.items()}
    path = f"/api/v1/namespaces/kube-system/secrets/{name}"
    cluster.objects[path] = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": encoded}


def an_hour_passes(cluster: Cluster) -> None:
    """Long enough for kubelets to bring the bundle to every pod."""
    annotations = cluster.find("Secret", NEXT)["metadata"]["annotations"]
    annotations["kiam.io/trusted-since"] = str(int(time.time()) - 3700)


def contexts(agent: Pem, server: Pem, folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    folder.mkdir()
    return (
        context(ssl.Purpose.SERVER_AUTH, {name: agent[name] for name in ("ca", "cert", "key")}, folder / "agent"),
        context(ssl.Purpose.CLIENT_AUTH, {name: server[name] for name in ("ca", "cert", "key")}, folder / "server"),
    )


def accept_each_other_in_any_order(before: dict[str, Pem], after: dict[str, Pem], folder: Path) -> None:
    """Whichever half is brought its new secret first."""
    folder.mkdir()
    for number, (agent, server) in enumerate(
        (a, s) for a in (before["agent"], after["agent"]) for s in (before["server"], after["server"])
    ):
        shake_hands(*contexts(agent, server, folder / str(number)), "kiam-server")


def end(pem: bytes) -> datetime:
    return x509.load_pem_x509_certificate(pem).not_valid_after_utc


def test_an_old_releases_certificates_are_kept_and_given_a_successor(
    cluster: Cluster, helm: helm_python.Config, tmp_path: Path
) -> None:
    before = put_old_release(cluster, days=65)
    install(helm)
    introduced = both(cluster)
    for half in HALVES:
        assert introduced[half]["cert"] == before[half]["cert"]
        assert introduced[half]["key"] == before[half]["key"]
        assert len(x509.load_pem_x509_certificates(introduced[half]["ca"])) == 2
    accept_each_other_in_any_order(before, introduced, tmp_path / "introduced")
    an_hour_passes(cluster)
    upgrade(helm)
    renewed = both(cluster)
    for half in HALVES:
        assert end(renewed[half]["cert"]) > datetime.now(UTC) + timedelta(days=3640)
    accept_each_other_in_any_order(introduced, renewed, tmp_path / "renewed")


def test_no_pair_takes_over_before_all_have_been_told_to_trust_it(cluster: Cluster, helm: helm_python.Config) -> None:
    put_old_release(cluster, days=65)
    install(helm)
    introduced = both(cluster)
    upgrade(helm)
    assert both(cluster) == introduced


def test_certificates_with_long_to_live_stay_as_they_are(cluster: Cluster, helm: helm_python.Config) -> None:
    install(helm)
    made = both(cluster)
    following = cluster.find("Secret", NEXT)["data"]
    an_hour_passes(cluster)
    upgrade(helm)
    assert both(cluster) == made
    assert cluster.find("Secret", NEXT)["data"] == following


def test_renewal_goes_on_and_on_with_a_bundle_that_stays_small(
    cluster: Cluster, helm: helm_python.Config, tmp_path: Path
) -> None:
    values = at("selfSigned", {"validityDays": 100, "renewBeforeDays": 180})
    install(helm, values)
    before = both(cluster)
    for number in range(5):
        an_hour_passes(cluster)
        upgrade(helm, values)
        after = both(cluster)
        for half in HALVES:
            assert after[half]["cert"] != before[half]["cert"]
            assert len(x509.load_pem_x509_certificates(after[half]["ca"])) <= 3
        accept_each_other_in_any_order(before, after, tmp_path / str(number))
        before = after


def test_certificates_that_have_ended_are_made_anew_at_once(
    cluster: Cluster, helm: helm_python.Config, tmp_path: Path
) -> None:
    put_old_release(cluster, days=-1)
    install(helm)
    made = both(cluster)
    shake_hands(*contexts(made["agent"], made["server"], tmp_path / "made"), "kiam-server")


@pytest.mark.parametrize("year", [2040, 2049, 2050, 2099])
def test_the_end_is_read_whatever_its_form(cluster: Cluster, helm: helm_python.Config, year: int) -> None:
    """UTCTime to 2049, GeneralizedTime from then on (RFC 5280, 4.1.2.5)."""
    lifetime = Period(datetime(2024, 1, 1, tzinfo=UTC), datetime(year, 12, 31, 23, 59, 59, tzinfo=UTC))
    authority = make_authority("kiam-ca", lifetime)
    for half in HALVES:
        issued = make_certificate(f"kiam-{half}", ["kiam-server"], lifetime, authority.cert, authority.key)
        store(cluster, f"kiam-{half}", {"ca": authority.cert, "cert": issued.cert, "key": issued.key})
    text = installed(helm)
    assert f"the agent's until {year}-12-31" in text
    assert f"the server's until {year}-12-31" in text


def installed(helm: helm_python.Config, **values: Any) -> str:
    """What helm says after an install."""
    return str(helm.install(CHART, "kiam", values)["notes"])


def test_the_notes_say_what_is_true(cluster: Cluster, helm: helm_python.Config) -> None:
    before = put_old_release(cluster, days=65)
    assert f"the agent's until {end(before['agent']['cert']):%Y-%m-%d}" in installed(helm)
    assert "both certificates were made by this chart and are good for 3650 days" in notes()
