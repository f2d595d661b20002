"""Do the traced build and the simulator say the same? Pure."""

from __future__ import annotations

from samewire.trace.context import TraceRun
from samewire.vfp.constants import Fate, Layer, Reason
from samewire.vfp.simulate import Outcome


def difference(run: TraceRun, outcome: Outcome, same_bytes: bool = True) -> str:
    """What the simulator says otherwise, "" when it agrees.

    ``same_bytes`` False: only the verdict must agree (a connection that is judged anew keeps its NAT port, which
    the traced build does not know).
    """
    output = run.output
    if outcome.drop is not None:
        layer, reason = outcome.drop[2:]
        if reason == Reason.NONE or (output.drop_layer, output.drop_reason) == (layer, reason):
            return ""
        return f"the simulator drops it ({layer.name}, {reason.name}), the switch {_said(run)}"
    if outcome.answered and not output.drop_reason:
        return ""
    if output.drop_reason or output.fate != outcome.fate:
        return f"the simulator sends it to {outcome.fate.name}, the switch {_said(run)}"
    if outcome.fate == Fate.PORT and _target(run) != outcome.target:
        return f"the simulator sends it to port {outcome.target}, the switch to port {_target(run)}"
    if same_bytes and outcome.fate != Fate.NOWHERE and run.frame != outcome.frame:
        return f"the packets differ: the simulator has {outcome.frame.hex()}, the switch {run.frame.hex()}"
    return ""


def _target(run: TraceRun) -> int:
    return run.output.step[run.output.count - 1].target if run.output.count else 0


def _said(run: TraceRun) -> str:
    output = run.output
    if output.drop_reason:
        return f"drops it ({_name(Layer, output.drop_layer)}, {_name(Reason, output.drop_reason)})"
    return f"sends it to {_name(Fate, output.fate)}"


def _name(kind: type[Layer] | type[Reason] | type[Fate], value: int) -> str:
    return kind(value).name if value in kind._value2member_map_ else str(value)
