"""Changing dataplanes: one goes in, is proved to be in, and only then the others go out.

So pods are led to the agent by one or by both at every moment. ``python -m kiam.dataplane.handover NAME`` takes the
others out and tells what became of them as one line of JSON, for an agent that is not to hold every dataplane's
libraries because of a moment of its life.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from kiam.dataplane.contract import Condition, WantedState
from kiam.dataplane.registry import DATAPLANES, load_dataplane
from kiam.errors import UserError

INSTALLS = 3
"""What the node has may change while it is installed for: kubelet makes a cgroup, another program puts a rule first."""


@dataclass(frozen=True, slots=True)
class Others:
    """What became of the other dataplanes."""

    removed: tuple[str, ...] = ()
    stuck: Mapping[str, str] = field(default_factory=dict)
    """Those that are installed and can't be taken out, and why."""
    unknown: Mapping[str, str] = field(default_factory=dict)
    """Those that can't be asked whether they are installed, and why."""

    @classmethod
    def parse(cls, line: str) -> Others:
        """What :func:`main` printed."""
        read = json.loads(line)
        return cls(tuple(read["removed"]), read["stuck"], read["unknown"])


def install(name: str, wanted: WantedState, keep_others: bool = False) -> Others:
    """Install one dataplane and, unless they are to be kept, take the others out. Raises UserError.

    The others stay where the new one isn't found to be just as wanted: two are better than none.
    """
    dataplane = load_dataplane(name)
    for _ in range(INSTALLS):
        dataplane.install(wanted)
        if keep_others:
            return Others()
        inspection = dataplane.inspect(wanted)
        if inspection.condition is Condition.INSTALLED:
            return take_others_out(name)
    raise UserError(
        f"{name} is not as wanted after its install ({'; '.join(inspection.problems) or inspection.condition}), "
        "so other dataplanes were left in place"
    )


def take_others_out(name: str) -> Others:
    """Remove every dataplane but that one, where it is installed."""
    removed: list[str] = []
    stuck: dict[str, str] = {}
    unknown: dict[str, str] = {}
    for other in DATAPLANES:
        if other == name:
            continue
        try:
            dataplane = load_dataplane(other)
            is_in = dataplane.inspect().condition is not Condition.ABSENT
        except UserError as error:
            unknown[other] = str(error)
            continue
        if not is_in:
            continue
        try:
            dataplane.remove()
        except UserError as error:
            stuck[other] = str(error)
        else:
            removed.append(other)
    return Others(tuple(removed), stuck, unknown)


def main() -> int:
    """Take all but the named one out."""
    print(json.dumps(asdict(take_others_out(sys.argv[1]))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
