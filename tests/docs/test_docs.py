"""Every command and example of the documentation that can run on this machine is run."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from kiam.cli import build_parser
from tests.deploy.chart import manifests
from tests.docs.blocks import TESTED_LANGUAGES, Block, output_pattern, read_blocks
from tests.docs.node import DocumentedNode

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
BLOCKS = {page: list(read_blocks(page)) for page in PAGES}
ALL = [block for blocks in BLOCKS.values() for block in blocks]


def blocks_of(*kinds: str) -> list[object]:
    return [pytest.param(block, id=str(block)) for block in ALL if block.kind in kinds]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_example_says_how_it_is_tested(page: Path) -> None:
    unmarked = [str(block) for block in BLOCKS[page] if block.language in TESTED_LANGUAGES and not block.marker]
    assert unmarked == []


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(block.kind == "run" for block in BLOCKS[page])], ids=lambda page: page.name
)
def test_commands_do_what_the_page_says(page: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    folder = tmp_path / "page"
    folder.mkdir()
    for sample in DOCS.glob("*.json"):
        shutil.copy(sample, folder)
    node: DocumentedNode | None = None
    if any(block.marker.startswith("run node") for block in BLOCKS[page]):
        node = request.getfixturevalue("node")
        node.furnish(folder)
    printed = ""
    for block in BLOCKS[page]:
        if block.kind == "run":
            inside = node if block.marker.startswith("run node") else None
            done = _run(f"{block.setup}\n{block.content}", folder, inside)
            printed = done.stdout
            wanted = int(found[1]) if (found := re.search(r"exit=(\d+)", block.marker)) else 0
            assert done.returncode == wanted, f"{block} exited with {done.returncode}:\n{printed}"
        elif block.kind == "output":
            assert output_pattern(block.content).fullmatch(printed), f"{block} prints now:\n{printed}"


@pytest.mark.parametrize("block", blocks_of("flags"))
def test_kiam_commands_are_accepted_by_kiam(block: Block, tmp_path: Path) -> None:
    commands = list(_kiam_commands(block.content, tmp_path))
    assert commands
    for command in commands:
        # kiam says what is wrong on standard error, and argparse exits.
        assert isinstance(build_parser(command[0]).parse_args(command), argparse.Namespace)


@pytest.mark.parametrize("block", blocks_of("yaml"))
def test_manifests_follow_the_kubernetes_schema(block: Block) -> None:
    import kubernetes_validate

    for document in yaml.safe_load_all(block.content):
        assert document is not None
        api_version = document.get("apiVersion", "")
        if "kind" in document and ("." not in api_version or api_version.partition("/")[0].endswith(".k8s.io")):
            kubernetes_validate.validate(document, "1.30", strict=True)


@pytest.mark.parametrize("block", blocks_of("policy"))
def test_policies_are_accepted_by_iam(block: Block) -> None:
    from moto.iam.policy_validation import IAMPolicyDocumentValidator

    IAMPolicyDocumentValidator(block.content).validate()


@pytest.mark.parametrize("block", blocks_of("trust policy"))
def test_trust_policies_are_accepted_by_iam(block: Block) -> None:
    from moto.iam.policy_validation import IAMTrustPolicyDocumentValidator

    IAMTrustPolicyDocumentValidator(block.content).validate()
    assert "Resource" not in json.loads(block.content)["Statement"][0]


@pytest.mark.parametrize("block", blocks_of("values"))
def test_values_render_with_the_chart(block: Block) -> None:
    # Rendering checks them against the chart's schema, where a name it doesn't know is an error.
    assert manifests(yaml.safe_load(block.content))


@pytest.mark.parametrize("block", blocks_of("no"))
def test_examples_that_cannot_run_say_why(block: Block) -> None:
    assert len(block.marker.partition(":")[2].strip()) > 10


def test_markers_are_known() -> None:
    known = {
        "run",
        "newcomer",
        "output",
        "flags",
        "yaml",
        "policy",
        "trust policy",
        "values",
        "no",
        "",
    }
    assert {block.kind for block in ALL} <= known


def test_outputs_follow_what_prints_them() -> None:
    for blocks in BLOCKS.values():
        marked = [block for block in blocks if block.marker]
        for before, block in pairwise([None, *marked]):
            if block is not None and block.kind == "output":
                assert before is not None, f"{block} follows no run block"
                assert before.kind == "run", f"{block} follows no run block"


def test_site_builds_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env={**os.environ, "KIAM_DOCS_TEXT_ONLY": "1"},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def _run(script: str, folder: Path, node: DocumentedNode | None) -> subprocess.CompletedProcess[str]:
    command = ["bash", "-euo", "pipefail", "-c", script]
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(folder),
        "LANG": "C.UTF-8",
        "COLUMNS": "160",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    if node is not None:
        command, environment = node.placed(command), {**environment, **node.environment}
    return subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )


def _kiam_commands(script: str, directory: Path) -> Iterator[list[str]]:
    """The arguments of each kiam command in a script, with files that exist in place of those it names."""
    existing = directory / "file"
    existing.touch()
    for line in re.sub(r"\\\n\s*", " ", script).splitlines():
        words = shlex.split(line, comments=True)
        if "kiam" not in words:
            continue
        arguments = words[words.index("kiam") + 1 :]
        for stop in ("|", ">", "&&", ";"):
            if stop in arguments:
                arguments = arguments[: arguments.index(stop)]
        yield [re.sub(r"^(--(?:cert|key|ca|kubeconfig)=).*", rf"\1{existing}", word) for word in arguments]


def test_the_sites_navigation_has_each_page_once() -> None:
    # Read as YAML would be, but for the tag that names a Python function.
    text = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]

    def pages(node: object) -> Iterator[str]:
        for entry in node if isinstance(node, list) else node.values() if isinstance(node, dict) else ():
            yield from [entry] if isinstance(entry, str) else pages(entry)

    assert sorted(pages(yaml.safe_load(text))) == [page.name for page in PAGES]
