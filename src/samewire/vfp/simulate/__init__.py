"""The switch in Python: an interpreter of the same tables, byte for byte.

It is the oracle of the property tests (the compiled programs, their traced build and this must agree on verdict
and output bytes) and the reading copy of the switch: no verifier, no stack limit, no per-CPU anything.

``Simulator(tables, now_tick)`` takes frames by ``receive(frame, arrival, ifindex, vni)`` and answers with an
``Outcome``. It changes its flow table as the programs do, so a sequence of packets may be played. What it leaves out:
bandwidth caps and the age of flows (time), the bound of the flow table, and the host-socket programs.
"""

from samewire.vfp.simulate.state import Dropped, Outcome
from samewire.vfp.simulate.switch import Simulator

__all__ = ["Dropped", "Outcome", "Simulator"]
