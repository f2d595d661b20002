"""Very many routes of an endpoint's own change where they are: after any changes as if compiled from nothing, and at
every moment each address is led as before or as after.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from samewire.errors import Invalid
from samewire.hcn.numbered import Numbered
from samewire.hcn.policies import VSID, Policy, RemoteSubnetRoute, SDNRoute
from samewire.hcn.schema import (
    Endpoint,
    Ipam,
    IpConfiguration,
    Network,
    NetworkType,
    SdnRoute,
    Subnet,
)
from samewire.hcn.schema import Route as RouteObject
from samewire.node.planning import endpoint_owner
from samewire.node.wanted import Changes, Wanted, judged_again
from samewire.vfp.address import parse_address
from samewire.vfp.compile import compile_endpoint
from samewire.vfp.compile import route as compiler
from samewire.vfp.diff import Operation, Put, Remove, apply
from samewire.vfp.model import Compiled
from samewire.vfp.numbers import MemoryNumbers
from samewire.vfp.record import Record
from samewire.vfp.simulate.state import State
from samewire.vfp.tables import TABLES, Id, OwnRouteKey, Port, Route
from tests.unit.test_vfp_endpoint import FACTS

SETTINGS = settings(max_examples=60)
PREFIXES = (
    *("10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.1.2.3/32", "10.1.2.128/25", "10.9.0.0/16", "0.0.0.0/0"),
    *("2001:db8::/32", "2001:db8:1::/48", "::/0"),
)
HOPS = {4: ("", "192.168.1.77", "192.168.1.78", "10.244.2.7"), 6: ("", "fd00:1::77", "fd00:1::78")}
ASKED = tuple(
    parse_address(text)
    for text in ("10.1.2.3", "10.1.2.129", "10.1.9.9", "10.9.9.9", "11.0.0.1", "2001:db8:1::1", "2001:db9::1")
)
PADDING = [SDNRoute(destination_prefix=f"100.64.{i}.0/24", next_hop="192.168.1.77") for i in range(64)]
WIDE = SDNRoute(destination_prefix="10.0.0.0/8", next_hop="192.168.1.78")
OWNER = endpoint_owner("POD")

some_routes = st.sampled_from(PREFIXES).flatmap(
    lambda prefix: st.builds(
        SDNRoute,
        destination_prefix=st.just(prefix),
        next_hop=st.sampled_from(HOPS[6 if ":" in prefix else 4]),
    )
)
lists = st.lists(some_routes, max_size=6)
ports = st.sampled_from([42, 42, 42, 43])
named = st.lists(
    st.builds(SdnRoute, destination_prefix=st.sampled_from(PREFIXES[:3]), next_hop=st.sampled_from(HOPS[4])),
    max_size=2,
)
OUTCOMES = ("made", "made", "thrown away", "taken back")
Tables = Mapping[str, Mapping[Record, Record]]


def network(provider: str = "192.168.1.11") -> Network:
    remote = RemoteSubnetRoute(
        destination_prefix="10.244.2.0/24",
        isolation_id=4096,
        provider_address=provider,
        distributed_router_mac_address="02-AA-00-00-00-02",
    )
    subnets = (
        Subnet(ip_address_prefix="10.244.1.0/24", policies=(VSID(isolation_id=4096),)),
        Subnet(ip_address_prefix="fd00:244::/64", policies=(VSID(isolation_id=4096),)),
    )
    return Network(id="NET", type=NetworkType.OVERLAY, ipams=(Ipam(subnets=subnets),), policies=(remote,))


def compiled(
    policies: Sequence[Policy],
    generation: int,
    numbers: MemoryNumbers,
    port: int = 42,
    objects: Sequence[SdnRoute] = (),
) -> Compiled:
    endpoint = Endpoint(
        id="POD",
        network_id="NET",
        mac_address="0E-2A-0A-F4-01-05",
        ip_configurations=tuple(IpConfiguration(ip_address=a) for a in ("10.244.1.5", "fd00:244::5")),
        policies=policies if isinstance(policies, Numbered) else Numbered(policies),
    )
    routes = [RouteObject(routes=tuple(objects))] if objects else []
    return compile_endpoint(endpoint, network(), FACTS, numbers, port, generation, routes=routes)


def from_nothing(
    policies: Sequence[Policy],
    generation: int,
    numbers: MemoryNumbers,
    port: int,
    objects: Sequence[SdnRoute],
) -> Compiled:
    kept = dict(compiler._LAST)
    compiler._LAST.clear()
    try:
        return compiled(policies, generation, numbers, port, objects)
    finally:
        compiler._LAST.clear()
        compiler._LAST.update(kept)


def the_port(tables: Tables) -> Port:
    (port,) = tables["sw_ports"].values()
    assert isinstance(port, Port)
    return port


def ways(tables: Tables) -> list[tuple[int, int] | None]:
    """Where each address is led by the routes of the port's own."""
    state = State({table: dict(rows) for table, rows in tables.items()}, 0)
    found = [state.own_route(the_port(tables).route_set, a.family, a.packed, None) for a in ASKED]
    return [(route.kind, route.nexthop) if route is not None else None for route in found]


def led(result: Compiled) -> set[tuple[bytes, int, Route]]:
    """Where the routes of a compilation lead, whatever their set is called."""
    rows = result.entries.get("sw_own_routes", {}).items()
    return {
        (key.address, key.family, row)
        for key, row in rows
        if isinstance(key, OwnRouteKey) and isinstance(row, Route)
    }


def steps_of(changes: Changes) -> list[Operation]:
    return [*changes.puts(), *changes.removals()]


def check_steps(kernel: Tables, steps: Sequence[Operation]) -> Tables:
    """The tables after the steps, each of which leaves each address led as at the beginning or at the end."""
    was, will = ways(kernel), ways(apply(steps, kernel))
    for step in steps:
        kernel = apply([step], kernel)
        if step.table == "sw_ports" and len(kernel["sw_ports"]) != 1:
            continue  # the port is another: the old one goes later
        if len(kernel["sw_ports"]) == 1:
            assert all(now in (old, new) for now, old, new in zip(ways(kernel), was, will, strict=True))
    return kernel


def judged_last(steps: Sequence[Operation]) -> bool:
    """Whether the port's new generation holds when its routes are as they will be, and no sooner."""
    moved = [
        (i, step.value) for i, step in enumerate(steps) if isinstance(step, Put) and step.table == "sw_ports"
    ]
    ports = [(i, port) for i, port in moved if isinstance(port, Port)]
    last, port = ports[-1]
    own = [
        i
        for i, step in enumerate(steps)
        if isinstance(step.key, OwnRouteKey) and step.key.set == port.route_set
    ]
    return max(own, default=-1) < last and all(other.generation < port.generation for _, other in ports[:-1])


@SETTINGS
@given(
    st.lists(st.tuples(lists, ports, named, st.sampled_from(OUTCOMES), st.integers(0, 99)), max_size=7),
    st.booleans(),
)
@example([([], 42, [], "made", 0), ([WIDE], 42, [], "made", 0), ([], 42, [], "made", 0)], True)
def test_routes_that_are_edited(
    history: Sequence[tuple[list[SDNRoute], int, list[SdnRoute], str, int]], keeps_numbers: bool
) -> None:
    """Changes that are refused after their compilation, and those of which the kernel refuses some write, too. 64 are
    the most that are compiled whole: some states of a history are above, some not.
    """
    compiler._LAST.clear()
    numbers, wanted = MemoryNumbers(), Wanted({})
    first = Changes()
    listed: Numbered[Policy] = Numbered(PADDING)
    wanted.replace(OWNER, compiled(listed, 1, numbers), first)
    kernel: Tables = apply(steps_of(first), {})
    for generation, (routes, port, objects, outcome, writes) in enumerate(history, 2):
        after: list[Policy] = [*PADDING[: 64 - (writes % 2)], *routes]
        new: Numbered[Policy] = listed.updated(after) if keeps_numbers else Numbered(after)
        result = compiled(new, generation, numbers, port, objects)
        alone = from_nothing(after, generation, numbers, port, objects)
        assert result.entries == alone.entries
        assert result.binding == alone.binding
        few = compiled(routes, generation, numbers, port, objects)
        assert led(few) == {route for route in led(result) if not route[0].startswith(b"\x64\x40")}
        if outcome == "thrown away":
            continue
        made, before = Changes(), wanted.held(OWNER)
        wanted.replace(OWNER, result, made)
        steps = steps_of(made)
        if outcome == "made":
            kernel, listed = check_steps(kernel, steps), new
            assert not any(step.table == "sw_own_routes" for step in steps) or judged_last(steps)
        else:
            back = Changes()
            kernel = apply(steps[: writes % (len(steps) + 1)], kernel)
            wanted.replace(OWNER, judged_again(before, generation), back)
            kernel = apply(steps_of(back), kernel)
        assert kernel == wanted.entries.tables()
        if outcome == "made":
            assert kernel == {**alone.entries, "sw_ports": kernel["sw_ports"]}


def operations_of(wanted: Wanted, result: Compiled) -> list[Operation]:
    changes = Changes()
    wanted.replace(OWNER, result, changes)
    return steps_of(changes)


def test_one_route_of_very_many_is_one_operation_and_the_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no look at the others."""
    compiler._LAST.clear()
    numbers, wanted = MemoryNumbers(), Wanted({})
    listed: Numbered[Policy] = Numbered(
        [*PADDING, SDNRoute(destination_prefix="10.0.0.0/8"), SDNRoute(destination_prefix="10.9.0.0/16")]
    )
    operations_of(wanted, compiled(listed, 1, numbers))
    looked_at: list[str] = []
    destination = compiler._destination

    def counted(policies: Numbered[Policy], number: int) -> object:
        looked_at.append(str(destination(policies, number)))
        return destination(policies, number)

    monkeypatch.setattr(compiler, "_destination", counted)
    route = SDNRoute(destination_prefix="10.1.0.0/16", next_hop="192.168.1.78")
    more = listed.edited(new=[route])
    steps = operations_of(wanted, compiled(more, 2, numbers))
    assert [(type(step), step.table) for step in steps] == [
        (Put, "sw_nexthops"),
        (Put, "sw_own_routes"),
        (Put, "sw_ports"),
    ]
    less = more.edited(gone=[more.numbers[7], more.numbers[-1]])
    steps = operations_of(wanted, compiled(less, 3, numbers))
    assert [(type(step), step.table) for step in steps] == [
        (Remove, "sw_own_routes"),
        (Remove, "sw_own_routes"),
        (Remove, "sw_nexthops"),
        (Put, "sw_ports"),
    ]
    assert looked_at == ["10.1.0.0/16"]
    assert the_port(wanted.entries.tables()).generation == 3


def test_a_nexthop_whose_number_was_given_back_is_not_led_to() -> None:
    """A change that failed had asked for it; when the way comes again, it has another."""
    compiler._LAST.clear()
    listed: Numbered[Policy] = Numbered([*PADDING, SDNRoute(destination_prefix="10.0.0.0/8")])
    route = SDNRoute(destination_prefix="10.1.0.0/16", next_hop="192.168.1.78")
    once, again = MemoryNumbers(), MemoryNumbers()
    for numbers in (once, again):
        compiled(listed, 1, numbers)
    compiled(listed.edited(new=[route]), 2, once)
    again.number("nexthop", "somebody/else")
    result = compiled(listed.edited(new=[route]), 3, again)
    hops = {row.nexthop for row in result.entries["sw_own_routes"].values() if isinstance(row, Route)}
    assert {Id(number) for number in hops if number} <= result.entries["sw_nexthops"].keys()


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        (SDNRoute(destination_prefix="10.1.0.0/33"), "DestinationPrefix"),
        (SDNRoute(destination_prefix="10.1.0.0/16", next_hop="10.244.1.300"), "NextHop"),
        (SDNRoute(destination_prefix="10.1.0.0/16", next_hop="fd00::1"), "NextHop"),
    ],
)
def test_a_route_that_cannot_be(wrong: SDNRoute, field: str) -> None:
    """A change that fails leaves what is remembered as it was, and says where the route is."""
    compiler._LAST.clear()
    listed: Numbered[Policy] = Numbered([*PADDING, SDNRoute(destination_prefix="10.0.0.0/8")])
    before = compiled(listed, 1, MemoryNumbers())
    for policies in (listed.edited(new=[wrong]), Numbered([*listed, wrong])):
        with pytest.raises(Invalid) as error:
            compiled(policies, 2, MemoryNumbers())
        assert error.value.path == f"$.Policies[65].Settings.{field}"
    assert compiled(listed, 3, MemoryNumbers()).entries["sw_own_routes"] is before.entries["sw_own_routes"]


def names(*of: Compiled) -> Iterator[int]:
    for result in of:
        yield from {key.set for key in result.entries["sw_own_routes"] if isinstance(key, OwnRouteKey)}


def test_a_name_is_the_ports_and_no_contents() -> None:
    """Sets of a few are named by what they are, of very many by whose they are: now, and by the next process."""
    numbers = MemoryNumbers()
    few, many = compiled(PADDING, 1, numbers), compiled([*PADDING, *PADDING], 1, numbers)
    other = compiled([*PADDING, *PADDING], 1, numbers, port=43)
    assert list(names(few)) == list(names(compiled(PADDING, 2, numbers, port=43)))
    assert list(names(many, other)) == [42, 43]
    assert min(names(few)) >= 1 << 32
    assert [the_port(result.entries).route_set for result in (few, many)] == list(names(few, many))
    compiler._LAST.clear()
    assert list(names(compiled([*PADDING, *PADDING], 1, numbers))) == [42]


def test_there_is_room_for_what_is_shared_with_nobody() -> None:
    """Also of a node that had few entries for many endpoints, before they had sets of their own."""
    assert TABLES["sw_own_routes"].max_entries > (compiler._FEW + 1) * TABLES["sw_ports"].max_entries
