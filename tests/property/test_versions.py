"""Versions of tables are what dictionaries copied at every change would be, in whichever order they are asked."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from samewire.versions import Version, versioned

keys = st.integers(0, 5)
changes = st.dictionaries(keys, st.none() | st.integers(0, 2), max_size=3)


@given(
    st.lists(st.tuples(st.integers(0, 9), changes), max_size=10),
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), keys), max_size=20),
)
def test_versions(
    history: list[tuple[int, dict[int, int | None]]], asked: list[tuple[int, int, int]]
) -> None:
    copies: list[dict[int, int]] = [{0: 0, 1: 1}]
    versions: list[Version[int, int]] = [versioned({0: 0, 1: 1})]
    for base, change in history:
        base %= len(copies)
        after = copies[base] | change
        copies.append({key: value for key, value in after.items() if value is not None})
        versions.append(versions[base].changed(change))
    for one, other, key in asked:
        one, other = one % len(copies), other % len(copies)
        assert versions[one].get(key) == copies[one].get(key)
        apart = versions[one].apart(versions[other])
        if apart is not None:
            differ = {k for k in range(6) if copies[one].get(k) != copies[other].get(k)}
            assert differ <= set(apart)
    assert [dict(version) for version in versions] == copies


def test_what_was_made_of_it_is_known_to_be() -> None:
    first = versioned({0: 0, 1: 1})
    second = first.changed({0: None, 2: 2})
    third = second.changed({1: 5})
    for _ in range(2):  # whichever has been asked last
        assert set(second.apart(first) or ()) == set(first.apart(second) or ()) == {0, 2}
        assert third.apart(first) is None
        assert first.get(1) == 1
    assert second.apart(second) == ()
    assert second.apart({1: 1}) is None
