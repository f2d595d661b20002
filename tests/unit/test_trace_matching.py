"""Which rule decided, in words."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from samewire.trace.matching import (
    Packet,
    acl_text,
    nat_text,
    nexthop_address,
    route_text,
    scope_from_host,
)
from samewire.vfp.address import ZERO, parse_address
from samewire.vfp.constants import SCOPE_HOST, NatFlag, RouteKind
from samewire.vfp.model import Entries
from samewire.vfp.simulate.packet import Tuple
from samewire.vfp.tables import AclKey, AclRule, Id, Nat, NatKey, Nexthop, Port, Route, RouteKey
from tests.support.tools import CLIENT_PORT, WEB_PORT, compiled


def packed(text: str) -> bytes:
    return parse_address(text).packed


def packet(destination: str, port: int = 80, protocol: int = 6, source: str = "10.244.1.6") -> Packet:
    ends = Tuple(packed(source), packed(destination), 40000, port)
    return Packet(1, parse_address(destination).family, protocol, ends)


@pytest.fixture
def tables() -> Entries:
    return compiled()


@pytest.mark.parametrize(
    ("destination", "text"),
    [
        ("10.244.1.5", "10.244.1.0/24 is this network's own"),
        ("10.244.1.1", "10.244.1.1/32 is the node's own"),
        ("10.244.2.9", "10.244.2.0/24 via 192.168.1.11 in VXLAN 4096, MTU 1450"),
        ("192.168.1.77", "192.168.1.0/24 on-link on the uplink, MTU 1500"),
        ("93.184.216.34", "0.0.0.0/0 via 192.168.1.1 on the uplink, MTU 1500"),
        ("2001:db8::1", "::/0 via fd00:1::1 on the uplink, MTU 1500"),
    ],
)
def test_routes(tables: Entries, destination: str, text: str) -> None:
    assert route_text(tables, packet(destination)) == text


def test_the_longest_prefix_wins_whatever_the_order(tables: Entries) -> None:
    for rows in (tables["sw_routes"], dict(reversed(tables["sw_routes"].items()))):
        found = route_text({**tables, "sw_routes": rows}, packet("10.244.1.1"))
        assert found == "10.244.1.1/32 is the node's own"
    for rows in (tables["sw_nat"], dict(reversed(tables["sw_nat"].items()))):
        text = nat_text({**tables, "sw_nat": rows}, CLIENT_PORT, packet("10.244.9.9"), 1)
        assert text.startswith("rule 1: to 10.244.0.0/16")


def test_other_routes(tables: Entries) -> None:
    key = RouteKey(32 + 8, 1, 4, packed("11.0.0.0"))
    for route, text in (
        (Route(RouteKind.BLACKHOLE, 0, 0, 0), "11.0.0.0/8 leads nowhere (blackhole)"),
        (Route(RouteKind.TUNNEL, 0, 0, 999), "11.0.0.0/8 leads to next hop 999, which is missing"),
        (Route(RouteKind.SCOPE, 0, 3, 0), "11.0.0.0/8 is network 3's"),
    ):
        changed = {**tables, "sw_routes": {**tables["sw_routes"], key: route}}
        assert route_text(changed, packet("11.1.2.3")) == text


def test_the_network_that_the_node_means(tables: Entries) -> None:
    assert scope_from_host(tables, 4, packed("10.244.2.9")) == 1
    assert scope_from_host(tables, 4, packed("8.8.8.8")) == SCOPE_HOST


def test_next_hops() -> None:
    hop = Nexthop(RouteKind.UPLINK, 4, 1500, 2, 0, packed("192.168.1.1"), ZERO, bytes(6))
    assert nexthop_address(hop, 4, packed("8.8.8.8")) == "192.168.1.1"
    assert nexthop_address(replace(hop, address=ZERO), 4, packed("192.168.1.9")) == "192.168.1.9"


def rule(number: int, **fields: object) -> AclRule:
    base = AclRule(number, 100, 6, 1, 0, 0, 0, ZERO, ZERO, 0, 65535, 0, 65535)
    return replace(base, **fields)


def with_rules(tables: Entries, *rules: AclRule) -> Entries:
    port = tables["sw_ports"][Id(WEB_PORT)]
    assert isinstance(port, Port)
    changed = replace(port, acl_set=(9, 9), acl_count=(len(rules), len(rules)))
    acl = {AclKey(9, index): entry for index, entry in enumerate(rules)}
    return {**tables, "sw_ports": {Id(WEB_PORT): changed}, "sw_acl": acl}


def test_the_entry_of_a_rule_that_matched(tables: Entries) -> None:
    """A policy with lists becomes several entries of one rule: the one that matched is named."""
    found = with_rules(
        tables,
        rule(1, local_port_low=443, local_port_high=443),
        rule(1, protocol=256, remote=packed("10.244.0.0"), remote_bits=16, family=4, local_port_low=80),
        rule(1, action=0),
    )
    text = acl_text(found, WEB_PORT, False, packet("10.244.1.5"), 1)
    assert text == "rule 1, priority 100: allow, any protocol, local ports 80-65535, remote 10.244.0.0/16"


@pytest.mark.parametrize(
    ("fields", "outward", "matches"),
    [
        ({}, False, True),
        ({"protocol": 17}, False, False),
        ({"family": 6}, False, False),
        ({"remote_port_low": 40001}, False, False),
        ({"remote_port_high": 39999}, False, False),
        ({"remote_port_low": 40000}, True, False),
        ({"local_port_low": 40000}, True, True),
        ({"local": packed("10.244.1.5"), "local_bits": 32, "family": 4}, False, True),
        ({"local": packed("10.244.1.5"), "local_bits": 32, "family": 4}, True, False),
        ({"remote": packed("10.9.0.0"), "remote_bits": 16, "family": 4}, False, False),
    ],
)
def test_conditions(tables: Entries, fields: dict[str, object], outward: bool, matches: bool) -> None:
    text = acl_text(with_rules(tables, rule(1, **fields)), WEB_PORT, outward, packet("10.244.1.5"), 1)
    assert text.startswith("rule 1, priority") == matches
    assert text.startswith("rule 1")


def test_protocols_without_ports_have_port_zero(tables: Entries) -> None:
    found = with_rules(tables, rule(1, protocol=1, local_port_low=80), rule(1, protocol=1))
    assert acl_text(found, WEB_PORT, False, packet("10.244.1.5", 0, 1), 1).endswith("allow, icmp")


def test_without_a_match(tables: Entries) -> None:
    assert acl_text(tables, CLIENT_PORT, True, packet("10.244.1.5"), 0) == "no rules: everything passes"
    assert acl_text(tables, WEB_PORT, False, packet("10.244.1.5", 1), 0) == "none of 1 entries allows it"
    assert acl_text(tables, 999, False, packet("10.244.1.5"), 0) == "no rules: everything passes"


def test_nat(tables: Entries) -> None:
    assert nat_text(tables, CLIENT_PORT, packet("8.8.8.8"), 1) == "rule 1: to 0.0.0.0/0 as 192.168.1.10"
    assert nat_text(tables, WEB_PORT, packet("8.8.8.8"), 0).startswith("hairpin")
    assert nat_text(tables, WEB_PORT, packet("8.8.8.8"), 4) == "rule 4"


def test_nat_inside_the_network(tables: Entries) -> None:
    port = tables["sw_ports"][Id(CLIENT_PORT)]
    assert isinstance(port, Port)
    key = NatKey(64 + 16, port.nat_set, 4, packed("10.200.0.0"))
    nat = {**tables["sw_nat"], key: Nat(1, NatFlag.EXPLICIT, 2, packed("192.168.1.10"))}
    text = nat_text({**tables, "sw_nat": nat}, CLIENT_PORT, packet("10.200.1.1"), 2)
    assert text == "rule 2: to 10.200.0.0/16, everywhere as 192.168.1.10"
