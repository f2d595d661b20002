"""ACL and OutBoundNAT policies, by example."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from samewire.errors import Invalid
from samewire.hcn.policies import (
    ACL,
    AclAction,
    AclDirection,
    NatFlags,
    NetworkACL,
    OutBoundNAT,
    Policy,
    SetPolicy,
    SetType,
    TierAcl,
    TierAclRule,
)
from samewire.hcn.policy_lists import PolicyList
from samewire.hcn.schema import Endpoint, Network, NetworkType
from samewire.vfp.acl_names import acl_names
from samewire.vfp.address import ZERO, parse_address, parse_prefix
from samewire.vfp.compile.acl import compile_acl
from samewire.vfp.compile.acl_rules import MAX_RULES, Ends, Rule, direction_rules
from samewire.vfp.compile.acl_table import NONE_KNOWN, AclTable, Known, Table, table_of
from samewire.vfp.compile.builder import Builder
from samewire.vfp.compile.nat import compile_nat, nat_tree
from samewire.vfp.compile.sets import compile_sets
from samewire.vfp.constants import AclAction as Verdict
from samewire.vfp.diff import change
from samewire.vfp.model import Compiled, HostBinding, NodeFacts
from samewire.vfp.numbers import MemoryNumbers
from samewire.vfp.rule_names import rule_text
from samewire.vfp.tables import AclRule, AclRuleKey

NODE = (parse_address("192.168.1.10").packed, parse_address("fd00:1::10").packed)


def acl(action: str = "Allow", direction: str = "In", **fields: Any) -> ACL:
    return ACL(action=AclAction(action), direction=AclDirection(direction), **fields)


def order(*policies: Policy, network: tuple[Policy, ...] = ()) -> list[str]:
    """The names of the incoming rules, in the order in which they are asked."""
    return [rule_text(rule.number) for rule in direction_rules(AclDirection.IN, network, policies)]


def test_a_rule_keeps_its_name() -> None:
    """Whoever comes and goes, a rule's name leads to its policy and back."""
    listed = PolicyList([acl(rule_id="a"), acl(rule_id="b"), acl(rule_id="c")])
    listed = listed.edited([listed.numbers[0]], [acl(rule_id="d")])
    listed = listed.updated([listed[0], acl(rule_id="e"), *listed[1:]])
    assert order(*listed) == ["1", "2", "3", "4"]  # a plain list has no other names
    found = direction_rules(AclDirection.IN, (), listed)
    assert [rule_text(rule.number) for rule in found] == ["2", "5", "3", "4"]
    names = acl_names(Endpoint(policies=listed), Network(type=NetworkType.OVERLAY)).policies
    assert [names[rule.number] for rule in found] == ["b", "e", "c", "d"]


def tier(order: int, *rules: TierAclRule, direction: str = "In") -> TierAcl:
    return TierAcl(name="t", direction=AclDirection(direction), order=order, tier_acl_rules=rules)


def tier_rule(action: str, **fields: Any) -> TierAclRule:
    return TierAclRule(tier_acl_rule_action=AclAction(action), **fields)


@pytest.mark.parametrize("tiered", [False, True])
@pytest.mark.parametrize("allow_unmatched", [False, True])
def test_the_last_rules_of_a_long_list(tiered: bool, allow_unmatched: bool) -> None:
    """They go one by one, and with the last one goes the table; or what passes in a tier before them decides then."""
    passing = tier_rule("Pass", protocols="6")
    front: list[Policy] = (
        [tier(0, *[passing] * 70), acl(direction="Out")] if tiered else [acl(direction="Out")]
    )
    listed = PolicyList([*front, *(acl("Block", protocols="6" if tiered else "") for _ in range(70))])
    known = NONE_KNOWN
    while len(listed) >= len(front):
        builder = Builder()
        incoming, _ = compile_acl(builder, "n", (), listed, allow_unmatched, known)
        tables = {name: part for name, part in builder.shared.items() if isinstance(part, Table)}
        known = Known(tables, own=(tables.get(incoming.table), None))
        listed = listed.updated(list(listed)[:-1])
    assert bool(incoming.words) == tiered
    rules = builder.compiled(HostBinding()).everything()["sw_acl_rules"]
    own = [row for key, row in rules.items() if isinstance(key, AclRuleKey) and key.table == incoming.table]
    assert not any(isinstance(row, AclRule) and row.action == Verdict.PASS for row in own)
    assert len(own) == (70 + allow_unmatched if tiered else 0)


def test_lower_priority_number_first_then_block_then_list_order() -> None:
    policies = acl(priority=200), acl(priority=100), acl("Block", priority=200), acl(priority=100)
    assert order(*policies) == ["2", "4", "3", "1"]


def test_tiers_come_first_by_order_and_the_networks_rules_stand_in_the_list() -> None:
    network = (
        NetworkACL(action=AclAction.ALLOW, direction=AclDirection.IN, priority=5),
        NetworkACL(action=AclAction.ALLOW, direction=AclDirection.OUT, priority=1),
    )
    policies = (
        acl(priority=5),
        tier(2, tier_rule("Allow")),
        acl(priority=1),
        tier(1, tier_rule("Allow", priority=3), tier_rule("Pass", priority=2)),
        tier(0, tier_rule("Block"), direction="Out"),
        tier(0),
    )
    assert order(*policies, network=network) == ["4.2", "4.1", "2.1", "3", "network 1", "1"]
    stages = [rule.stage for rule in direction_rules(AclDirection.IN, network, policies)]
    assert stages == sorted(stages)
    assert list(Counter(stages).values()) == [2, 1, 3]


def test_which_end_is_which() -> None:
    """With addresses, local is the endpoint's; a rule that names sets has sources in LocalAddresses (HNS)."""
    fields = {"local_ports": "80", "remote_ports": "1024-65535", "protocols": "17"}
    incoming = acl(local_addresses="10.0.0.1", remote_addresses="10.0.0.7/8", **fields)
    outgoing = acl("Allow", "Out", local_addresses="10.0.0.1", remote_addresses="10.0.0.7/8", **fields)
    with_sets = acl(local_addresses="clients", remote_addresses="10.0.0.1", **fields)
    own = Ends((parse_prefix("10.0.0.1/32"),))
    peer = Ends((parse_prefix("10.0.0.0/8"),))
    (found,) = direction_rules(AclDirection.IN, (), (incoming,))
    assert (found.source, found.destination) == (peer, own)
    assert (found.source_ports, found.destination_ports, found.protocols) == (
        ((1024, 65535),),
        ((80, 80),),
        (17,),
    )
    (found,) = direction_rules(AclDirection.OUT, (), (outgoing,))
    assert (found.source, found.destination) == (own, peer)
    assert (found.source_ports, found.destination_ports) == (((80, 80),), ((1024, 65535),))
    (found,) = direction_rules(AclDirection.IN, (), (with_sets,))
    assert (found.source, found.destination) == (Ends(sets=("clients",)), own)
    assert found.destination_ports == ((80, 80),)


def test_tables_are_named_by_their_content() -> None:
    one, two = Builder(), Builder()
    first = compile_acl(one, "NET", (), (OutBoundNAT(), acl(priority=5), acl("Block", "Out")))
    again = compile_acl(two, "OTHER", (), (OutBoundNAT(), acl(priority=5), acl("Block", "Out", priority=1)))
    assert first[0] == again[0]
    assert first[1] != again[1]
    assert [table.words for table in first] == [1, 1]
    assert compile_acl(Builder(), "NET", (), (OutBoundNAT(),)) == (AclTable(), AclTable())
    assert compile_acl(Builder(), "NET", (), (acl(),))[1] == AclTable()
    named = acl(local_addresses="some-set")
    spaces = {compile_acl(Builder(), name, (), (named,))[0].space for name in ("NET", "OTHER")}
    assert len(spaces) == 2
    assert 0 not in spaces


def rules_of(count: int, **last: str) -> tuple[Rule, ...]:
    policies = [
        acl(priority=i, remote_addresses=f"10.{i // 250}.{i % 250}.0/24", local_ports="80")
        for i in range(count)
    ]
    policies += [acl(priority=count, **last)] if last else []
    return direction_rules(AclDirection.IN, (), policies)


def test_a_table_that_is_there_is_taken_for_the_same_rules() -> None:
    rules = rules_of(80)
    made = table_of(rules, "NET", NONE_KNOWN)
    assert table_of(rules_of(80), "NET", Known({made.name: made})) is made
    assert table_of(rules, "NET", NONE_KNOWN).steps[0].entries == made.steps[0].entries


def test_an_edited_table_keeps_its_name_which_nobody_elses_gets() -> None:
    """Its name is that of what it was made of; whoever has that, gets another, and so after a restart."""
    rules, more = rules_of(80), rules_of(80, remote_addresses="10.9.9.0/24", local_ports="80")
    made = table_of(rules, "NET", NONE_KNOWN)
    edited = table_of(more, "NET", Known({made.name: made}), made)
    assert (edited.name, edited.rules) == (made.name, more)
    assert edited.reference != made.reference
    assert table_of(rules, "NET", Known({made.name: edited})).name != made.name
    assert table_of(rules, "NET", Known(reserved=frozenset({made.name}))).name != made.name
    assert table_of(more, "NET", Known({made.name: edited})) is not edited


@pytest.mark.parametrize("rules", [80, 1000, MAX_RULES - 1])
def test_one_rule_of_many_touches_what_is_its_own(rules: int) -> None:
    made = table_of(rules_of(rules), "NET", NONE_KNOWN)
    more = rules_of(rules, remote_addresses="192.0.2.0/24", local_ports="443")
    edited = table_of(more, "NET", Known({made.name: made}), made)
    (step,) = edited.steps
    assert step.edit is not None
    assert len(step.edit.puts) + len(step.edit.gone) <= 6
    back = table_of(rules_of(rules), "NET", Known({edited.name: edited}), edited)
    assert back.steps[-1].entries == made.steps[-1].entries


@pytest.mark.parametrize(
    "last",
    [
        {"protocols": "47"},  # a protocol that no rule has named
        {"local_ports": "80", "remote_ports": "1"},  # the client's port
        {"local_ports": "80", "remote_addresses": "a-set"},
    ],
)
def test_a_rule_that_asks_what_no_other_does_is_a_new_table(last: dict[str, str]) -> None:
    made = table_of(rules_of(80), "NET", NONE_KNOWN)
    assert table_of(rules_of(80, **last), "NET", Known({made.name: made}), made).name != made.name


def test_a_list_is_one_rule_however_long() -> None:
    """What is entered grows with the lists, not with their product."""
    addresses = ",".join(f"10.1.{i // 250}.{i % 250}" for i in range(1000))
    ports = ",".join(str(port) for port in range(2000, 4000, 2))
    builder = Builder()
    compile_acl(builder, "NET", (), (acl(remote_addresses=addresses, local_ports=ports, protocols="6"),))
    assert {table: len(rows) for table, rows in builder.compiled(HostBinding()).everything().items()} == {
        "sw_acl_rules": 1,
        "sw_acl_prefixes": 1000,
        "sw_acl_ports": 1002,
        "sw_acl_vectors": 2,
    }


def test_too_many() -> None:
    assert len(direction_rules(AclDirection.IN, (), [acl()] * MAX_RULES)) == MAX_RULES
    with pytest.raises(Invalid, match="at most 4095 ACL rules"):
        direction_rules(AclDirection.IN, (), [acl()] * (MAX_RULES + 1))
    with pytest.raises(Invalid, match="at most 63 tiers"):
        direction_rules(AclDirection.IN, (), [tier(i, tier_rule("Pass")) for i in range(65)])


@pytest.mark.parametrize(
    ("policy", "field"),
    [
        (acl(protocols="tcp"), "Protocols"),
        (acl(local_addresses="10.0.0.0/33"), "LocalAddresses"),
        (acl(remote_addresses="10.0.0.256"), "RemoteAddresses"),
        (acl(local_ports="90-80"), "LocalPorts"),
        (acl(remote_ports="http"), "RemotePorts"),
    ],
)
def test_invalid_lists_name_the_field(policy: ACL, field: str) -> None:
    with pytest.raises(Invalid) as caught:
        direction_rules(AclDirection.IN, (), (OutBoundNAT(), OutBoundNAT(), policy))
    assert caught.value.path == f"$.Policies[2].Settings.{field}"


def network(*sets: SetPolicy) -> Network:
    return Network(id="NET", type=NetworkType.OVERLAY, policies=sets)


def changed(before: Compiled, after: Compiled) -> dict[str, int]:
    """How many entries of each table differ."""
    touched = Counter(operation.table for operation in change(before.entries, after.entries))
    return dict(touched)


def test_a_member_more_touches_one_entry() -> None:
    members = [f"10.{i // 250}.{i % 250}.1" for i in range(10_000)]
    reds = SetPolicy(set_id="red", values=",".join(members))
    blues = SetPolicy(set_id="blue", values="10.0.7.1,10.0.8.1")
    before = compile_sets(network(reds, blues), 1)
    assert len(before.entries["sw_set_members"]) == 10_000
    more = SetPolicy(set_id="red", values=",".join([*members, "192.0.2.1"]))
    assert changed(before, compile_sets(network(more, blues), 2)) == {"sw_set_members": 1, "sw_acl_spaces": 1}
    less = SetPolicy(set_id="blue", values="10.0.7.1")
    assert changed(before, compile_sets(network(reds, less), 2)) == {"sw_set_members": 1, "sw_acl_spaces": 1}
    assert changed(before, compile_sets(network(reds, blues), 2)) == {}


def test_nested_sets_touch_classes_only() -> None:
    reds = SetPolicy(set_id="red", values="10.0.0.1,10.0.0.2,10.0.0.3")
    warm = SetPolicy(set_id="warm", policy_type=SetType.NESTEDIPSET, values="red")
    before = compile_sets(network(reds), 1)
    assert changed(before, compile_sets(network(reds, warm), 2)) == {"sw_set_classes": 1, "sw_acl_spaces": 1}


def test_an_address_in_too_many_sets() -> None:
    sets = [SetPolicy(set_id=f"s{i}", values="10.0.0.1") for i in range(257)]
    assert len(compile_sets(network(*sets[:256]), 1).entries["sw_set_classes"]) == 16
    with pytest.raises(Invalid, match="257 sets"):
        compile_sets(network(*sets), 1)


def tree(*policies: OutBoundNAT, node: tuple[bytes, ...] = NODE) -> dict[str, str]:
    """Prefix -> what the tree answers, in words."""
    answers = nat_tree(tuple(enumerate(policies, 1)), node).answers
    return {
        str(prefix): f"{'explicit ' if nat.flags else ''}snat by {nat.rule}" if nat.action else "none"
        for prefix, nat in answers
    }


def test_exceptions() -> None:
    assert tree(OutBoundNAT(exceptions=("10.0.0.0/8", "10.96.0.0/12", "192.168.1.0/24"))) == {
        "0.0.0.0/0": "snat by 1",
        "10.0.0.0/8": "none",  # 10.96.0.0/12 says the same
        "192.168.1.0/24": "none",
    }


def test_loopback_policy_behind_the_exceptions() -> None:
    policies = (OutBoundNAT(exceptions=("10.244.0.0/16",)), OutBoundNAT(destinations=("10.244.1.5/32",)))
    assert tree(*policies) == {
        "0.0.0.0/0": "snat by 1",
        "10.244.0.0/16": "none",
        "10.244.1.5/32": "explicit snat by 2",
    }


def test_per_destination_addresses() -> None:
    policies = (
        OutBoundNAT(virtual_ip="10.1.1.1", destinations=("168.63.129.16",)),
        OutBoundNAT(destinations=("169.254.169.254",)),
    )
    assert tree(*policies) == {
        "168.63.129.16/32": "explicit snat by 1",
        "169.254.169.254/32": "explicit snat by 2",
    }


def test_families() -> None:
    assert set(tree(OutBoundNAT())) == {"0.0.0.0/0", "::/0"}
    assert set(tree(OutBoundNAT(flags=NatFlags.IPV6))) == {"::/0"}
    assert set(tree(OutBoundNAT(exceptions=("fd00::/8",)))) == {"::/0", "fd00::/8"}
    assert set(tree(OutBoundNAT(), node=(NODE[0], ZERO))) == {"0.0.0.0/0"}
    assert tree(OutBoundNAT(), node=(ZERO, ZERO)) == {}


def test_the_address_is_the_virtual_ip_or_the_nodes() -> None:
    ((_, own), _) = nat_tree(((1, OutBoundNAT()),), NODE).answers
    ((_, virtual),) = nat_tree(((1, OutBoundNAT(virtual_ip="10.1.1.1")),), NODE).answers
    assert own.address == NODE[0]
    assert virtual.address == parse_address("10.1.1.1").packed


def test_sets_are_shared_by_content() -> None:
    facts = NodeFacts(name="n", uplink_ifindex=1, uplink_mac=bytes(6), uplink_mtu=1500)
    numbers = MemoryNumbers()
    same = ((1, OutBoundNAT(virtual_ip="10.1.1.1", exceptions=("10.0.0.0/8",))),)
    spelled = ((1, OutBoundNAT(virtual_ip="10.1.1.1", exceptions=("10.5.0.0/8",))),)
    other = ((1, OutBoundNAT(virtual_ip="10.1.1.2")),)
    builder = Builder()
    assert compile_nat(builder, same, facts, numbers) == (1, False)
    assert compile_nat(builder, spelled, facts, numbers) == (1, False)
    assert compile_nat(builder, other, facts, numbers) == (2, False)
    assert compile_nat(builder, ((1, OutBoundNAT()),), facts, numbers) == (0, False)  # no address to use
    assert compile_nat(builder, (), facts, numbers) == (0, False)
    assert len(builder.entries["sw_nat"]) == 3


@pytest.mark.parametrize(
    ("policy", "field"),
    [
        (OutBoundNAT(virtual_ip="x", flags=NatFlags.IPV6), "VirtualIP"),
        (OutBoundNAT(exceptions=("x",), flags=NatFlags.IPV6), "Exceptions"),
        (OutBoundNAT(destinations=("x",), flags=NatFlags.IPV6), "Destinations"),
        (OutBoundNAT(destinations=("x",)), "Destinations"),
    ],
)
def test_invalid_nat_names_the_field(policy: OutBoundNAT, field: str) -> None:
    with pytest.raises(Invalid) as caught:
        nat_tree(((3, policy),), NODE)
    assert caught.value.path == f"$.Policies[2].Settings.{field}"
