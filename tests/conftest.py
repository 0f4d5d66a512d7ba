"""What all tests share."""

from __future__ import annotations

import signal

# A shell starts what it runs in the background with SIGINT ignored, and that is inherited all the way down: the tests
# that interrupt a program would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)
