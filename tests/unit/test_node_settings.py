"""Reserved ports and keepsakes: the administrator's settings survive."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samewire.errors import Invalid, Unavailable
from samewire.node.keepsakes import (
    FILE_NAME,
    Keepsakes,
    find_keepsakes,
    load_keepsakes,
    mac_bytes,
    save_keepsakes,
)
from samewire.node.portranges import merged, parse_ports, port_range, ports_text, ranges_of, restored


def bits(found: Iterable[int]) -> int:
    return sum(1 << port for port in set(found))


port = st.one_of(st.integers(0, 65535), st.integers(0, 20), st.integers(65520, 65535))
ports = st.frozensets(port, max_size=40).map(bits)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", set()),
        ("8080", {8080}),
        ("1-3,5", {1, 2, 3, 5}),
        (" 7 , 9-9 ", {7, 9}),
        ("3-5,4-6", {3, 4, 5, 6}),
    ],
)
def test_parse(text: str, found: set[int]) -> None:
    assert parse_ports(text) == bits(found)
    assert parse_ports(ports_text(parse_ports(text))) == bits(found)


@pytest.mark.parametrize("text", ["x", "5-", "5-3", "70000", "-1", "1-2-3"])
def test_parse_refuses(text: str) -> None:
    with pytest.raises(Invalid):
        parse_ports(text)


def test_text_is_the_shortest() -> None:
    assert ports_text(bits([])) == ""
    assert ports_text(bits([0, 1, 2, 5, 7, 8, 65535])) == "0-2,5,7-8,65535"
    assert ports_text(port_range(49152, 65535)) == "49152-65535"
    assert port_range(7, 9) == bits([7, 8, 9])


@given(st.lists(ports, max_size=4))
def test_text_is_read_back(several: list[int]) -> None:
    """Whether it is remembered or not."""
    texts = [ports_text(some) for some in several]
    for text, some in zip(texts, several, strict=True):
        assert parse_ports(text) == parse_ports(f" {text}") == some
        assert ports_text(some) == text


@given(ports)
def test_ranges(some: int) -> None:
    """They are apart, in order, and all that there is."""
    found = list(ranges_of(some))
    assert sum(port_range(*item) for item in found) == some
    assert all(one[1] + 1 < other[0] for one, other in pairwise(found))


@given(ports, ports)
def test_what_is_added_can_be_taken_away(admins: int, ours: int) -> None:
    wanted, added = merged(ports_text(admins), ours, "")
    assert parse_ports(wanted) == admins | ours
    assert parse_ports(restored(wanted, added)) == admins


@given(ports, ports, ports)
def test_another_pool_replaces_ours_and_not_the_admins(admins: int, first: int, second: int) -> None:
    wanted, added = merged(ports_text(admins), first, "")
    wanted, added = merged(wanted, second, added)
    assert parse_ports(wanted) == admins | second
    assert parse_ports(restored(wanted, added)) == admins


@given(ports, ports)
def test_doing_it_twice_changes_nothing(admins: int, ours: int) -> None:
    once = merged(ports_text(admins), ours, "")
    assert merged(once[0], ours, once[1]) == once


def test_an_admin_port_added_later_survives() -> None:
    ours = port_range(50000, 50010)
    _, added = merged("8080", ours, "")
    wanted, added = merged("8080,9090,50000-50010", ours, added)
    assert restored(wanted, added) == "8080,9090"


def test_keepsakes_stay_the_same(tmp_path: Path) -> None:
    first = load_keepsakes(tmp_path / "state")
    assert load_keepsakes(tmp_path / "state") == first
    assert os.stat(tmp_path / "state").st_mode & 0o777 == 0o700


def test_macs_are_local_unicast_and_differ(tmp_path: Path) -> None:
    found = load_keepsakes(tmp_path)
    macs = [mac_bytes(text) for text in (found.tunnel_mac, found.host_mac, found.host_peer_mac)]
    assert len(set(macs)) == 3
    assert all(mac[0] & 3 == 2 and len(mac) == 6 for mac in macs)
    assert load_keepsakes(tmp_path / "other").tunnel_mac != found.tunnel_mac


def test_saving_replaces_the_whole_file(tmp_path: Path) -> None:
    found = load_keepsakes(tmp_path)
    save_keepsakes(tmp_path, msgspec.structs.replace(found, reserved_ports_added="1-2"))
    assert load_keepsakes(tmp_path).reserved_ports_added == "1-2"
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"tunnel_mac": 5}'])
def test_a_damaged_file_is_an_error_and_not_a_new_identity(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE_NAME).write_text(content)
    with pytest.raises(Unavailable, match="cannot be read"):
        load_keepsakes(tmp_path)
    assert (tmp_path / FILE_NAME).read_text() == content


def test_none_yet(tmp_path: Path) -> None:
    assert find_keepsakes(tmp_path) is None
    assert isinstance(load_keepsakes(tmp_path), Keepsakes)
