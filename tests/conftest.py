"""What all tests share."""

from __future__ import annotations

import signal

from hypothesis import settings

# A shell starts what it runs in the background with SIGINT ignored, and that is inherited all the way down: the tests
# that interrupt a program would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No test's outcome depends on how busy the machine is.
settings.register_profile("kiam", deadline=None)
settings.load_profile("kiam")
