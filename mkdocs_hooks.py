"""Ships Mermaid with the site, on the pages that have diagrams: Material would fetch it from a server elsewhere.

``make docs`` brings the script to .site/mermaid.min.js, from npm.
"""

from __future__ import annotations

import os
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

SCRIPT = Path(__file__).parent / ".site" / "mermaid.min.js"
SHIPPED = "assets/mermaid.min.js"
TEXT_ONLY = "KIAM_DOCS_TEXT_ONLY"
"""Set by tests that look at links and words only."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the script to the site."""
    if SCRIPT.is_file():
        files.append(File.generated(config, SHIPPED, content=SCRIPT.read_bytes()))
    elif not os.environ.get(TEXT_ONLY):
        raise PluginError(f"{SCRIPT} isn't there: build the site with 'make docs', which brings it")
    return files


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Load the script where there is something to draw."""
    if 'class="mermaid"' not in output:
        return output
    script = f'<script src="{get_relative_url(SHIPPED, page.url)}"></script>'
    return output.replace("</body>", f"{script}</body>")
