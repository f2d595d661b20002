"""Programs at their hooks: tcx and clsact in fresh namespaces, a cgroup of the test's own, links that are pinned."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from samewire.errors import KernelError, NotFound
from samewire.kernel import faults, features
from samewire.kernel import rtnetlink as rt
from samewire.kernel.bpf import AttachType, BpfLink, BpfMap, BpfObject, mount_bpffs, unmount_bpffs
from samewire.kernel.bpf.fs import is_bpffs
from samewire.kernel.netns import NetNamespace
from samewire.kernel.rtnetlink.tc import Direction
from tests.support.cgroup_mount import cgroup2_mount

pytestmark = [pytest.mark.root, pytest.mark.kernelcore]

Compiled = Callable[[str], Path]
FRAME = b"\xff" * 6 + b"\x02\0\0\0\0\x01" + b"\x88\xb5" + bytes(46)  # a broadcast of an experimental protocol
VIP = "10.96.0.1"


@pytest.fixture(scope="module")
def loaded(compiled: Compiled) -> Iterator[BpfObject]:
    with BpfObject(compiled("basics")) as opened:
        opened.load()
        yield opened


@pytest.fixture
def space(netns_factory: Callable[[], NetNamespace]) -> NetNamespace:
    """A namespace with a veth pair, va and vb, both up."""
    made = netns_factory()
    with rt.Netlink(made.fd) as netlink:
        netlink.batch([rt.veth_add("va", "vb"), *(rt.link_set(name, up=True) for name in ("va", "vb"))])
    return made


@pytest.fixture
def va(space: NetNamespace) -> int:
    with rt.Netlink(space.fd) as netlink:
        return netlink.get(rt.link_get("va")).ifindex


@pytest.fixture
def cgroup() -> Iterator[Path]:
    mount = cgroup2_mount()
    assert mount is not None, "no cgroup2 file system is mounted"
    path = mount / f"samewire-attach-{os.getpid()}"
    path.mkdir()
    yield path
    path.rmdir()


def send(space: NetNamespace, name: str) -> None:
    def body() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind((name, 0))
            raw.send(FRAME)

    space.run(body)


def packets(table: BpfMap, ifindex: int) -> int:
    return int.from_bytes(table.lookup(ifindex.to_bytes(4, "little")) or b"", "little")


def wait_for(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.005)


@pytest.mark.parametrize(("direction", "sender"), [("ingress", "vb"), ("egress", "va")])
def test_clsact_filter_sees_packets(
    loaded: BpfObject, space: NetNamespace, va: int, direction: Direction, sender: str
) -> None:
    program, table = loaded.programs["t_pass"], loaded.maps["t_hash"]
    with rt.Netlink(space.fd) as netlink:
        netlink.batch([rt.clsact_add(va), rt.bpf_filter_replace(va, direction, program.fd, "t_pass")])
        (found,) = netlink.dump(rt.filter_dump(va, direction))
        assert (found.name, found.program_id) == ("t_pass", program.id)
        table.delete(va.to_bytes(4, "little"))
        send(space, sender)
        wait_for(lambda: packets(table, va) >= 1, "the program ran")
        netlink.request(rt.bpf_filter_replace(va, direction, loaded.programs["t_count"].fd, "t_count"))
        (found,) = netlink.dump(rt.filter_dump(va, direction))
        assert found.program_id == loaded.programs["t_count"].id


def attach_or_see_why_not(program: str, loaded: BpfObject, space: NetNamespace, va: int) -> BpfLink | None:
    """A tcx link, or None on kernels without tcx, after looking at how they say so."""

    def attach() -> BpfLink:
        return BpfLink.attach(loaded.programs[program], va, AttachType.TCX_INGRESS)

    if features.has_tcx():
        return space.run(attach)
    with pytest.raises(KernelError, match="EINVAL"):
        space.run(attach)
    return None


def test_tcx_link_lives_by_its_pin_and_swaps_programs(
    loaded: BpfObject, space: NetNamespace, va: int, bpffs: Path
) -> None:
    table = loaded.maps["t_hash"]
    link = attach_or_see_why_not("t_pass", loaded, space, va)
    if link is None:
        return
    with link:
        assert (link.info().program_id, link.info().target) == (loaded.programs["t_pass"].id, va)
        link.pin(bpffs / "link")
    table.delete(va.to_bytes(4, "little"))
    send(space, "vb")
    wait_for(lambda: packets(table, va) >= 1, "the pinned link's program ran")
    with BpfLink.open_pinned(bpffs / "link") as again:
        again.update(loaded.programs["t_count"])
        assert again.info().program_id == loaded.programs["t_count"].id
        again.detach()
        assert again.info().target == 0
    (bpffs / "link").unlink()
    with pytest.raises(NotFound):
        BpfLink.open_pinned(bpffs / "link")


def test_tcx_link_goes_with_its_descriptor_and_with_its_interface(
    loaded: BpfObject, space: NetNamespace, va: int
) -> None:
    table = loaded.maps["t_hash"]
    link = attach_or_see_why_not("t_pass", loaded, space, va)
    if link is None:
        return
    link.close()
    link.close()
    table.delete(va.to_bytes(4, "little"))
    with (
        rt.Netlink(space.fd) as netlink,
        space.run(lambda: BpfLink.attach(loaded.programs["t_count"], va, AttachType.TCX_INGRESS)) as second,
    ):
        counted = loaded.maps["t_cpu_hash"]
        counted.delete(bytes(4))
        send(space, "vb")
        wait_for(lambda: counted.lookup(bytes(4)) is not None, "the second link's program ran")
        assert packets(table, va) == 0  # the first one's did not
        netlink.request(rt.link_del("va"))
        assert second.info().target == 0


def test_tcx_on_an_interface_that_is_not_there(loaded: BpfObject) -> None:
    if features.has_tcx():
        with pytest.raises(KernelError, match=r"attach t_pass \(tcx_egress\): ENODEV"):
            BpfLink.attach(loaded.programs["t_pass"], 0x7FFFFFF, AttachType.TCX_EGRESS)


CONNECT = """
import socket, sys
with socket.socket() as client:
    client.settimeout(10)
    client.connect((sys.argv[1], 443))
    print(client.recv(100).decode())
"""
SWAP = """
import sys
from pathlib import Path
from samewire.kernel.bpf import BpfLink, BpfProgram
pins = Path(sys.argv[1])
with BpfLink.open_pinned(pins / "link") as link, BpfProgram.open_pinned(pins / "refuse") as program:
    link.update(program)
"""


def connect_from(cgroup: Path, space: NetNamespace) -> subprocess.CompletedProcess[str]:
    """Connect to the VIP from a process in the cgroup and the namespace."""
    shell = f'echo $$ > {cgroup}/cgroup.procs && exec "$@"'
    inside = ["nsenter", f"--net={space.path}", "sh", "-c", shell, "sh"]
    command = [*inside, sys.executable, "-I", "-c", CONNECT, VIP]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


@pytest.fixture
def greeter(space: NetNamespace) -> Iterator[int]:
    """A server on the namespace's loopback that says hello to everybody; its port."""
    with rt.Netlink(space.fd) as netlink:
        netlink.request(rt.link_set("lo", up=True))
    server = space.run(lambda: socket.create_server(("127.0.0.1", 0)))

    def serve() -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:  # shut down
                return
            with client:
                client.sendall(b"hello")

    thread = threading.Thread(target=serve)
    thread.start()
    yield server.getsockname()[1]
    server.shutdown(socket.SHUT_RDWR)
    thread.join()
    server.close()


def test_cgroup_link_turns_connections_and_is_swapped_by_a_second_process(
    compiled: Compiled, cgroup: Path, space: NetNamespace, greeter: int, bpffs: Path
) -> None:
    assert "unreachable" in connect_from(cgroup, space).stderr
    directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with BpfObject(compiled("basics")) as opened:
            vip = int.from_bytes(socket.inet_aton(VIP), sys.byteorder)
            opened.set_constants({"t_vip": vip, "t_port": greeter})
            opened.load()
            program = opened.programs["t_connect4"]
            with BpfLink.attach(program, directory, AttachType.CGROUP_INET4_CONNECT) as link:
                link.pin(bpffs / "link")
            opened.programs["t_refuse4"].pin(bpffs / "refuse")
    finally:
        os.close(directory)
    assert connect_from(cgroup, space).stdout == "hello\n"
    subprocess.run([sys.executable, "-c", SWAP, str(bpffs)], check=True, timeout=60)
    assert "not permitted" in connect_from(cgroup, space).stderr
    (bpffs / "link").unlink()
    # The kernel takes the program off some time after the last reference has gone.
    wait_for(lambda: "unreachable" in connect_from(cgroup, space).stderr, "the program is off")


def test_bpffs_is_mounted_once_and_unmounted_with_its_pins(loaded: BpfObject, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "bpf"
    try:
        mount_bpffs(path)
        mount_bpffs(path)
        assert is_bpffs(path)
        loaded.maps["t_hash"].pin(path / "t_hash")
    finally:
        unmount_bpffs(path)
    assert not is_bpffs(path)
    assert not list(path.iterdir())
    unmount_bpffs(path)
    unmount_bpffs(tmp_path / "missing")
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(KernelError, match="EEXIST"):
        mount_bpffs(file)
    with pytest.raises(KernelError, match="ENOENT"):
        is_bpffs(tmp_path / "missing")


LINK_OPERATIONS: dict[str, Callable[[BpfLink, BpfObject, Path], object]] = {
    "replace the program of a link by t_count": lambda link, loaded, _: link.update(
        loaded.programs["t_count"]
    ),
    "pin link pin": lambda link, _, path: link.pin(path),
    "detach a link": lambda link, *_: link.detach(),
    "read link information": lambda link, *_: link.info(),
}


@pytest.mark.parametrize("operation", LINK_OPERATIONS)
def test_every_link_operation_can_be_made_to_fail(
    loaded: BpfObject, cgroup: Path, bpffs: Path, operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with BpfLink.attach(loaded.programs["t_refuse4"], directory, AttachType.CGROUP_INET4_CONNECT) as link:
            before = link.info()

            def inject(text: str) -> None:
                if text == operation:
                    raise KernelError(text, 5, "injected")

            with monkeypatch.context() as patch:
                patch.setattr(faults, "inject", inject)
                with pytest.raises(KernelError, match="injected"):
                    LINK_OPERATIONS[operation](link, loaded, bpffs / "pin")
            assert link.info() == before
            assert not (bpffs / "pin").exists()
    finally:
        os.close(directory)
