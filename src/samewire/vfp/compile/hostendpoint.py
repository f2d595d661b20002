"""Endpoints that are attached to the node itself, such as flannel's ``.2``: addresses, and no port."""

from __future__ import annotations

from samewire.hcn.schema import Endpoint, Network
from samewire.vfp.compile.builder import Builder
from samewire.vfp.compile.link import endpoint_addresses
from samewire.vfp.compile.plan import network_context
from samewire.vfp.constants import RouteKind
from samewire.vfp.model import Compiled, HostBinding, NodeFacts, Numbers


def compile_host_endpoint(
    endpoint: Endpoint, network: Network, facts: NodeFacts, numbers: Numbers
) -> Compiled:
    """The endpoint's addresses on samewire0, and the network's way to them. It has the node's own firewall, not
    the switch's: its policies have no effect.

    Raises ``Invalid`` (naming the field), ``Exhausted``.
    """
    context = network_context(network, facts, numbers)
    builder = Builder()
    own = tuple(prefix.address.host_prefix for prefix in endpoint_addresses(endpoint, context.plan))
    for prefix in own:
        builder.route(context.scope, prefix, RouteKind.HOST)
    return Compiled(builder.entries, HostBinding(addresses=own))
