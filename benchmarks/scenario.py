"""What a datapath scenario is: two ends and an address, set up in namespaces of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod

from benchmarks.native import Endpoints
from benchmarks.netns import Sandbox


class Scenario(ABC):
    """A client and a server joined in one particular way. ``setup`` once, measure, ``teardown`` always."""

    name: str
    label: str  # part of namespace names: short, no spaces

    def __init__(self) -> None:
        self.sandbox = Sandbox(self.label)

    @abstractmethod
    def setup(self) -> Endpoints:
        """Build it. Raises ``BenchError`` with the reason when it does not come up."""

    def teardown(self) -> None:
        """Remove everything, also after a ``setup`` that broke off."""
        self.sandbox.close()

    def flow_inserts(self) -> int | None:
        """Flow-table insertions so far on all its nodes; None for a peer that has no such counter."""
        return None
