"""The one error of the benchmarks: a peer, a scenario or a tool that did not do what it should."""

from __future__ import annotations

from samewire.errors import SamewireError


class BenchError(SamewireError):
    """A command failed, a scenario did not come up, or a measurement broke off."""
