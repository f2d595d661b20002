"""The switch on this kernel: its objects pass the verifier, attach to every kind of hook, and age their flows.

Marked ``kernelcore``: ``make test-kernels`` runs it on the oldest supported kernel and on a newer one.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from samewire.errors import KernelError
from samewire.kernel import features, netns
from samewire.kernel.bpf import BpfLink, BpfMap, BpfObject
from samewire.kernel.bpf.link import AttachType
from samewire.node.hooks import SOCKETS
from samewire.vfp.constants import LAYOUT_VERSION, Counter, Reason
from samewire.vfp.records_runtime import DropKey
from samewire.vfp.tables import Config
from tests.support.cgroup_mount import cgroup2_mount

pytestmark = [pytest.mark.root, pytest.mark.kernelcore]

BUILT = Path(__file__).resolve().parents[2] / "src" / "samewire" / "_build"
TC_PROGRAMS = ("sw_ingress", "sw_uplink_out")
FLOWS = 1024  # a small table: preallocating the default one takes tens of MB
# A broadcast frame with an IPv4 header of length 0.
MALFORMED = b"\xff" * 6 + b"\x02\x00\x00\x00\x00\x01" + b"\x08\x00" + b"\x40" + b"\x00" * 45


def open_object(name: str) -> BpfObject:
    """The built object with a small flow table, not loaded yet."""
    loaded = BpfObject(BUILT / name)
    loaded.set_max_entries({"sw_flows": FLOWS, "sw_flow_slots": 2 * FLOWS})
    return loaded


@pytest.fixture(scope="module")
def switch() -> Iterator[BpfObject]:
    """Loaded once: the verifier takes its time, and most of it without a hardware CPU."""
    with open_object("switch.o") as loaded:
        loaded.load()
        yield loaded


@pytest.fixture
def namespace(tmp_path: Path) -> Iterator[netns.NetNamespace]:
    """A network namespace with a veth pair, va and vb, both up."""
    path = tmp_path / "netns"
    with netns.create(path) as made:
        try:
            inside(made, "ip", "link", "add", "va", "type", "veth", "peer", "name", "vb")
            for name in ("va", "vb"):
                inside(made, "ip", "link", "set", name, "up")
            yield made
        finally:
            netns.delete(path)


@pytest.fixture
def cgroup() -> Iterator[int]:
    """A directory descriptor of a fresh version 2 control group."""
    mount = cgroup2_mount()
    assert mount is not None, "no cgroup2 file system is mounted"
    path = mount / f"samewire-floor-{os.getpid()}"
    path.mkdir()
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
        path.rmdir()


def inside(made: netns.NetNamespace, *command: str) -> None:
    subprocess.run(
        ["nsenter", f"--net={made.path}", *command], check=True, capture_output=True, text=True, timeout=60
    )


def wait_for(condition: Callable[[], bool], what: str, limit_s: float = 30.0) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, f"not within {limit_s} s: {what}"
        time.sleep(0.05)


def summed(table: BpfMap, key: bytes) -> int:
    """A per-CPU u64, summed; 0 when there is no entry."""
    value = table.lookup(key)
    return sum(int.from_bytes(one, "little") for one in table.per_cpu_values(value)) if value else 0


def drops(switch: BpfObject, reason: Reason) -> int:
    table = switch.maps["sw_drops"]
    return sum(summed(table, key) for key, _ in table.items() if DropKey.unpack(key).reason == reason)


def test_this_kernel_is_supported() -> None:
    features.require_floor()


def test_the_switch_that_counts_flows_passes_the_verifier() -> None:
    with open_object("switch.o") as loaded:
        loaded.set_max_entries({"sw_flow_counts": 4 * FLOWS})
        loaded.set_constants({"sw_counted_slots": 2 * FLOWS})
        loaded.load()
        assert set(TC_PROGRAMS) <= set(loaded.programs)


@pytest.mark.parametrize("name", ["switch.o", "switch_trace.o"])
def test_object_passes_the_verifier(name: str) -> None:
    with open_object(name) as loaded:
        loaded.load()
        wanted = {"sw_trace"} if name == "switch_trace.o" else {*TC_PROGRAMS, *SOCKETS, "sw_start_ageing"}
        assert wanted <= set(loaded.programs)


def test_every_built_object_is_tested() -> None:
    assert {path.name for path in BUILT.glob("*.o")} == {"switch.o", "switch_trace.o"}


@pytest.mark.parametrize("program", TC_PROGRAMS)
def test_tc_program_attaches(
    switch: BpfObject, namespace: netns.NetNamespace, bpffs: Path, program: str
) -> None:
    pin = bpffs / program
    switch.programs[program].pin(pin)
    inside(namespace, "tc", "qdisc", "add", "dev", "va", "clsact")
    direction = "egress" if program == "sw_uplink_out" else "ingress"
    inside(
        namespace, "tc", "filter", "add", "dev", "va", direction, "bpf", "direct-action",
        "object-pinned", str(pin),
    )  # fmt: skip


def test_tcx_link_where_the_kernel_has_it(switch: BpfObject, namespace: netns.NetNamespace) -> None:
    index = namespace.run(lambda: socket.if_nametoindex("va"))

    def attach() -> None:
        BpfLink.attach(switch.programs["sw_ingress"], index, AttachType.TCX_INGRESS).close()

    if features.has_tcx():
        namespace.run(attach)
    else:
        with pytest.raises(KernelError, match="EINVAL"):
            namespace.run(attach)


@pytest.mark.parametrize("program", sorted(SOCKETS))
def test_cgroup_program_attaches(switch: BpfObject, cgroup: int, program: str) -> None:
    BpfLink.attach(switch.programs[program], cgroup, SOCKETS[program]).close()


def test_a_real_packet_is_judged_and_counted(
    switch: BpfObject, namespace: netns.NetNamespace, bpffs: Path
) -> None:
    pin = bpffs / "sw_ingress"
    switch.programs["sw_ingress"].pin(pin)
    inside(namespace, "tc", "qdisc", "add", "dev", "va", "clsact")
    inside(
        namespace,
        "tc",
        "filter",
        "add",
        "dev",
        "va",
        "ingress",
        "bpf",
        "direct-action",
        "object-pinned",
        str(pin),
    )

    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind(("vb", 0))
            raw.send(MALFORMED)

    before = drops(switch, Reason.UNKNOWN_PORT)
    namespace.run(send)
    wait_for(lambda: drops(switch, Reason.UNKNOWN_PORT) > before, "the drop is counted")


def test_flows_age_with_no_process(switch: BpfObject) -> None:
    """The timer goes on by itself once it was started."""
    config = Config(
        layout_version=LAYOUT_VERSION, uplink_ifindex=0, tunnel_ifindex=0, host_ifindex=0, host_peer_ifindex=0,
        flow_slots=2 * FLOWS, uplink_mac=b"\0" * 6, tunnel_mac=b"\0" * 6, host_mac=b"\0" * 6,
        host_peer_mac=b"\0" * 6, nat_port_low=49152, nat_port_high=65535, vxlan_port=4789, flags=0,
        idle_tcp_half_open=1, idle_tcp_established=1, idle_tcp_closing=1, idle_udp_single=1, idle_udp_stream=1,
        idle_icmp=1, idle_other=1,
    )  # fmt: skip
    switch.maps["sw_config"].update(bytes(4), config.pack())
    # 5: the kernel has no memory for the timer at the moment; the daemon asks again, too.
    results = (switch.programs["sw_start_ageing"].test_run(MALFORMED).retval for _ in range(100))
    assert next(result for result in results if result != 5) == 0
    key = int(Counter.AGEING_TICKS).to_bytes(4, "little")
    wait_for(lambda: summed(switch.maps["sw_counters"], key) >= 2, "the ageing timer ticks")
