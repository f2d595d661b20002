"""Parts of the node, each on a real kernel: devices, hooks, deletion of links, sweeping, watching."""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from samewire.cni.backend import Address, AttachRequest
from samewire.errors import Conflict, KernelError, Unavailable
from samewire.hcn.codec import decode_modify, decode_object
from samewire.hcn.schema import Endpoint, Kind, Namespace, Network
from samewire.hcn.store import Store
from samewire.kernel import faults, sysctl
from samewire.kernel.bpf import BpfLink, BpfProgram, SkbContext, TestRun
from samewire.kernel.netns import NetNamespace
from samewire.kernel.rtnetlink import (
    Link,
    LinkMonitor,
    LinkNew,
    Netlink,
    Overrun,
    fdb_del_self,
    fdb_dump,
    filter_dump,
    link_del,
    link_dump,
    link_get,
    link_set,
    veth_add,
)
from samewire.node import devices as devices_module
from samewire.node import hooks as hooks_module
from samewire.node import sweep
from samewire.node.cni_backend import NodeBackend
from samewire.node.config import NodeConfig
from samewire.node.devices import (
    OWN_DEVICES,
    Devices,
    ensure_devices,
    give_ports_back,
    reserve_ports,
    reserved_ports,
    wrong_settings,
)
from samewire.node.hooks import UPLINK_PRIORITY, detach_uplink
from samewire.node.keepsakes import FILE_NAME, load_keepsakes
from samewire.node.links import activate, create, host_differences, inside_differences, shaped_rates
from samewire.node.nicfilters import NicFilters
from samewire.node.node import Node
from samewire.node.portranges import parse_ports, port_range
from samewire.node.reaper import LinkReaper
from samewire.node.watch import Watcher
from samewire.vfp.address import parse_interface
from samewire.vfp.model import PortLink
from samewire.vfp.tables import DropKey, Flow, FlowKey, RuleCountKey
from tests.support.node import (
    NODE_IP,
    STALL_S,
    NodeNet,
    can_ping,
    in_namespace,
    ip,
    overlay,
    path_of,
)
from tests.support.waiting import until

pytestmark = pytest.mark.root

PORTS = ("net", "ipv4", "ip_local_reserved_ports")
_IFF_LOWER_UP = 1 << 16
_EXPERIMENTAL = 0x88B5


@pytest.fixture
def netlink(net: NodeNet) -> Iterator[Netlink]:
    with Netlink() as opened:
        yield opened


@pytest_asyncio.fixture
async def start(config: NodeConfig) -> AsyncIterator[Callable[[], Awaitable[Node]]]:
    running: list[Node] = []

    async def begin() -> Node:
        while running:
            await running.pop().close()
        running.append(await Node.start(config, lambda _: None))
        return running[-1]

    yield begin
    for node in running:
        await node.close()


def make(netlink: Netlink, state_dir: Path, *, port: int = 4789, mtu: int = 1500) -> Devices:
    return ensure_devices(netlink, state_dir, vxlan_port=port, mtu=mtu)


def links(netlink: Netlink) -> dict[str, int]:
    return {link.name: link.ifindex for link in netlink.dump(link_dump())}


# --- devices ------------------------------------------------------------------------------------


def test_devices_are_made_once(netlink: Netlink, tmp_path: Path) -> None:
    first = make(netlink, tmp_path)
    before = netlink.dump(link_dump())
    assert make(netlink, tmp_path) == first
    assert [(item.ifindex, item.mac, item.flags) for item in netlink.dump(link_dump())] == [
        (item.ifindex, item.mac, item.flags) for item in before
    ]
    assert [name for name in OWN_DEVICES if wrong_settings(name)] == []
    for name in OWN_DEVICES:
        link = netlink.get(link_get(name))
        assert (link.up, link.group, link.alias) == (True, 21367, "samewire")
    assert not netlink.get(link_get("samewire1")).flags & 0x80
    assert netlink.get(link_get("samewire0")).flags & 0x80, "no ARP towards the switch"


def test_their_macs_outlive_them(netlink: Netlink, tmp_path: Path) -> None:
    first = make(netlink, tmp_path)
    for name in ("samewire0", "swvxlan0"):
        netlink.request(link_del(name))
    assert not set(OWN_DEVICES) & set(links(netlink))
    again = make(netlink, tmp_path)
    assert (again.tunnel_mac, again.host_mac, again.host_peer_mac) == (
        first.tunnel_mac,
        first.host_mac,
        first.host_peer_mac,
    )
    assert again.tunnel_ifindex != first.tunnel_ifindex


def test_another_port_makes_another_tunnel(netlink: Netlink, tmp_path: Path) -> None:
    first = make(netlink, tmp_path)
    second = make(netlink, tmp_path, port=8472)
    assert second.tunnel_ifindex != first.tunnel_ifindex
    assert second.host_ifindex == first.host_ifindex
    assert "dstport 8472" in ip("-d", "link", "show", "swvxlan0")


def test_what_somebody_changed_is_set_right(netlink: Netlink, tmp_path: Path) -> None:
    first = make(netlink, tmp_path)
    netlink.batch(
        [
            link_set("samewire0", up=False, mtu=1280, arp=True, group=0),
            link_set("samewire1", mac=b"\2\0\0\0\0\1", alias="mine"),
            link_set("swvxlan0", mtu=1450, group=0),
        ]
    )
    sysctl.write(("net", "ipv4", "conf", "samewire0", "rp_filter"), 1)
    assert wrong_settings("samewire0") == ["ipv4.rp_filter"]
    assert make(netlink, tmp_path) == first
    test_devices_are_made_once(netlink, tmp_path)


def test_a_lost_file_changes_no_mac(netlink: Netlink, tmp_path: Path) -> None:
    """Other nodes know this one by them."""
    first = make(netlink, tmp_path)
    (tmp_path / FILE_NAME).unlink()
    assert make(netlink, tmp_path) == first


@pytest.mark.parametrize("done", range(3))
def test_who_is_killed_while_making_them_can_go_on(
    netlink: Netlink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: int
) -> None:
    bring, left = devices_module._bring, [None] * done

    def brought(*arguments: Any, **more: Any) -> Link:
        left.pop()  # raises IndexError: from here on nothing happens any more
        return bring(*arguments, **more)

    monkeypatch.setattr(devices_module, "_bring", brought)
    with pytest.raises(IndexError):
        make(netlink, tmp_path)
    monkeypatch.undo()
    test_devices_are_made_once(netlink, tmp_path)


@pytest.mark.parametrize("name", ["samewire0", "samewire1", "swvxlan0"])
def test_a_device_of_somebody_else_is_left_alone(netlink: Netlink, tmp_path: Path, name: str) -> None:
    netlink.request(veth_add(name, "theirs"))
    with pytest.raises(Conflict, match=name):
        make(netlink, tmp_path)
    assert {name, "theirs"} <= set(links(netlink))


def test_reserved_ports_are_kept_and_given_back(net: NodeNet, tmp_path: Path) -> None:
    sysctl.write(PORTS, "8080,50000")
    reserve_ports(tmp_path, port_range(49152, 65535))
    assert sysctl.read(PORTS) == "8080,49152-65535"
    sysctl.write(PORTS, "8080,9090,49152-65535")  # the administrator adds one meanwhile
    reserve_ports(tmp_path, port_range(60000, 61000))
    assert sysctl.read(PORTS) == "8080,9090,50000,60000-61000"
    give_ports_back(load_keepsakes(tmp_path))
    assert sysctl.read(PORTS) == "8080,9090,50000"


@pytest.mark.parametrize("then", [0, port_range(50, 60)], ids=["fewer", "others"])
def test_who_is_killed_while_giving_ports_back_can_go_on(
    net: NodeNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: int
) -> None:
    """They would look like the administrator's for ever."""
    sysctl.write(PORTS, "8080")
    pool = port_range(49152, 65535)
    reserve_ports(tmp_path, pool | port_range(70, 80))
    with monkeypatch.context() as patch:
        patch.setattr(faults, "inject", killed)
        with pytest.raises(SystemExit):
            reserve_ports(tmp_path, pool | then)
    reserve_ports(tmp_path, pool)
    assert sysctl.read(PORTS) == "8080,49152-65535"


def killed(operation: str) -> None:
    raise SystemExit(operation)


def test_thousands_of_reserved_ports(net: NodeNet, tmp_path: Path) -> None:
    """The setting's text is longer than a page, and than what is read from a file at a time."""
    ports = sum(1 << port for port in range(1, 65536, 2))
    for some in (ports, ports & ~(1 << 10001), ports):
        reserve_ports(tmp_path, some)
        assert (parse_ports(f" {reserved_ports()}") == some) is True  # pytest cannot show such numbers
    give_ports_back(load_keepsakes(tmp_path))
    assert sysctl.read(PORTS) == ""


def test_no_reserved_ports_at_all_can_be_given_back(net: NodeNet, tmp_path: Path) -> None:
    reserve_ports(tmp_path, port_range(49152, 65535))
    give_ports_back(load_keepsakes(tmp_path))
    assert sysctl.read(PORTS) == ""


# --- hooks --------------------------------------------------------------------------------------


async def test_without_tcx_our_filter_stands_beside_others(
    net: NodeNet,
    netlink: Netlink,
    start: Callable[[], Awaitable[Node]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hooks_module, "has_tcx", lambda: False)
    in_namespace(net.node, "tc", "qdisc", "add", "dev", "eth0", "clsact")
    in_namespace(
        net.node, "tc", "filter", "add", "dev", "eth0", "ingress", "prio", "7", "bpf", "bytecode", "1,6 0 0 0"
    )
    node = await start()
    uplink = node.uplink.ifindex
    for direction, program in (("ingress", "sw_ingress"), ("egress", "sw_uplink_out")):
        found = {item.priority: item for item in netlink.dump(filter_dump(uplink, direction))}  # type: ignore[arg-type]
        assert found[UPLINK_PRIORITY].program_id == node.board.programs[program].id
    assert await node.auditor.compare() == []
    in_namespace(net.node, "tc", "filter", "del", "dev", "eth0", "egress")
    assert [item.kind for item in await node.auditor.compare()] == ["hook"]
    await node.auditor.audit()
    assert await node.auditor.compare() == []
    assert detach_uplink(netlink, uplink)
    assert [item.priority for item in netlink.dump(filter_dump(uplink, "ingress"))] == [7]
    in_namespace(net.node, "tc", "filter", "del", "dev", "eth0", "ingress")
    await node.auditor.audit()
    assert detach_uplink(netlink, uplink)
    assert "clsact" not in in_namespace(net.node, "tc", "qdisc", "show", "dev", "eth0").stdout
    assert not detach_uplink(netlink, uplink)


@pytest.mark.parametrize("tcx", [True, False], ids=["tcx", "clsact"])
@pytest.mark.parametrize("restart", [False, True], ids=["alive", "away"])
async def test_a_nic_that_is_the_uplink_no_more_lets_everything_in(
    net: NodeNet,
    start: Callable[[], Awaitable[Node]],
    monkeypatch: pytest.MonkeyPatch,
    tcx: bool,
    restart: bool,
) -> None:
    """The program drops what arrives by a device that is neither in its configuration nor a pod's: at once, and also
    where a tool looks at the links meanwhile.
    """
    if not tcx:
        monkeypatch.setattr(hooks_module, "has_tcx", lambda: False)
    node = await start()
    before = node.uplink.ifindex
    looked_at = [BpfLink.open_pinned(pin) for pin in (node.config.bpf_dir / "links").iterdir()]
    ip("link", "set", "eth0", "down", netns_name=net.node)
    ip("link", "set", "eth0", "name", "before", netns_name=net.node)
    ip("link", "set", "before", "up", netns_name=net.node)
    ip("link", "add", "eth0", "up", "type", "veth", "peer", "name", "other", netns_name=net.node)
    if restart:
        node = await start()
    else:
        assert await node.refresh()
    assert node.uplink.ifindex != before
    assert can_ping(net.router, NODE_IP)
    assert node.hooks.on_uplink(node.uplink.ifindex)
    assert not node.hooks.on_uplink(before)
    assert await node.auditor.compare() == []
    for link in looked_at:
        link.close()


async def test_a_link_that_was_unpinned_is_made_again(start: Callable[[], Awaitable[Node]]) -> None:
    node = await start()
    for pin in (node.config.bpf_dir / "links").iterdir():
        pin.unlink()
    assert [item.kind for item in await node.auditor.compare()] == ["hook"]
    report = await node.auditor.audit()
    assert (len(report.differences), report.repaired, report.failed) == (1, 1, ())
    assert await node.auditor.compare() == []


async def test_a_host_end_that_comes_up_is_announced_once(
    net: NodeNet, start: Callable[[], Awaitable[Node]]
) -> None:
    """Whatever else is changed together with its state has all parts of the kernel look at it once more."""
    node = await start()
    network = decode_object(Kind.NETWORK, overlay())
    assert isinstance(network, Network)
    await node.service.create_network(network)
    with LinkMonitor() as monitor:
        await NodeBackend(node).attach(
            AttachRequest(
                network="pods",
                container_id="c",
                interface_name="eth0",
                netns_path=path_of(net.pod()),
                addresses=(Address("10.244.0.5", 24, "10.244.0.1"),),
                routes=(),
                policies=(),
            )
        )
        ((_, state),) = node.switch.ports
        seen = [
            (event.link.up, event.link.alias)
            for event in monitor.receive()
            if isinstance(event, LinkNew)
            and event.link.ifindex == state.ifindex
            and not event.link.flags
            & _IFF_LOWER_UP  # set by its other end, and told whenever the kernel gets to it
        ]
    assert seen == [(False, ""), (True, state.link.alias)]


async def test_a_host_end_sends_as_soon_as_its_port_is_open(
    net: NodeNet, start: Callable[[], Awaitable[Node]]
) -> None:
    """The first answer to a pod is lost else, that to its ARP request above all, and it asks again after a second."""
    node = await start()
    pod = net.pod()
    with NetNamespace(path_of(pod)) as space, Netlink() as netlink:
        for number in range(20):
            link = PortLink(
                endpoint_id="e",
                host_name=f"host{number}",
                host_mac=bytes((2, 0, 0, 0, 1, number)),
                netns_path=path_of(pod),
                interface_name=f"eth{number}",
                mac=bytes((2, 0, 0, 0, 2, number)),
                mtu=1500,
                addresses=(),
                routes=(),
                neighbours=(),
            )
            pair = create(netlink, link, space)
            with (
                _packets(link.host_name) as near,
                space.run(partial(_packets, link.interface_name)) as far,
            ):
                node.hooks.begin_pod(pair.host).result()
                activate(netlink, link, pair, space, new=True)
                for opened in (near, far):
                    opened.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # that it was down
                near.send(link.mac + link.host_mac + _EXPERIMENTAL.to_bytes(2) + bytes(50))
                far.settimeout(STALL_S)
                assert far.recv(100), "what is lost never comes"


async def test_a_port_too_small_for_ipv6_is_opened(
    net: NodeNet, start: Callable[[], Awaitable[Node]]
) -> None:
    """The kernel takes IPv6 from an interface of less than 1280 bytes: behind an uplink of 1300, say, all of an
    overlay's.
    """
    node, pod = await start(), net.pod()
    link = PortLink(
        endpoint_id="e",
        host_name="host0",
        host_mac=b"\2\0\0\0\1\0",
        netns_path=path_of(pod),
        interface_name="eth0",
        mac=b"\2\0\0\0\2\0",
        mtu=1279,
        addresses=(parse_interface("10.244.1.2/24"),),
        routes=(),
        neighbours=(),
    )
    with NetNamespace(path_of(pod)) as space, Netlink() as netlink:
        pair = create(netlink, link, space)
        node.hooks.begin_pod(pair.host).result()
        activate(netlink, link, pair, space, new=True)
        assert host_differences(link, netlink.get(link_get("host0")), shaped_rates(netlink)) == []
        assert inside_differences(link, space) == []


async def test_a_pod_that_comes_after_the_end_is_refused_and_leaves_nothing(
    net: NodeNet, start: Callable[[], Awaitable[Node]]
) -> None:
    """Nobody would ever attach its program."""
    node = await start()
    network = await node.service.create(Kind.NETWORK, decode_object(Kind.NETWORK, overlay()))
    space = await node.service.create_namespace(Namespace(netns_path=path_of(net.pod())))
    pod = await node.service.create_endpoint(Endpoint(network_id=network.id))
    with Netlink() as netlink:
        before = links(netlink)
        node.hooks.close()
        add = {"ResourceType": "Endpoint", "RequestType": "Add", "Settings": {"EndpointId": pod.id}}
        with pytest.raises(Unavailable, match="no pod is attached any more"):
            await node.service.modify(Kind.NAMESPACE, space.id, decode_modify(Kind.NAMESPACE, add))
        assert links(netlink) == before


def _packets(interface: str) -> socket.socket:
    """A socket for frames of a type that nobody else sends."""
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_EXPERIMENTAL))
    opened.bind((interface, 0))
    return opened


# --- deletion of links --------------------------------------------------------------------------


async def test_links_are_gone_when_delete_returns(netlink: Netlink) -> None:
    reaper = LinkReaper()
    names = [f"v{number}" for number in range(20)]
    for name in names:
        netlink.request(veth_add(name, f"{name}p"))
    present = links(netlink)
    monitor = LinkMonitor()
    loop = asyncio.get_running_loop()

    def readable() -> None:
        for event in monitor.receive():
            if hasattr(event, "ifindex"):
                reaper.gone(event.ifindex)

    loop.add_reader(monitor.fileno(), readable)
    try:
        async with asyncio.timeout(20):
            await asyncio.gather(*(reaper.delete(present[name]) for name in names))
        assert not set(names) & set(links(netlink))
    finally:
        loop.remove_reader(monitor.fileno())
        monitor.close()
        await reaper.close()


async def test_without_announcements_it_works_too(netlink: Netlink) -> None:
    reaper = LinkReaper()
    for name in ("a0", "b0"):
        netlink.request(veth_add(name, f"{name}p"))
    present = links(netlink)
    async with asyncio.timeout(20):
        await asyncio.gather(*(reaper.delete(present[name]) for name in ("a0", "b0", "a0")))
    assert not {"a0", "b0"} & set(links(netlink))
    await reaper.delete(present["a0"])  # gone already
    await reaper.close()


async def test_a_deletion_that_fails_says_so(netlink: Netlink) -> None:
    reaper = LinkReaper()
    netlink.request(veth_add("a0", "a0p"))

    def inject(operation: str) -> None:
        if operation.startswith("delete interface"):
            raise KernelError(operation, errno.EIO)

    faults.inject = inject
    try:
        with pytest.raises(KernelError):
            await reaper.delete(links(netlink)["a0"])
    finally:
        faults.inject = None
    assert "a0" in links(netlink)
    await reaper.delete(links(netlink)["a0"])
    assert "a0" not in links(netlink)
    await reaper.close()


@pytest.mark.parametrize("there", [0, 1])
async def test_a_deletion_for_which_there_is_no_thread_is_done_without(
    netlink: Netlink, monkeypatch: pytest.MonkeyPatch, there: int
) -> None:
    left, start = iter(range(there)), threading.Thread.start

    def start_few(thread: threading.Thread) -> None:
        if next(left, None) is None:
            raise RuntimeError("can't start new thread")
        start(thread)

    for number in range(20):
        netlink.request(veth_add(f"a{number}", f"a{number}p"))
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start_few)
        reaper = LinkReaper()
        async with asyncio.timeout(20):
            await asyncio.gather(*(reaper.delete(links(netlink)[f"a{number}"]) for number in range(20)))
    assert not {f"a{number}" for number in range(20)} & set(links(netlink))
    await reaper.close()


async def test_deletions_begin_no_thread(netlink: Netlink, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python waits for ever for one that finds no memory as it begins."""
    reaper = LinkReaper()
    for number in range(20):
        netlink.request(veth_add(f"a{number}", f"a{number}p"))
    begun: list[threading.Thread] = []
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", begun.append)
        async with asyncio.timeout(20):
            await asyncio.gather(*(reaper.delete(links(netlink)[f"a{number}"]) for number in range(20)))
    assert begun == []
    assert not {f"a{number}" for number in range(20)} & set(links(netlink))
    await reaper.close()


async def test_a_start_waits_until_the_kernel_has_memory_for_the_timer(
    start: Callable[[], Awaitable[Node]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes it without waiting for a lock: who asks again at once finds the same."""
    loop, turned, run = asyncio.get_running_loop(), asyncio.Event(), BpfProgram.test_run
    again = 5  # bpf/ageing.h

    def test_run(program: BpfProgram, data: bytes, context: SkbContext | None = None) -> TestRun:
        found = run(program, data, context)
        if program.name == "sw_start_ageing" and not turned.is_set():
            loop.call_soon(turned.set)
            return msgspec.structs.replace(found, retval=again)
        return found

    monkeypatch.setattr(BpfProgram, "test_run", test_run)
    await start()
    assert turned.is_set()


# --- sweeping and watching ------------------------------------------------------------------------


async def test_flows_and_drops_of_a_removed_port_are_swept(start: Callable[[], Awaitable[Node]]) -> None:
    node = await start()
    flows, drops = node.board.maps["sw_flows"], node.board.maps["sw_drops"]
    at = next(field.offset for field in Flow.fields if field.name == "port")
    seen = next(field.offset for field in Flow.fields if field.name == "seen_tick")
    for number, ports in enumerate([(70, 0), (0, 70), (71, 72), (73, 70)]):
        value = bytearray(Flow.size)
        value[at : at + 8] = b"".join(port.to_bytes(4, "little") for port in ports)
        value[seen : seen + 4] = b"\xff\xff\xff\x7f"
        flows.update(bytes([number]) * (FlowKey.size - 2) + b"\x04\x06", bytes(value))
    for port in (70, 71):
        drops.update(DropKey(port, 0, 8, 9, 1).pack(), (5).to_bytes(8, "little"))
    assert await node.switch.sweeper.sweep({70, 99}) == 3
    assert [Flow.unpack(value).port for _, value in flows.items()] == [(71, 72)]
    assert [DropKey.unpack(key).port for key, _ in drops.items()] == [71]


async def test_what_an_earlier_daemon_has_not_swept(
    start: Callable[[], Awaitable[Node]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was stopped in between, or the pods have gone while there was none: the tables are not to fill up."""
    monkeypatch.setattr(sweep, "_DELAY_S", 0)
    node = await start()
    key = RuleCountKey(70, 1, 0).pack()
    node.board.maps["sw_rule_counts"].update(key, (5).to_bytes(8, "little"))
    drops = {port: DropKey(port, 0, 8, 9, 1).pack() for port in (71, node.uplink.ifindex)}
    for drop in drops.values():
        node.board.maps["sw_drops"].update(drop, (5).to_bytes(8, "little"))
    maps = (await start()).board.maps
    await until(lambda: maps["sw_rule_counts"].lookup(key) is None)
    await until(lambda: maps["sw_drops"].lookup(drops[71]) is None)
    assert maps["sw_drops"].lookup(drops[node.uplink.ifindex]) is not None


async def test_lost_announcements_lead_to_an_audit(
    netlink: Netlink, start: Callable[[], Awaitable[Node]], monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await start()
    network = decode_object(Kind.NETWORK, overlay())
    assert isinstance(network, Network)
    await node.service.create_network(network)
    monitor = LinkMonitor()
    watcher = Watcher(monitor)
    watcher.listen(node)
    watcher.run()
    try:
        # What was announced is swallowed, and the kernel says so.
        monkeypatch.setattr(monitor, "receive", lambda: [Overrun()])
        netlink.request(link_del("swvxlan0"))
        async with asyncio.timeout(20):
            while "swvxlan0" not in links(netlink) or await node.auditor.compare():  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    finally:
        await watcher.close()
        watcher.stop_listening()


async def test_the_uplink_lets_in_a_networks_own_mac(start: Callable[[], Awaitable[Node]]) -> None:
    """While the network is there, and again when somebody has taken it away."""
    node = await start()
    mac = bytes.fromhex("0e2a99000001")
    uplink = node.uplink.ifindex

    def lets_in() -> bool:
        return mac in {entry.mac for entry in node.netlink.dump(fdb_dump(uplink))}

    wanted = {
        "Name": "cbr0",
        "Type": "L2Bridge",
        "Policies": [{"Type": "SourceMacAddress", "Settings": {"SourceMacAddress": "0E-2A-99-00-00-01"}}],
        "Ipams": [{"Subnets": [{"IpAddressPrefix": "10.88.0.0/24"}]}],
    }
    made = await node.service.create(Kind.NETWORK, decode_object(Kind.NETWORK, wanted))
    assert lets_in()
    node.netlink.request(fdb_del_self(uplink, mac))
    await node.auditor.audit()
    assert lets_in()
    await node.service.delete(Kind.NETWORK, made.id)
    assert not lets_in()


def test_a_filter_of_before_a_reboot_stops_nobody(netlink: Netlink, tmp_path: Path) -> None:
    """The NIC's number may be a tunnel's by now, which has no link addresses at all."""
    store = Store(tmp_path / "own.db")
    try:
        for number in (links(netlink)["lo"], 4711):
            store.allocate_number("filter", f"{number}/0211223344ff")
        filters = NicFilters(store, netlink)
        assert filters.leave_all_but(links(netlink)["eth0"]) == []
        assert store.numbers("filter") == {}
    finally:
        store.close()
