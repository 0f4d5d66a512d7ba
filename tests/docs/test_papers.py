"""The papers of the repository say what is there."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tests.sandbox.pictures import IMAGES, text_of

ROOT = Path(__file__).parents[2]
PAPERS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


def words(text: str) -> str:
    """Without layout, and without the time that a run took."""
    return re.sub(r"; \d+ s;", "; N s;", " ".join(text.split()))


def test_the_picture_of_the_demo_shows_what_the_readme_shows() -> None:
    readme = (ROOT / "README.md").read_text()
    shown = readme.partition("$ make demo\n")[2].partition("```")[0]
    assert words(text_of((IMAGES / "demo.svg").read_text())).replace("make demo ", "", 1) == words(shown)


@pytest.mark.parametrize("name", ["demo", "verify"])
def test_pictures_fetch_nothing(name: str) -> None:
    picture = (IMAGES / f"{name}.svg").read_text()
    assert "url(" not in re.sub(r"url\(#[\w-]+\)", "", picture)
    assert "href" not in picture


def test_the_license_is_the_one_that_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (project["license"], project["license-files"]) == ("Apache-2.0", ["LICENSE"])
    assert (ROOT / "LICENSE").read_text().split()[:4] == ["Apache", "License", "Version", "2.0,"]


@pytest.mark.parametrize("paper", PAPERS, ids=lambda paper: paper.name)
def test_targets_of_make_exist(paper: Path) -> None:
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = re.findall(r"(?:`|[$#] )make ((?:[a-z][\w-]*(?: (?=[a-z]))?)+)", paper.read_text())
    assert {target for line in named for target in line.split()} <= targets


@pytest.mark.parametrize("paper", [paper for paper in PAPERS if paper.parent == ROOT], ids=lambda paper: paper.name)
def test_files_that_are_linked_to_exist(paper: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", paper.read_text())
    assert [link for link in links if not (ROOT / link).exists()] == []
