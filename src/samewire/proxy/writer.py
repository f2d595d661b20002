"""The HNS service of this node as the controller sees it."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from samewire.errors import SamewireError
from samewire.hcn.loadbalancers import LoadBalancer
from samewire.hcn.service import HnsService
from samewire.proxy.ids import OWNER

PRIMARY: Final = "primary"


class HnsWriter:
    """Writes load balancers into the HNS service of the same process.

    ``network``: name of the network whose pods, with the node, are the clients; "" = the pods of all networks.
    ``node_ports``: where node ports are reached: prefixes of addresses, or "primary" (one address a family); none =
    everywhere. ``addresses``: gives the node's addresses, main ones first.
    """

    def __init__(
        self,
        service: HnsService,
        network: str = "",
        node_ports: Sequence[str] = (),
        addresses: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        self._service = service
        self._network = network
        self._node_ports = tuple(node_ports)
        self._addresses = addresses

    def network_id(self) -> str | None:
        """The id of the network; None while there is none of that name."""
        if not self._network:
            return ""
        found = self._service.view.network_by_name(self._network)
        return found.id if found is not None else None

    def node_port_addresses(self) -> tuple[str, ...] | None:
        """The node's addresses at which node ports are reached; None = all."""
        return choose_addresses(self._node_ports, self._addresses()) if self._node_ports else None

    def get(self, lb_id: str) -> LoadBalancer | None:
        """A load balancer as it is now."""
        return self._service.view.load_balancer(lb_id)

    def owned(self) -> Iterable[LoadBalancer]:
        """All load balancers of this proxy."""
        return [value for value in self._service.view.load_balancers() if value.owner == OWNER]

    async def write(
        self, puts: Sequence[LoadBalancer], deletes: Sequence[str]
    ) -> Mapping[str, SamewireError]:
        """Delete, create or replace; every object by itself. Returns what failed, by id."""
        return await self._service.change_load_balancers(OWNER, puts, deletes)


def choose_addresses(wanted: Iterable[str], addresses: Sequence[str]) -> tuple[str, ...]:
    """The addresses within the wanted prefixes; "primary" is the first of each family."""
    found: dict[str, None] = {}
    for text in wanted:
        if text == PRIMARY:
            for six in (False, True):
                found.update(dict.fromkeys([a for a in addresses if (":" in a) == six][:1]))
            continue
        prefix = ipaddress.ip_network(text)
        found.update(dict.fromkeys(a for a in addresses if ipaddress.ip_address(a) in prefix))
    return tuple(found)
