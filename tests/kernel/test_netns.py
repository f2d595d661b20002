"""Network namespaces, settings inside them, and fault injection against the real kernel."""

from __future__ import annotations

import errno
import os
import resource
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from samewire.errors import Conflict, Invalid, KernelError, NotFound
from samewire.kernel import faults, netns, sysctl
from samewire.kernel.netns import NetNamespace
from samewire.kernel.rtnetlink import Netlink, link_dump, veth_add
from tests.support.cgroup_mount import cgroup2_mount

pytestmark = pytest.mark.root
Factory = Callable[[], NetNamespace]


def test_create_makes_a_namespace_of_its_own_that_ip_can_use(netns_factory: Factory) -> None:
    first, second = netns_factory(), netns_factory()
    with NetNamespace("/proc/self/ns/net") as own, NetNamespace(first.path) as again:
        assert len({first.identity, second.identity, own.identity}) == 3
        assert again.identity == first.identity
    listed = subprocess.run(
        ["ip", "-n", os.path.basename(first.path), "-o", "link"], check=True, capture_output=True, text=True
    )
    assert [line.split(":")[1] for line in listed.stdout.splitlines()] == [" lo"]


def test_create_refuses_a_path_in_use(netns_factory: Factory) -> None:
    namespace = netns_factory()
    with pytest.raises(Conflict):
        netns.create(namespace.path)
    with NetNamespace(namespace.path) as still_there:
        assert still_there.identity == namespace.identity


def test_delete_removes_file_and_mount(netns_factory: Factory) -> None:
    path = netns_factory().path
    netns.delete(path)
    assert not os.path.lexists(path)
    assert path not in Path("/proc/self/mounts").read_text()
    with pytest.raises(NotFound):
        netns.delete(path)


def test_vanished_and_stale_files_are_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        NetNamespace(tmp_path / "never")
    stale = tmp_path / "stale"
    stale.touch()  # what is left when the mount went away, for example by a restart of the machine
    with pytest.raises(NotFound):
        NetNamespace(stale)
    netns.delete(stale)
    assert not stale.exists()
    with pytest.raises(NotFound):
        NetNamespace(f"/proc/{2**22 + 1}/ns/net")


def test_other_files_are_invalid_and_never_deleted(tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_text("precious")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for wrong in (file, fifo, tmp_path, Path("/proc/self/ns/uts"), Path("/proc/self/status")):
        with pytest.raises(Invalid):
            NetNamespace(wrong)
        with pytest.raises(Invalid):
            netns.delete(wrong)
    assert file.read_text() == "precious"


def test_unreadable_file_is_a_kernel_error(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(KernelError) as caught:
        NetNamespace(loop)
    assert caught.value.errno == errno.ELOOP


def test_run_in_enters_only_for_the_call(netns_factory: Factory) -> None:
    namespace = netns_factory()

    def inside() -> tuple[tuple[int, int], int]:
        with NetNamespace("/proc/thread-self/ns/net") as current:
            return current.identity, threading.get_ident()

    with NetNamespace("/proc/thread-self/ns/net") as before:
        identity, thread = namespace.run(inside)
        assert identity == namespace.identity
        assert thread != threading.get_ident()
        with NetNamespace("/proc/thread-self/ns/net") as after:
            assert after.identity == before.identity


def test_run_in_hands_on_exceptions(netns_factory: Factory) -> None:
    def fail() -> None:
        raise LookupError("from inside")

    with pytest.raises(LookupError, match="from inside"):
        netns_factory().run(fail)
    with open(os.devnull) as file, pytest.raises(KernelError) as caught:
        netns.run_in(file.fileno(), lambda: None)
    assert caught.value.errno == errno.EINVAL


def test_briefly_in_comes_back_even_after_a_failure(netns_factory: Factory) -> None:
    namespace = netns_factory()

    def identity() -> tuple[int, int]:
        with NetNamespace("/proc/thread-self/ns/net") as current:
            return current.identity

    def fail() -> None:
        assert identity() == namespace.identity
        raise LookupError("from inside")

    before = identity()
    assert netns.briefly_in(namespace.fd, identity) == namespace.identity
    assert identity() == before
    with pytest.raises(LookupError):
        netns.briefly_in(namespace.fd, fail)
    assert identity() == before
    with open(os.devnull) as file, pytest.raises(KernelError):
        netns.briefly_in(file.fileno(), fail)
    assert identity() == before


def test_without_a_thread_it_is_to_be_tried_again(
    netns_factory: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    namespace = netns_factory()

    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", no_thread)
    with pytest.raises(KernelError) as caught:
        namespace.run(os.getpid)
    assert caught.value.errno == errno.EAGAIN


def test_without_descriptors_it_is_an_error_of_the_kernels(netns_factory: Factory) -> None:
    """Not a bug of ours: a pod's ADD then said no more than that."""
    namespace = netns_factory()
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(namespace.fd)
    os.close(free)
    for spare in (0, 1):
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + spare, before[1]))
        try:
            with pytest.raises(KernelError) as caught:
                _ = namespace.identity
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        assert caught.value.errno == errno.EMFILE
    assert namespace.identity


def test_closed_namespace_says_so(netns_factory: Factory) -> None:
    namespace = netns_factory()
    with NetNamespace(namespace.path) as opened:
        pass
    opened.close()
    with pytest.raises(ValueError, match="closed"):
        _ = opened.fd


def test_settings_belong_to_the_namespace(netns_factory: Factory) -> None:
    namespace = netns_factory()
    forwarding = ("net", "ipv4", "ip_forward")
    before = sysctl.read(forwarding)
    namespace.run(lambda: sysctl.write(forwarding, "1"))
    assert namespace.run(lambda: sysctl.read(forwarding)) == "1"
    namespace.run(lambda: sysctl.write(forwarding, 0))
    assert namespace.run(lambda: sysctl.read(forwarding)) == "0"
    assert sysctl.read(forwarding) == before


def test_settings_of_a_dotted_interface(netns_factory: Factory) -> None:
    namespace = netns_factory()
    with Netlink(namespace.fd) as netlink:
        netlink.request(veth_add("a.1", "b"))
    path = ("net", "ipv4", "conf", "a.1", "rp_filter")
    namespace.run(lambda: sysctl.write(path, 2))
    assert namespace.run(lambda: sysctl.read(path)) == "2"


def test_setting_failures(netns_factory: Factory) -> None:
    namespace = netns_factory()
    with pytest.raises(NotFound):
        sysctl.read(("net", "ipv4", "no_such_setting"))
    with pytest.raises(NotFound):
        namespace.run(lambda: sysctl.write(("net", "ipv4", "no_such_setting"), 1))
    with pytest.raises(KernelError) as caught:
        namespace.run(lambda: sysctl.write(("net", "ipv4", "ip_forward"), "words"))
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(Invalid):
        sysctl.read(("net", "..", "kernel", "ostype"))


def test_cgroup2_mount_is_what_findmnt_says(tmp_path: Path) -> None:
    command = ["findmnt", "-n", "-t", "cgroup2", "-o", "TARGET"]
    found = subprocess.run(command, check=False, capture_output=True, text=True)  # status 1: none
    targets = found.stdout.split()
    assert cgroup2_mount() == (Path(targets[0]) if targets else None)
    mounts = tmp_path / "mounts"
    mounts.write_text("cgroup /a cgroup rw 0 0\nnone /with\\040blank cgroup2 rw 0 0\n")
    assert cgroup2_mount(mounts) == Path("/with blank")
    mounts.write_text("proc /proc proc rw 0 0\n")
    assert cgroup2_mount(mounts) is None


def test_injected_fault_comes_before_the_change(
    netns_factory: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    namespace = netns_factory()
    seen: list[str] = []

    def inject(operation: str) -> None:
        seen.append(operation)
        if "sw1" in operation:
            raise KernelError(operation, errno.ENOMEM, "injected")

    monkeypatch.setattr(faults, "inject", inject)
    with Netlink(namespace.fd) as netlink:
        with pytest.raises(KernelError, match="injected"):
            netlink.batch([veth_add("sw0", "p0"), veth_add("sw1", "p1"), veth_add("sw2", "p2")])
        assert seen == ["create veth sw0", "create veth sw1"]
        assert {link.name for link in netlink.dump(link_dump())} == {"lo", "sw0", "p0"}
    with pytest.raises(KernelError, match="injected"):
        netns.create("/run/netns/swt-sw1")
    assert not os.path.lexists("/run/netns/swt-sw1")


def test_a_new_namespace_is_not_mistaken_for_a_dead_one() -> None:
    """The kernel gives the inode of a dead namespace to the next one."""
    seen = set()
    for number in range(20):
        path = f"/run/netns/swreuse-{os.getpid()}-{number}"
        with netns.create(path) as namespace:
            seen.add(namespace.identity)
        netns.delete(path)
    assert len(seen) == 20


def test_a_held_namespace_is_entered_once_by_all_who_share_it(
    netns_factory: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    namespace = netns_factory()
    entered: list[int] = []
    enter = netns.briefly_in

    def counted(fd: int, function: Callable[[], socket.socket]) -> socket.socket:
        entered.append(fd)
        return enter(fd, function)

    monkeypatch.setattr(netns, "briefly_in", counted)
    with NetNamespace(namespace.path).hold() as first:
        own = first.identity
        with NetNamespace.shared(namespace.path) as again, Netlink(again) as inside:
            assert again.identity == own
            assert [link.name for link in inside.dump(link_dump())] == ["lo"]
        assert first.fd >= 0
        assert len(entered) == 1
    with NetNamespace.shared(namespace.path) as later:
        assert later is not first
        assert later.identity == own
    assert len(entered) == 2


def test_a_held_namespace_is_not_taken_for_another_in_its_place(netns_factory: Factory) -> None:
    old, new = netns_factory(), netns_factory()
    with NetNamespace(old.path).hold() as held:
        before = held.identity
        subprocess.run(["umount", "--lazy", old.path], check=True)
        subprocess.run(["mount", "--bind", new.path, old.path], check=True)
        with NetNamespace.shared(old.path) as found:
            assert found.identity == new.identity != before


def test_the_last_of_those_who_share_a_namespace_closes_it(netns_factory: Factory) -> None:
    path = netns_factory().path
    first = NetNamespace(path).hold()
    second = NetNamespace.shared(path)
    first.close()
    assert os.fstat(second.fd)
    second.close()
    with pytest.raises(ValueError, match="is closed"):
        _ = second.fd
