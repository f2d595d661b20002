"""Health checks of Services and load balancers, and of the name servers behind them."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from typing import Final

from samewire.counted import counted
from samewire.trace.snapshot import BalancerInfo, Finding, Level, Snapshot

_DNS: Final = (17, 53)
_SHOWN: Final = 3


def services(snapshot: Snapshot) -> Iterator[Finding]:
    """Every Service is in the switch as it is wanted."""
    for name, error in snapshot.failed_services.items():
        yield Finding(
            Level.ERROR,
            "service",
            name,
            f"its present state is not in the switch: {error}",
            "It is tried again. Correct the Service; `samewire get services -o wide` shows what is served of it.",
        )


def balancers(snapshot: Snapshot) -> Iterator[Finding]:
    """Load balancers are in the switch, and their backends on this node are there."""
    for found in snapshot.balancers:
        if not found.present:
            yield Finding(
                Level.ERROR,
                "balancer",
                found.label,
                "the load balancer is not in the switch: it could not be compiled when the daemon started",
                "The daemon's log says why. Change it, or delete it and make it anew.",
            )
        elif found.lost:
            more = ", ..." if len(found.lost) > _SHOWN else ""
            yield Finding(
                Level.WARNING,
                "balancer",
                found.label,
                f"it names {counted(len(found.lost), 'backend')} of this node's pod subnets where no pod is: "
                f"{', '.join(found.lost[:_SHOWN])}{more}; they get no connections",
                "Expected for a moment when pods go. If it stays, the EndpointSlices, or whoever made the load "
                "balancer, are behind.",
            )


def name_servers(snapshot: Snapshot) -> Iterator[Finding]:
    """Where pods look up names, somebody answers."""
    for server, pods in snapshot.name_servers.items():
        here = [found for found in snapshot.balancers if server in found.vips]
        serving = [found for found in here if _DNS in found.ports]
        if any(found.active for found in serving):
            continue
        who = f"{counted(pods, 'endpoint')} {'asks' if pods == 1 else 'ask'} this server for names, and "
        if serving:
            level, lack = Level.ERROR, "no pod is behind its Service"
        elif here or _is_among_services(server, snapshot.balancers):
            level, lack = Level.WARNING, "no load balancer has this address at UDP port 53"
        else:
            continue
        yield Finding(
            level,
            "name-server",
            server,
            who + lack,
            "Do the pods of the cluster's DNS run, and does its Service select them? `samewire get services -o wide`.",
        )


def _is_among_services(server: str, found: tuple[BalancerInfo, ...]) -> bool:
    """Whether addresses beside it are cluster IPs: of all in the last byte alone another."""
    beside = ip_address(server).packed[:-1]
    return any(one.inside and ip_address(vip).packed[:-1] == beside for one in found for vip in one.vips)
