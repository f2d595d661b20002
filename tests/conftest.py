"""For all tests."""

from __future__ import annotations

import signal

from hypothesis import HealthCheck, settings

# What a shell puts into the background has SIGINT ignored, and so would have the processes that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says something about the machine, which may stand still for seconds.
settings.register_profile("samewire", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("samewire")
