"""``python -m fuzz [--seconds N] [TARGET...]``: run targets with atheris, each in its own process, N seconds in all.

``python -m fuzz --only TARGET --seconds N [FILE...]`` is one of these processes; with files it runs just those. What
breaks a promise is written to fuzz/found/, and belongs into the corpus once it is fixed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
FOUND = Path(__file__).parent / "found"


def run_all(names: list[str], seconds: int) -> int:
    """Run each target for its share of the time; 1 if one was broken."""
    broken = []
    for name in names:
        command = [sys.executable, "-m", "fuzz", "--only", name, "--seconds", str(max(1, seconds // len(names)))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        last = next((line for line in reversed(done.stderr.splitlines()) if " cov: " in line), "")
        print(f"{name}: {'broken' if done.returncode else 'kept'}  {last}", flush=True)
        if done.returncode:
            broken.append(name)
            print((done.stdout + done.stderr)[-6000:])
    return 1 if broken else 0


def run_one(name: str, seconds: int, files: list[str]) -> None:
    """Run one target in this process; atheris ends it."""
    import atheris

    with atheris.instrument_imports(include=["kiam"], enable_loader_override=False):
        from fuzz.targets import TARGETS
    FOUND.mkdir(exist_ok=True)
    new = FOUND / f"{name}-corpus"
    new.mkdir(exist_ok=True)
    libfuzzer = [f"-max_total_time={seconds}", f"-artifact_prefix={FOUND / name}-", "-timeout=10", "-rss_limit_mb=2048"]
    places = files or [str(new), str(CORPUS / name)]
    atheris.Setup([sys.argv[0], *libfuzzer, *places], TARGETS[name])
    atheris.Fuzz()


def main() -> int:
    """Parse the command line and do it."""
    names = sorted(path.name for path in CORPUS.iterdir())
    parser = argparse.ArgumentParser(prog="make fuzz", description="throw bytes at what reads somebody else's")
    parser.add_argument("--seconds", type=int, default=60, help="in all; default: 60")
    parser.add_argument("--only", choices=names)
    parser.add_argument("words", nargs="*", metavar="TARGET", help=f"of {', '.join(names)}; default: all")
    arguments = parser.parse_args()
    if arguments.only:
        run_one(arguments.only, arguments.seconds, arguments.words)
        return 0
    unknown = set(arguments.words) - set(names)
    if unknown:
        parser.error(f"no target {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    return run_all(arguments.words or names, arguments.seconds)


if __name__ == "__main__":
    sys.exit(main())
