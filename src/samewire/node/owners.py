"""What the owners of entries want of the switch, compiled from the objects as they are."""

from __future__ import annotations

from typing import Final

import structlog

from samewire.errors import SamewireError, there
from samewire.hcn.errors import StoreError
from samewire.hcn.switch import StoreView
from samewire.node.balancers import Balancers
from samewire.node.numbers import StoreNumbers
from samewire.node.planning import Owner, on_host
from samewire.node.ports import Ports
from samewire.node.wanted import Wanted
from samewire.vfp import compile as compilers
from samewire.vfp.address import parse_prefix
from samewire.vfp.model import Compiled, NodeFacts

log = structlog.get_logger(__name__)

_BLOCK: Final = 1 << 12  # generations between two notes in the store


class Owners:
    """Compiles them one by one. Ports and the members of sets are of another generation each time: what was judged
    before is judged again.
    """

    def __init__(
        self, numbers: StoreNumbers, wanted: Wanted, ports: Ports, balancers: Balancers, generation: int
    ) -> None:
        """``generation``: the last one that the tables know. Flows of what has gone may know later ones."""
        self._numbers = numbers
        self._wanted = wanted
        self._ports = ports
        self._balancers = balancers
        self._generation = self._kept = max(generation, numbers.last_generation())

    def go_on_from(self, generation: int) -> None:
        """Give none up to this one: flows may have it."""
        self._generation = max(self._generation, generation)

    def next_generation(self) -> int:
        """One that no entry has had, nor any of an earlier process: an address of one that has gone may be given again,
        and what was judged for that is not for the new one.
        """
        self._generation += 1
        if self._generation > self._kept:
            self._kept = self._generation + _BLOCK
            try:
                self._numbers.keep_generations(self._kept)
            except StoreError as error:
                log.warning("generations could not be kept", error=str(error))
        return self._generation

    def compile(self, owner: Owner, view: StoreView, facts: NodeFacts) -> Compiled:
        """What one owner wants. Raises SamewireError."""
        kind, object_id = owner
        if kind == "node":
            return compilers.compile_node(facts, self._numbers)
        if kind in ("network", "remote", "sets"):
            return self._network(kind, object_id, view, facts)
        if kind == "route":
            route = there(view.route(object_id), "route", object_id)
            network = there(view.network(route.network_id), "network", route.network_id)
            return compilers.compile_route(route, network, facts, self._numbers)
        if kind == "loadbalancer":
            value = there(view.load_balancer(object_id), "load balancer", object_id)
            return self._balancers.direct_hops(value, view, facts)
        endpoint = there(view.endpoint(object_id), "endpoint", object_id)
        network = there(view.network(endpoint.network_id), "network", endpoint.network_id)
        if on_host(endpoint, view):
            return compilers.compile_host_endpoint(endpoint, network, facts, self._numbers)
        state = self._ports.get(object_id)
        port = state.ifindex if state is not None and not endpoint.is_remote else 0
        return compilers.compile_endpoint(
            endpoint,
            network,
            facts,
            self._numbers,
            port,
            self.next_generation(),
            self._wanted.acl_tables(owner),
            [route for route in view.routes_of_endpoint(object_id) if route.is_of_endpoints],
        )

    def compile_if_possible(
        self, owner: Owner, view: StoreView, facts: NodeFacts, spared: type[SamewireError] = SamewireError
    ) -> Compiled | None:
        """The same where all are compiled: one that does not go with the node as it is now is logged, and is None.

        Raises SamewireError but for ``spared``.
        """
        try:
            return self.compile(owner, view, facts)
        except spared as error:
            log.error("an object cannot be compiled", kind=owner[0], id=owner[1], error=str(error))
            return None

    def _network(self, kind: str, name: str, view: StoreView, facts: NodeFacts) -> Compiled:
        network_id, _, prefix = name.partition("/")
        network = there(view.network(network_id), "network", network_id)
        if kind == "network":
            return compilers.compile_network(network, facts, self._numbers)
        if kind == "remote":
            return compilers.compile_remote(network, parse_prefix(prefix), facts, self._numbers)
        return compilers.compile_sets(network, self.next_generation())
