"""Wishes of several owners for the node's own stack."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from samewire.node.bindings import BindingChange, HostBindings, WantedAddress, WantedFilter, Wish, wishes
from samewire.vfp.address import Address, Prefix, parse_address, parse_prefix
from samewire.vfp.model import HostBinding, HostRoute


def prefix(text: str) -> Prefix:
    return parse_prefix(text)


def route(text: str, source: str = "") -> HostRoute:
    return HostRoute(prefix(text), parse_address(source) if source else None)


GATEWAY = HostBinding(addresses=(prefix("10.1.0.1/32"),), routes=(route("10.1.0.0/24", "10.1.0.1"),))


def test_addresses_come_before_the_routes_that_use_them_and_go_after() -> None:
    bindings = HostBindings()
    assert bindings.replace("net", GATEWAY) == [
        BindingChange(True, WantedAddress(prefix("10.1.0.1/32"))),
        BindingChange(True, route("10.1.0.0/24", "10.1.0.1")),
    ]
    assert bindings.replace("net", HostBinding()) == [
        BindingChange(False, route("10.1.0.0/24", "10.1.0.1")),
        BindingChange(False, WantedAddress(prefix("10.1.0.1/32"))),
    ]
    assert bindings.wanted() == set()


def test_a_shared_wish_goes_with_its_last_owner() -> None:
    bindings = HostBindings()
    shared = HostBinding(nic_filters=(b"\x33\x33\xff\0\0\1",))
    assert len(bindings.replace("a", shared)) == 1
    assert bindings.replace("b", shared) == []
    assert bindings.replace("a", HostBinding()) == []
    assert bindings.replace("b", HostBinding()) == [BindingChange(False, WantedFilter(b"\x33\x33\xff\0\0\1"))]


def test_the_same_again_changes_nothing() -> None:
    bindings = HostBindings()
    bindings.replace("net", GATEWAY)
    assert bindings.replace("net", GATEWAY) == []


def test_a_route_with_another_source_replaces_and_is_not_removed() -> None:
    bindings = HostBindings()
    bindings.replace("a", HostBinding(routes=(route("10.1.0.0/24", "10.1.0.9"),)))
    changes = bindings.replace("b", HostBinding(routes=(route("10.1.0.0/24", "10.1.0.1"),)))
    assert changes == [BindingChange(True, route("10.1.0.0/24", "10.1.0.1"))]
    assert not bindings.wants(route("10.1.0.0/24", "10.1.0.9"))
    assert bindings.replace("b", HostBinding()) == [BindingChange(True, route("10.1.0.0/24", "10.1.0.9"))]


def test_a_rival_in_the_shadow_changes_nothing() -> None:
    bindings = HostBindings()
    bindings.replace("a", HostBinding(routes=(route("10.1.0.0/24", "10.1.0.1"),)))
    assert bindings.replace("b", HostBinding(routes=(route("10.1.0.0/24", "10.1.0.9"),))) == []
    assert bindings.replace("b", HostBinding()) == []


def test_mentions() -> None:
    bindings = HostBindings()
    bindings.replace("net", GATEWAY)
    assert bindings.mentions(prefix("10.1.0.1/32"))
    assert bindings.mentions(prefix("10.1.0.0/24"))
    assert not bindings.mentions(prefix("10.1.0.0/25"))


packed = st.integers(0, 3).map(lambda number: bytes([10, 0, 0, number, *bytes(12)]))
routes = st.builds(
    lambda where, source: HostRoute(Prefix(4, where, 32), source and Address(4, source)),
    packed,
    st.none() | packed,
)
some_bindings = st.builds(
    HostBinding,
    addresses=st.lists(packed.map(lambda where: Prefix(4, where, 32)), max_size=3).map(tuple),
    routes=st.lists(routes, max_size=3).map(tuple),
    nic_filters=st.lists(
        st.integers(0, 3).map(lambda number: bytes([2, 0, 0, 0, 0, number])), max_size=3
    ).map(tuple),
    listens=st.lists(packed, max_size=3).map(tuple),
    mapped_ports=st.frozensets(st.integers(1, 4)),
    forwards=st.booleans(),
)


def apply(present: set[Wish], changes: list[BindingChange]) -> None:
    """What the kernel does: a route to a destination takes the place of any other."""
    for change in changes:
        if isinstance(change.wish, HostRoute):
            present -= {
                other
                for other in present
                if isinstance(other, HostRoute) and other.destination == change.wish.destination
            }
        if change.add:
            present.add(change.wish)
        else:
            present.discard(change.wish)


@given(st.lists(st.tuples(st.integers(0, 2), some_bindings), max_size=12))
def test_following_the_steps_leads_to_what_is_wanted(history: list[tuple[int, HostBinding]]) -> None:
    bindings = HostBindings()
    present: set[Wish] = set()
    for owner, binding in history:
        apply(present, bindings.replace(owner, binding))
        assert present == bindings.wanted()
    held = {wish for owner in range(3) for wish in wishes(bindings.held(owner))}
    assert bindings.wanted() <= held
    assert {w.destination for w in held if isinstance(w, HostRoute)} == {
        w.destination for w in present if isinstance(w, HostRoute)
    }
