"""Laws of diff, change and ownership, on random tables."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from samewire.vfp.address import NO_MAC, ZERO
from samewire.vfp.constants import ROUTE_KEY_BITS, RouteKind
from samewire.vfp.diff import PUT_ORDER, Operation, Put, Remove, apply, change, diff, same
from samewire.vfp.model import Entries
from samewire.vfp.ownership import Ownership
from samewire.vfp.record import Record
from samewire.vfp.tables import Bucket, Endpoint, EndpointKey, Id, Nat, NatKey, Nexthop, Port, Route, RouteKey

_SMALL = st.integers(0, 2)
_IDS = st.builds(Id, st.integers(1, 3))
_ADDRESSES = st.integers(1, 3).map(lambda i: bytes([10, 0, 0, i, *bytes(12)]))


def _port(generation: int, mtu: int) -> Port:
    pair = (ZERO, ZERO)
    return Port(generation, 1, 0, NO_MAC, NO_MAC, pair, pair, 0, (0, 0), 0, 0, (0, 0), (0, 0), mtu)


def _table(
    name: str, keys: st.SearchStrategy[Record], values: st.SearchStrategy[Record]
) -> st.SearchStrategy[dict[str, dict[Record, Record]]]:
    return st.dictionaries(keys, values, max_size=3).map(lambda rows: {name: rows} if rows else {})


def _merge(parts: tuple[dict[str, dict[Record, Record]], ...]) -> Entries:
    return {name: rows for part in parts for name, rows in part.items()}


_ENTRIES = st.tuples(
    _table("sw_ports", _IDS, st.builds(_port, st.integers(0, 99), _SMALL)),
    _table("sw_buckets", _IDS, st.builds(Bucket, _SMALL, _SMALL, st.integers(0, 99))),
    _table(
        "sw_endpoints",
        st.builds(EndpointKey, _ADDRESSES, st.integers(0, 1), st.just(4)),
        st.one_of(
            st.builds(Endpoint, st.integers(1, 3), st.just(0), st.just(NO_MAC)),
            st.builds(Endpoint, st.just(0), st.integers(1, 3), st.just(NO_MAC)),
        ),
    ),
    _table(
        "sw_routes",
        st.builds(RouteKey, st.just(ROUTE_KEY_BITS + 32), _SMALL, st.just(4), _ADDRESSES),
        st.builds(Route, st.sampled_from(RouteKind), st.just(0), st.just(0), _SMALL),
    ),
    _table(
        "sw_nexthops",
        _IDS,
        st.builds(Nexthop, *map(st.just, (2, 4)), _SMALL, *map(st.just, (1, 1, ZERO, ZERO, NO_MAC))),
    ),
    _table(
        "sw_nat",
        st.builds(NatKey, st.just(96), st.integers(1, 2), st.just(4), _ADDRESSES),
        st.builds(Nat, st.integers(0, 1), st.just(0), _SMALL, st.just(ZERO)),
    ),
).map(_merge)


def equal(one: Entries, two: Entries) -> bool:
    """Equality of whole tables, up to what `same` ignores."""
    return {n: set(r) for n, r in one.items() if r} == {n: set(r) for n, r in two.items() if r} and all(
        same(value, two[name][key]) for name, rows in one.items() for key, value in rows.items()
    )


def places(operations: list[Operation]) -> list[int]:
    """Where each operation belongs in the order of a whole change."""
    return [
        PUT_ORDER.index(op.table) if isinstance(op, Put) else 2 * len(PUT_ORDER) - PUT_ORDER.index(op.table)
        for op in operations
    ]


@given(_ENTRIES, _ENTRIES)
def test_apply_of_diff_gives_wanted(wanted: Entries, actual: Entries) -> None:
    operations = diff(wanted, actual)
    assert equal(apply(operations, actual), wanted)
    assert places(operations) == sorted(places(operations))


@given(_ENTRIES, _ENTRIES)
def test_diff_is_minimal(wanted: Entries, actual: Entries) -> None:
    for operation in diff(wanted, actual):
        present = actual.get(operation.table, {}).get(operation.key)
        if isinstance(operation, Put):
            assert not same(present, operation.value)
        else:
            assert present is not None


@given(_ENTRIES)
def test_diff_of_the_same_is_empty(entries: Entries) -> None:
    assert diff(entries, entries) == change(entries, entries) == []


@given(_ENTRIES, _ENTRIES)
def test_change_and_back(before: Entries, after: Entries) -> None:
    there = apply(change(before, after), before)
    assert equal(there, after)
    assert equal(apply(change(after, before), there), before)


@given(_ENTRIES)
def test_generation_and_tokens_do_not_count(entries: Entries) -> None:
    touched = {
        name: {
            key: _port(value.generation + 1, value.mtu)
            if isinstance(value, Port)
            else Bucket(value.rate_bytes_per_s, value.burst_bytes, value.full_ns + 1)
            if isinstance(value, Bucket)
            else value
            for key, value in rows.items()
        }
        for name, rows in entries.items()
    }
    assert diff(touched, entries) == []


@given(_ENTRIES, _ENTRIES)
def test_every_operation_can_be_shown(wanted: Entries, actual: Entries) -> None:
    for operation in diff(wanted, actual):
        assert operation.table in operation.describe()
        assert operation.describe().startswith("+ " if isinstance(operation, Put) else "- ")


def _standing(owner: int) -> tuple[int, str]:
    """Two owners stand higher than the two others."""
    return owner // 2, ""


class Owners(RuleBasedStateMachine):
    """Owners come, change and go; the tables always follow, by the returned operations alone."""

    def __init__(self) -> None:
        super().__init__()
        self.ownership = Ownership(_standing)
        self.wishes: dict[int, Entries] = {}
        self.kernel: dict[str, dict[Record, Record]] = {}

    @rule(owner=st.integers(0, 3), entries=_ENTRIES)
    def replace(self, owner: int, entries: Entries) -> None:
        self._apply(self.ownership.replace(owner, entries), owner, self.wishes.get(owner, {}), entries)
        self.wishes[owner] = entries

    @rule(owner=st.integers(0, 3))
    def remove(self, owner: int) -> None:
        self._apply(self.ownership.remove(owner), owner, self.wishes.pop(owner, {}), {})

    def _apply(self, operations: list[Operation], owner: int, before: Entries, after: Entries) -> None:
        concerned = {(name, key) for part in (before, after) for name, rows in part.items() for key in rows}
        for operation in operations:
            assert (operation.table, operation.key) in concerned
            if isinstance(operation, Remove):
                others = [wish for other, wish in self.wishes.items() if other != owner]
                assert not any(operation.key in wish.get(operation.table, {}) for wish in others)
        assert places(operations) == sorted(places(operations))
        self.kernel = apply(operations, self.kernel)

    @invariant()
    def kernel_is_wanted(self) -> None:
        assert diff(self.ownership.tables(), self.kernel) == []
        assert diff(self.kernel, self.ownership.tables()) == []

    @invariant()
    def every_wish_has_a_winner(self) -> None:
        keys = {(name, key) for wish in self.wishes.values() for name, rows in wish.items() for key in rows}
        assert keys == {(name, key) for name, rows in self.kernel.items() for key in rows}
        for name, key in keys:
            wanting = {
                owner: wish[name][key] for owner, wish in self.wishes.items() if key in wish.get(name, {})
            }
            assert set(self.ownership.owners(name, key)) == set(wanting)
            # The last of those that stand highest: `max` finds the first that it meets.
            came = [owner for owner in self.ownership.owners(name, key) if isinstance(owner, int)]
            winning = wanting[max(reversed(came), key=_standing)]
            assert name == "sw_endpoints" or same(self.kernel[name][key], winning)
            assert any(same(self.kernel[name][key], value) for value in wanting.values())
            if any(isinstance(value, Endpoint) and value.port for value in wanting.values()):
                winner = self.kernel[name][key]
                assert isinstance(winner, Endpoint)
                assert winner.port

    @invariant()
    def owners_hold_what_they_wished(self) -> None:
        for owner, wish in self.wishes.items():
            assert equal(self.ownership.entries(owner), wish)
        assert set(self.ownership.all_owners()) == {owner for owner, wish in self.wishes.items() if wish}


TestOwners = Owners.TestCase
TestOwners.settings = settings(max_examples=50)
