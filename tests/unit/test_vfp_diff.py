"""Operations, ownership and their text, by example."""

from __future__ import annotations

from samewire.vfp.address import NO_MAC, ZERO, parse_address, parse_mac
from samewire.vfp.constants import NAT_KEY_BITS, ROUTE_KEY_BITS, ConfigFlag, NatAction, RouteFlag, RouteKind
from samewire.vfp.diff import Put, Remove, apply, change, diff, is_early, ordered
from samewire.vfp.model import Entries
from samewire.vfp.ownership import Ownership
from samewire.vfp.record import Record
from samewire.vfp.render import entry_json, record_json, record_text
from samewire.vfp.tables import (
    AclRule,
    AclRuleKey,
    AclSpace,
    Config,
    DropKey,
    Endpoint,
    EndpointKey,
    FlowKey,
    Hash,
    Id,
    Nat,
    NatKey,
    Nexthop,
    Port,
    Portmap,
    PortmapKey,
    Route,
    RouteKey,
)

TEN = parse_address("10.0.0.1").packed
MAC = parse_mac("0E-2A-0A-00-00-01")
KEY = EndpointKey(TEN, 1, 4)
RULE = AclRule(1, 100, 0, 1)


def port(generation: int = 1, table: int = 0) -> Port:
    return Port(
        generation, 1, 0, MAC, NO_MAC, (TEN, ZERO), (ZERO, ZERO), 0, (table, 0), 0, 0, (1, 0), (0, 0), 1450
    )


def pod(table: int, generation: int) -> Entries:
    return {
        "sw_ports": {Id(7): port(generation, table)},
        "sw_endpoints": {KEY: Endpoint(7, 0, MAC)},
        "sw_acl_rules": {AclRuleKey(table, 0): RULE},
    }


def test_a_new_acl_table_comes_first_and_the_old_one_goes_last() -> None:
    assert change(pod(1, 1), pod(2, 2)) == [
        Put("sw_acl_rules", AclRuleKey(2, 0), RULE),
        Put("sw_ports", Id(7), port(2, 2)),
        Remove("sw_acl_rules", AclRuleKey(1, 0)),
    ]


def test_creation_and_deletion_orders_mirror_each_other() -> None:
    assert [op.table for op in change({}, pod(1, 1))] == ["sw_acl_rules", "sw_ports", "sw_endpoints"]
    assert [op.table for op in change(pod(1, 1), {})] == ["sw_endpoints", "sw_ports", "sw_acl_rules"]


def test_what_has_flows_judged_again_comes_last() -> None:
    """Flows that are judged again must not meet a member that has yet to go."""
    key, member = Hash(9), Put("sw_nat", NatKey(NAT_KEY_BITS, 1, 4, ZERO), Nat(0, 0, 0, 0, ZERO))
    before: Entries = {"sw_acl_spaces": {key: AclSpace(1, 5)}, member.table: {member.key: member.value}}
    after: Entries = {"sw_acl_spaces": {key: AclSpace(2, 6)}}
    last = Put("sw_acl_spaces", key, AclSpace(2, 6))
    assert change(before, after) == [Remove(member.table, member.key), last]
    assert ordered([last, Remove(member.table, member.key)]) == [Remove(member.table, member.key), last]
    assert [is_early(operation) for operation in (member, last, Remove("sw_ports", Id(7)))] == [
        True,
        False,
        False,
    ]


def test_equal_sets_keep_their_generation() -> None:
    key = Hash(9)
    assert change({"sw_acl_spaces": {key: AclSpace(1, 5)}}, {"sw_acl_spaces": {key: AclSpace(2, 5)}}) == []


def test_arrays_and_tables_of_the_programs_are_left_alone() -> None:
    flow = FlowKey((TEN, TEN), (1, 2), 1, 4, 6)
    actual: Entries = {"sw_config": {Id(0): Nat(0, 0, 0, 0, ZERO)}, "sw_flows": {flow: Nat(0, 0, 0, 0, ZERO)}}
    assert diff({}, actual) == []


def test_apply_leaves_its_argument_alone() -> None:
    before = pod(1, 1)
    assert apply(change(before, {}), before) == {}
    assert before == pod(1, 1)


def test_shared_entries_go_with_the_last_owner() -> None:
    nat: dict[Record, Record] = {NatKey(NAT_KEY_BITS, 1, 4, ZERO): Nat(NatAction.SNAT, 0, 0, 1, TEN)}
    shared: Entries = {"sw_nat": nat}
    ownership = Ownership()
    assert len(ownership.replace("a", shared)) == 1
    assert ownership.replace("b", shared) == []
    assert ownership.remove("a") == []
    assert ownership.tables() == shared
    assert ownership.remove("b") == [Remove("sw_nat", next(iter(nat)))]
    assert ownership.tables() == {}
    assert ownership.remove("b") == []


def test_what_all_pods_share_costs_the_last_one_no_more() -> None:
    """All pods of a network have one NAT entry, and come and go while many others have it."""
    asked: list[str] = []

    def standing(owner: str) -> tuple[int, str]:
        asked.append(owner)
        return 0, ""

    shared: Entries = {"sw_nat": {NatKey(NAT_KEY_BITS, 1, 4, ZERO): Nat(NatAction.SNAT, 0, 0, 1, TEN)}}
    ownership = Ownership(standing)
    for pod in range(100):
        ownership.replace(f"pod {pod}", shared)
    asked.clear()
    ownership.replace("one more", shared)
    ownership.remove("one more")
    ownership.remove("pod 50")
    assert set(asked) <= {"one more", "pod 50"}


def test_removing_a_pod_touches_only_its_entries() -> None:
    ownership = Ownership()
    ownership.replace("pod", pod(1, 1))
    ownership.replace("other", {"sw_ports": {Id(8): port()}})
    assert {(op.table, op.key) for op in ownership.remove("pod")} == {
        (table, key) for table, rows in pod(1, 1).items() for key in rows
    }
    assert ownership.tables() == {"sw_ports": {Id(8): port()}}


def test_a_local_endpoint_beats_a_remote_one() -> None:
    local, remote = Endpoint(7, 0, MAC), Endpoint(0, 3, MAC)
    ownership = Ownership()
    ownership.replace("local", {"sw_endpoints": {KEY: local}})
    assert ownership.replace("remote", {"sw_endpoints": {KEY: remote}}) == []
    assert ownership.remove("local") == [Put("sw_endpoints", KEY, remote)]
    assert ownership.replace("local", {"sw_endpoints": {KEY: local}}) == [Put("sw_endpoints", KEY, local)]


def test_an_address_reused_before_its_old_owner_is_gone() -> None:
    old, new = Endpoint(7, 0, MAC), Endpoint(8, 0, MAC)
    ownership = Ownership()
    ownership.replace("old", {"sw_endpoints": {KEY: old}})
    assert ownership.replace("new", {"sw_endpoints": {KEY: new}}) == [Put("sw_endpoints", KEY, new)]
    assert ownership.remove("old") == []
    assert ownership.owners("sw_endpoints", KEY) == ("new",)


def test_an_equal_port_keeps_its_generation() -> None:
    ownership = Ownership()
    ownership.replace("pod", pod(1, 1))
    assert ownership.replace("pod", pod(1, 2)) == []
    assert ownership.entries("pod") == pod(1, 1)
    operations = ownership.replace("pod", pod(2, 3))
    assert Put("sw_ports", Id(7), port(3, 2)) in operations


def test_operations_in_words() -> None:
    key = RouteKey(ROUTE_KEY_BITS + 24, 3, 4, parse_address("10.244.2.0").packed)
    route = Route(RouteKind.TUNNEL, RouteFlag.DECREMENT, 0, 12, 24)
    assert (
        Put("sw_routes", key, route).describe()
        == "+ sw_routes scope=3 address=10.244.2.0/24 -> kind=tunnel flags=decrement nexthop=12 bits=24"
    )
    assert Remove("sw_ports", Id(7)).describe() == "- sw_ports 7"


def test_entries_as_json() -> None:
    assert entry_json(KEY, Endpoint(7, 0, MAC)) == {
        "key": {"address": "10.0.0.1", "scope": 1, "family": 4},
        "value": {"port": 7, "nexthop": 0, "mac": "0E-2A-0A-00-00-01"},
    }


def test_records_in_words() -> None:
    assert record_json(port())["address"] == ["10.0.0.1", ""]
    assert record_json(DropKey(7, 2, 6, 7, 1))["reason"] == "blocked"
    assert record_json(DropKey(7, 2, 6, 200, 1))["reason"] == 200  # of a newer switch
    assert record_json(Nat(1, 0, 0, 1, TEN), 4)["address"] == "10.0.0.1"
    assert record_json(Nat(1, 0, 0, 1, parse_address("fd00::1").packed))["address"] == "fd00::1"
    hop = Nexthop(RouteKind.UPLINK, 6, 1500, 2, 0, parse_address("fe80::1").packed, ZERO, NO_MAC)
    assert record_text(hop) == "kind=uplink family=6 mtu=1500 ifindex=2 address=fe80::1"
    zeros = {
        field.name: NO_MAC if field.size == 6 else 0 for field in Config.fields if field.name != "reserved"
    }
    config = Config(**zeros | {"flags": int(ConfigFlag.EVENTS)})  # type: ignore[arg-type]
    assert record_text(config) == "flags=events"


def test_a_port_whose_mapping_goes_gets_its_generation_last() -> None:
    """And what else is new of it under the old one; no other change of mappings concerns flows."""
    ownership = Ownership()
    one, two = (PortmapKey(ZERO, number, 6, 4) for number in (80, 81))
    rows: dict[Record, Record] = {one: Portmap(7, 1, 8080, TEN), two: Portmap(7, 1, 8081, TEN)}
    ownership.replace("pod", {**pod(1, 1), "sw_portmaps": {one: rows[one]}})
    assert ownership.replace("pod", {**pod(1, 2), "sw_portmaps": rows}) == [
        Put("sw_portmaps", two, rows[two])
    ]
    assert ownership.replace("pod", {**pod(1, 3), "sw_portmaps": {one: rows[one]}}) == [
        Remove("sw_portmaps", two),
        Put("sw_ports", Id(7), port(3, 1), late=True),
    ]
    assert ownership.tables()["sw_ports"] == {Id(7): port(3, 1)}
    moved = Portmap(7, 1, 9090, TEN)
    assert ownership.replace("pod", {**pod(2, 4), "sw_portmaps": {one: moved}}) == [
        Put("sw_acl_rules", AclRuleKey(2, 0), RULE),
        Put("sw_ports", Id(7), port(3, 2)),
        Put("sw_portmaps", one, moved),
        Remove("sw_acl_rules", AclRuleKey(1, 0)),
        Put("sw_ports", Id(7), port(4, 2), late=True),
    ]
    assert ownership.entries("pod") == {**pod(2, 4), "sw_portmaps": {one: moved}}
    assert [step.table for step in ownership.remove("pod")] == [
        "sw_portmaps",
        "sw_endpoints",
        "sw_ports",
        "sw_acl_rules",
    ]
