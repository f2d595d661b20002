"""The invariants of a healthy node: pure checks over a `Snapshot`, each with what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from samewire.trace import (
    doctor_acl,
    doctor_balanced,
    doctor_direct,
    doctor_network,
    doctor_source,
    doctor_switch,
)
from samewire.trace.snapshot import Finding, Level, Snapshot

Check = Callable[[Snapshot], Iterator[Finding]]


def examine(snapshot: Snapshot) -> list[Finding]:
    """Everything that is wrong, errors first; empty means healthy."""
    found = [finding for check in _CHECKS for finding in check(snapshot)]
    return sorted(found, key=lambda finding: finding.level is not Level.ERROR)


def _unreadable(snapshot: Snapshot) -> Iterator[Finding]:
    for what, value in (
        ("the switch's tables", snapshot.tables),
        ("the difference between wanted and kernel", snapshot.differences),
        ("network namespaces", snapshot.live_namespaces),
        ("network devices", snapshot.links),
        ("the kernel's counters", snapshot.kernel_stats),
        ("the ageing timer", snapshot.ageing_ticks),
    ):
        if value is None:
            yield Finding(
                Level.ERROR,
                "readable",
                what,
                "could not be read, so nothing can be said about it",
                "The daemon's log has the reason; it needs root and its own network namespace.",
            )


_CHECKS: Final[tuple[Check, ...]] = (
    _unreadable,
    doctor_network.uplink,
    doctor_network.management_address,
    doctor_network.default_route,
    doctor_network.families,
    doctor_network.vlans,
    doctor_network.vnis,
    doctor_network.remote_subnets,
    doctor_network.router_macs,
    doctor_network.tunnel_device,
    doctor_network.tunnel_traffic,
    doctor_network.reverse_path_filter,
    doctor_network.node_ports,
    doctor_switch.state,
    doctor_switch.differences,
    doctor_switch.endpoints,
    doctor_switch.namespaces,
    doctor_switch.ports,
    doctor_switch.remote_endpoints,
    doctor_switch.mtu,
    doctor_switch.nat_pool,
    doctor_switch.flow_table,
    doctor_switch.ageing,
    doctor_switch.drops,
    doctor_acl.sets,
    doctor_direct.direct_return,
    doctor_source.sources,
    doctor_source.own_name,
    doctor_source.network,
    doctor_balanced.services,
    doctor_balanced.balancers,
    doctor_balanced.name_servers,
)
