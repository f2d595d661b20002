"""What is made of the last compilation is what a compilation from nothing gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from samewire.errors import Invalid
from samewire.hcn.numbered import Numbered, numbered
from samewire.hcn.policies import (
    ACL,
    AclAction,
    AclDirection,
    NatFlags,
    Policy,
    PortMapping,
    SetPolicy,
    SetType,
    TierAcl,
    TierAclRule,
)
from samewire.hcn.policy_lists import PolicyList
from samewire.hcn.schema import Endpoint, IpConfiguration, Network, NetworkType
from samewire.vfp.address import NO_MAC, ZERO, parse_address, parse_interface
from samewire.vfp.compile import portmap as portmap_compiler
from samewire.vfp.compile import sets as sets_compiler
from samewire.vfp.compile.acl import compile_acl
from samewire.vfp.compile.acl_rules import direction_rules
from samewire.vfp.compile.acl_table import NONE_KNOWN, AclTable, Known, Table, fill
from samewire.vfp.compile.builder import Builder
from samewire.vfp.compile.portmap import compile_portmaps
from samewire.vfp.compile.prefixes import Nested, Node
from samewire.vfp.compile.sets import compile_sets
from samewire.vfp.constants import ACL_IN, Arrival
from samewire.vfp.constants import AclAction as Verdict
from samewire.vfp.diff import apply
from samewire.vfp.model import Compiled, Entries, HostBinding
from samewire.vfp.ownership import Ownership
from samewire.vfp.record import Record
from samewire.vfp.simulate.acl import decide
from samewire.vfp.simulate.packet import Packet as Parsed
from samewire.vfp.simulate.packet import Tuple
from samewire.vfp.simulate.state import State, Walk
from samewire.vfp.tables import Port, Portmap, PortmapKey

SETTINGS = settings(max_examples=100)

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
def test_a_prefix_has_the_bits_of_all_around_it(changes: Sequence[dict[Node, int]]) -> None:
    """After any changes, as if the prefixes had come at once; and what is said to have changed is what has."""
    nested = Nested(8, [(128, 1)])
    direct: dict[Node, int] = {}
    known: dict[Node, int] = {}
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
    return Network(id=name, type=NetworkType.OVERLAY, policies=numbered(policies))


def from_nothing(policies: Sequence[SetPolicy], generation: int) -> Compiled:
    sets_compiler._LAST.clear()
    return compile_sets(network(policies, "NET"), generation)


@SETTINGS
@given(st.lists(states, min_size=1, max_size=6), st.booleans())
def test_sets_that_are_edited(history: Sequence[Sequence[SetPolicy]], keeps_numbers: bool) -> None:
    """After each change the entries are those of a compilation from nothing; so are those that the operations lead to,
    whether the owner had the entries before or, as after a failed change, others.
    """
    alone = [from_nothing(policies, i) for i, policies in enumerate(history)]
    sets_compiler._LAST.clear()
    steady, shaken = Ownership(), Ownership()
    kernel: Tables = {}
    other: Tables = {}
    listed: Numbered[SetPolicy] = Numbered()
    for i, policies in enumerate(history):
        listed = listed.updated(policies) if keeps_numbers else Numbered(policies)
        compiled = compile_sets(network(listed, "NET"), i)
        assert compiled.entries == alone[i].entries
        kernel = apply(steady.replace("sets", compiled.entries, compiled.edit), kernel)
        other = apply(shaken.replace("sets", alone[i - 1].entries), other)
        other = apply(shaken.replace("sets", compiled.entries, compiled.edit), other)
        for tables in (kernel, other):
            assert {**tables, "sw_acl_spaces": {}} == {**compiled.entries, "sw_acl_spaces": {}}
        assert kernel == steady.tables() == steady.entries("sets")


def test_a_flat_set_that_comes_after_the_nested_one_that_holds_it() -> None:
    nested = SetPolicy(set_id="n", policy_type=SetType.NESTEDIPSET, values="a,b")
    a, b = (SetPolicy(set_id=name, values=f"10.0.0.{i},10.0.1.0/24") for i, name in enumerate("ab"))
    other = SetPolicy(set_id="other", values="10.0.0.0/16")
    history = [(nested, b), (nested, b, a), (nested, b, a, other), (nested, a, other)]
    alone = [from_nothing(policies, i) for i, policies in enumerate(history)]
    sets_compiler._LAST.clear()
    listed: Numbered[SetPolicy] = Numbered()
    for i, policies in enumerate(history):
        listed = listed.updated(policies)
        assert compile_sets(network(listed, "NET"), i).entries == alone[i].entries


mappings = st.builds(
    PortMapping,
    protocol=st.sampled_from([6, 17]),
    internal_port=st.sampled_from([80, 81]),
    external_port=st.integers(1, 3),
    vip=st.sampled_from(["", "192.168.1.10", "fd00:1::10"]),
    flags=st.sampled_from([0, int(NatFlags.IPV6), int(NatFlags.EXTERNAL_PORT_RESERVED)]),
)
POD_ADDRESSES = ("10.244.1.5", "fd00:244:1::5")
POD_PREFIXES = tuple(parse_interface(f"{address}/32") for address in POD_ADDRESSES)


def mapped(policies: Sequence[Policy], port: int) -> Compiled:
    builder = Builder()
    endpoint = Endpoint(
        id="POD",
        ip_configurations=tuple(IpConfiguration(ip_address=address) for address in POD_ADDRESSES),
        policies=policies if isinstance(policies, Numbered) else Numbered(policies),
    )
    ports = compile_portmaps(builder, endpoint, POD_PREFIXES, 1, port)
    return builder.compiled(HostBinding(mapped_ports=ports))


@SETTINGS
@given(
    st.lists(st.tuples(st.lists(mappings, max_size=8), st.integers(42, 43)), min_size=1, max_size=6),
    st.booleans(),
)
def test_mappings_that_are_edited(
    history: Sequence[tuple[list[PortMapping], int]], keeps_numbers: bool
) -> None:
    """The entries are those of a compilation from nothing, as are those that the operations lead to. Several mappings
    may be for one port, and the last one counts; now and then the endpoint's port is another.
    """
    many = [PortMapping(protocol=6, internal_port=80, external_port=1000 + i) for i in range(64)]
    steady, shaken = Ownership(), Ownership()
    kernel: Tables = {}
    other: Tables = {}
    listed: Numbered[Policy] = Numbered(many)
    portmap_compiler._LAST.clear()
    for policies, port in history:
        kept = dict(portmap_compiler._LAST)
        portmap_compiler._LAST.clear()
        alone = mapped((*many, *policies), port)
        portmap_compiler._LAST.clear()
        portmap_compiler._LAST.update(kept)
        listed = listed.updated((*many, *policies)) if keeps_numbers else Numbered((*many, *policies))
        compiled = mapped(listed, port)
        assert compiled.binding == alone.binding
        assert compiled.entries == alone.entries
        kernel = apply(steady.replace("pod", compiled.entries), kernel)
        other = apply(shaken.replace("pod", mapped(many[:3], 44).entries), other)
        other = apply(shaken.replace("pod", compiled.entries), other)
        assert kernel == other == alone.entries
        assert kernel == steady.tables() == steady.entries("pod")


def test_a_mapping_that_cannot_be() -> None:
    """A change that fails leaves what is remembered as it was, and says where the mapping is."""
    many = [PortMapping(protocol=6, internal_port=80, external_port=1000 + i) for i in range(70)]
    portmap_compiler._LAST.clear()
    before = mapped(many, 42)
    wrong = PortMapping(protocol=6, internal_port=80, external_port=1, vip="192.168.1.300")
    for policies in (Numbered(many).edited(new=[wrong]), Numbered([*many, wrong])):
        with pytest.raises(Invalid) as error:
            mapped(policies, 42)
        assert error.value.path == "$.Policies[70].Settings.VIP"
    again = mapped(many, 42)
    assert again.entries["sw_portmaps"] is before.entries["sw_portmaps"]


def test_one_mapping_of_very_many_is_one_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no look at the others."""
    ownership = Ownership()
    listed: Numbered[Policy] = Numbered(
        PortMapping(protocol=6, internal_port=80, external_port=1000 + i) for i in range(70)
    )
    portmap_compiler._LAST.clear()
    ownership.replace("pod", mapped(listed, 42).entries)
    compiled: list[int] = []
    entry = portmap_compiler._Place.entry

    def counted(*of: Any) -> tuple[PortmapKey, Portmap]:
        compiled.append(of[-1].external_port)
        return entry(*of)

    monkeypatch.setattr(portmap_compiler._Place, "entry", counted)
    more = listed.edited(new=[PortMapping(protocol=6, internal_port=80, external_port=1)])
    assert len(ownership.replace("pod", mapped(more, 42).entries)) == 1
    less = more.edited(gone=[more.numbers[7]])
    assert len(ownership.replace("pod", mapped(less, 42).entries)) == 1
    assert compiled == [1, 1007]


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


def rule(action: AclAction, priority: int, addresses: str, ports: str, protocols: str) -> ACL:
    return ACL(
        action=action,
        direction=AclDirection.IN,
        priority=priority,
        remote_addresses=addresses,
        local_ports=ports,
        protocols=protocols,
    )


ADDRESSES = ("", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.1.2.3", "10.1.0.0/16,10.2.0.0/16")
PORTS = ("", "80", "80,443", "1-1024", "1000-65535")
some_rules = st.builds(
    rule,
    st.sampled_from(list(AclAction)),
    st.integers(1, 4),
    st.sampled_from(ADDRESSES),
    st.sampled_from(PORTS),
    st.sampled_from(["", "6", "17", "1"]),
)
# So many that the list is edited; they match nothing that is asked below, but what they ask has answers.
PADDING = [rule(AclAction.BLOCK, i % 5, f"192.0.2.{i}", str(5000 + i), "6") for i in range(62)] + [
    rule(AclAction.BLOCK, 3, "192.0.2.0/24", "9", number) for number in ("17", "1")
]


def tier(order: int, *rules: ACL) -> TierAcl:
    """A tier with what rules of a list say."""
    made = tuple(
        TierAclRule(
            priority=item.priority,
            tier_acl_rule_action=item.action,
            remote_addresses=item.remote_addresses,
            local_ports=item.local_ports,
            protocols=item.protocols,
        )
        for item in rules
    )
    return TierAcl(direction=AclDirection.IN, order=order, tier_acl_rules=made)


positions = st.integers(0, 100)
edits = st.tuples(st.sampled_from(["add", "remove", "replace"]), positions, some_rules)
several = st.lists(edits, min_size=1, max_size=3)
some_tiers = st.builds(
    lambda order, rules: tier(order, *rules), st.sampled_from([0, 1, 2, 4]), st.lists(some_rules, max_size=3)
)
QUESTIONS = [
    (address, port, protocol)
    for address in ("10.1.2.3", "10.1.9.9", "10.2.0.1", "10.9.9.9", "172.16.0.1")
    for port, protocol in ((80, 6), (443, 6), (2000, 17), (0, 1), (80, 132))
]


def edited_list(policies: list[ACL], edit: tuple[str, int, ACL]) -> list[ACL]:
    how, position, new = edit
    after = list(policies)
    where = position % len(after) if after else 0
    if how == "add" or not after:
        after.insert(where, new)
    elif how == "remove":
        after.pop(where)
    else:
        after[where] = new
    return after


def incoming_table(policies: PolicyList, known: Known = NONE_KNOWN) -> Table:
    """The table of one direction, as an endpoint's compilation gives it."""
    builder = Builder()
    compile_acl(builder, "NET", (), policies, known=known)
    (table,) = cast(list[Table], list(builder.shared.values()))
    return table


def port_of(reference: AclTable, generation: int) -> Port:
    return Port(
        1, 1, 0, NO_MAC, NO_MAC, (ZERO, ZERO), (ZERO, ZERO), generation, (reference.table, 0), 0, 0,
        (reference.words, 0), (reference.shape, 0), 1500,
    )  # fmt: skip


def verdicts(entries: Entries, reference: AclTable) -> list[tuple[int, bool] | None]:
    """What the simulated switch says to each question: the rule's priority and whether it allows."""
    port, state = port_of(reference, 1), State({table: dict(rows) for table, rows in entries.items()}, 0)
    found: list[tuple[int, bool] | None] = []
    for address, number, protocol in QUESTIONS:
        ends = Tuple(parse_address(address).packed, parse_address("10.200.0.1").packed, 40000, number)
        parsed = Parsed(data=bytearray(), family=4, protocol=protocol, tuple=ends)
        decided = decide(state, Walk(parsed, Arrival.POD, 1, 1, 1, first=ends, out=ends), port, ACL_IN)
        found.append((decided.priority, decided.action == Verdict.ALLOW) if decided is not None else None)
    return found


@settings(max_examples=60)
@given(
    st.lists(some_rules, max_size=6),
    st.lists(some_tiers, max_size=2),
    st.booleans(),
    st.lists(st.tuples(several | st.just([]), st.none() | st.none() | some_tiers), min_size=1, max_size=5),
)
@example(  # between the old rule and the new one nothing may pass
    [rule(AclAction.BLOCK, 1, "10.1.2.3", "80", "6"), rule(AclAction.ALLOW, 4, "", "", "6")],
    [],
    False,
    [([("replace", 0, rule(AclAction.BLOCK, 1, "10.1.2.3", "80,443", "6"))], None)],
)
@example(  # a tier that blocks what the list lets pass, and is replaced and emptied
    [rule(AclAction.ALLOW, 1, "", "", "6")],
    [tier(1, rule(AclAction.PASS, 1, "10.2.0.0/16", "", ""), rule(AclAction.BLOCK, 2, "", "443", ""))],
    False,
    [
        ([], tier(0, rule(AclAction.PASS, 1, "10.1.0.0/16", "", ""), rule(AclAction.BLOCK, 2, "", "80", ""))),
        ([], tier(1, rule(AclAction.BLOCK, 1, "10.1.2.3", "443", ""), rule(AclAction.PASS, 2, "", "", ""))),
        ([], tier(1)),
        ([], tier(0)),
    ],
)
@example(  # of two stages at once: what passes in the old tier must not meet the new list
    [rule(AclAction.BLOCK, 2, "", "443", "")],
    [tier(1, rule(AclAction.BLOCK, 3, "", "443", ""), rule(AclAction.PASS, 1, "10.1.2.3", "", ""))],
    False,
    [
        (
            [("add", 0, rule(AclAction.ALLOW, 1, "", "443", ""))],
            tier(1, rule(AclAction.BLOCK, 3, "", "443", "")),
        )
    ],
)
@example(  # tiers alone, a list behind them, and none again: what passes in the last stage is let through
    [],
    [tier(1, rule(AclAction.PASS, 1, "10.1.0.0/16", "", ""))],
    True,
    [
        (
            [],
            tier(4, rule(AclAction.PASS, 2, "10.2.0.0/16", "", ""), rule(AclAction.BLOCK, 2, "", "443", "")),
        ),
        ([("add", 0, rule(AclAction.BLOCK, 1, "", "443", ""))], None),
        ([("remove", 0, rule(AclAction.BLOCK, 1, "", "443", ""))], None),
        ([], tier(4)),
    ],
)
def test_rules_that_are_edited(
    start: list[ACL],
    tiers: list[TierAcl],
    only_tiers: bool,
    changes: list[tuple[list[tuple[str, int, ACL]], TierAcl | None]],
) -> None:
    """After each change the entries are those that the rules give from nothing; and at every moment on the way each
    question is answered as before or as after.
    """
    front = {item.order: item for item in tiers}
    policies = [*start, *PADDING, *PADDING[:4]]
    if only_tiers:
        front[3], policies = tier(3, *policies[len(start) :]), start
    listed = PolicyList([*front.values(), *policies])
    table = incoming_table(listed)
    ownership = Ownership()
    kernel = apply(ownership.replace("acl", table.steps[-1].entries), {})
    for change, item in changes:
        for one in change:
            policies = edited_list(policies, one)
        if item is not None:
            front[item.order] = item
        listed = listed.updated([*front.values(), *policies])
        before, table = table, incoming_table(listed, Known({table.name: table}, own=(table, None)))
        assert table.rules == direction_rules(AclDirection.IN, (), listed)
        again = incoming_table(listed)
        if table.name != before.name:  # a rule that asks what no other did, or no place
            kernel = apply(ownership.replace("acl", table.steps[-1].entries), kernel)
            continue
        fresh = Table(table.reference, table.rules, table.places)
        fresh.starts, fresh.asked = table.starts, again.asked
        fill(fresh, "")
        assert table.steps[-1].entries == fresh.steps[-1].entries
        was = verdicts(kernel, before.reference)
        will = verdicts(again.steps[-1].entries, again.reference)
        for step in table.steps if table is not before else ():
            for operation in ownership.replace("acl", step.entries, step.edit):
                kernel = apply([operation], kernel)
                answers = verdicts(kernel, table.reference)
                assert all(now in (old, new) for now, old, new in zip(answers, was, will, strict=True))
        assert kernel == table.steps[-1].entries
        assert verdicts(kernel, table.reference) == will
