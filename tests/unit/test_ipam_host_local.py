"""The built-in host-local on a real directory."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from samewire.cni.conf import decode_conf
from samewire.cni.environment import decode_environment
from samewire.cni.errors import CniError
from samewire.cni.result import Dns
from samewire.errors import Conflict, Exhausted, KernelError, SamewireError, Unavailable
from samewire.ipam import datadir
from samewire.ipam.api import DuplicateAllocation, IpamRequest
from samewire.ipam.host_local import HostLocal, parse_resolv_conf
from tests.support.cni import variables


class Manager:
    """A HostLocal and one configuration."""

    def __init__(self, tmp_path: Path) -> None:
        self.host_local = HostLocal()
        self.path = tmp_path / "net"
        self.tmp_path = tmp_path
        self.ipam: dict[str, Any] = {"subnet": "10.1.0.0/29"}

    def request(self, container: str, interface: str = "eth0", **keys: Any) -> IpamRequest:
        args = keys.pop("args_text", "")
        ipam = {"type": "host-local", "dataDir": str(self.tmp_path), **self.ipam}
        value = {"cniVersion": "1.0.0", "name": "net", "ipam": ipam, **keys}
        env = variables("ADD", container, interface, CNI_ARGS=args)
        return IpamRequest(decode_conf(json.dumps(value).encode()), decode_environment(env))

    async def add(self, container: str, interface: str = "eth0", **keys: Any) -> list[str]:
        result = await self.host_local.add(self.request(container, interface, **keys))
        return [ip.address for ip in result.ips]

    async def delete(self, container: str, interface: str = "eth0") -> None:
        await self.host_local.delete(self.request(container, interface))

    def files(self) -> dict[str, str]:
        return {path.name: path.read_bytes().decode() for path in self.path.iterdir() if path.name != "lock"}


@pytest.fixture
def manager(tmp_path: Path) -> Manager:
    return Manager(tmp_path)


async def test_files_as_the_reference_plugin_writes_them(manager: Manager) -> None:
    assert await manager.add("a") == ["10.1.0.2/29"]
    assert await manager.add("a", "eth1") == ["10.1.0.3/29"]
    assert manager.files() == {
        "10.1.0.2": "a\r\neth0",
        "10.1.0.3": "a\r\neth1",
        "last_reserved_ip.0": "10.1.0.3",
    }
    assert (manager.path / "10.1.0.2").stat().st_mode & 0o777 == 0o644
    await manager.delete("a")
    await manager.delete("a")
    assert set(manager.files()) == {"10.1.0.3", "last_reserved_ip.0"}


async def test_round_robin_over_restarts(manager: Manager) -> None:
    for name in "abc":
        await manager.add(name)
    await manager.delete("a")
    manager.host_local = HostLocal()
    assert [await manager.add(name) for name in "def"] == [["10.1.0.5/29"], ["10.1.0.6/29"], ["10.1.0.2/29"]]


async def test_exhausted(manager: Manager) -> None:
    for name in "abcde":
        await manager.add(name)
    with pytest.raises(Exhausted, match=r"no IP addresses available in range set: 10\.1\.0\.1-10\.1\.0\.6"):
        await manager.add("f")
    await manager.delete("c")
    assert await manager.add("f") == ["10.1.0.4/29"]


async def test_an_address_that_another_process_freed(manager: Manager) -> None:
    for name in "abcde":
        await manager.add(name)
    await HostLocal().delete(manager.request("c"))
    assert await manager.add("f") == ["10.1.0.4/29"]


async def test_duplicate(manager: Manager) -> None:
    await manager.add("a")
    before = manager.files()
    with pytest.raises(DuplicateAllocation, match=r"10\.1\.0\.2 has been allocated to a, duplicate"):
        await manager.add("a")
    assert manager.files() == before


async def test_all_sets_or_none(manager: Manager) -> None:
    manager.ipam = {"ranges": [[{"subnet": "10.1.0.0/29"}], [{"subnet": "fd00::/126"}]]}
    assert await manager.add("a") == ["10.1.0.2/29", "fd00::2/126"]
    assert await manager.add("b") == ["10.1.0.3/29", "fd00::3/126"]
    with pytest.raises(Exhausted, match="failed to allocate for range 1"):
        await manager.add("c")
    assert "10.1.0.4" not in manager.files()


async def test_asked_for_addresses(manager: Manager) -> None:
    assert await manager.add("a", args_text="IP=10.1.0.5") == ["10.1.0.5/29"]
    assert await manager.add("b", args={"cni": {"ips": ["10.1.0.3"]}}) == ["10.1.0.3/29"]
    assert await manager.add("c", runtimeConfig={"ips": ["10.1.0.6/29"]}) == ["10.1.0.6/29"]
    for asked, message in (
        ("10.1.0.5", "requested IP address 10.1.0.5 is not available in range set 10.1.0.1-10.1.0.6"),
        ("10.1.0.1", "requested ip 10.1.0.1 is subnet's gateway"),
        ("10.2.0.1", "failed to allocate all requested IPs: 10.2.0.1"),
    ):
        with pytest.raises(Conflict) as caught:
            await manager.add("d", args_text=f"IP={asked}")
        assert message in str(caught.value)
    assert set(manager.files()) == {"10.1.0.3", "10.1.0.5", "10.1.0.6", "last_reserved_ip.0"}


async def test_files_of_old_versions(manager: Manager) -> None:
    manager.path.mkdir()
    (manager.path / "10.1.0.2").write_text("old\n")
    assert await manager.add("new") == ["10.1.0.3/29"]
    await manager.host_local.check(manager.request("old"))
    with pytest.raises(DuplicateAllocation):
        await manager.add("old")
    await manager.delete("old")
    assert set(manager.files()) == {"10.1.0.3", "last_reserved_ip.0"}


async def test_an_old_file_and_a_new_one(manager: Manager) -> None:
    """Both count against a second address; a release takes the old one when the new ones are gone."""
    manager.ipam = {"ranges": [[{"subnet": "10.2.0.0/29"}], [{"subnet": "10.1.0.0/29"}]]}
    manager.path.mkdir()
    (manager.path / "10.1.0.2").write_text("a")
    with pytest.raises(DuplicateAllocation, match="failed to allocate for range 1"):
        await manager.add("a")
    (manager.path / "10.2.0.5").write_bytes(b"a\r\neth0")
    await manager.delete("a")
    assert set(manager.files()) == {"10.1.0.2", "last_reserved_ip.0"}
    await manager.delete("a")
    assert set(manager.files()) == {"last_reserved_ip.0"}


async def test_what_others_do_is_seen(manager: Manager) -> None:
    assert await manager.add("a") == ["10.1.0.2/29"]
    (manager.path / "10.1.0.3").write_bytes(b"x\r\neth0")
    assert await manager.add("b") == ["10.1.0.4/29"]
    (manager.path / "10.1.0.2").unlink()
    (manager.path / "last_reserved_ip.0").write_text("10.1.0.6")
    assert await manager.add("a") == ["10.1.0.2/29"]
    with pytest.raises(DuplicateAllocation):
        await manager.add("x")


async def test_an_allocation_within_one_tick_of_the_clock_is_seen(manager: Manager) -> None:
    """The directory's time may stand still; the last address does not."""
    await manager.add("a")
    stamp = manager.path.stat()
    (manager.path / "10.1.0.3").write_bytes(b"x\r\neth0")
    (manager.path / "last_reserved_ip.0").write_text("10.1.0.3")
    os.utime(manager.path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    with pytest.raises(DuplicateAllocation):
        await manager.add("x")


def released_unseen(manager: Manager, address: str) -> None:
    """What another process does within the tick of the clock in which we have changed something ourselves."""
    stamp = manager.path.stat()
    (manager.path / address).unlink()
    os.utime(manager.path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))


async def test_the_last_free_address_is_found_though_its_release_was_not_seen(manager: Manager) -> None:
    for name in "abcde":
        await manager.add(name)
    released_unseen(manager, "10.1.0.4")
    assert await manager.add("f") == ["10.1.0.4/29"]


async def test_who_was_released_unseen_may_come_again(manager: Manager) -> None:
    await manager.add("a")
    released_unseen(manager, "10.1.0.2")
    assert await manager.add("a") == ["10.1.0.3/29"]
    released_unseen(manager, "10.1.0.3")
    with pytest.raises(CniError, match="no address for container a"):
        await manager.host_local.check(manager.request("a"))
    assert await manager.add("b") == ["10.1.0.4/29"]
    released_unseen(manager, "10.1.0.4")
    await manager.delete("b")
    assert await manager.add("b") == ["10.1.0.5/29"]


async def test_release_never_takes_what_changed_hands(manager: Manager) -> None:
    await manager.add("a")
    (manager.path / "10.1.0.2").write_bytes(b"other\r\neth0")
    await manager.delete("a")
    assert manager.files()["10.1.0.2"] == "other\r\neth0"


async def test_the_directory_may_vanish(manager: Manager) -> None:
    await manager.add("a")
    for path in manager.path.iterdir():
        path.unlink()
    manager.path.rmdir()
    await manager.delete("a")
    assert not manager.path.exists()
    assert await manager.add("a") == ["10.1.0.2/29"]


async def test_check_and_garbage(manager: Manager) -> None:
    await manager.add("a")
    await manager.add("b")
    await manager.host_local.check(manager.request("a"))
    with pytest.raises(CniError, match="no address for container c"):
        await manager.host_local.check(manager.request("c"))
    (manager.path / "10.1.0.6").touch()
    await manager.host_local.collect(manager.request("x"), frozenset({("b", "eth0")}))
    assert set(manager.files()) == {"10.1.0.3", "last_reserved_ip.0"}


async def test_delete_and_collect_make_no_directory(manager: Manager) -> None:
    await manager.delete("a")
    await manager.host_local.collect(manager.request("a"), frozenset())
    assert not manager.path.exists()


async def test_subdirectories_and_strange_files_are_left(manager: Manager) -> None:
    (manager.path / "10.1.0.2").mkdir(parents=True)
    (manager.path / "README").write_text("a\r\neth0")
    (manager.path / "last_reserved_ip.x").write_text("?")
    (manager.path / "last_reserved_ip.0").write_text("?")
    assert await manager.add("a") == ["10.1.0.3/29"]
    await manager.delete("a")
    assert (manager.path / "README").exists()


@pytest.mark.parametrize("failing", [1, 2])
async def test_a_full_disk_leaves_no_address(
    manager: Manager, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """The first write is that of the address's file, the second that of the last address."""
    await manager.add("a")
    real, calls = os.write, 0

    def write(handle: int, data: bytes) -> int:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError(28, "No space left on device")
        return real(handle, data)

    monkeypatch.setattr("samewire.ipam.datadir.os.write", write)
    with pytest.raises(KernelError, match="ENOSPC"):
        await manager.add("b")
    assert set(manager.files()) == {"10.1.0.2", "last_reserved_ip.0"}
    assert len(await manager.add("b")) == 1


@contextmanager
def locked(path: Path) -> Iterator[None]:
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


async def test_waits_for_the_lock_without_blocking(manager: Manager) -> None:
    await manager.add("a")
    with locked(manager.path / "lock"):
        waiting = asyncio.ensure_future(manager.add("b"))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not waiting.done()
    assert await waiting == ["10.1.0.3/29"]


async def test_gives_up_on_the_lock(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    await manager.add("a")
    monkeypatch.setattr(datadir, "LOCK_TIMEOUT_S", 0.01)
    with locked(manager.path / "lock"), pytest.raises(Unavailable, match="does not let go"):
        await manager.add("b")
    assert await manager.add("b") == ["10.1.0.3/29"]


async def test_many_at_once_get_different_addresses(manager: Manager) -> None:
    manager.ipam = {"subnet": "10.1.0.0/24"}
    found = await asyncio.gather(*(manager.add(f"c{number}") for number in range(100)))
    assert len({address for (address,) in found}) == 100


async def test_status(manager: Manager) -> None:
    await manager.host_local.status(manager.request("x"))
    manager.path.rmdir() if not any(manager.path.iterdir()) else (manager.path / "lock").unlink()
    manager.path.rmdir()
    manager.path.write_text("")
    with pytest.raises(SamewireError):
        await manager.host_local.status(manager.request("x"))


async def test_resolv_conf(manager: Manager, tmp_path: Path) -> None:
    text = (
        "# c\n; c\nnameserver 10.0.0.1\nnameserver  fd00::1 x\n\ndomain a\ndomain b\n"
        "search c d\nsearch e\noptions f g\nfoo 1\nnameserver\n"
    )
    expected = Dns(("10.0.0.1", "fd00::1"), "b", ("c", "d", "e"), ("f", "g"))
    assert parse_resolv_conf(text) == expected
    (tmp_path / "resolv.conf").write_text(text)
    manager.ipam = {**manager.ipam, "resolvConf": str(tmp_path / "resolv.conf")}
    assert (await manager.host_local.add(manager.request("a"))).dns == expected
    manager.ipam = {**manager.ipam, "resolvConf": str(tmp_path / "absent")}
    with pytest.raises(KernelError, match=r"ipam\.resolvConf .*absent: ENOENT"):
        await manager.add("b")


async def test_what_a_killed_process_has_made_but_not_filled_is_free(manager: Manager) -> None:
    manager.path.mkdir()
    (manager.path / "10.1.0.2").touch()
    (manager.path / "10.1.0.4").touch()
    assert await manager.add("a") == ["10.1.0.2/29"]
    await manager.delete("a")
    assert set(manager.files()) == {"last_reserved_ip.0"}
