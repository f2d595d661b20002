"""ACL and OutBoundNAT policies, by example."""

from __future__ import annotations

import pytest

from samewire.errors import Invalid
from samewire.hcn.policies import ACL, AclAction, AclDirection, AclRuleType, NatFlags, OutBoundNAT
from samewire.vfp.address import ZERO, parse_address
from samewire.vfp.compile.acl import AclSet, compile_acl, expand_rules
from samewire.vfp.compile.builder import Builder
from samewire.vfp.compile.nat import compile_nat, nat_tree
from samewire.vfp.constants import MAX_ACL_PER_SET, PROTOCOL_ANY
from samewire.vfp.constants import AclAction as Verdict
from samewire.vfp.model import NodeFacts
from samewire.vfp.numbers import MemoryNumbers
from samewire.vfp.tables import AclKey, AclRule

NODE = (parse_address("192.168.1.10").packed, parse_address("fd00:1::10").packed)


def acl(action: str = "Allow", direction: str = "In", **fields: object) -> ACL:
    return ACL(action=AclAction(action), direction=AclDirection(direction), **fields)  # type: ignore[arg-type]


def order(*policies: ACL) -> list[int]:
    return [entry.rule for entry in expand_rules(enumerate(policies))]


def test_lower_priority_number_first_then_block_then_list_order() -> None:
    assert order(acl(priority=200), acl(priority=100), acl("Block", priority=200), acl(priority=100)) == [
        2,
        4,
        3,
        1,
    ]


def test_fields_of_an_entry() -> None:
    policy = acl(
        protocols="17",
        local_addresses="10.244.1.5",
        remote_addresses="10.0.0.7/8",
        local_ports="53",
        remote_ports="1024-65535",
        priority=300,
        rule_type=AclRuleType.HOST,
    )
    assert expand_rules([(4, policy)]) == [
        AclRule(
            rule=5,
            priority=300,
            protocol=17,
            action=Verdict.ALLOW,
            family=4,
            local_bits=32,
            remote_bits=8,
            local=parse_address("10.244.1.5").packed,
            remote=parse_address("10.0.0.0").packed,
            local_port_low=53,
            local_port_high=53,
            remote_port_low=1024,
            remote_port_high=65535,
        )
    ]


def test_an_empty_rule_matches_everything() -> None:
    (entry,) = expand_rules([(0, acl("Block"))])
    assert entry == AclRule(1, 0, PROTOCOL_ANY, Verdict.BLOCK, 0, 0, 0, ZERO, ZERO, 0, 65535, 0, 65535)


def test_lists_multiply_and_families_do_not_mix() -> None:
    policy = acl(
        protocols="6, 17",
        local_addresses="10.0.0.1,fd00::1",
        remote_addresses="10.1.0.0/16,fd01::/64",
        local_ports="80,443",
    )
    entries = expand_rules([(0, policy)])
    assert len(entries) == 2 * 2 * 2
    assert {(entry.family, entry.local_bits, entry.remote_bits) for entry in entries} == {
        (4, 32, 16),
        (6, 128, 64),
    }


def test_any_protocol_by_number() -> None:
    assert [entry.protocol for entry in expand_rules([(0, acl(protocols="6,256"))])] == [PROTOCOL_ANY]


def test_pass_lets_pass() -> None:
    assert [entry.action for entry in expand_rules([(0, acl("Pass"))])] == [Verdict.ALLOW]


def test_rules_that_cannot_match_still_close_the_direction() -> None:
    (entry,) = expand_rules([(0, acl(local_addresses="10.0.0.1", remote_addresses="fd00::1"))])
    assert (entry.action, entry.rule, entry.protocol, entry.family) == (Verdict.BLOCK, 0, PROTOCOL_ANY, 0)


def test_sets_by_direction_and_content() -> None:
    numbers = MemoryNumbers()
    one, two = Builder(), Builder()
    first = compile_acl(one, "E", (OutBoundNAT(), acl(priority=5), acl("Block", "Out")), numbers)
    assert first == (AclSet(1, 1), AclSet(2, 1))
    assert set(one.entries["sw_acl"]) == {AclKey(1, 0), AclKey(2, 0)}
    assert [entry.rule for entry in one.entries["sw_acl"].values() if isinstance(entry, AclRule)] == [2, 3]
    changed = compile_acl(two, "E", (OutBoundNAT(), acl(priority=6), acl("Block", "Out")), numbers)
    assert changed == (AclSet(3, 1), AclSet(2, 1))
    assert compile_acl(Builder(), "E", (OutBoundNAT(),), numbers) == (AclSet(), AclSet())
    assert compile_acl(Builder(), "E", (acl(),), numbers)[1] == AclSet()


def test_too_many_entries() -> None:
    ports = ",".join(str(port) for port in range(1, MAX_ACL_PER_SET + 1))
    assert len(expand_rules([(0, acl(local_ports=ports))])) == MAX_ACL_PER_SET
    with pytest.raises(Invalid) as caught:
        expand_rules([(0, acl(local_ports=ports)), (3, acl(priority=1000))])
    assert caught.value.path == "$.Policies[3]"


@pytest.mark.parametrize(
    ("policy", "field"),
    [
        (acl(protocols="tcp"), "Protocols"),
        (acl(local_addresses="10.0.0.0/33"), "LocalAddresses"),
        (acl(remote_addresses="some-set-id"), "RemoteAddresses"),
        (acl(local_ports="90-80"), "LocalPorts"),
        (acl(remote_ports="http"), "RemotePorts"),
    ],
)
def test_invalid_lists_name_the_field(policy: ACL, field: str) -> None:
    with pytest.raises(Invalid) as caught:
        expand_rules([(2, policy)])
    assert caught.value.path == f"$.Policies[2].Settings.{field}"


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
