"""A switch in memory for tests of the HNS service and of those who use it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from samewire.errors import KernelError, SamewireError
from samewire.hcn.policies import VSID
from samewire.hcn.schema import (
    Endpoint,
    Ipam,
    IpConfiguration,
    Kind,
    Network,
    NetworkType,
    Object,
    RouteEntry,
    Subnet,
)
from samewire.hcn.switch import Change, EndpointStats, NodeFacts, StoreView

FACTS = NodeFacts(
    dr_mac="0E-2A-C0-A8-01-0A", management_ips=("192.168.1.10", "fd00:1::10"), uplink="eth0", mtu=1500
)


class FakeSwitch:
    """Holds what it was told to make, all or nothing; `fail_next` makes it refuse, `gate` makes it wait."""

    def __init__(self, facts: NodeFacts = FACTS) -> None:
        self.node = facts
        self.objects: dict[tuple[Kind, str], Object] = {}
        self.calls: list[list[Change]] = []
        self.identities: dict[str, str] = {}
        self.ports_in_use: set[tuple[int, int]] = set()
        self.fail_next: SamewireError | None = None
        self.gate: asyncio.Event | None = None
        self.entered = asyncio.Event()

    def netns_identity(self, path: str) -> str:
        return self.identities.get(path, "")

    async def apply(self, changes: Sequence[Change], view: StoreView) -> None:
        self.entered.set()
        await asyncio.sleep(0)  # as the kernel's answers do, let others run
        if self.gate is not None:
            await self.gate.wait()
        if self.fail_next is not None:
            error, self.fail_next = self.fail_next, None
            raise error
        objects = dict(self.objects)
        for change in changes:
            assert objects.get((change.kind, change.id)) == change.before
            if change.after is None:
                del objects[change.kind, change.id]
            else:
                objects[change.kind, change.id] = change.after
            _check_view(change, view)
        self.objects = objects
        self.calls.append(list(changes))

    def facts(self) -> NodeFacts:
        return self.node

    def usable_ports(self) -> Callable[[int, int], bool]:
        return lambda protocol, port: (protocol, port) not in self.ports_in_use

    async def endpoint_stats(self, endpoint: Endpoint) -> EndpointStats:
        return EndpointStats(bytes_sent=len(endpoint.id))

    def refuse_next(self) -> None:
        """Let the next change fail as the kernel would."""
        self.fail_next = KernelError("create veth", 12)

    def with_facts(self, **changed: Any) -> None:
        """Change what the node knows of itself."""
        self.node = msgspec.structs.replace(self.node, **changed)


def _check_view(change: Change, view: StoreView) -> None:
    """The view shows the objects as they will be."""
    look_up = {
        Kind.NETWORK: view.network,
        Kind.ENDPOINT: view.endpoint,
        Kind.NAMESPACE: view.namespace,
        Kind.ROUTE: view.route,
        Kind.LOADBALANCER: view.load_balancer,
    }[change.kind]
    assert look_up(change.id) == change.after


def overlay(name: str = "vxlan0", prefix: str = "10.244.1.0/24", vni: int = 4096, **fields: Any) -> Network:
    """Return an overlay network as a client would ask for it."""
    subnet = Subnet(ip_address_prefix=prefix, policies=(VSID(isolation_id=vni),))
    return Network(name=name, type=NetworkType.OVERLAY, ipams=(Ipam(subnets=(subnet,)),), **fields)


def bridge(
    name: str = "cbr0", prefix: str = "10.1.0.0/24", gateway: str = "10.1.0.1", **fields: Any
) -> Network:
    """Return an L2Bridge network as a client would ask for it."""
    default = "::/0" if ":" in gateway else "0.0.0.0/0"
    subnet = Subnet(
        ip_address_prefix=prefix, routes=(RouteEntry(next_hop=gateway, destination_prefix=default),)
    )
    return Network(name=name, type=NetworkType.L2BRIDGE, ipams=(Ipam(subnets=(subnet,)),), **fields)


def at(*addresses: str) -> tuple[IpConfiguration, ...]:
    """Return IP configurations of these addresses."""
    return tuple(IpConfiguration(ip_address=address) for address in addresses)
