"""What the controller writes at a time, and to whom."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from samewire.errors import SamewireError
from samewire.hcn.loadbalancers import LoadBalancer
from samewire.kube.model import Key
from samewire.proxy.compile import Compiled


class Writer(Protocol):
    """The HNS service, as far as the proxy needs it. Ids are upper-case GUIDs."""

    def network_id(self) -> str | None:
        """The network of the load balancers; None while there is none."""
        ...

    def node_port_addresses(self) -> tuple[str, ...] | None:
        """The addresses at which node ports are reached; None = all."""
        ...

    def get(self, lb_id: str) -> LoadBalancer | None:
        """A load balancer as it is now."""
        ...

    def owned(self) -> Iterable[LoadBalancer]:
        """All load balancers that this proxy made, in this life or an earlier one."""
        ...

    async def write(
        self, puts: Sequence[LoadBalancer], deletes: Sequence[str]
    ) -> Mapping[str, SamewireError]:
        """Delete, then create or replace; every object by itself. Returns what failed, by id."""
        ...


class Writing(NamedTuple):
    """Services on their way: since when each of them is dirty, the times of what triggered that, what they compiled to,
    and what has to be written.
    """

    began_s: float
    keys: dict[Key, float]
    triggers: dict[Key, list[float]]
    compiled: dict[Key, Compiled]
    puts: list[LoadBalancer]
    deletes: list[str]
