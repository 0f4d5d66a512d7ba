"""What ``helm test`` gives the proof is enough for it, and each part of it is needed."""

from __future__ import annotations

import json

import pytest

from kiam.dataplane.registry import DATAPLANES
from tests.deploy.chart import GIVEN_CERTIFICATES, at, find, manifests
from tests.integration.verify.site import Site

PROOF = "live: pod to agent"


def given(dataplane: str) -> list[str]:
    """The capabilities of the chart's test."""
    objects = manifests(GIVEN_CERTIFICATES, at("test.enabled", True), at("agent.dataplane", dataplane))
    pod = find(objects, "DaemonSet/kiam-test")["spec"]["template"]["spec"]
    added: list[str] = pod["initContainers"][0]["securityContext"]["capabilities"]["add"]
    return added


def proof(site: Site, dataplane: str, capabilities: list[str]) -> tuple[int, str]:
    """Verify as root with just these: the exit code, and how the proof itself went."""
    kept = ",".join(["-all", *(f"+{name.lower()}" for name in capabilities)])
    confined = ["setpriv", "--no-new-privs", "--inh-caps=-all", f"--bounding-set={kept}"]
    command = [*confined, *site.command_line(f"--dataplane={dataplane}", "--output=json")]
    done = site.node.run(*command, check=False, timeout=300)
    lines = {line["check"]: line["status"] for line in json.loads(done.stdout)["checks"]} if done.stdout else {}
    return done.returncode, lines.get(PROOF, done.stderr)


@pytest.mark.parametrize("dataplane", list(DATAPLANES))
def test_the_charts_capabilities_are_enough(site: Site, dataplane: str) -> None:
    site.install(dataplane)
    assert proof(site, dataplane, given(dataplane)) == (0, "PASS")


@pytest.mark.parametrize("missing", ["NET_ADMIN", "NET_RAW", "SYS_ADMIN"])
def test_none_of_them_is_given_for_nothing(site: Site, missing: str) -> None:
    site.install("nftables")
    capabilities = [name for name in given("nftables") if name != missing]
    assert proof(site, "nftables", capabilities) != (0, "PASS")
