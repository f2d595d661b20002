"""What is made of the last compilation is what a compilation from nothing gives."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from samewire.errors import Invalid
from samewire.hcn.policies import SetPolicy, SetType
from samewire.hcn.schema import Network, NetworkType
from samewire.vfp.compile import sets as sets_compiler
from samewire.vfp.compile.prefixes import Nested
from samewire.vfp.compile.sets import compile_sets
from samewire.vfp.diff import apply
from samewire.vfp.model import Compiled
from samewire.vfp.ownership import Ownership
from samewire.vfp.record import Record

# How long an example takes on a loaded machine is no result.
SETTINGS = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])

Tables = dict[str, dict[Record, Record]]

nodes = st.integers(0, 8).flatmap(
    lambda bits: st.tuples(st.integers(0, (1 << bits) - 1).map(lambda v: v << (8 - bits)), st.just(bits))
)
members = st.sampled_from(
    [
        "10.0.0.1",
        "10.0.0.1/32",
        "10.0.0.0/24",
        "10.0.0.0/8",
        "10.0.0.2",
        "0.0.0.0/0",
        "fd00::1",
        "fd00::/64",
        "::/0",
    ]
)
NESTED = ("n1", "n2")
flat_sets = st.builds(
    lambda name, values: SetPolicy(set_id=name, values=",".join(values)),
    st.sampled_from(["a", "b", "c", "n1"]),
    st.lists(members, max_size=6),
)
nested_sets = st.builds(
    lambda name, values: SetPolicy(set_id=name, policy_type=SetType.NESTEDIPSET, values=",".join(values)),
    st.sampled_from(NESTED),
    st.lists(st.sampled_from(["a", "b", "c", *NESTED]), max_size=3),
)
states = st.lists(flat_sets | nested_sets, max_size=6, unique_by=lambda policy: policy.set_id)


@SETTINGS
@given(st.lists(st.dictionaries(nodes, st.integers(0, 15), max_size=12), max_size=6))
def test_a_prefix_has_the_bits_of_all_around_it(changes: Sequence[dict[tuple[int, int], int]]) -> None:
    """After any changes, as if the prefixes had come at once; and what is said to have changed is what has."""
    nested, direct, known = Nested(8, [(128, 1)]), {(128, 1): 0}, {(128, 1): 0}
    for change in changes:
        direct.update(change)
        for node, (before, after) in nested.change(change).items():
            assert known.pop(node, None) == before != after
            if after is not None:
                known[node] = after
        assert known == nested.entered
    for value in range(256):
        around = [own for (start, bits), own in direct.items() if start <= value < start + (1 << (8 - bits))]
        union = 0
        for own in around:
            union |= own
        longest = ((value >> (8 - bits) << (8 - bits), bits) for bits in range(8, -1, -1))
        assert next((known[node] for node in longest if node in known), 0) == union
    at_once = Nested(8, [(128, 1)])
    at_once.change(direct)
    assert at_once.entered == nested.entered == nested.copy().entered


def network(policies: Sequence[SetPolicy], name: str) -> Network:
    return Network(id=name, type=NetworkType.OVERLAY, policies=tuple(policies))


def from_nothing(policies: Sequence[SetPolicy], generation: int) -> Compiled:
    sets_compiler._LAST.clear()
    return compile_sets(network(policies, "NET"), generation)


@SETTINGS
@given(st.lists(states, min_size=1, max_size=6))
def test_sets_that_are_edited(history: Sequence[Sequence[SetPolicy]]) -> None:
    """After each change the entries are those of a compilation from nothing; so are those that the operations lead to,
    whether the owner had the entries before or, as after a failed change, others.
    """
    alone = [from_nothing(policies, i) for i, policies in enumerate(history)]
    sets_compiler._LAST.clear()
    steady, shaken = Ownership(), Ownership()
    kernel: Tables = {}
    other: Tables = {}
    for i, policies in enumerate(history):
        compiled = compile_sets(network(policies, "NET"), i)
        assert compiled.entries == alone[i].entries
        kernel = apply(steady.replace("sets", compiled.entries, compiled.edit), kernel)
        other = apply(shaken.replace("sets", alone[i - 1].entries), other)
        other = apply(shaken.replace("sets", compiled.entries, compiled.edit), other)
        for tables in (kernel, other):
            assert {**tables, "sw_acl_spaces": {}} == {**compiled.entries, "sw_acl_spaces": {}}
        assert kernel == steady.tables() == steady.entries("sets")


def test_sets_that_cannot_be() -> None:
    """A change that fails leaves what is remembered as it was."""
    good = [SetPolicy(set_id=f"s{i}", values="10.0.0.1") for i in range(256)]
    sets_compiler._LAST.clear()
    before = compile_sets(network(good, "NET"), 1)
    with pytest.raises(Invalid, match="257 sets"):
        compile_sets(network([*good, SetPolicy(set_id="more", values="10.0.0.0/8")], "NET"), 2)
    after = compile_sets(network(good[1:], "NET"), 3)
    assert after.edit is not None
    assert after.edit.base is before.entries
    assert after.entries == from_nothing(good[1:], 3).entries
