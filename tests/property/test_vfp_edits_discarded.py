"""Edits of ACL tables that come to nothing, in any order with those that are made: later ones show no trace of them."""

from __future__ import annotations

from contextlib import suppress
from unittest.mock import patch

from hypothesis import example, given, settings
from hypothesis import strategies as st

from samewire.hcn.policies import ACL, AclAction
from samewire.hcn.policy_lists import PolicyList
from samewire.node.planning import endpoint_owner
from samewire.node.wanted import Changes, Wanted, judged_again
from samewire.vfp.compile.acl import compile_acl
from samewire.vfp.compile.acl_table import NONE_KNOWN, AclTable, Known
from samewire.vfp.compile.builder import Builder
from samewire.vfp.compile.edits import Draft
from samewire.vfp.diff import Operation, apply
from samewire.vfp.model import Compiled, HostBinding
from samewire.vfp.tables import Id, Port
from tests.property.test_vfp_edits import (
    PADDING,
    edited_list,
    edits,
    incoming_table,
    port_of,
    positions,
    rule,
    some_rules,
    verdicts,
)

OWNER = endpoint_owner("A")
EVERYTHING = rule(AclAction.ALLOW, 1, "", "", "6")
SOMETHING = rule(AclAction.BLOCK, 4, "10.1.2.3", "80", "6")
OUTCOMES = ("made", "made", "thrown away", "broken off", "taken back")


def an_endpoint(policies: PolicyList, known: Known, generation: int) -> Compiled:
    builder = Builder()
    incoming, _ = compile_acl(builder, "NET", (), policies, known=known)
    builder.put("sw_ports", Id(7), port_of(incoming, generation))
    return builder.compiled(HostBinding())


def operations(changes: Changes) -> list[Operation]:
    return [*changes.puts(), *changes.removals()]


@settings(max_examples=60)
@given(
    st.lists(some_rules, max_size=6),
    st.lists(st.tuples(edits, st.sampled_from(OUTCOMES), positions), min_size=1, max_size=8),
)
@example([], [(("add", 3, EVERYTHING), "broken off", 0), (("add", 9, SOMETHING), "made", 0)])
def test_edits_that_come_to_nothing(
    start: list[ACL], changes: list[tuple[tuple[str, int, ACL], str, int]]
) -> None:
    """A change that is refused after its compilation, one that ends in the middle of it, and one of which the kernel
    refuses some write: the next ones are judged as if it had never been.
    """
    policies = [*start, *PADDING, *PADDING[:4]]
    listed, wanted, first = PolicyList(policies), Wanted({}), Changes()
    wanted.replace(OWNER, an_endpoint(listed, NONE_KNOWN, 1), first)
    kernel = apply(operations(first), {})
    for generation, (edit, outcome, writes) in enumerate(changes, 2):
        after = edited_list(policies, edit)
        new, known, made = listed.updated(after), wanted.acl_tables(OWNER), Changes()
        if outcome == "broken off":
            with patch.object(Draft, "compiled", side_effect=MemoryError), suppress(MemoryError):
                an_endpoint(new, known, generation)
            continue
        compiled = an_endpoint(new, known, generation)
        if outcome == "thrown away":
            continue
        before = wanted.held(OWNER)
        wanted.replace(OWNER, compiled, made)
        steps = operations(made)
        kernel = apply(steps if outcome == "made" else steps[: writes % (len(steps) + 1)], kernel)
        if outcome == "made":
            policies, listed = after, new
        else:
            back = Changes()
            wanted.replace(OWNER, judged_again(before, generation), back)
            back.enter(wanted.left_over(made))
            kernel = apply(operations(back), kernel)
        assert kernel == wanted.entries.tables()
        port, fresh = kernel["sw_ports"][Id(7)], incoming_table(listed)
        assert isinstance(port, Port)
        reference = AclTable(port.acl_table[0], port.acl_words[0], port.acl_shape[0])
        assert verdicts(kernel, reference) == verdicts(fresh.steps[-1].entries, fresh.reference)
