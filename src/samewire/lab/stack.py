"""What the lab asks of a node, whatever programs its network."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from samewire.lab.plan import NodePlan, Plan
from samewire.lab.podspec import DnsConfig
from samewire.lab.schedule import Pod


class Vtep(Struct, frozen=True):
    """What other nodes need to know to reach a node's pods of one network.

    ``mac`` is the inner destination MAC of VXLAN: the distributed router's on a samewire node, the VXLAN
    device's on a kernel node; empty on networks without encapsulation. ``provider_address`` is the node's
    underlay address.
    """

    network: str
    node: str
    provider_address: str
    mac: str
    pod_cidrs: tuple[str, ...]


class Attached(Struct, frozen=True):
    """A pod's interface as the CNI result tells: addresses without prefix length (IPv4 first), and DNS."""

    addresses: tuple[str, ...]
    dns: DnsConfig


class NodeContext(Struct, frozen=True):
    """A node that exists on the underlay, with nothing of a pod network yet.

    ``cgroup`` is the node's own (v2), ``host_cgroup`` the part of it for host processes.
    """

    plan: Plan
    node: NodePlan
    netns: str
    directory: Path
    cgroup: Path
    host_cgroup: Path


class NodeStack(Protocol):
    """Programs one node. All calls come from the lab's event loop; failures are SamewireErrors."""

    #: The unix socket of the node's daemon, or empty.
    socket: str

    async def prepare(self) -> list[Vtep]:
        """Make the node's side of every network; returns what others need to reach its pods."""

    async def connect(self, vteps: Sequence[Vtep]) -> None:
        """Make the pods of other nodes reachable."""

    async def add_pod(self, pod: Pod, netns: str, dns: DnsConfig) -> Attached:
        """Attach a pod's namespace; ``dns`` is for its resolv.conf. Undone by itself on failure."""

    async def settle(self, services: Mapping[str, bool], lacking: Collection[str]) -> None:
        """Wait until these Services (by ``namespace/name``; true: with backends) work on the node.

        Those that are ``lacking`` something (an address that another Service has, a source range that nobody can read)
        work with the rest. Raises Unavailable when they do not in time.
        """

    def host_addresses_in_pod_network(self, network: str) -> tuple[str, ...]:
        """The node's own addresses in a pod network: what its pods may see as the source of node traffic."""
