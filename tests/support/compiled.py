"""Networks compiled whole, for those who do not care that a remote subnet is an owner of its own."""

from __future__ import annotations

from samewire.hcn.policies import RemoteSubnetRoute
from samewire.hcn.schema import Network
from samewire.vfp.address import parse_prefix
from samewire.vfp.compile import compile_network, compile_remote
from samewire.vfp.model import Compiled, HostBinding, NodeFacts, Numbers
from samewire.vfp.record import Record


def whole_network(network: Network, facts: NodeFacts, numbers: Numbers) -> Compiled:
    """A network's own entries and those of all its remote subnets."""
    parts = [compile_network(network, facts, numbers)]
    for policy in network.policies:
        if isinstance(policy, RemoteSubnetRoute):
            prefix = parse_prefix(policy.destination_prefix)
            parts.append(compile_remote(network, prefix, facts, numbers))
    entries: dict[str, dict[Record, Record]] = {}
    for part in parts:
        for table, rows in part.entries.items():
            entries.setdefault(table, {}).update(rows)
    own = parts[0].binding
    routes = tuple(route for part in parts for route in part.binding.routes)
    return Compiled(entries, HostBinding(addresses=own.addresses, routes=routes, forwards=own.forwards))
