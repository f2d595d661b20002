"""Lists of policies and their store: after any changes as if made at once."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samewire.hcn import numbered as numbered_module
from samewire.hcn.errors import HcnError
from samewire.hcn.normalise_policies import Scope
from samewire.hcn.numbered import Numbered, name_of, numbered
from samewire.hcn.plan.policies import put_policies, remove_policies, without_policies
from samewire.hcn.policies import (
    HostRoute,
    NetworkACL,
    Policy,
    PortMapping,
    RemoteSubnetRoute,
    SDNRoute,
    SetPolicy,
)
from samewire.hcn.policy_lists import MANY, PolicyList, identities, identity, mapped_ports, routers
from samewire.hcn.schema import Endpoint, Kind
from samewire.hcn.store import Store
from samewire.hcn.switch import Change
from samewire.vfp.address import parse_address
from samewire.vfp.compile.plan import RemoteSubnets

SETTINGS = settings(max_examples=60)
KINDS = (PortMapping, SDNRoute, SetPolicy, NetworkACL, HostRoute)
KEYS: tuple[Callable[[Any], Any], ...] = (identities, mapped_ports, routers)

policies = st.one_of(
    st.builds(
        PortMapping, protocol=st.just(6), external_port=st.integers(1, 4), internal_port=st.integers(1, 2)
    ),
    st.builds(SDNRoute, destination_prefix=st.just("0.0.0.0/0"), next_hop=st.sampled_from(["", "10.0.0.1"])),
    st.builds(SetPolicy, set_id=st.sampled_from("abc"), values=st.sampled_from(["", "10.0.0.1"])),
    st.just(HostRoute()),
)
lists = st.lists(policies, max_size=5)
changed = st.lists(st.tuples(st.integers(0, 200), policies), max_size=2)
steps = st.one_of(
    st.tuples(
        st.just("edited"),
        st.lists(st.integers(0, 200), max_size=3),
        lists,
        changed,
    ),
    st.tuples(st.just("updated"), st.integers(0, 200), st.integers(0, 3), lists),
)
PADDING = [PortMapping(protocol=17, external_port=i, internal_port=i) for i in range(1, MANY)]


def carried_out(present: PolicyList, step: Any) -> tuple[PolicyList, list[Policy]]:
    """The list after a step, and what should be in it."""
    numbers = present.numbers
    if step[0] == "updated" or not present:
        _, place, less, more = step if step[0] == "updated" else ("", 0, 0, step[2])
        start = place % (len(present) + 1)
        wanted = [*present[:start], *more, *present[start + less :]]
        return present.updated(wanted), wanted
    _, gone, new, changed = step
    going = {numbers[place % len(numbers)] for place in gone}
    instead = {numbers[place % len(numbers)]: policy for place, policy in changed}
    instead = {number: policy for number, policy in instead.items() if number not in going}
    left = [instead.get(number, policy) for number, policy in present.pairs() if number not in going]
    return present.edited(going, new, instead), [*left, *new]


def check(present: PolicyList) -> None:
    """What a list knows is what one made anew would."""
    fresh = Numbered(tuple(present), tuple(present.numbers))
    assert list(present.numbers) == sorted(set(present.numbers))
    assert len({name_of(number) for number in present.numbers}) == len(present)
    assert all(0 < name_of(number) <= present.last_name for number in present.numbers)
    for kind in KINDS:
        assert tuple(map(tuple, present.group(kind))) == tuple(map(tuple, fresh.group(kind)))
    for keys in KEYS:
        assert present.by(keys) == fresh.by(keys)
    assert present.mapped(repr) == fresh.mapped(repr)


@SETTINGS
@given(lists, st.booleans(), st.lists(steps, min_size=1, max_size=6))
def test_lists(start: list[Policy], long: bool, changes: list[Any]) -> None:
    present = PolicyList([*start, *PADDING] if long else start)
    check(present)
    for step in changes:
        before = present
        present, wanted = carried_out(before, step)
        assert list(present) == wanted
        check(present)
        for known in (present, Numbered(tuple(present), tuple(present.numbers))):
            gone, new = known.difference(before)
            assert dict(before.pairs()).items() - set(gone) | set(new) == set(known.pairs())
            assert set(gone) <= set(before.pairs())
            assert not set(gone) & set(new)
            assert (set(gone), set(new)) == tuple(map(set, reversed(before.difference(known))))


@SETTINGS
@given(lists, st.booleans(), st.lists(steps, min_size=1, max_size=5))
def test_what_is_stored_comes_back(start: list[Policy], long: bool, changes: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "hns.db"
        endpoint = Endpoint(id="A", policies=PolicyList([*start, *PADDING] if long else start))
        store = Store(path, "boot")
        try:
            store.commit([Change(Kind.ENDPOINT, "A", None, endpoint)])
            for step in changes:
                before = store.state.endpoint("A")
                assert before is not None
                after = Endpoint(id="A", policies=carried_out(numbered(before.policies), step)[0])
                store.commit([Change(Kind.ENDPOINT, "A", before, after)])
                store.close()
                store = Store(path, "boot")
                found = store.state.endpoint("A")
                assert found is not None
                assert found == after
                assert tuple(numbered(found.policies).numbers) == tuple(numbered(after.policies).numbers)
                assert numbered(found.policies).last_name == numbered(after.policies).last_name
                check(numbered(found.policies))
        finally:
            store.close()


remote_subnets = st.builds(
    RemoteSubnetRoute,
    destination_prefix=st.sampled_from(["10.1.0.0/16", "10.1.2.0/24", "10.2.0.0/16", "fd00::/64"]),
    isolation_id=st.just(4096),
    distributed_router_mac_address=st.just("0E-2A-00-00-00-01"),
    provider_address=st.sampled_from(["192.0.2.1", "192.0.2.2", "2001:db8::1"]),
)
ADDRESSES = (
    "10.1.2.3",
    "10.1.9.9",
    "10.2.0.1",
    "10.9.9.9",
    "fd00::1",
    "192.0.2.1",
    "192.0.2.2",
    "2001:db8::1",
)


@SETTINGS
@given(st.lists(st.lists(remote_subnets, max_size=4, unique_by=identity), min_size=1, max_size=5))
def test_remote_subnets(history: list[list[RemoteSubnetRoute]]) -> None:
    present = PolicyList([HostRoute()])
    for wanted in history:
        present = put_policies(present, tuple(wanted), Scope.NETWORK)
        gone = [policy for policy in present.of(RemoteSubnetRoute) if policy not in wanted]
        present = remove_policies(present, tuple(gone), Scope.NETWORK)
        derived, fresh = RemoteSubnets(present), RemoteSubnets(PolicyList(tuple(present)))
        assert set(derived.all) == set(fresh.all)
        assert {str(remote.prefix) for remote in derived.all} == {one.destination_prefix for one in wanted}
        for address in map(parse_address, ADDRESSES):
            assert derived.containing(address) == fresh.containing(address)
            assert derived.behind(address) == fresh.behind(address)
        assert all(derived.at(remote.prefix) == remote for remote in fresh.all)


def test_a_list_that_has_used_up_its_names_is_numbered_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numbered_module, "MAX_ITEMS", 5)
    present: Numbered[str] = Numbered("abc")
    for item in "defgh":
        present = present.edited([present.numbers[0]], [item])
    assert list(present) == ["f", "g", "h"]
    assert [name_of(number) for number in present.numbers] == [
        3,
        4,
        5,
    ]  # numbered anew when f came, as 1 to 3


def test_there_is_room_between_and_when_there_is_none_all_are_numbered_anew() -> None:
    present: Numbered[int] = Numbered([0, 99])
    for item in range(1, 40):  # always right behind the first
        present = present.updated([0, *range(item, 0, -1), 99])
        assert list(present.numbers) == sorted(set(present.numbers))
        assert list(present) == [0, *range(item, 0, -1), 99]


def test_of_equal_ones_as_many_go_as_are_named() -> None:
    mapping = PortMapping(protocol=6, external_port=1, internal_port=1)
    present = PolicyList([mapping, HostRoute(), mapping, mapping])
    left = remove_policies(present, (mapping, mapping), Scope.ENDPOINT)
    assert [name_of(number) for number in left.numbers] == [2, 4]
    with pytest.raises(HcnError, match="there is no PortMapping"):
        remove_policies(present, (mapping,) * 4, Scope.ENDPOINT)


def test_names_of_a_list_that_was_emptied_are_not_given_again() -> None:
    emptied = without_policies(PolicyList([HostRoute(), PADDING[0]]))
    assert not emptied
    assert [name_of(number) for number in emptied.edited(new=(HostRoute(),)).numbers] == [3]
    assert list(without_policies(emptied)) == []
