"""Traced build against simulator: what counts as a disagreement."""

from __future__ import annotations

import pytest

from samewire.trace.compare import difference
from samewire.trace.context import TraceRun
from samewire.vfp.address import ZERO
from samewire.vfp.constants import Fate, Layer, Reason
from samewire.vfp.simulate import Outcome
from samewire.vfp.tables import TraceStep
from tests.support.tools import output

FRAME, OTHER = b"frame", b"other"


def run(
    fate: Fate = Fate.PORT, target: int = 42, drop: tuple[int, int] = (0, 0), frame: bytes = FRAME
) -> TraceRun:
    step = TraceStep(Layer.L2, 4, 0, fate, 0, target, 0, 0, ZERO, ZERO)
    return TraceRun(output(step, fate=fate, drop=drop), frame)


DROPPED = run(Fate.NOWHERE, drop=(Layer.ACL_IN, Reason.BLOCKED))
PASSED = TraceRun(output(), FRAME)


@pytest.mark.parametrize(
    ("traced", "outcome"),
    [
        (run(), Outcome(FRAME, Fate.PORT, 42)),
        (run(Fate.TUNNEL, 4096), Outcome(FRAME, Fate.TUNNEL, 5)),
        (run(Fate.UPLINK, 2), Outcome(FRAME, Fate.UPLINK, 2)),
        (run(Fate.HOST, 6), Outcome(FRAME, Fate.HOST, 6)),
        (DROPPED, Outcome(FRAME, drop=(42, 3, Layer.ACL_IN, Reason.BLOCKED))),
        (PASSED, Outcome(FRAME)),
        (PASSED, Outcome(OTHER, answered=True)),
        (PASSED, Outcome(FRAME, drop=(0, 0, Layer.L2, Reason.NONE))),
        (
            run(Fate.NOWHERE, drop=(Layer.MTU, Reason.TOO_BIG)),
            Outcome(OTHER, answered=True, drop=(42, 0, Layer.MTU, Reason.TOO_BIG)),
        ),
    ],
)
def test_agreement(traced: TraceRun, outcome: Outcome) -> None:
    assert difference(traced, outcome) == ""


@pytest.mark.parametrize(
    ("traced", "outcome", "text"),
    [
        (run(), Outcome(FRAME, Fate.HOST, 6), "the simulator sends it to HOST, the switch sends it to PORT"),
        (run(), Outcome(FRAME, Fate.PORT, 43), "the simulator sends it to port 43, the switch to port 42"),
        (run(), Outcome(OTHER, Fate.PORT, 42), f"the simulator has {OTHER.hex()}, the switch {FRAME.hex()}"),
        (
            run(),
            Outcome(FRAME, drop=(42, 0, Layer.ACL_IN, Reason.BLOCKED)),
            "the simulator drops it (ACL_IN, BLOCKED), the switch sends it to PORT",
        ),
        (
            DROPPED,
            Outcome(FRAME, Fate.PORT, 42),
            "the simulator sends it to PORT, the switch drops it (ACL_IN, BLOCKED)",
        ),
        (
            DROPPED,
            Outcome(FRAME, drop=(42, 0, Layer.ACL_OUT, Reason.BLOCKED)),
            "the simulator drops it (ACL_OUT, BLOCKED), the switch drops it (ACL_IN, BLOCKED)",
        ),
        (
            PASSED,
            Outcome(FRAME, Fate.PORT, 42),
            "the simulator sends it to PORT, the switch sends it to NOWHERE",
        ),
        (
            run(Fate.NOWHERE, drop=(99, 98)),
            Outcome(FRAME, Fate.PORT, 42),
            "the simulator sends it to PORT, the switch drops it (99, 98)",
        ),
    ],
)
def test_disagreement(traced: TraceRun, outcome: Outcome, text: str) -> None:
    assert text in difference(traced, outcome)


def test_a_connection_judged_anew_may_get_another_port() -> None:
    assert difference(run(), Outcome(OTHER, Fate.PORT, 42), same_bytes=False) == ""
    assert difference(run(), Outcome(OTHER, Fate.HOST, 42), same_bytes=False)
