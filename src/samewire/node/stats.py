"""Counters of one endpoint, from its own view."""

from __future__ import annotations

from samewire.hcn.switch import EndpointStats
from samewire.kernel.bpf import BpfMap
from samewire.kernel.netns import GONE, NetNamespace
from samewire.kernel.rtnetlink import Link, Netlink
from samewire.node.devices import find_link
from samewire.node.ports import PortState
from samewire.vfp.constants import Arrival, Layer, Reason
from samewire.vfp.tables import DropKey


def read_stats(state: PortState, netlink: Netlink, drops: BpfMap) -> EndpointStats:
    """Read an endpoint's counters. Raises KernelError.

    Packets handed to a pod by redirect_peer pass the host end by, so the pod's own end counts; while its namespace
    is gone, or its file is another one's, the host end has to do.
    """
    incoming, outgoing = read_drops(state.ifindex, drops)
    inside = _pod_end(state)
    if inside is not None:
        stats = inside.stats
        received = stats.rx_bytes, stats.rx_packets
        sent = stats.tx_bytes, stats.tx_packets
    else:
        outside = find_link(netlink, state.ifindex)
        if outside is None:
            return EndpointStats(dropped_packets_incoming=incoming, dropped_packets_outgoing=outgoing)
        received = outside.stats.tx_bytes, outside.stats.tx_packets
        sent = outside.stats.rx_bytes, outside.stats.rx_packets
    return EndpointStats(
        bytes_received=received[0],
        packets_received=received[1],
        bytes_sent=sent[0],
        packets_sent=sent[1],
        dropped_packets_incoming=incoming,
        dropped_packets_outgoing=outgoing,
    )


def read_drops(ifindex: int, drops: BpfMap) -> tuple[int, int]:
    """Packets dropped on their way to and from a port. Raises KernelError."""
    incoming = outgoing = 0
    for key, packets in all_drops(drops):
        if key.port != ifindex:
            continue
        if key.arrival != Arrival.POD or _by_the_target(key):
            incoming += packets
        else:
            outgoing += packets
    return incoming, outgoing


def _by_the_target(key: DropKey) -> bool:
    """Whether the port charged is where the packet was going, whichever port it came from."""
    return key.layer == Layer.ACL_IN or (key.layer == Layer.L2 and key.reason == Reason.PORT_BLOCKED)


def all_drops(drops: BpfMap) -> list[tuple[DropKey, int]]:
    """Every kind of drop with its number of packets on all CPUs. Raises KernelError."""
    return [
        (DropKey.unpack(key), sum(int.from_bytes(part, "little") for part in drops.per_cpu_values(value)))
        for key, value in drops.items()
    ]


def all_counters(counters: BpfMap) -> list[int]:
    """The counters of the switch, by their index. Raises KernelError."""
    return [
        sum(int.from_bytes(part, "little") for part in counters.per_cpu_values(value))
        for _, value in sorted(counters.items(), key=lambda item: int.from_bytes(item[0], "little"))
    ]


def _pod_end(state: PortState) -> Link | None:
    try:
        with NetNamespace(state.link.netns_path) as netns:
            if state.identity not in (None, netns.identity):
                return None
            with Netlink(netns.fd) as inside:
                return find_link(inside, state.link.interface_name)
    except GONE:
        return None
