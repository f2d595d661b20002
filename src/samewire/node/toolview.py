"""The node as the tools see it: implements the contracts of `samewire.trace` (traces, views, doctor)."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter as Tally
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
import structlog

from samewire.errors import NotFound, SamewireError
from samewire.hcn.schema import Route
from samewire.kernel import sysctl
from samewire.kernel.bpf import BpfObject, SkbContext
from samewire.kernel.netns import GONE, NetNamespace
from samewire.kernel.rtnetlink import Netlink, link_dump
from samewire.node.events import DropEvents
from samewire.node.health import unknown_name
from samewire.node.liverows import LiveRows
from samewire.node.node import Node
from samewire.node.opening import switch_object
from samewire.node.package import Package
from samewire.node.serviceview import describe_balancers, failed, missing_network
from samewire.node.stats import all_counters
from samewire.node.tunnelwatch import tunnel_traffic
from samewire.trace.context import EndpointInfo, PortInfo, TraceRun, describe_endpoints
from samewire.trace.rows import PackedRows
from samewire.trace.snapshot import LinkInfo, Snapshot, SourceInfo, TunnelTraffic
from samewire.vfp.acl_names import AclNames, acl_names
from samewire.vfp.compile.balanced import TABLES as BALANCED
from samewire.vfp.constants import TICK_SHIFT, Arrival, Counter
from samewire.vfp.model import LINK_GROUP, Entries, ProxyRule
from samewire.vfp.record import Record
from samewire.vfp.tables import TABLES, DropEvent, Id, Table, TraceInput, TraceOutput

if TYPE_CHECKING:
    from samewire.kube.source import Source
    from samewire.node.services import Services

log = structlog.get_logger(__name__)

T = TypeVar("T")

_TRACE_ONLY: Final = frozenset({"sw_trace_input", "sw_trace_output"})
# Large; sw_flow_slots tells nothing that sw_flows does not, and sw_flow_counts nothing without it.
_ONLY_BY_NAME: Final = frozenset({*_TRACE_ONLY, *BALANCED, "sw_flow_slots", "sw_flow_counts"})
_AGEING_LOOK_S: Final = 0.2
_AGEING_LOOKS: Final = 10
_SYSCTLS: Final = ("rp_filter", "forwarding", "accept_local")


class ToolView:
    """One node for the tools. `close` it."""

    def __init__(
        self,
        node: Node,
        package: Package,
        source: Source | None,
        services: Services | None,
    ) -> None:
        self._node = node
        self._package = package
        self._source = source
        self._services = services
        self._trace: BpfObject | None = None
        self._trace_lock = threading.Lock()
        self._names: dict[int, str] = {}
        self._events = DropEvents(node.board.maps["sw_events"], node.report_drops)

    @property
    def node(self) -> str:
        """The node's name."""
        return self._node.config.name

    @property
    def flow_capacity(self) -> int:
        """How many entries the flow table has room for."""
        return self._node.board.maps["sw_flows"].max_entries

    def close(self) -> None:
        """Unload the traced build."""
        if self._trace is not None:
            self._trace.close()
            self._trace = None

    def endpoints(self) -> list[EndpointInfo]:
        """Every endpoint, local and remote."""
        ports = {
            endpoint_id: PortInfo(state.ifindex, state.link.host_name)
            for endpoint_id, state in self._node.switch.ports
        }
        return describe_endpoints(self._node.store.state, ports)

    def name_of_port(self, ifindex: int) -> str:
        """The interface name of a port or device, "" when there is none."""
        state = self._node.switch.ports.get(self._node.switch.ports.endpoint_of(ifindex))
        if state is not None:
            return state.link.host_name
        if ifindex not in self._names:
            self._names = {link.ifindex: link.name for link in self._node.netlink.dump(link_dump())}
        return self._names.get(ifindex, "")

    def balancer_owners(self) -> dict[int, str]:
        """The load balancers by the numbers of their services."""
        return self._node.switch.balancers.owners()

    def routes(self, ifindex: int) -> list[Route]:
        """The route objects that the pod at a port obeys."""
        state = self._node.store.state
        endpoint = state.endpoint(self._node.switch.ports.endpoint_of(ifindex))
        if endpoint is None:
            return []
        shared = [
            route for route in state.routes_of_network(endpoint.network_id) if not route.is_of_endpoints
        ]
        return shared + [route for route in state.routes_of_endpoint(endpoint.id) if route.is_of_endpoints]

    def service_name(self, number: int) -> str:
        """What Kubernetes, or else HNS, calls a service of the switch."""
        found = self._node.store.state.load_balancer(self.balancer_owners().get(number, ""))
        return (found.service_name or found.name or f"load balancer {found.id}") if found is not None else ""

    def acl_names(self, ifindex: int) -> AclNames:
        """Whose rules and sets the numbers in a port's ACL tables are."""
        state = self._node.store.state
        endpoint = state.endpoint(self._node.switch.ports.endpoint_of(ifindex))
        network = state.network(endpoint.network_id) if endpoint is not None else None
        return acl_names(endpoint, network) if endpoint is not None and network is not None else AclNames()

    def proxies(self, ifindex: int) -> tuple[ProxyRule, ...]:
        """Which new connections the own stack of a port's pod hands to a proxy."""
        state = self._node.switch.ports.get(self._node.switch.ports.endpoint_of(ifindex))
        return state.link.proxies if state is not None else ()

    def tables(self, names: Collection[str] = ()) -> Entries:
        """The content of tables as the kernel has them now. Raises KernelError, NotFound.

        Those of load balancers only by name: there may be very much in them.
        """
        wanted = names or [name for name in TABLES if name not in _ONLY_BY_NAME]
        for name in wanted:
            if name not in self._node.board.maps or name not in TABLES:
                raise NotFound("table", name)
        return {name: self._rows(TABLES[name]) for name in wanted}

    def rows(self, name: str) -> LiveRows:
        """A table, looked up as it is asked. Raises NotFound."""
        if name not in self._node.board.maps or name not in TABLES:
            raise NotFound("table", name)
        return LiveRows(TABLES[name], self._node.board.maps[name])

    def run_traced(
        self, frame: bytes, arrival: Arrival, ifindex: int, vni: int, family: int, tunnel_source: bytes
    ) -> TraceRun:
        """Run the traced build on a frame, on the live maps. Raises KernelError, Unavailable."""
        with self._trace_lock:
            loaded = self._traced_build()
            key = Id(0).pack()
            wanted = TraceInput(
                ifindex=ifindex, vni=vni, tunnel_source=tunnel_source, arrival=arrival, family=family
            )
            loaded.maps["sw_trace_input"].update(key, wanted.pack())
            run = loaded.programs["sw_trace"].test_run(frame, SkbContext())
            output = loaded.maps["sw_trace_output"].lookup(key)
        if output is None:
            raise NotFound("record", "sw_trace_output")
        return TraceRun(TraceOutput.unpack(output), run.data)

    def drop_events(self) -> AsyncGenerator[DropEvent, None]:
        """Every drop from now on, until it is closed."""
        return self._events.listen()

    async def snapshot(self) -> Snapshot:
        """Look at everything the doctor wants to see."""
        node = self._node
        ticks, tunnel = await asyncio.gather(ticks_of(self._tick), _read_async(self._tunnel_traffic))
        differences = await _read_async(node.auditor.compare)
        endpoints = tuple(self.endpoints())
        names = {info.id: info.label for info in endpoints}
        names |= {
            info.host_interface: f"{info.host_interface} of {info.label}" for info in endpoints if info.port
        }
        lasting = {item.subject: item.text for item in differences or () if item.lasting}
        return Snapshot(
            facts=node.switch.node_facts,
            networks=tuple(node.store.state.networks()),
            endpoints=endpoints,
            tables=await asyncio.to_thread(_read, self.tables),
            differences=None
            if differences is None
            else tuple(
                f"{item.kind} {names.get(item.subject, item.subject)}: {item.text}"
                for item in differences
                if not item.lasting
            ),
            degraded={**lasting, **node.auditor.degraded},
            live_namespaces=_read(self._live_namespaces),
            links=_read(self._links),
            sysctls=_read(self._sysctls) or {},
            kernel_stats=_read(kernel_stats),
            flow_capacity=self.flow_capacity,
            ageing_ticks=ticks,
            now_tick=time.clock_gettime_ns(time.CLOCK_MONOTONIC) >> TICK_SHIFT,
            configured_uplink=node.config.uplink,
            unkept=node.store.trouble(),
            trouble=node.trouble,
            lost_sources=self._lost_sources(),
            unknown_name=unknown_name(node, self._source),
            missing_network=missing_network(node, self._services),
            failed_services=failed(self._services),
            balancers=await describe_balancers(node),
            name_servers=Tally(self._name_servers()),
            tunnel=tunnel,
        )

    def _lost_sources(self) -> tuple[SourceInfo, ...]:
        kinds = self._source.health() if self._source is not None else ()
        return tuple(SourceInfo(found.kind, found.synced, found.error) for found in kinds if found.lost)

    async def _tunnel_traffic(self) -> TunnelTraffic | None:
        facts, uplink = self._node.switch.node_facts, self._node.uplink.name
        return await tunnel_traffic(facts, uplink) if facts.tunnel_ifindex and uplink else None

    def _name_servers(self) -> Iterator[str]:
        """Once for each endpoint on this node that was given it."""
        state = self._node.store.state
        for endpoint, info in zip(state.endpoints(), self.endpoints(), strict=True):
            network = state.network(endpoint.network_id)
            dns = endpoint.dns or (network.dns if network else None)
            yield from dns.server_list if dns and info.port else ()

    def _rows(self, table: Table) -> Mapping[Record, Record]:
        found = self._node.board.maps[table.name]
        if table.name == "sw_flows":
            return PackedRows(table.key, table.value, found.items())
        rows: dict[Record, Record] = {}
        for key, value in found.items():
            if found.per_cpu:
                rows[table.key.unpack(key)] = _summed(table, found.per_cpu_values(value))
            else:
                rows[table.key.unpack(key)] = table.value.unpack(value)
        return rows

    def _traced_build(self) -> BpfObject:
        """The traced build on the live tables; its scratch and records are its own. Raises Unavailable."""
        if self._trace is None:
            self._package.check("the traced build")
            loaded = BpfObject(switch_object().with_name("switch_trace.o"))
            try:
                declared = set(loaded.map_names())
                live = {
                    name: found
                    for name, found in self._node.board.maps.items()
                    if name in declared and name in TABLES and name not in _TRACE_ONLY
                }
                loaded.reuse(live)
                loaded.load()
            except BaseException:
                loaded.close()
                raise
            self._trace = loaded
        return self._trace

    def _tick(self) -> int:
        return all_counters(self._node.board.maps["sw_counters"])[Counter.AGEING_TICKS]

    def _live_namespaces(self) -> frozenset[str]:
        paths = {item.netns_path for item in self._node.store.state.namespaces() if item.netns_path}
        alive = set()
        for path in paths:
            try:
                NetNamespace(path).close()
                alive.add(path)
            except GONE:
                pass
        return frozenset(alive)

    def _links(self) -> tuple[LinkInfo, ...]:
        with Netlink() as netlink:
            return tuple(
                LinkInfo(link.name, link.ifindex, link.kind, link.mtu, link.up, link.group == LINK_GROUP)
                for link in netlink.dump(link_dump())
            )

    def _sysctls(self) -> dict[str, str]:
        found: dict[str, str] = {}
        names = ("all", "default", self._node.uplink.name, "samewire0", "samewire1", "swvxlan0")
        paths: list[tuple[str, ...]] = [
            ("net", "ipv4", "conf", name, key) for name in names if name for key in _SYSCTLS
        ]
        paths += [("net", "ipv4", key) for key in ("ip_forward", "ip_local_port_range")]
        paths += [("net", "ipv4", "ip_local_reserved_ports"), ("net", "ipv6", "conf", "all", "forwarding")]
        for path in paths:
            try:
                found["/".join(path)] = sysctl.read(path)
            except NotFound:
                pass
        return found


def _summed(table: Table, parts: Sequence[bytes]) -> Record:
    """A value of a per-CPU table: each of its numbers is a count."""
    counts = [msgspec.structs.astuple(table.value.unpack(part)) for part in parts]
    return table.value(*map(sum, zip(*counts, strict=True)))


def kernel_stats() -> dict[str, int]:
    """The counters of /proc/net/snmp and netstat, as ``Group.Name``. Raises OSError."""
    found: dict[str, int] = {}
    for file in ("snmp", "netstat"):
        lines = Path("/proc/net", file).read_text(encoding="ascii").splitlines()
        for names, values in zip(lines[::2], lines[1::2], strict=True):
            group, *fields = names.split()
            found.update(
                (f"{group.rstrip(':')}.{name}", int(value))
                for name, value in zip(fields, values.split()[1:], strict=True)
            )
    return found


async def ticks_of(tick: Callable[[], int]) -> tuple[int, int] | None:
    """A counter now and once it has moved; twice the same when it has not for two seconds. None: it cannot be read.

    The timer is due four times in a look, but the CPU that runs it may be one that the hypervisor gives no time.
    """
    first = second = _read(tick)
    if first is None:
        return None
    for _ in range(_AGEING_LOOKS):
        await asyncio.sleep(_AGEING_LOOK_S)
        second = _read(tick)
        if second != first:
            break
    return None if second is None else (first, second)


def _read(function: Callable[[], T]) -> T | None:
    """What cannot be read is None, and in the log."""
    try:
        return function()
    except (SamewireError, OSError, ValueError) as error:
        log.warning("the doctor could not read", what=getattr(function, "__name__", ""), error=str(error))
        return None


async def _read_async(function: Callable[[], Awaitable[T]]) -> T | None:
    try:
        return await function()
    except SamewireError as error:
        log.warning("the doctor could not read", what=getattr(function, "__name__", ""), error=str(error))
        return None
