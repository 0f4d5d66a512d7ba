"""The process that evaluates what may be costly: one JSON line in, one out, and an end to it when it takes too long."""

from __future__ import annotations

import json
import resource
import signal
import sys

from kiam.server.policy.expressions import decide_namespace

CPU_SECONDS = 0.25
"""Of this process for one expression and ARN."""
ADDRESS_SPACE = 512 << 20
READY = b'"ready"\n'


def main() -> None:
    """Answer until the other end is closed.

    The attack stopped: a tenant's expression may take RE2 seconds to compile, with Python's lock held. A signal's
    default action ends the process in the midst of it, by CPU time, so that a busy machine refuses no honest one.
    """
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()
    for line in sys.stdin.buffer:
        expression, role_arn, strict = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        decision = decide_namespace(role_arn, expression, strict)
        signal.setitimer(signal.ITIMER_PROF, 0)
        answer = [decision.allowed, decision.explanation, decision.refusal.value]
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
