"""Health checks of the switch: its objects, tables, pools and counters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final, cast

from samewire.counted import counted
from samewire.hcn.schema import ObjectState
from samewire.trace.matching import nexthop
from samewire.trace.reasons import explain
from samewire.trace.rows import typed_rows
from samewire.trace.snapshot import Finding, Level, Snapshot
from samewire.vfp.address import ZERO, address_text
from samewire.vfp.constants import SCOPE_UPLINK, FlowFlag, PortFlag, Reason, RouteKind
from samewire.vfp.model import Entries
from samewire.vfp.protocols import protocol_text
from samewire.vfp.simulate.entries import (
    has_ended,
    is_answered_once,
    is_established,
    partner_key,
    tuple_of,
)
from samewire.vfp.simulate.packet import ICMP, ICMPV6, TCP, UDP
from samewire.vfp.simulate.state import State
from samewire.vfp.tables import (
    Count,
    DropKey,
    Endpoint,
    EndpointKey,
    Flow,
    FlowKey,
    Id,
    Port,
    Route,
    RouteKey,
    Vni,
)

_NEARLY_FULL: Final = 0.8
_FULL: Final = 0.95
# Drops that healthy traffic never causes.
_TELLING: Final = {
    Reason.INTERNAL: Level.ERROR,
    Reason.NO_NEXTHOP: Level.ERROR,
    Reason.UNKNOWN_VNI: Level.WARNING,
    Reason.FLOW_TABLE_FULL: Level.WARNING,
    Reason.NAT_EXHAUSTED: Level.WARNING,
}


def state(snapshot: Snapshot) -> Iterator[Finding]:
    """What the node is to be can be written down, and what it is was taken over."""
    if snapshot.unkept:
        yield Finding(
            Level.ERROR,
            "state",
            "database",
            snapshot.unkept,
            "No change is taken. Make room on the disk, or the state directory writable; if it is gone, put it back "
            "and restart the daemon.",
        )
    if snapshot.trouble and not (snapshot.unkept and snapshot.unkept in snapshot.trouble):
        yield Finding(
            Level.ERROR,
            "state",
            "node",
            snapshot.trouble,
            "The daemon tries again every two seconds; until then the switch knows the node as it was.",
        )


def differences(snapshot: Snapshot) -> Iterator[Finding]:
    """The kernel holds what is wanted."""
    for text in snapshot.differences or ():
        yield Finding(
            Level.ERROR,
            "diff",
            text,
            "the kernel does not hold what is wanted",
            "The daemon repairs it at its next audit; if it comes back, somebody else changes it (`samewire diff`).",
        )


def endpoints(snapshot: Snapshot) -> Iterator[Finding]:
    """Attached endpoints have a port and are in a valid state."""
    for info in snapshot.endpoints:
        wrong = snapshot.degraded.get(info.id, "")
        if not wrong and info.state in (ObjectState.DEGRADED, ObjectState.DESTROYED):
            wrong = f"its state is {ObjectState(info.state).name.lower()}"
        if not wrong and info.namespace_id and not info.remote and not info.port:
            wrong = "it is attached and has no port"
        if wrong:
            yield Finding(
                Level.ERROR,
                "endpoint",
                info.label,
                wrong,
                "Let the runtime make the pod anew; or delete the endpoint and ADD again.",
            )


def namespaces(snapshot: Snapshot) -> Iterator[Finding]:
    """The network namespaces of attached endpoints are alive."""
    if snapshot.live_namespaces is None:
        return
    for info in snapshot.endpoints:
        if info.netns_path and info.netns_path not in snapshot.live_namespaces:
            yield Finding(
                Level.WARNING,
                "namespace",
                info.label,
                f"its network namespace {info.netns_path} is gone: the pod died without a CNI DEL",
                "The runtime's DEL or GC removes the endpoint; `samewire get namespaces` shows it.",
            )


def ports(snapshot: Snapshot) -> Iterator[Finding]:
    """Every endpoint's port is in the switch, and open."""
    if snapshot.tables is None:
        return
    known = snapshot.tables.get("sw_ports", {})
    for info in snapshot.endpoints:
        if not info.port:
            continue
        port = known.get(Id(info.port))
        if not isinstance(port, Port):
            message, remedy = "the switch does not know its port", "See `samewire diff`."
        elif port.flags & PortFlag.BLOCKED:
            message, remedy = "its port is blocked: nothing passes", explain(Reason.PORT_BLOCKED).remedy
        else:
            continue
        yield Finding(Level.ERROR, "port", f"{info.label} ({info.host_interface})", message, remedy)


def remote_endpoints(snapshot: Snapshot) -> Iterator[Finding]:
    """Remote endpoints lie where their subnet lies."""
    tables = snapshot.tables
    if tables is None:
        return
    own = {(prefix.family, prefix.packed) for prefix in snapshot.facts.addresses}
    names = _remote_names(snapshot, tables)
    all_routes = typed_rows(tables, "sw_routes", RouteKey, Route)
    subnets = State({"sw_routes": {key: r for key, r in all_routes if r.kind == RouteKind.TUNNEL}}, 0)
    for key, endpoint in typed_rows(tables, "sw_endpoints", EndpointKey, Endpoint):
        hop = nexthop(tables, endpoint.nexthop) if endpoint.nexthop else None
        if hop is None:
            continue
        where = address_text(hop.family, hop.address)
        route = subnets.route(key.scope, key.family, key.address)
        subnet = nexthop(tables, route.nexthop) if route else None
        if (hop.family, hop.address) in own:
            message = f"it is said to be behind this node itself ({where})"
        elif subnet is not None and (subnet.family, subnet.address) != (hop.family, hop.address):
            other = address_text(subnet.family, subnet.address)
            message = f"it is said to be behind {where}, its subnet behind {other}"
        else:
            continue
        address = address_text(key.family, key.address)
        label = names.get((key.scope, address))
        yield Finding(
            Level.WARNING,
            "remote-endpoint",
            f"{label} ({address})" if label else address,
            message,
            "A stale remote endpoint takes the packets of a new pod with its address: delete it if the pod has gone.",
        )


def mtu(snapshot: Snapshot) -> Iterator[Finding]:
    """What pods may send fits through the tunnel; IPv6 has its minimum."""
    tables = snapshot.tables
    if tables is None:
        return
    smallest: dict[int, int] = {}
    for route_key, route in typed_rows(tables, "sw_routes", RouteKey, Route):
        hop = nexthop(tables, route.nexthop) if route.kind == RouteKind.TUNNEL else None
        if hop is not None:
            smallest[route_key.scope] = min(hop.mtu, smallest.get(route_key.scope, hop.mtu))
    names = {info.port: info.label for info in snapshot.endpoints if info.port}
    for key, port in typed_rows(tables, "sw_ports", Id, Port):
        limit = smallest.get(port.scope, port.mtu)
        name = names.get(key.value, f"port {key.value}")
        if port.mtu > limit:
            yield Finding(
                Level.WARNING,
                "mtu",
                name,
                f"its interface has MTU {port.mtu}, the way to other nodes carries {limit}: every large first packet "
                "costs a round of path MTU discovery",
                "Make the pod anew after the uplink's MTU has changed, or give its endpoint an EncapOverhead or a "
                "smaller `Mtu` (InterfaceParameters; `mtu` of a CNI configuration).",
            )
        if port.address[1] != ZERO and min(port.mtu, limit) < 1280:
            yield Finding(
                Level.ERROR,
                "mtu",
                name,
                f"IPv6 needs 1280 bytes and the way carries {min(port.mtu, limit)}",
                "Raise the uplink's MTU: VXLAN takes 50 bytes over IPv4 and 70 over IPv6.",
            )


def nat_pool(snapshot: Snapshot) -> Iterator[Finding]:
    """The NAT pool has room towards every remote address and port; each address that is translated to has its own."""
    if snapshot.tables is None:
        return
    size = snapshot.facts.nat_port_high - snapshot.facts.nat_port_low + 1
    for (source, protocol, remote, port), ends in _nat_use(snapshot.tables, snapshot).items():
        if len(ends) < _NEARLY_FULL * size:
            continue
        used = sum(not _is_over(snapshot.tables, key) for key in ends)
        if used < _NEARLY_FULL * size:
            continue  # a new connection takes the port of one that is over
        yield Finding(
            Level.ERROR if used >= _FULL * size else Level.WARNING,
            "nat-pool",
            f"{protocol} {remote} port {port}",
            f"{used} of {size} ports of the NAT pool of {source} are in use towards it",
            explain(Reason.NAT_EXHAUSTED).remedy,
        )


def flow_table(snapshot: Snapshot) -> Iterator[Finding]:
    """The flow table has room."""
    if snapshot.tables is None or not snapshot.flow_capacity:
        return
    flows = snapshot.tables.get("sw_flows", {})
    used = len(flows)
    if used < _NEARLY_FULL * snapshot.flow_capacity:
        return
    kept = sum(
        _is_kept(snapshot.tables, key) for key, _ in typed_rows(snapshot.tables, "sw_flows", FlowKey, Flow)
    )
    if kept >= _NEARLY_FULL * snapshot.flow_capacity:
        message = "the flow table is nearly full; when it is, new connections are dropped"
    else:
        message = (
            f"the flow table is nearly full, {used - kept} of it with what has ended, is half open or was answered "
            "once: that goes when there is no more room, connections that are just being opened with it"
        )
    yield Finding(
        Level.ERROR if kept >= _FULL * snapshot.flow_capacity else Level.WARNING,
        "flow-table",
        f"{used} of {snapshot.flow_capacity} entries",
        message,
        explain(Reason.FLOW_TABLE_FULL).remedy,
    )


def _is_over(tables: Entries, key: FlowKey) -> bool:
    """Whether the switch gives its port to another (``sw_is_over`` in ``bpf/create.h``), at once or in some seconds."""
    if key.protocol == TCP:
        return has_ended(*_pair(tables, key))
    return key.protocol in (UDP, ICMP, ICMPV6) and is_answered_once(*_pair(tables, key))


def _is_kept(tables: Entries, key: FlowKey) -> bool:
    """Whether the switch keeps a connection when the table is full (``sw_look_at_flow`` in ``bpf/expire.h``)."""
    flow, other = _pair(tables, key)
    if key.protocol == TCP:
        return is_established(flow, other)
    return bool((flow.flags | (other.flags if other else 0)) & FlowFlag.STREAM)


def _pair(tables: Entries, key: FlowKey) -> tuple[Flow, Flow | None]:
    """The entry under a key, and the other one of its pair."""
    flows = cast(dict[FlowKey, Flow], tables["sw_flows"])
    flow = flows[key]
    return flow, flows.get(partner_key(key, flow)) if flow.flags & FlowFlag.PAIR else None


def ageing(snapshot: Snapshot) -> Iterator[Finding]:
    """The timer that removes idle flows ticks."""
    if snapshot.ageing_ticks is not None and snapshot.ageing_ticks[0] == snapshot.ageing_ticks[1]:
        yield Finding(
            Level.ERROR,
            "ageing",
            f"{snapshot.ageing_ticks[1]} ticks",
            "the ageing timer stands still: idle flows stay for ever and the table fills up",
            "Restart the daemon; it starts the timer anew and keeps all connections.",
        )


def drops(snapshot: Snapshot) -> Iterator[Finding]:
    """No drops of the kinds that healthy traffic never causes."""
    if snapshot.tables is None:
        return
    totals: Counter[int] = Counter()
    for key, count in typed_rows(snapshot.tables, "sw_drops", DropKey, Count):
        totals[key.reason] += count.value
    for reason, level in _TELLING.items():
        if totals[reason]:
            why = explain(reason)
            name = reason.name.lower()
            message = (
                f"{counted(totals[reason], 'packet')} dropped since the switch was loaded. {why.meaning}"
            )
            yield Finding(level, "drops", name, message, why.remedy)


def _nat_use(tables: Entries, snapshot: Snapshot) -> dict[tuple[str, str, str, int], list[FlowKey]]:
    """The entries that hold ports of the pool, by whose ports they are, protocol, remote address and port."""
    low, high = snapshot.facts.nat_port_low, snapshot.facts.nat_port_high
    use: dict[tuple[str, str, str, int], list[FlowKey]] = {}
    for key, flow in typed_rows(tables, "sw_flows", FlowKey, Flow):
        if key.scope != SCOPE_UPLINK or not flow.flags & (FlowFlag.SECOND | FlowFlag.HOST):
            continue
        ends = tuple_of(key, flow.flags & FlowFlag.INITIATOR)
        if low <= ends.source_port <= high:
            source, remote = (address_text(key.family, end) for end in (ends.source, ends.destination))
            whose = source, protocol_text(key.protocol), remote, ends.destination_port
            use.setdefault(whose, []).append(key)
    return use


def _remote_names(snapshot: Snapshot, tables: Entries) -> dict[tuple[int, str], str]:
    """The labels of remote endpoints by scope and address: networks may have the same addresses."""
    scopes = {key.value: vni.scope for key, vni in typed_rows(tables, "sw_vnis", Id, Vni)}
    of_network = {network.id: scopes[network.vni] for network in snapshot.networks if network.vni in scopes}
    return {
        (of_network[info.network_id], address): info.label
        for info in snapshot.endpoints
        if info.remote and info.network_id in of_network
        for address in info.addresses
    }
