"""The underlay and the networks that most tests with real packets want."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from msgspec.structs import replace

from samewire.hcn.policies import VSID, HostRoute, Policy, ProviderAddress, RemoteSubnetRoute
from samewire.hcn.schema import Ipam, Network, NetworkType, RouteEntry, Subnet
from samewire.vfp.address import mac_text
from samewire.vfp.constants import PortFlag
from samewire.vfp.diff import Put
from samewire.vfp.tables import Id, Port
from tests.support.netlab import Lab
from tests.support.node_rig import Node, Pod

OUT: Final = {4: "192.168.9.2", 6: "fd09::2"}
ROUTER: Final = {4: "192.168.9.254", 6: "fd09::fe"}
FAR: Final = {4: "203.0.113.5", 6: "2001:db8::5"}
FAR_MTU: Final = 1400


class Underlay:
    """A wire with an outside host, and a router behind which a far host lives on a smaller link."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.wire = lab.wire()
        self.out = lab.host(self.wire, f"{OUT[4]}/24", f"{OUT[6]}/64")
        self.router = lab.space("router")
        self.wire.plug(self.router, "eth0")
        self.router.address("eth0", f"{ROUTER[4]}/24", f"{ROUTER[6]}/64")
        self.far = lab.space("far")
        lab.join(self.router, "eth1", self.far, "eth0", FAR_MTU)
        self.router.address("eth1", "203.0.113.1/24", "2001:db8::1/64")
        self.far.address("eth0", f"{FAR[4]}/24", f"{FAR[6]}/64")
        for gateway in ("203.0.113.1", "2001:db8::1"):
            self.far.ip("route", "add", "default", "via", gateway)
        for family in ("ipv4", "ipv6"):
            self.router.set(family, "conf", "all", "forwarding", value=1)

    def node(self, number: int, /, *, lab: Lab | None = None, **options: Any) -> Node:
        """A node with the addresses 192.168.9.<number> and fd09::<number>, for as long as a lab: else as the wire."""
        return Node(
            lab or self.lab,
            self.wire,
            f"192.168.9.{number}/24",
            f"fd09::{number}/64",
            gateways=(ROUTER[4], ROUTER[6]),
            **options,
        )


def node_address(node: Node, family: int) -> str:
    """The node's own address."""
    text = str(next(prefix for prefix in node.facts.addresses if prefix.family == family))
    return text.partition("/")[0]


def network(
    kind: NetworkType, name: str, *subnets: tuple[str, str], policies: tuple[Policy, ...] = (), vni: int = 0
) -> Network:
    """A network with subnets, each given with its gateway."""
    made = tuple(
        Subnet(
            ip_address_prefix=prefix,
            policies=(VSID(isolation_id=vni),) if vni else (),
            routes=(
                RouteEntry(next_hop=gateway, destination_prefix="::/0" if ":" in gateway else "0.0.0.0/0"),
            ),
        )
        for prefix, gateway in subnets
    )
    return Network(id=name, name=name, type=kind, policies=policies, ipams=(Ipam(subnets=made),))


def bridged(kind: NetworkType = NetworkType.L2BRIDGE) -> Network:
    """Pods on the underlay's own subnet."""
    return network(kind, f"bridged-{kind}", ("192.168.9.0/24", ROUTER[4]), ("fd09::/64", ROUTER[6]))


def own(kind: NetworkType, number: int) -> Network:
    """A network with subnets 10.<number>.0.0/24 and fd<number>::/64 of its own."""
    return network(
        kind,
        f"own-{kind}-{number}",
        (f"10.{number}.0.0/24", f"10.{number}.0.1"),
        (f"fd{number:02}::/64", f"fd{number:02}::1"),
    )


def overlay(
    node: Node, number: int, *peers: tuple[Node, int, int], vni: int = 4096, host: bool = True
) -> Network:
    """An overlay whose part on this node is 10.<number>.0.0/24 and fd<number>::/64.

    ``peers``: (node, its number, IP version of the provider address).
    """
    policies: list[Policy] = [HostRoute()] if host else []
    if peers:
        policies.append(ProviderAddress(provider_address=node_address(node, peers[0][2])))
    for peer, other, family in peers:
        for prefix in (f"10.{other}.0.0/24", f"fd{other:02}::/64"):
            policies.append(
                RemoteSubnetRoute(
                    destination_prefix=prefix,
                    isolation_id=vni,
                    provider_address=node_address(peer, family),
                    distributed_router_mac_address=mac_text(peer.facts.tunnel_mac),
                )
            )
    return network(
        NetworkType.OVERLAY,
        f"overlay-{vni}",
        (f"10.{number}.0.0/24", f"10.{number}.0.1"),
        (f"fd{number:02}::/64", f"fd{number:02}::1"),
        policies=tuple(policies),
        vni=vni,
    )


@contextmanager
def unguarded(node: Node, pod: Pod) -> Iterator[None]:
    """A pod whose addresses nobody checks."""
    key = Id(pod.port)
    port = node.table("sw_ports")[key]
    assert isinstance(port, Port)
    node.apply([Put("sw_ports", key, replace(port, flags=port.flags | PortFlag.NO_GUARD))])
    try:
        yield
    finally:
        node.apply([Put("sw_ports", key, port)])
