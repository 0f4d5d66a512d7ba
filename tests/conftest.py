"""What all tests share."""

from __future__ import annotations

import os
import signal

from hypothesis import settings

# Tests fork to call functions in a pod's cgroup, and some have used gRPC before; see kiam.grpc_core.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

# A shell starts what it runs in the background with SIGINT ignored, and that is inherited all the way down: the tests
# that interrupt a program would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No test's outcome depends on how busy the machine is.
settings.register_profile("kiam", deadline=None)
settings.load_profile("kiam")
