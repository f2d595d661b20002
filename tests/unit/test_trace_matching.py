"""Which rule decided, in words."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from samewire.hcn.policies import ACL, AclAction, AclDirection
from samewire.trace.matching import (
    Packet,
    acl_text,
    nat_text,
    nexthop_address,
    route_text,
    scope_from_host,
)
from samewire.vfp.acl_names import AclNames
from samewire.vfp.address import ZERO, parse_address, parse_prefix
from samewire.vfp.compile.acl import compile_acl
from samewire.vfp.compile.builder import Builder
from samewire.vfp.constants import OWN_ROUTE_KEY_BITS, SCOPE_HOST, NatFlag, RouteKind
from samewire.vfp.hashes import set_name
from samewire.vfp.model import Entries, HostBinding
from samewire.vfp.simulate.packet import Tuple
from samewire.vfp.tables import Id, Nat, NatKey, Nexthop, OwnRouteKey, Port, Route, RouteKey
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
    assert route_text(tables, packet(destination), 0) == text


@pytest.mark.parametrize(
    ("prefix", "text"),
    [
        ("93.184.0.0/16", "93.184.0.0/16 (the endpoint's own route) is the node's own"),
        ("0.0.0.0/0", "0.0.0.0/0 (the endpoint's own route) is the node's own"),
        ("10.0.0.0/8", "0.0.0.0/0 via 192.168.1.1 on the uplink, MTU 1500"),
    ],
)
def test_an_endpoints_own_routes(tables: Entries, prefix: str, text: str) -> None:
    destination = parse_prefix(prefix)
    port = tables["sw_ports"][Id(CLIENT_PORT)]
    assert isinstance(port, Port)
    key = OwnRouteKey(OWN_ROUTE_KEY_BITS + destination.bits, 1, 2, destination.family, destination.packed)
    own: Entries = {
        "sw_own_routes": {key: Route(RouteKind.HOST, 0, 0, 0, destination.bits)},
        "sw_ports": {**tables["sw_ports"], Id(CLIENT_PORT): replace(port, route_set=2 << 32 | 1)},
    }
    assert route_text({**tables, **own}, packet("93.184.216.34"), CLIENT_PORT) == text
    elsewhere = route_text({**tables, **own}, packet("93.184.216.34"), WEB_PORT)
    assert elsewhere == "0.0.0.0/0 via 192.168.1.1 on the uplink, MTU 1500"


def test_the_longest_prefix_wins_whatever_the_order(tables: Entries) -> None:
    for rows in (tables["sw_routes"], dict(reversed(list(tables["sw_routes"].items())))):
        found = route_text({**tables, "sw_routes": rows}, packet("10.244.1.1"), 0)
        assert found == "10.244.1.1/32 is the node's own"
    for rows in (tables["sw_nat"], dict(reversed(list(tables["sw_nat"].items())))):
        text = nat_text({**tables, "sw_nat": rows}, CLIENT_PORT, packet("10.244.9.9"), 1)
        assert text.startswith("rule 1: to 10.244.0.0/16")


def test_other_routes(tables: Entries) -> None:
    key = RouteKey(32 + 8, 1, 4, packed("11.0.0.0"))
    for route, text in (
        (Route(RouteKind.BLACKHOLE, 0, 0, 0, 8), "11.0.0.0/8 leads nowhere (blackhole)"),
        (Route(RouteKind.TUNNEL, 0, 0, 999, 8), "11.0.0.0/8 leads to next hop 999, which is missing"),
        (Route(RouteKind.SCOPE, 0, 3, 0, 8), "11.0.0.0/8 is network 3's"),
    ):
        changed = {**tables, "sw_routes": {**tables["sw_routes"], key: route}}
        assert route_text(changed, packet("11.1.2.3"), 0) == text


def test_the_network_that_the_node_means(tables: Entries) -> None:
    assert scope_from_host(tables, 4, packed("10.244.2.9")) == 1
    assert scope_from_host(tables, 4, packed("8.8.8.8")) == SCOPE_HOST


def test_next_hops() -> None:
    hop = Nexthop(RouteKind.UPLINK, 4, 1500, 2, 0, packed("192.168.1.1"), ZERO, bytes(6))
    assert nexthop_address(hop, 4, packed("8.8.8.8")) == "192.168.1.1"
    assert nexthop_address(replace(hop, address=ZERO), 4, packed("192.168.1.9")) == "192.168.1.9"


def with_rules(tables: Entries, *rules: ACL, allow_unmatched: bool = False) -> Entries:
    port = tables["sw_ports"][Id(WEB_PORT)]
    assert isinstance(port, Port)
    builder = Builder()
    incoming, outgoing = compile_acl(builder, "NET", (), rules, allow_unmatched)
    changed = replace(
        port,
        acl_table=(incoming.table, outgoing.table),
        acl_words=(incoming.words, outgoing.words),
        acl_shape=(incoming.shape, outgoing.shape),
    )
    return {**tables, **builder.compiled(HostBinding()).everything(), "sw_ports": {Id(WEB_PORT): changed}}


def acl(direction: str = "In", action: str = "Allow", **fields: Any) -> ACL:
    return ACL(action=AclAction(action), direction=AclDirection(direction), **fields)


def test_the_rule_that_decided(tables: Entries) -> None:
    found = with_rules(
        tables,
        acl(local_ports="443", protocols="6", priority=100),
        acl("Out", "Block", protocols="17,6", local_ports="1-3", remote_ports="80-90,100", priority=7),
        acl(remote_addresses="10.244.0.0/16,fd00::1", priority=200),
    )
    assert acl_text(found, WEB_PORT, False, 1) == "rule 1, priority 100: allow, tcp, local port 443"
    assert acl_text(found, WEB_PORT, True, 2) == (
        "rule 2, priority 7: block, tcp,udp, local port 1-3, remote port 80-90,100"
    )
    assert acl_text(found, WEB_PORT, False, 3) == (
        "rule 3, priority 200: allow, any protocol, remote 10.244.0.0/16,fd00::1/128"
    )
    assert acl_text(found, WEB_PORT, False, 77) == "rule 77"


def test_a_rule_and_a_set_under_their_own_names(tables: Entries) -> None:
    found = with_rules(tables, acl("In", "Block", local_addresses="azure-npm-1", priority=10))
    names = AclNames({1: "azure-acl-web"}, {set_name("NET", "azure-npm-1"): "azure-npm-1"})
    assert acl_text(found, WEB_PORT, False, 1, names) == (
        "rule 1 (azure-acl-web), priority 10: block, any protocol, remote set azure-npm-1"
    )


def test_without_a_match(tables: Entries) -> None:
    assert acl_text(tables, CLIENT_PORT, True, 0) == "no rules: everything passes"
    assert acl_text(with_rules(tables, acl(), acl()), WEB_PORT, False, 0) == "no match in 2 rules"
    assert acl_text(with_rules(tables, acl(), allow_unmatched=True), WEB_PORT, False, 0) == (
        "no match in 1 rule: let pass"
    )
    assert acl_text(tables, 999, False, 0) == "no rules: everything passes"


def test_nat(tables: Entries) -> None:
    assert nat_text(tables, CLIENT_PORT, packet("8.8.8.8"), 1) == "rule 1: to 0.0.0.0/0 as 192.168.1.10"
    assert nat_text(tables, WEB_PORT, packet("8.8.8.8"), 0).startswith("hairpin")
    assert nat_text(tables, WEB_PORT, packet("8.8.8.8"), 4) == "rule 4"


def test_nat_inside_the_network(tables: Entries) -> None:
    port = tables["sw_ports"][Id(CLIENT_PORT)]
    assert isinstance(port, Port)
    key = NatKey(64 + 16, port.nat_set, 4, packed("10.200.0.0"))
    nat = {**tables["sw_nat"], key: Nat(1, NatFlag.EXPLICIT, 0, 2, packed("192.168.1.10"))}
    text = nat_text({**tables, "sw_nat": nat}, CLIENT_PORT, packet("10.200.1.1"), 2)
    assert text == "rule 2: to 10.200.0.0/16, everywhere as 192.168.1.10"
