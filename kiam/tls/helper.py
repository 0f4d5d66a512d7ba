"""Looking into certificates in a short-lived process, for an agent that would otherwise hold the library for good.

``python -m kiam.tls.helper`` reads a request and prints what it found, both one line of JSON. The helper only finds and
words problems, exactly as :func:`kiam.tls.inspection.load` and :mod:`kiam.tls.diagnosis` do; whom to talk to is
decided by the TLS library's own verification, as ever. Whatever goes wrong with the helper counts as files that can't
be used, and as a server that needs nothing special.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from kiam.errors import ErrorKind, UserError
from kiam.tls import TLSFiles, TLSMaterial
from kiam.tls.summary import Problem, Severity, Side, TLSSummary

HELPER_SECONDS = 60.0
"""A fifth of a second of work, but a node that starts is busy."""

_UNREADABLE = (ValueError, KeyError, TypeError, AttributeError)
_ARGV = (sys.executable, "-m", "kiam.tls.helper")


def load_in_helper(files: TLSFiles, side: Side, now: datetime) -> tuple[TLSMaterial, TLSSummary]:
    """As :func:`kiam.tls.inspection.load_summary`, of which it is a Loader. Blocks for the process's life.

    Raises UserError also when the helper fails, so that material nobody inspected is never taken into use.
    """
    material = files.read()
    return material, _read_answer(_ask(_write_request(files, material, side, now)))


def explain_failure(address: str, files: TLSFiles) -> UserError | None:
    """As :func:`kiam.tls.diagnosis.explain_failure`. Blocks for the process's life."""
    try:
        error = json.loads(_ask(_write_question("explain", address, files)))["error"]
        return None if error is None else _read_error(error)
    except UserError as failed:
        return failed
    except _UNREADABLE:
        return _failed("its answer can't be read")


def needs_lenient_tls(address: str, files: TLSFiles) -> bool:
    """As :func:`kiam.tls.diagnosis.needs_lenient_tls`. Blocks for the process's life."""
    try:
        return json.loads(_ask(_write_question("lenient", address, files)))["lenient"] is True
    except (UserError, *_UNREADABLE):
        return False


def _ask(request: str) -> str:
    """The helper's answer. Raises UserError."""
    try:
        code, answer = _run(request)
    except OSError as error:
        raise _failed(error.strerror or type(error).__name__) from error
    if code:
        how = f"killed, after {HELPER_SECONDS:g} s or for want of memory" if code == -signal.SIGKILL else f"exit {code}"
        raise _failed(how)
    return answer


def _run(request: str) -> tuple[int, str]:
    """The helper's exit code and its answer; it is killed if that takes too long."""
    pipe = subprocess.PIPE
    # The key goes through a pipe: an argument or the environment could be read in /proc. And what the helper writes on
    # standard error is thrown away: a traceback could quote what it was given.
    with subprocess.Popen(_ARGV, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True) as helper:
        # Not communicate's own time-out, which waits in naps: they go by a clock that may be set meanwhile.
        watchdog = threading.Timer(HELPER_SECONDS, helper.kill)
        watchdog.start()
        try:
            answer, _ = helper.communicate(request)
        finally:
            watchdog.cancel()
        return helper.returncode, answer


def _failed(how: str) -> UserError:
    return UserError(
        f"--cert, --key, --ca: the process that inspects the certificates failed ({how})",
        "see whether the container's memory or process limit is reached",
    )


def _write_request(files: TLSFiles, material: TLSMaterial, side: Side, now: datetime) -> str:
    paths = _paths(files)
    # Whatever bytes there are, and back: what isn't PEM is for the inspection to say.
    contents = {flag: getattr(material, flag).decode("latin-1") for flag in paths}
    return json.dumps({"do": "inspect", "paths": paths, "contents": contents, "side": side, "now": now.isoformat()})


def _write_question(what: str, address: str, files: TLSFiles) -> str:
    return json.dumps({"do": what, "address": address, "paths": _paths(files)})


def _paths(files: TLSFiles) -> dict[str, str]:
    return {"cert": str(files.cert), "key": str(files.key), "ca": str(files.ca)}


def _read_error(error: dict[str, str]) -> UserError:
    return UserError(error["what"], error["fix"], ErrorKind(error["kind"]))


def _read_answer(line: str) -> TLSSummary:
    try:
        answer = json.loads(line)
        if (error := answer.get("error")) is None:
            return _read_summary(answer["summary"])
        refusal = _read_error(error)
    except _UNREADABLE as broken:
        raise _failed("its answer can't be read") from broken
    raise refusal


def _read_summary(read: dict[str, Any]) -> TLSSummary:
    times = {name: datetime.fromisoformat(read[name]) for name in ("not_before", "not_after", "expiry", "warn_after")}
    problems = tuple(Problem(**{**one, "severity": Severity(one["severity"])}) for one in read["problems"])
    return TLSSummary(subject=read["subject"], names=read["names"], **times, problems=problems)


def answer_request(line: str) -> str:
    """What the helper prints for a request."""
    request = json.loads(line)
    files = TLSFiles(**{flag: Path(path) for flag, path in request["paths"].items()})
    if request["do"] == "inspect":
        return _inspect(request, files)
    from kiam.tls import diagnosis

    if request["do"] == "lenient":
        return json.dumps({"lenient": diagnosis.needs_lenient_tls(request["address"], files)})
    found = diagnosis.explain_failure(request["address"], files)
    return json.dumps({"error": None if found is None else _write_error(found)})


def _write_error(error: UserError) -> dict[str, str]:
    return {"what": error.what, "fix": error.fix, "kind": error.kind}


def _inspect(request: dict[str, Any], files: TLSFiles) -> str:
    from kiam.tls.inspection import summarize

    material = TLSMaterial(**{flag: text.encode("latin-1") for flag, text in request["contents"].items()})
    try:
        found = summarize(files, material, Side(request["side"]), datetime.fromisoformat(request["now"]))
    except UserError as error:
        return json.dumps({"error": _write_error(error)})
    return json.dumps({"summary": asdict(found)}, default=datetime.isoformat)


if __name__ == "__main__":
    print(answer_request(sys.stdin.read()))
