"""What ``make docs`` has built, page by page in Chromium."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin

import pytest
from aiohttp import web

from tests.docs.blocks import read_blocks
from tests.site.browser import Page, open_page

pytestmark = [pytest.mark.site, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
SITE = ROOT / "site"
PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.fixture
async def origin() -> AsyncIterator[str]:
    """The site, served on loopback."""
    assert (SITE / "index.html").is_file(), "the site isn't built; 'make test-site' does both"

    async def serve(request: web.Request) -> web.StreamResponse:
        path = SITE / request.match_info["path"]
        if path.is_dir():
            path /= "index.html"
        return web.FileResponse(path) if path.is_file() else web.Response(status=404)

    application = web.Application()
    application.router.add_get("/{path:.*}", serve)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    yield f"http://{host}:{port}/"
    await runner.cleanup()


@pytest.fixture
async def page(origin: str, tmp_path: Path) -> AsyncIterator[Page]:
    """A browser's tab."""
    async with open_page(tmp_path) as made:
        yield made


def address(source: Path) -> str:
    """Where a page of docs/ is in the site."""
    return "" if source.stem == "index" else f"{source.stem}/"


async def drawn(page: Page, wanted: int) -> list[dict[str, object]]:
    """The diagrams, once all of them are drawn, or what there is after a while."""
    found: list[dict[str, object]] = []
    for _ in range(300):
        nodes = list(await page.elements())
        found = [node for node in nodes if node["nodeName"] == "svg" and "mermaid" in str(node.get("attributes", ""))]
        if len(found) >= wanted:
            break
        await asyncio.sleep(0.05)
    return found


async def test_every_diagram_is_drawn_and_nothing_is_fetched_from_elsewhere(page: Page, origin: str) -> None:
    for source in PAGES:
        await page.open(origin + address(source))
        wanted = sum(block.language == "mermaid" for block in read_blocks(source))
        diagrams = await drawn(page, wanted)
        assert len(diagrams) == wanted, source.name
        assert not any("error" in str(diagram["attributes"]) for diagram in diagrams), source.name
        left_as_text = "document.querySelectorAll('pre.mermaid, pre code.language-mermaid').length"
        assert await page.evaluate(left_as_text) == 0, source.name
    # The search, which fetches its index when it is used.
    await page.evaluate("document.querySelector('[data-md-component=search-query]').focus()")
    await page.evaluate("fetch('../search/search_index.json').then(answer => answer.status)")
    elsewhere = [url for url in page.requested if not url.startswith((origin, "data:", "blob:" + origin))]
    assert elsewhere == []
    assert page.failed == []
    assert page.errors == []


async def test_no_link_of_the_site_is_broken(page: Page, origin: str) -> None:
    links: dict[str, set[str]] = {}
    names: dict[str, set[str]] = {}
    for source in PAGES:
        here = origin + address(source)
        await page.open(here)
        for link in await page.evaluate("[...document.querySelectorAll('[href], [src]')].map(e => e.href || e.src)"):
            links.setdefault(str(link), set()).add(source.name)
        names[here] = set(
            await page.evaluate("[...document.querySelectorAll('[id], a[name]')].map(e => e.id || e.name)")
        )
    broken = []
    for link, sources in links.items():
        target, fragment = urldefrag(urljoin(origin, link))
        if not target.startswith(origin):
            continue
        file = SITE / unquote(target.removeprefix(origin).partition("?")[0])
        there = file.is_file() or (file / "index.html").is_file()
        if not there or (fragment and target in names and unquote(fragment) not in names[target]):
            broken.append(f"{link} in {sorted(sources)}")
    assert broken == []
    assert len(links) > len(PAGES)
