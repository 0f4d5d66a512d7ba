"""Pictures for README.md of what the demonstration and ``kiam dataplane verify`` print: make pictures.

They are made from real output. Nothing in them is fetched from elsewhere: Rich's own template names a font on a server.
"""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from io import StringIO
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

from tests.sandbox.netns import NODE_IPV4, NODE_IPV6
from tests.sandbox.node import AGENT_PORT, NodeInABox

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "docs" / "images"
WIDTH = 110
COLOUR = {"FORCE_COLOR": "1", "TTY_INTERACTIVE": "0", "COLUMNS": str(WIDTH)}
_WITHOUT_FONTS = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)


def picture(title: str, output: str) -> str:
    """What a program wrote to a terminal, as SVG."""
    text = Text.from_ansi(output)
    width = max(line.cell_len for line in text.split())
    console = Console(record=True, width=width, file=StringIO(), force_terminal=True, color_system="truecolor")
    console.print(text, soft_wrap=True)
    return console.export_svg(title=title, code_format=_WITHOUT_FONTS, unique_id="kiam")


def text_of(svg: str) -> str:
    """The words of a picture, without their layout."""
    shown = re.findall(r"<text [^>]*>([^<]*)</text>", svg)
    return " ".join(html.unescape(" ".join(shown)).split())


def demonstration() -> str:
    """What ``make demo`` prints."""
    command = [sys.executable, "-m", "tests.sandbox.demo"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **COLOUR}, capture_output=True, text=True, check=True)
    return done.stdout


def verification() -> str:
    """What ``kiam dataplane verify`` prints on a node with everything in place."""
    with NodeInABox("nftables") as box:
        box.add_namespace("default")
        box.start_server()
        box.start_agent()
        box.add_pod("one", "cart")
        words = [f"{name}={value}" for name, value in {**box.environment, **COLOUR}.items()]
        kiam = (sys.executable, "-m", "kiam", "dataplane", "verify")
        flags = ("--dataplane=nftables", f"--host={NODE_IPV4}", f"--host6={NODE_IPV6}", f"--port={AGENT_PORT}")
        done = box.node.run(
            *("env", *words, *kiam, *flags, f"--host-interface={box.net.interface_pattern}"),
            check=False,
            timeout=120,
            cgroup=box.cgroup.system,
        )
        if done.returncode:
            raise RuntimeError(f"kiam dataplane verify: exit {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout


def main() -> int:
    """Make them."""
    IMAGES.mkdir(exist_ok=True)
    for name, title, output in (
        ("demo", "make demo", demonstration()),
        ("verify", "kiam dataplane verify", verification()),
    ):
        (IMAGES / f"{name}.svg").write_text(picture(title, output).rstrip() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
