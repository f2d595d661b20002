"""The store on a disk that is full."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from samewire.hcn.errors import StoreError
from samewire.hcn.schema import Kind, Network
from samewire.hcn.store import Store
from samewire.hcn.switch import Change

pytestmark = pytest.mark.root


@pytest.fixture(params=["tmpfs", "ext4"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A small one. Of an ext4, not all that is free can be had."""
    made, image = tmp_path / "disk", tmp_path / "image"
    made.mkdir()
    if request.param == "tmpfs":
        command = ["mount", "-t", "tmpfs", "-o", "size=4m", "samewire-test", str(made)]
    else:
        with image.open("wb") as file:
            file.truncate(64 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", image], check=True)
        command = ["mount", "-o", "loop", str(image), str(made)]
    subprocess.run(command, check=True)
    try:
        yield made
    finally:
        subprocess.run(["umount", "-l", made], check=True)


def change(store: Store, name: str, size: int) -> None:
    """Make a network or, with no size, remove it."""
    after = Network(id=name, name="x" * size) if size else None
    store.commit([Change(Kind.NETWORK, name, store.state.network(name), after)])


def fill(disk: Path) -> Path:
    junk = disk / "junk"
    with junk.open("wb", buffering=0) as file:
        for size in (64 << 10, 512):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))
    return junk


def test_changes_go_on_in_the_room_that_the_log_has(disk: Path) -> None:
    """Pods have to go where the disk is full, or it stays so."""
    store = Store(disk / "hns.db", "boot-1")
    for number in range(20):
        change(store, f"N{number}", 1000)
    store._checkpoints.is_complete()  # as each minute
    for number in range(20):
        change(store, f"N{number}", 500)
    junk = fill(disk)
    for number in range(20):
        change(store, f"N{number}", 600)
    for number in range(20):
        change(store, f"N{number}", 0)
    assert store.trouble() == ""
    with pytest.raises(StoreError, match="disk is full"):
        change(store, "large", 1 << 20)
    assert store.state.network("large") is None
    junk.unlink()
    assert store.trouble() == ""
    change(store, "large", 1 << 20)
    store.close()


def test_what_is_wrong_is_said_until_it_is_not(disk: Path) -> None:
    store = Store(disk / "hns.db", "boot-1")
    junk = fill(disk)
    with pytest.raises(StoreError, match="disk is full"):
        change(store, "N1", 10000)
    assert "disk is full" in store.trouble()
    junk.unlink()
    assert store.trouble() == ""
    change(store, "N1", 10000)
    store.close()


def test_a_small_write_is_no_proof_that_there_is_room(disk: Path) -> None:
    """The room that a failed change has left in the log takes one page."""
    store = Store(disk / "hns.db", "boot-1")
    junk = fill(disk)
    os.truncate(junk, junk.stat().st_size - (64 << 10))
    for number in range(20):
        with suppress(StoreError):
            change(store, f"N{number}", 10000)
    assert "disk is full" in store.trouble()
    assert "disk is full" in store.trouble()
    junk.unlink()
    assert store.trouble() == ""
    store.close()


def test_no_change_is_no_proof_that_there_is_room(disk: Path) -> None:
    store = Store(disk / "hns.db", "boot-1")
    fill(disk)
    with pytest.raises(StoreError, match="disk is full"):
        change(store, "N1", 10000)
    store.commit([])
    assert "disk is full" in store.trouble()
    store.close()


def test_what_goes_can_where_the_file_would_have_to_grow(disk: Path) -> None:
    """For what is in the log, which begins anew only when it is written back."""
    store = Store(disk / "hns.db", "boot-1")
    for number in range(20):
        change(store, f"N{number}", 1000)
    junk = fill(disk)
    with pytest.raises(StoreError, match="disk is full"):
        change(store, "large", 1 << 19)
    for number in range(20):
        change(store, f"N{number}", 0)
    junk.unlink()
    change(store, "N1", 1000)
    assert store.trouble() == ""
    fill(disk)
    change(store, "N1", 0)
    store.close()


def test_a_start_on_a_full_disk(disk: Path) -> None:
    store = Store(disk / "hns.db", "boot-1")
    change(store, "N1", 1000)
    store.close()
    fill(disk)
    for number in range(1, 4):  # again and again, as systemd does
        store = Store(disk / "hns.db", "boot-1")
        store.set_setting("starts", number)
        store.close()
    store = Store(disk / "hns.db", "boot-1")
    assert store.setting("starts") == 3
    change(store, "N1", 0)
    store.close()


def test_what_failed_is_said_however_much_there_is_left(disk: Path) -> None:
    """A few pages more or less: what is written to find out whether there is room takes one."""
    store = Store(disk / "hns.db", "boot-1")
    for left_bytes in range(0, 64 << 10, 4 << 10):
        junk = fill(disk)
        os.truncate(junk, junk.stat().st_size - left_bytes)
        with pytest.raises(StoreError, match="disk is full"):
            change(store, "large", 1 << 19)
        assert "disk is full" in store.trouble(), left_bytes
        junk.unlink()
        assert store.trouble() == ""
    store.close()
