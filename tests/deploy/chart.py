"""Renders the chart with Helm's own engine, and compares two renderings field by field."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import helm_python
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "kiam"

Values = dict[str, Any]
Manifest = dict[str, Any]

GIVEN_CERTIFICATES: Values = {
    "agent": {"tlsSecret": "agent-tls"},
    "server": {"tlsSecret": "server-tls"},
    "test": {"enabled": False},
}
"""Certificates that exist already: without them each rendering makes new ones, and no two renderings are alike.
And no ``helm test``, which has tests of its own (test_node_tasks.py)."""


@cache
def chart() -> helm_python.Chart:
    """The chart, loaded once."""
    return helm_python.Chart.load(CHART)


def merged(*parts: Values) -> Values:
    """One values tree out of several; later ones win."""
    result: Values = {}
    for part in parts:
        for key, value in part.items():
            both = isinstance(value, dict) and isinstance(result.get(key), dict)
            result[key] = merged(result[key], value) if both else value
    return result


def at(path: str, value: object) -> Values:
    """The values tree that sets one parameter: ``at("a.b", 1)`` is ``{"a": {"b": 1}}``."""
    head, _, rest = path.partition(".")
    return {head: at(rest, value) if rest else value}


def files(*values: Values, release: str = "kiam", namespace: str = "kube-system") -> dict[str, str]:
    """Every template of the chart, rendered as ``helm install`` would. Raises helm_python.HelmError."""
    return chart().render(merged(*values), name=release, namespace=namespace, is_install=True)


def notes(*values: Values, **release: str) -> str:
    """The text ``helm install`` prints."""
    return next(text for name, text in files(*values, **release).items() if name.endswith("NOTES.txt"))


def manifests(*values: Values, **release: str) -> list[Manifest]:
    """The objects ``helm install`` would make."""
    return [
        document
        for name, text in files(*values, **release).items()
        if name.endswith(".yaml")
        for document in yaml.safe_load_all(text)
        if document
    ]


def identity(manifest: Manifest) -> str:
    """``Kind/name``, or ``Kind/namespace/name`` outside the release's namespace."""
    metadata = manifest["metadata"]
    namespace = metadata.get("namespace", "kube-system")
    return "/".join(
        [manifest["kind"], *([] if namespace in ("kube-system", "default") else [namespace]), metadata["name"]]
    )


def find(objects: Iterable[Manifest], name: str) -> Manifest:
    """The object of that ``Kind/name``."""
    return next(candidate for candidate in objects if identity(candidate) == name)


def containers(manifest: Manifest) -> Iterator[Manifest]:
    """The containers of a workload, init containers first; none for any other object."""
    pod = manifest.get("spec", {}).get("template", {}).get("spec", {}) if manifest["kind"] != "Secret" else {}
    yield from pod.get("initContainers", ())
    yield from pod.get("containers", ())


def _items(node: object) -> Iterable[tuple[str, object]]:
    """A node's children by a key that doesn't move when a sibling comes or goes: names and flags, not positions."""
    if isinstance(node, Mapping):
        return [(f".{key}", value) for key, value in node.items()]
    if not isinstance(node, list):
        return []
    if all(isinstance(item, Mapping) and "name" in item for item in node):
        return [(f"[{item['name']}]", item) for item in node]
    if node and all(isinstance(item, str) for item in node):
        return [(f"[{word.partition('=')[0]}]", word.partition("=")[2]) for word in node]
    return [(f"[{index}]", item) for index, item in enumerate(node)]


def _fields(node: object, path: str) -> Iterator[tuple[str, object]]:
    children = list(_items(node))
    if not children:
        yield path, node
    for step, child in children:
        yield from _fields(child, path + step)


def changes(before: Iterable[Manifest], after: Iterable[Manifest]) -> dict[str, object]:
    """What differs: a field's path and its new value, or None where the field, or the whole object, is gone.

    A field is named like ``DaemonSet/kiam-agent spec.template.spec.containers[kiam-agent].args[--level]``. An object
    that is in one rendering only counts as one difference, named by its kind and name: True if new, None if gone.
    """
    old = {identity(manifest): manifest for manifest in before}
    new = {identity(manifest): manifest for manifest in after}
    found: dict[str, object] = dict.fromkeys(old.keys() - new.keys())
    found |= dict.fromkeys(new.keys() - old.keys(), True)
    for name in old.keys() & new.keys():
        fields_before = {path.removeprefix("."): value for path, value in _fields(old[name], "")}
        fields_after = {path.removeprefix("."): value for path, value in _fields(new[name], "")}
        for path in fields_before.keys() | fields_after.keys():
            if path not in fields_after:
                found[f"{name} {path}"] = None
            elif fields_before.get(path, ...) != fields_after[path]:
                found[f"{name} {path}"] = fields_after[path]
    return found
