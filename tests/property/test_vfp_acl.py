"""The compiled ACL tables judge every packet as the policies themselves do."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from samewire.hcn.policies import ACL, AclAction, AclDirection, Policy
from samewire.hcn.schema import Network, NetworkType
from samewire.vfp.address import NO_MAC, ZERO, parse_address
from samewire.vfp.compile.acl import compile_acl
from samewire.vfp.compile.builder import Builder
from samewire.vfp.compile.prefixes import range_prefixes
from samewire.vfp.compile.sets import compile_sets
from samewire.vfp.constants import ACL_IN, ACL_OUT, Arrival
from samewire.vfp.constants import AclAction as Stored
from samewire.vfp.model import HostBinding
from samewire.vfp.record import Record
from samewire.vfp.rule_names import rule_text
from samewire.vfp.simulate.acl import decide
from samewire.vfp.simulate.packet import Packet as Parsed
from samewire.vfp.simulate.packet import Tuple
from samewire.vfp.simulate.state import State, Walk
from samewire.vfp.tables import Port
from tests.support.acl_oracle import Packet, Verdict, judge
from tests.support.acl_policies import endpoint_policies, network_policies, packets

SETTINGS = settings(max_examples=300)
NET = "11111111-2222-3333-4444-555555555555"


def compiled(
    network: list[Policy], endpoint: list[Policy], allow_unmatched: bool = False
) -> tuple[dict[str, dict[Record, Record]], Port]:
    """All tables, and a port that refers to them."""
    builder = Builder()
    tables = compile_acl(builder, NET, network, endpoint, allow_unmatched)
    sets = compile_sets(Network(id=NET, type=NetworkType.OVERLAY, policies=tuple(network)), 1)
    entries = {
        name: dict(rows)
        for name, rows in {**builder.compiled(HostBinding()).everything(), **sets.entries}.items()
    }
    port = Port(
        1, 1, 0, NO_MAC, NO_MAC, (ZERO, ZERO), (ZERO, ZERO), 0,
        (tables[0].table, tables[1].table), tables[0].space or tables[1].space, 0,
        (tables[0].words, tables[1].words), (tables[0].shape, tables[1].shape), 1500,
    )  # fmt: skip
    return entries, port


def switch(
    entries: dict[str, dict[Record, Record]], port: Port, direction: AclDirection, packet: Packet
) -> Verdict:
    """What the simulated switch says."""
    side = ACL_IN if direction is AclDirection.IN else ACL_OUT
    if not port.acl_words[side]:
        return Verdict(True, "")
    source, destination = parse_address(packet.source), parse_address(packet.destination)
    ends = Tuple(source.packed, destination.packed, packet.source_port, packet.destination_port)
    parsed = Parsed(data=bytearray(), family=source.family, protocol=packet.protocol, tuple=ends)
    walk = Walk(parsed, Arrival.POD, 1, 1, 1, first=ends, out=ends)
    rule = decide(State(entries, 0), walk, port, side)
    if rule is None or not rule.rule:
        return Verdict(rule is not None and rule.action == Stored.ALLOW, "")
    return Verdict(rule.action == Stored.ALLOW, rule_text(rule.rule))


@SETTINGS
@given(network_policies(), endpoint_policies(), st.lists(packets, min_size=1, max_size=8), st.booleans())
def test_tables_judge_like_the_policies(
    network: list[Policy], endpoint: list[Policy], sent: list[Packet], allow_unmatched: bool
) -> None:
    entries, port = compiled(network, endpoint, allow_unmatched)
    for packet in sent:
        for direction in AclDirection:
            expected = judge(direction, network, endpoint, packet, allow_unmatched)
            assert switch(entries, port, direction, packet) == expected, (direction, packet)


@SETTINGS
@given(st.lists(st.integers(0, 199), min_size=1, max_size=12), st.integers(1, 250))
def test_many_rules(places: list[int], repeat: int) -> None:
    """Rules that nobody matches in between: words that are empty in some vectors, and in the middle of others."""
    filler = ACL(
        action=AclAction.BLOCK, direction=AclDirection.IN, protocols="6", local_ports="1", priority=1
    )
    policies: list[Policy] = [filler] * (repeat * 3)
    for place in places:
        hit = ACL(
            action=AclAction.ALLOW, direction=AclDirection.IN, remote_addresses=f"10.9.0.{place}", priority=1
        )
        policies.insert(place % (len(policies) + 1), hit)
    entries, port = compiled([], policies)
    for place in range(0, 200, 17):
        packet = Packet(6, f"10.9.0.{place}", "10.0.0.1", 5, 80)
        assert switch(entries, port, AclDirection.IN, packet) == judge(AclDirection.IN, [], policies, packet)


@SETTINGS
@given(st.tuples(st.integers(0, 65535), st.integers(0, 65535)).map(sorted))
def test_prefixes_of_a_range_cover_it_and_nothing_else(ends: list[int]) -> None:
    covered: list[int] = []
    for value, bits in range_prefixes(*ends):
        assert value % (1 << (16 - bits)) == 0
        covered += [value, value + (1 << (16 - bits)) - 1]
    assert covered[0] == ends[0]
    assert covered[-1] == ends[1]
    assert all(end + 1 == start for end, start in zip(covered[1:-1:2], covered[2::2], strict=True))
    assert len(covered) // 2 <= 30
