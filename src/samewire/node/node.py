"""The node: everything between the store and the kernel, put together and brought up.

Order of a start: nothing that carries packets is touched before what it needs is in place, and what is right
already is not touched at all. After a crash the same steps find the half of a change that the crash left, and
finish or remove it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import cast

import msgspec
import structlog

from samewire.errors import KernelError, SamewireError, Unavailable
from samewire.hcn.errors import StoreError
from samewire.hcn.plan.networks import EXTERNAL
from samewire.hcn.schema import Endpoint, NetworkType
from samewire.hcn.service import HnsService
from samewire.hcn.store import Store
from samewire.kernel.bpf import SkbContext
from samewire.kernel.netns import GONE, NetNamespace
from samewire.kernel.packet_socket import FrameSender
from samewire.kernel.rtnetlink import Link, Netlink, link_dump
from samewire.node.apply import Kernel, NodeSwitch
from samewire.node.audit import Auditor, is_leftover
from samewire.node.bindings import reservations
from samewire.node.config import NodeConfig
from samewire.node.devices import Devices, ensure_devices, reserve_ports
from samewire.node.facts import hcn_facts, node_facts, read_path_mtus, read_uplink, underlay
from samewire.node.hooks import Hooks
from samewire.node.hostnet import HostNet
from samewire.node.memory import count_start, refuse_to_forget
from samewire.node.migrate import Migration
from samewire.node.nicfilters import NicFilters
from samewire.node.numbers import StoreNumbers
from samewire.node.opening import Opening
from samewire.node.places import kept_identity
from samewire.node.planning import netns_path
from samewire.node.portranges import port_range
from samewire.node.ports import PortState
from samewire.node.reaper import LinkReaper
from samewire.node.switchboard import Switchboard
from samewire.node.tables import KernelTables
from samewire.vfp.address import Address, Prefix, parse_prefix
from samewire.vfp.compile import compile_link
from samewire.vfp.compile.link import host_name
from samewire.vfp.constants import RouteKind
from samewire.vfp.diff import Put, diff
from samewire.vfp.model import NodeFacts
from samewire.vfp.tables import Nexthop

log = structlog.get_logger(__name__)

_FRAME = bytes(64)
_AGEING_AGAIN = 5  # bpf/ageing.h
_AGEING_TRIES = 100
_AGEING_PAUSE_S = 0.02
_UNDERLAY = "underlay"


class Node:
    """One node. Make it with `Node.start`, end it with `close`; the data path goes on without it."""

    def __init__(
        self, config: NodeConfig, store: Store, netlink: Netlink, board: Switchboard, hooks: Hooks
    ) -> None:
        self.config = config
        self.store = store
        self.netlink = netlink
        self.board = board
        self.uplink = read_uplink(netlink, config.uplink)
        self.path_mtus = read_path_mtus(netlink)
        self.devices = self._ensure_devices(self.uplink.mtu)
        self.hooks = hooks
        self.reaper = LinkReaper()
        self.sender = FrameSender()
        hostnet = HostNet(netlink, self.devices.host_ifindex, NicFilters(store, netlink), self._reserve)
        hostnet.uplink = self.uplink.ifindex
        self._reporting = False
        self._behind = False
        """Whether `uplink` and `devices` have not come to all who go by them: a step has failed."""
        self.trouble = ""
        """Why the node's own state could not be taken over, empty when it was."""
        self.switch = NodeSwitch(
            Kernel(netlink, KernelTables(board.maps), self.hooks, hostnet, self.reaper, self.sender),
            StoreNumbers(store),
            self._facts(),
            hcn_facts(self.uplink, self.devices),
        )
        self.service = HnsService(store, self.switch)
        self.auditor = Auditor(self.switch, store.state, self)
        self.on_new_facts: Callable[[], None] = lambda: None
        """Called when the node's own addresses or devices have changed."""
        self.sockets: dict[Path, Callable[[], None]] = {}
        """Those that are served, and what makes them anew."""

    @classmethod
    async def start(
        cls, config: NodeConfig, listen: Callable[[Node], None], opening: Opening | None = None
    ) -> Node:
        """Bring the node up. Raises SamewireError.

        ``listen`` is called before anything is changed: from then on the node is told what the kernel announces.
        ``opening``: the switch, where that has begun already; its switchboard becomes the node's.
        """
        with ExitStack() as opened:
            opening = opened.enter_context(opening or Opening(config))
            refuse_to_forget(config.database)
            store = Store(config.database)
            opened.callback(store.close)
            count_start(store, config.run_dir)
            for change in store.prune_after_reboot():
                log.info("gone with the reboot", kind=change.kind.value, id=change.id)
            netlink = opened.enter_context(Netlink())
            board = await opening.board()
            opened.callback(board.close)
            hooks = Hooks(netlink, config.bpf_dir, board.programs)
            opened.callback(hooks.close)
            node = cls(config, store, netlink, board, hooks)
            opened.pop_all()
        opening.close()
        try:
            listen(node)
            await node._bring_up()
        except BaseException:
            await node.close()
            raise
        return node

    async def close(self) -> None:
        """End what this process does; the data path stays."""
        await self.service.close()
        await self.switch.sweeper.close()
        await self.reaper.close()
        self.sender.close()
        self.hooks.close()
        self.board.close()
        self.netlink.close()
        self.store.close()

    async def refresh(self) -> bool:
        """Read the node's own state again; whether anything has changed. Raises SamewireError."""
        lost = self.store.lost()
        if lost:  # with it went the MACs of the node's devices, which must not be drawn anew
            raise Unavailable(str(self.config.state_dir), lost)
        uplink = read_uplink(self.netlink, self.config.uplink)
        devices = self._ensure_devices(uplink.mtu)
        path_mtus = self._to_providers(read_path_mtus(self.netlink))
        changed = (uplink, devices, path_mtus) != (self.uplink, self.devices, self.path_mtus)
        if not changed and not self._behind:
            return False
        log.info("the node has changed", uplink=uplink.name, addresses=[str(a) for a in uplink.addresses])
        if uplink.ifindex != self.uplink.ifindex:
            self.hooks.leave_uplink(self.uplink.ifindex)
        self.hooks.attach_own(devices.tunnel_ifindex, devices.host_peer_ifindex)
        self.switch.kernel.hostnet.host = devices.host_ifindex
        self.uplink, self.devices, self.path_mtus, self._behind = uplink, devices, path_mtus, True
        await self.switch.set_facts(self._facts(), hcn_facts(uplink, devices), self.store.state)
        self.switch.kernel.hostnet.leave_others()
        self.hooks.attach_uplink(uplink.ifindex)
        await self.service.refresh_facts()
        self._behind = False
        self.on_new_facts()
        self.switch.suspect.set()
        return True

    def ways_differ(self) -> bool:
        """Whether the kernel knows something else of the ways to other nodes: it announces neither that it has learned
        something nor that it has forgotten it. Raises KernelError.
        """
        return self._to_providers(read_path_mtus(self.netlink)) != self.path_mtus

    def unpinned(self) -> list[str]:
        """Names of maps and programs that would end with this process, and of sockets that nobody finds."""
        return [*self.board.unpinned(), *(path.name for path in self.sockets if not path.exists())]

    def pin_again(self) -> None:
        """Give them their pins back, and make the sockets anew. Raises KernelError, Unavailable."""
        self.board.pin_again()
        for path, listen_again in self.sockets.items():
            if not path.exists():
                listen_again()

    def troubles(self) -> dict[str, str]:
        """Why networks cannot work, by id: what they need of the node is not there."""
        found = {}
        for network in self.store.state.networks():
            if network.type in EXTERNAL and not self.uplink.ifindex:
                found[network.id] = self.no_uplink
            elif network.type is NetworkType.OVERLAY and not self.devices.tunnel_up:
                found[network.id] = self.no_tunnel
        return found

    @property
    def no_uplink(self) -> str:
        """How it is said that the uplink is not there."""
        return f"uplink {self.config.uplink or 'of the default route'} is missing"

    @property
    def no_tunnel(self) -> str:
        """How it is said that there can be no overlay."""
        return f"no overlay can be made: UDP port {self.config.vxlan_port} (vxlan_port) is in use"

    def reserve_ports(self) -> None:
        """Take the NAT pool, the node ports and those mapped to endpoints out of what the kernel hands to sockets.
        Raises KernelError, Unavailable.
        """
        self._reserve(self.switch.kernel.hostnet.mapped)

    def _reserve(self, mapped: int) -> None:
        ports = mapped | port_range(*self.config.nat_ports)
        if self.config.balances:
            ports |= port_range(*self.config.node_port_range)
        reserve_ports(self.config.state_dir, ports)

    async def report_drops(self, on: bool) -> None:
        """Have the programs send a record of each drop, or not. Raises SamewireError."""
        before, self._reporting = self._reporting, on
        try:
            await self.switch.set_config(self._facts(), self.store.state)
        except BaseException:
            self._reporting = before
            raise

    def _ensure_devices(self, mtu: int) -> Devices:
        """Make the node's own devices; overlays only need the tunnel, so a taken port stops none of the rest."""
        needed = any(network.type is NetworkType.OVERLAY for network in self.store.state.networks())
        return ensure_devices(
            self.netlink,
            self.config.state_dir,
            vxlan_port=self.config.vxlan_port,
            mtu=mtu,
            tunnel_needed=needed,
        )

    def _underlay(self) -> tuple[Prefix, ...]:
        last = tuple(parse_prefix(text) for text in self.store.setting(_UNDERLAY) or ())
        found = underlay(self.uplink, last)
        if found != last:
            with contextlib.suppress(StoreError):  # the store says so itself
                self.store.set_setting(_UNDERLAY, [str(prefix) for prefix in found])
        return found

    def _to_providers(self, path_mtus: Mapping[Address, int]) -> dict[Address, int]:
        """Those of the ways that tunnels go: the node's own connections are none of the switch's business."""
        hops = cast(Iterable[Nexthop], self.switch.wanted.entries.tables().get("sw_nexthops", {}).values())
        providers = {Address(hop.family, hop.address) for hop in hops if hop.kind == RouteKind.TUNNEL}
        return {far: mtu for far, mtu in path_mtus.items() if far in providers}

    def _facts(self) -> NodeFacts:
        facts = node_facts(self.config, self.uplink, self.devices, self._underlay(), self.path_mtus)
        return msgspec.structs.replace(facts, events=self._reporting)

    async def _bring_up(self) -> None:
        migration = Migration(self.board)
        self.switch.owners.go_on_from(migration.last_generation())
        self.switch.restore(self.store.state, self._adopt())
        hostnet = self.switch.kernel.hostnet
        hostnet.adopt(self.switch.wanted.bindings.wanted())
        hostnet.mapped = reservations(self.switch.wanted.bindings.wanted())
        self.reserve_ports()
        tables = self.switch.kernel.tables
        last_uplink = self.board.last_uplink
        if last_uplink != self.uplink.ifindex:
            self.hooks.leave_uplink(last_uplink)
        tables.changed()  # whoever was here last may have died before it
        operations = diff(self.switch.wanted.entries.tables(), tables.read())
        puts = [operation for operation in operations if isinstance(operation, Put)]
        tables.write([*puts, *self.switch.judged_again_after(puts)])
        self.switch.balancers.restore(
            self.store.state, self.switch.node_facts, migration.old_rows, _cannot_balance
        )
        copied = Counter(migration.copy_all())
        self.hooks.attach_own(self.devices.tunnel_ifindex, self.devices.host_peer_ifindex)
        self.hooks.attach_uplink(self.uplink.ifindex)
        self.switch.loopback.follow()
        for _, state in self.switch.ports:
            self.hooks.attach_pod(state.ifindex)
        self.attach_sockets()
        if self.board.upgrading:
            copied.update(migration.copy())
            self.board.commit()
            tables.changed()  # what the old programs remember may be from their own maps
            log.info("switch loaded", copied=dict(copied))
        self.path_mtus = self._to_providers(self.path_mtus)
        await self._start_ageing()
        report = await self.auditor.audit()
        self.switch.numbers.sweep()
        devices = self.devices
        own = {self.uplink.ifindex, devices.host_ifindex, devices.host_peer_ifindex, devices.tunnel_ifindex}
        self.switch.sweeper.add_left_over(own | {state.ifindex for _, state in self.switch.ports})
        log.info("node is up", ports=len(self.switch.ports), repaired=report.repaired)

    def _adopt(self) -> list[tuple[str, PortState]]:
        """The links of endpoints that are there already."""
        present = {link.name: link for link in self.netlink.dump(link_dump()) if is_leftover(link)}
        return [
            (endpoint.id, state)
            for endpoint in self.store.state.endpoints()
            if (link := present.get(host_name(endpoint.id))) is not None
            and (state := self._adopted(endpoint, link)) is not None
        ]

    def _adopted(self, endpoint: Endpoint, link: Link) -> PortState | None:
        path = netns_path(endpoint, self.store.state)
        network = self.store.state.network(endpoint.network_id)
        if not path or network is None:
            return None
        identity = kept_identity(endpoint, self.store.state)
        try:
            with NetNamespace(path) as netns:
                identity = identity or netns.identity
        except GONE:
            pass
        wanted = compile_link(endpoint, network, self.switch.node_facts, path)
        return PortState(link.ifindex, wanted, identity)

    def attach_sockets(self) -> None:
        """Attach the socket programs to the host's cgroup, if there is one. Raises KernelError, NotFound."""
        cgroup = Path(self.config.host_cgroup) if self.config.host_cgroup else None
        self.hooks.attach_sockets(cgroup)

    async def _start_ageing(self) -> None:
        program = self.board.programs["sw_start_ageing"]
        for _ in range(_AGEING_TRIES):
            step = program.test_run(_FRAME, SkbContext()).retval
            if step != _AGEING_AGAIN:
                break
            await asyncio.sleep(_AGEING_PAUSE_S)  # who asks again at once finds the same
        if step:
            raise KernelError("start the ageing of flows", errno.EIO, f"step {step} failed")


def _cannot_balance(load_balancer_id: str, error: SamewireError) -> None:
    log.error("a load balancer cannot be compiled", id=load_balancer_id, error=str(error))
