"""Members that come and go one by one: what that changes is what a compilation of the whole load balancer gives."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from samewire.hcn.loadbalancers import (
    BackendFlags,
    LoadBalancer,
    LoadBalancerBackend,
    LoadBalancerFlags,
    LoadBalancerPortMapping,
    PortMappingFlags,
)
from samewire.hcn.schema import Endpoint, EndpointFlags, IpConfiguration
from samewire.vfp.compile import membership
from samewire.vfp.compile.balanced import TABLES, Rows
from samewire.vfp.compile.loadbalancer import Environment, LocalPort
from samewire.vfp.compile.members import members
from samewire.vfp.compile.membership import Edit, edit_members
from tests.support.balancers import Balancing, backend, balancer, pod_network

SETTINGS = settings(max_examples=80)
DSR = LoadBalancerFlags.ENABLE_DIRECT_SERVER_RETURN
BASE = 90
HERE, NEAR = 5, 40
"""Endpoints on this node, and those whose link it has."""

Moves = Sequence[tuple[str, int, int]]
some_moves = st.lists(
    st.tuples(st.sampled_from(["in", "out", "flags"]), st.integers(0, 200), st.integers(0, 7)),
    min_size=1,
    max_size=3,
)
histories = st.lists(some_moves, min_size=1, max_size=12)


def endpoint(number: int) -> Endpoint:
    """Of this node's subnet, some of them here; some have no IPv4 address."""
    subnet = 1 if number % 8 == HERE else 2
    flags = EndpointFlags(0) if number % 8 == HERE else EndpointFlags.REMOTE_ENDPOINT
    address = f"10.244.{subnet}.{number + 1}" if number != 199 else "fd00::1"
    return Endpoint(
        id=f"EP{number}",
        network_id="pods",
        flags=flags,
        ip_configurations=(IpConfiguration(ip_address=address),),
    )


ENDPOINTS = {f"EP{number}": endpoint(number) for number in range(200)}


def world() -> Balancing:
    node = Balancing(pod_network(), endpoints=tuple(ENDPOINTS.values()))
    here = (name for name, value in ENDPOINTS.items() if not value.is_remote)
    node.ports = {name: LocalPort(NEAR + number, bytes(6)) for number, name in enumerate(here)}
    return node


def mappings(outside: bool, *, preserve: bool = False) -> tuple[LoadBalancerPortMapping, ...]:
    flags = PortMappingFlags.VIP_EXTERNAL_IP if outside else PortMappingFlags(0)
    flags |= PortMappingFlags.PRESERVE_DIP if preserve else PortMappingFlags(0)
    return tuple(
        LoadBalancerPortMapping(protocol=protocol, internal_port=8080, external_port=port, flags=flags)
        for protocol, port in ((6, 80), (17, 53))
    )


def a_backend(number: int, flags: int) -> LoadBalancerBackend:
    """Elsewhere in the pod network, of this node's pods, or on the underlay; one has the port of another's mapping."""
    subnet = ("10.244.2", "10.244.2", "10.244.1", "172.16.0")[number % 4]
    port = 0 if number == 17 else 8080
    number = 13 if number == 17 else number
    return backend(f"{subnet}.{number + 1}", port, flags, target_id=f"T{number}" if number % 3 else "")


def moved_backends(items: tuple[LoadBalancerBackend, ...], moves: Moves) -> tuple[LoadBalancerBackend, ...]:
    made = list(items)
    for how, where, flags in moves:
        if how == "in" and not any(item.ip_address == a_backend(where, 0).ip_address for item in made):
            made.insert((where * 7) % (len(made) + 1), a_backend(where, flags))
        elif how == "out" and len(made) > 1:
            del made[where % len(made)]
        elif how == "flags":
            made[where % len(made)] = replace(made[where % len(made)], flags=flags)
    return tuple(made)


def moved_ids(items: tuple[str, ...], moves: Moves) -> tuple[str, ...]:
    made = list(items)
    for how, where, _ in moves:
        if how != "out" and f"EP{where % 201}" not in made:
            made.insert((where * 7) % (len(made) + 1), f"EP{where % 201}")  # one there is not
        elif how == "out" and len(made) > 1:
            del made[where % len(made)]
    return tuple(made)


def after(rows: dict[str, Rows], edit: Edit) -> dict[str, Rows]:
    """The tables with what an edit says."""
    made = {table: {**rows[table], **edit.puts[table]} for table in TABLES}
    for table, keys in edit.removals.items():
        for key in keys:
            del made[table][key]
    return made


def from_numbers(node: Balancing, value: LoadBalancer, first: int) -> Environment:
    return node.environment(value)._replace(number=count(first).__next__)


def put_both(node: Balancing, last: LoadBalancer, value: LoadBalancer) -> Edit | None:
    """Change a load balancer as a whole; what is said of it by its members' difference has to say the same."""
    first = node._count.__next__()
    rows = {table: dict(found) for table, found in node.rows.items()}
    edit = edit_members(last, value, from_numbers(node, value, first), node.held[value.id])
    node._count = count(first)
    node.put(value)
    if edit is not None:
        assert edit.held == node.held[value.id]
        assert after(rows, edit) == node.rows
    return edit


flavours = st.fixed_dictionaries(
    {
        "internal_traffic_policy_local": st.booleans(),
        "external_traffic_policy_local": st.booleans(),
        "flags": st.sampled_from([0, int(DSR)]),
        "source_vip": st.sampled_from(["", "10.244.1.1"]),
    }
)


@SETTINGS
@given(histories, flavours, st.booleans(), st.booleans())
@example([[("out", 85, 0)], [("out", 3, 0)], [("in", 111, 0)], [("in", 113, 2)]], {}, True, False)
def test_backends_that_come_and_go(
    history: Sequence[Moves], fields: dict[str, Any], outside: bool, preserve: bool
) -> None:
    node = world()
    base = tuple(a_backend(number, BackendFlags.LOCAL * (number % 5 == 0)) for number in range(BASE))
    base = tuple({item.ip_address: item for item in base if ".1." not in item.ip_address}.values())
    value = balancer(*base, port_mappings=mappings(outside, preserve=preserve), **fields)
    node.put(value)
    for moves in history:
        last, value = value, replace(value, backends=moved_backends(value.backends, moves))
        put_both(node, last, value)


@SETTINGS
@given(histories, flavours, st.booleans(), st.booleans(), st.lists(st.integers(0, BASE), max_size=9))
def test_endpoints_that_come_and_go(
    history: Sequence[Moves], fields: dict[str, Any], outside: bool, named: bool, draining: list[int]
) -> None:
    node = world()
    ids = tuple(f"EP{number}" for number in range(BASE))
    fields = {**fields, "draining_endpoint_ids": tuple(ids[number] for number in draining if number < BASE)}
    network = "pods" if named else ""
    value = balancer(port_mappings=mappings(outside), endpoint_ids=ids, network_id=network, **fields)
    node.put(value)
    for moves in history:
        last, value = value, replace(value, endpoint_ids=moved_ids(value.endpoint_ids, moves))
        put_both(node, last, value)


@pytest.mark.parametrize("size", [65, 80, 96, 97])
def test_one_of_very_many_is_looked_at_alone(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the end and in the middle, where chunks come and go, too."""
    node, looked_at = world(), 0
    found = members

    def counted(value: LoadBalancer, *of: Any) -> Any:
        nonlocal looked_at
        looked_at += len(value.backends)
        return found(value, *of)

    monkeypatch.setattr(membership, "members", counted)
    base = tuple(backend(f"10.244.2.{number + 1}") for number in range(size))
    one = balancer(*base)
    node.put(one)
    for backends, chunks in (
        ((*base, backend("10.244.2.200")), 1),
        ((*base[:40], *base[41:], backend("10.244.2.200")), 1),
        ((*base[:20], backend("10.244.2.201"), *base[20:40], *base[41:], backend("10.244.2.200")), 1),
        ((*base[:20], *base[20:40], *base[41:], backend("10.244.2.200")), 1),
        ((*base[:20], *base[22:40], *base[41:], backend("10.244.2.200")), 2),
    ):
        looked_at = 0
        last, one = one, replace(one, backends=backends)
        edit = put_both(node, last, one)
        assert edit is not None
        assert looked_at <= 1
        assert len(edit.puts["sw_backends"]) == looked_at
        assert len(edit.puts["sw_backend_sets"]) <= chunks + 1


@pytest.mark.parametrize("policy", ["internal_traffic_policy_local", "source_vip"])
def test_who_has_to_move_is_before_who_comes(policy: str) -> None:
    """A chunk less, of a set that gets another member: free places are taken in the order of the list."""
    node = world()
    base = tuple(backend(f"10.244.2.{number + 1}", flags=BackendFlags.LOCAL) for number in range(97))
    one = balancer(*base, **{policy: "10.244.1.1" if policy == "source_vip" else True})
    node.put(one)
    other = replace(one, backends=(*base[:3], *base[4:50], *base[51:], backend("10.244.2.200", flags=1)))
    edit = put_both(node, one, other)
    assert edit is not None
    assert len(edit.puts["sw_backend_sets"]) == 2
    assert len(edit.removals["sw_backend_sets"]) == 1


def test_one_whose_link_went_with_it() -> None:
    """What it received by DSR has to go, too."""
    node = world()
    ids = tuple(f"EP{number}" for number in range(BASE))
    one = balancer(port_mappings=mappings(False), endpoint_ids=ids, network_id="pods", flags=int(DSR))
    node.put(one)
    for gone in (f"EP{HERE}", "EP4"):
        node.ports.pop(gone, None)
        last, one = one, replace(one, endpoint_ids=tuple(name for name in one.endpoint_ids if name != gone))
        edit = put_both(node, last, one)
        assert (edit is None) is (gone == f"EP{HERE}")


def test_whose_network_clients_get_an_address_of() -> None:
    """The one member in the pod network decides; those on the underlay have no part in it."""
    node = world()
    base = tuple(backend(f"172.16.0.{number + 1}") for number in range(80))
    pods = tuple(backend(f"10.244.2.{number + 1}") for number in range(2))
    one = balancer(*base)
    node.put(one)
    sources = set()
    for backends, alone in (
        ((*base[:40], pods[0], *base[40:]), False),
        ((*base[:40], pods[0], *base[41:]), True),
        ((*base[:40], *base[41:]), False),
        ((pods[0], *base), False),
        ((pods[0], *base, pods[1]), True),
        ((pods[0], *base), True),
    ):
        last, one = one, replace(one, backends=backends)
        assert (put_both(node, last, one) is not None) is alone
        sources |= {service.source for service in node.services().values()}
    assert len(sources) == 2


def test_one_that_drains_is_the_same() -> None:
    """Its connections stay with it, and it gets back where it was if it is the first free place."""
    node = world()
    base = tuple(backend(f"10.244.2.{number + 1}") for number in range(97))
    one = balancer(*base)
    node.put(one)
    numbers = node.backends()
    for flags, places in ((BackendFlags.DRAINING, 96), (0, 97), (BackendFlags.LOCAL, 97)):
        last, one = one, replace(one, backends=(*base[:5], replace(base[5], flags=flags), *base[6:]))
        edit = put_both(node, last, one)
        assert edit is not None
        assert not edit.removals["sw_backends"]
        assert len(edit.puts["sw_backends"]) == 1
        assert node.backends() == numbers
        (service,) = node.services().values()
        assert len(node.members(service)) == places
