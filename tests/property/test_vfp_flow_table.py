"""The simulator's flow table is a copy: it does what a dict would, and leaves what was there alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samewire.vfp.address import ZERO
from samewire.vfp.simulate.flow_table import FlowTable
from samewire.vfp.tables import Action, Flow, FlowKey

_NOTHING = Action(0, 0, 0, 0, 0, ZERO, ZERO)
_keys = st.builds(lambda port: FlowKey((ZERO, ZERO), (port, 0), 0, 4, 6), st.integers(0, 5))
_flows = st.builds(
    lambda tick: Flow((_NOTHING, _NOTHING), (0, 0), (0, 0), (0, 0), tick, 0, 0, 0, (0, 0), 0),
    st.integers(0, 99),
)
_steps = st.lists(st.tuples(st.sampled_from(["put", "delete", "pop"]), _keys, _flows), max_size=20)


@given(st.dictionaries(_keys, _flows), _steps)
def test_it_is_a_copy(there: dict[FlowKey, Flow], steps: list[tuple[str, FlowKey, Flow]]) -> None:
    before, model, table = dict(there), dict(there), FlowTable(there)
    for what, key, flow in steps:
        if what == "put":
            model[key] = table[key] = flow
        elif what == "pop":
            assert table.pop(key, None) == model.pop(key, None)
        elif key in model:
            del table[key], model[key]
        else:
            with pytest.raises(KeyError):
                del table[key]
        assert dict(table) == model == table
        assert len(table) == len(model)
        assert table.get(key) == model.get(key)
        assert (key in table) == (key in model)
    assert there == before
