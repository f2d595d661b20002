"""Source VIPs: the node's address among a network's pods, for outside clients whom a backend elsewhere cannot answer.

Where the node holds a gateway's address that is it. A network without the node gets one from its subnet when the
first load balancer for outside clients comes, as an endpoint that nothing is attached to; it is the service's own, is
the same after a restart, and goes with the last load balancer that uses it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from samewire.hcn.frontends import has_host_port, reach
from samewire.hcn.loadbalancers import LoadBalancer
from samewire.hcn.plan.context import Context, created, deleted
from samewire.hcn.plan.endpoints import prepare_endpoint
from samewire.hcn.policies import parse_prefix
from samewire.hcn.schema import Endpoint, IpConfiguration, Kind, Network, NetworkType
from samewire.hcn.switch import Change

OWNER: Final = "samewire:source-vip"


class SourceVips:
    """The source VIPs of one plan."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._known: dict[tuple[str, bool], str] = {}
        self._made: dict[tuple[str, str], Change] = {}

    def complete(self, value: LoadBalancer) -> LoadBalancer:
        """Return a load balancer with a source VIP if it needs one and has none. Raises HcnError, Exhausted."""
        network = self._context.view.network(value.network_id) if value.network_id else None
        if value.source_vip or network is None or not _lacks_source(value, network):
            return value
        key = network.id, value.is_ipv6
        if key not in self._known:
            self._known[key] = self._find(network, value.is_ipv6) or self._make(network, value.is_ipv6)
        return msgspec.structs.replace(value, source_vip=self._known[key])

    def around(self, changes: Sequence[Change]) -> list[Change]:
        """Return changes of load balancers with the endpoints that these need before them, and behind them the
        deletion of those that nobody needs any more.
        """
        if not self._made and not any(
            _use(change.before)[1] for change in changes if change.before is not None
        ):
            return list(changes)
        view = self._context.view
        changing = {change.id: change for change in changes}
        still = {_use(change.after) for change in changes}
        gone = {}
        for change in changes:
            network_id, address = _use(change.before)
            owner = view.endpoint_by_ip(network_id, address) if address else None
            if owner is None or owner.owner != OWNER or (network_id, address) in still:
                continue
            users = view.ids(("source-vip", network_id, address))
            if all(user in changing for user in users):
                gone[owner.id] = owner
        made = [change for use, change in self._made.items() if use in still]
        return [*made, *changes, *(deleted(Kind.ENDPOINT, owner) for owner in gone.values())]

    def _find(self, network: Network, v6: bool) -> str:
        for endpoint in self._context.view.endpoints_of_network(network.id):
            if endpoint.owner == OWNER:
                # Whoever names this owner may have made one with both families, or with no address at all.
                found = [address for address in endpoint.addresses if (":" in address) == v6]
                if found:
                    return found[0]
        return ""

    def _make(self, network: Network, v6: bool) -> str:
        """Take one from the first subnet of the family; "" when there is none."""
        subnet = next(
            (s for s in network.subnets if (parse_prefix(s.ip_address_prefix).version == 6) == v6), None
        )
        if subnet is None:
            return ""
        wanted = Endpoint(
            name="source-vip",
            owner=OWNER,
            network_id=network.id,
            ip_configurations=(IpConfiguration(ip_subnet_id=subnet.id),),
        )
        endpoint, _ = prepare_endpoint(self._context, wanted)
        self._made[network.id, endpoint.addresses[0]] = created(Kind.ENDPOINT, endpoint)
        return endpoint.addresses[0]


def _lacks_source(value: LoadBalancer, network: Network) -> bool:
    """Whether there are outside clients, and a network in which the node has no address."""
    if network.type is not NetworkType.OVERLAY or has_host_port(network):
        return False
    return any(reach(value, mapping, network).outside for mapping in value.port_mappings)


def _use(value: object) -> tuple[str, str]:
    return (value.network_id, value.source_vip) if isinstance(value, LoadBalancer) else ("", "")
