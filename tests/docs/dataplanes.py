"""What every dataplane declares of itself, as the table in docs/dataplanes.md: ``make dataplane-table`` writes it."""

from __future__ import annotations

import sys
from pathlib import Path

from kiam.dataplane.contract import HostNetwork, Traits, kernel_words
from kiam.dataplane.registry import all_traits

PAGE = Path(__file__).parents[2] / "docs" / "dataplanes.md"
BEGIN = "<!-- made by: make dataplane-table -->"
END = "<!-- end of what make dataplane-table made -->"


def table() -> str:
    """A column a dataplane."""
    found = all_traits()
    rows = [("tells pods by", [traits.tells_pods_by for traits in found.values()])]
    rows.append(
        ("`--host-interface` decides who is redirected", [_yes(traits.by_interface) for traits in found.values()])
    )
    rows.append(("`--host-network`", [_modes(traits) for traits in found.values()]))
    rows.append(("needs on the node or in the image", [traits.needs for traits in found.values()]))
    rows.append(("rights", [traits.rights for traits in found.values()]))
    rows.append(("oldest Linux", [kernel_words(traits.oldest_kernel) for traits in found.values()]))
    rows.append(
        (
            "with `--host-network=deny` or `redirect`",
            [kernel_words(traits.oldest_kernel_for_host_network) for traits in found.values()],
        )
    )
    rows.append(("because", [traits.why_these_kernels for traits in found.values()]))
    lines = [f"| | {' | '.join(found)} |", f"|---|{'---|' * len(found)}"]
    return "\n".join([*lines, *(f"| {title} | {' | '.join(cells)} |" for title, cells in rows)])


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _modes(traits: Traits) -> str:
    return ", ".join(f"`{mode}`" for mode in HostNetwork if mode in traits.host_network)


def page() -> str:
    """The page with today's table in it."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page())
    sys.exit(0)
