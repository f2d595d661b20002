"""What comes for the tunnel and what comes out of it, while the doctor looks: whatever lies between drops the rest."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Final

from samewire.kernel.packet_socket import PacketSocket
from samewire.kernel.rtnetlink import LinkStats, Netlink, link_get
from samewire.trace.snapshot import TunnelTraffic
from samewire.vfp.address import IPV4, IPV6
from samewire.vfp.model import NodeFacts

_LOOK_S: Final = 1.0
_ON_THE_WAY_S: Final = 0.05  # from the NIC to the tunnel's device
_MOST_READ: Final = 1000
_DESTINATION: Final = {b"\x08\x00": slice(30, 34), b"\x86\xdd": slice(38, 54)}


async def tunnel_traffic(facts: NodeFacts, uplink: str) -> TunnelTraffic:
    """Look for a second. Raises KernelError, NotFound."""
    watching = PacketSocket(uplink, udp_port=facts.vxlan_port)
    try:
        before = _stats(facts.tunnel_ifindex)
        await asyncio.sleep(_LOOK_S)
        own = {facts.address(IPV4)[:4], facts.address(IPV6)}
        arrived = sum(destination in own for destination in _destinations(watching))
        await asyncio.sleep(_ON_THE_WAY_S)
        after = _stats(facts.tunnel_ifindex)
    finally:
        await asyncio.to_thread(watching.close)  # waits for all CPUs
    return TunnelTraffic(
        arrived=arrived,
        received=after.rx_packets - before.rx_packets,
        failed=_failed(after) - _failed(before),
    )


def _destinations(watching: PacketSocket) -> Iterator[bytes]:
    for _ in range(_MOST_READ):
        frame = watching.receive(0)
        if frame is None:
            return
        yield frame.data[_DESTINATION[frame.data[12:14]]]


def _failed(stats: LinkStats) -> int:
    """What had no route (an error), and what the stack or a firewall behind the device refused (dropped)."""
    return stats.tx_errors + stats.tx_dropped


def _stats(ifindex: int) -> LinkStats:
    with Netlink() as netlink:
        return netlink.get(link_get(ifindex)).stats
