"""Makes what follows from the chart: the parameter table in its README, and the plain manifests.

``python -m tests.deploy.generate docs`` and ``... manifests`` write them (``make chart-docs``, ``make manifests``); the
tests call the same functions and compare.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from kiam import __version__
from kiam.dataplane.registry import DATAPLANES
from tests.deploy.chart import CHART, GIVEN_CERTIFICATES, ROOT, Manifest, Values, at, identity, manifests, merged

README = CHART / "README.md"
TABLE_BEGINS, TABLE_ENDS = "<!-- parameters: make chart-docs -->", "<!-- end of parameters -->"
DOCUMENTATION = "# -- "

MANIFESTS = ROOT / "deploy" / "manifests"
HEADER = "# Made from the chart by make manifests: change deploy/helm/kiam and run that.\n"
SCHEMA = CHART / "values.schema.json"


# ---- the table


def _children(node: yaml.MappingNode, path: str, lines: list[str]) -> Iterator[tuple[str, str, Any]]:
    for key, value in node.value:
        name = f"{path}.{key.value}" if path else key.value
        line = lines[key.start_mark.line - 1].strip()
        if line.startswith(DOCUMENTATION):
            yield name, line.removeprefix(DOCUMENTATION), yaml.safe_load(yaml.serialize(value))
        elif isinstance(value, yaml.MappingNode) and value.value:
            yield from _children(value, name, lines)
        else:
            raise ValueError(
                f"{CHART / 'values.yaml'}: {name} has no line of documentation ('{DOCUMENTATION}') above it"
            )


def parameters(values_yaml: str) -> Iterator[tuple[str, str, Any]]:
    """Each parameter of a values file: its name, its documentation, its default. Raises ValueError for one without."""
    document = yaml.compose(values_yaml)
    assert isinstance(document, yaml.MappingNode)
    return _children(document, "", values_yaml.splitlines())


def _default(value: object) -> str:
    if isinstance(value, str):
        return value or '""'
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n...")


def table() -> str:
    """The parameters as Markdown."""
    rows = [
        f"| `{name}` | {text} | `{_default(default)}` |"
        for name, text, default in parameters((CHART / "values.yaml").read_text())
    ]
    return "\n".join(["| Parameter | Description | Default |", "| --- | --- | --- |", *rows])


def readme() -> str:
    """The chart's README with today's table in it."""
    before, _, rest = README.read_text().partition(TABLE_BEGINS)
    return f"{before}{TABLE_BEGINS}\n\n{table()}\n\n{TABLE_ENDS}{rest.partition(TABLE_ENDS)[2]}"


# ---- the schema


def schema() -> str:
    """The schema with today's dataplanes in it."""
    document = json.loads(SCHEMA.read_text())
    document["properties"]["agent"]["properties"]["dataplane"]["enum"] = ["none", *DATAPLANES]
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


# ---- the manifests


def _values(dataplane: str) -> Values:
    """The document's secrets and file names (docs/tls.md); the server as a Deployment on the host network."""
    files = {"caFileName": "ca.pem"}
    return merged(
        at("agent.dataplane", dataplane),
        at("agent.tlsSecret", "kiam-agent-tls"),
        at("agent.tlsCerts", files | {"certFileName": "agent.pem", "keyFileName": "agent-key.pem"}),
        at("agent.priorityClassName", "system-node-critical"),
        at("agent.updateStrategy", {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}),
        at("server.tlsSecret", "kiam-server-tls"),
        at("server.tlsCerts", files | {"certFileName": "server.pem", "keyFileName": "server-key.pem"}),
        at("server.deployment.enabled", True),
        at("server.useHostNetwork", True),
        at("server.service", {"port": 9610, "targetPort": 9610}),
        at("server.prometheus.port", 9621),  # the agent beside it has 9620 of the same host
        at("server.sslCertHostPath", ""),
        at("server.image.pullPolicy", "IfNotPresent"),
    )


def _plain(manifest: Manifest) -> Manifest:
    """Without the labels that say Helm made it."""
    for label in ("heritage", "chart"):
        manifest["metadata"]["labels"].pop(label, None)
    return manifest


def _text(objects: list[Manifest]) -> str:
    return HEADER + yaml.safe_dump_all(objects, sort_keys=False, width=120)


def _kustomization(resources: list[str], **more: object) -> str:
    document = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "resources": resources}
    return HEADER + yaml.safe_dump(document | more, sort_keys=False)


def plain_manifests() -> dict[Path, str]:
    """Every file below deploy/manifests and its text."""
    written: dict[Path, str] = {}
    for dataplane in DATAPLANES:
        objects = [_plain(manifest) for manifest in manifests(GIVEN_CERTIFICATES, _values(dataplane))]
        agents = [manifest for manifest in objects if identity(manifest).endswith("/kiam-agent")]
        servers = [manifest for manifest in objects if manifest not in agents]
        rights = [manifest for manifest in servers if manifest["kind"].startswith(("ClusterRole", "ServiceAccount"))]
        rest = [manifest for manifest in servers if manifest not in rights]
        agent = MANIFESTS / f"agent-{dataplane}"
        written[agent / "agent.yaml"] = _text(agents)
        written[agent / "kustomization.yaml"] = _kustomization(["agent.yaml"])
        written[MANIFESTS / "server" / "rbac.yaml"] = _text(rights)
        written[MANIFESTS / "server" / "server.yaml"] = _text(rest)
    written[MANIFESTS / "server" / "kustomization.yaml"] = _kustomization(["rbac.yaml", "server.yaml"])
    written[MANIFESTS / "kustomization.yaml"] = _kustomization(
        ["server", "agent-nftables"],
        images=[{"name": name, "newName": name, "newTag": __version__} for name in ("kiam-agent", "kiam-server")],
    )
    return written


def write_manifests() -> None:
    """Bring deploy/manifests up to date; files that are no longer made go."""
    wanted = plain_manifests()
    for path in MANIFESTS.rglob("*.yaml"):
        if path not in wanted:
            path.unlink()
    for path, text in wanted.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["docs"]:
            README.write_text(readme())
            SCHEMA.write_text(schema())
        case ["manifests"]:
            write_manifests()
        case _:
            raise SystemExit("usage: python -m tests.deploy.generate docs|manifests")
