"""For all tests."""

from __future__ import annotations

import signal

# What a shell puts into the background has SIGINT ignored, and so would have the processes that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
