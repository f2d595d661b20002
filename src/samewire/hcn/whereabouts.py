"""Which endpoints other nodes' subnets matter to: the keys by which `samewire.hcn.state` finds them.

A node that joins costs what is behind it, and not the size of the network.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network
from typing import Final

from samewire.hcn.numbered import numbered
from samewire.hcn.policies import ProviderAddress, first
from samewire.hcn.policy_lists import routers
from samewire.hcn.schema import Endpoint

Key = tuple[str | int, ...]

_BLOCK_BITS: Final = {4: 24, 6: 64}
MAX_BLOCKS: Final = 256
"""A prefix of more blocks than that is looked for among all endpoints."""


def remote_keys(endpoint: Endpoint) -> Iterator[Key]:
    """The keys of an endpoint: of a remote one its provider address and the blocks of its addresses, of a local one
    whether its own entries depend on where other nodes' subnets are.
    """
    network_id = endpoint.network_id
    if endpoint.is_remote:
        yield from dict.fromkeys(("block", network_id, block_of(text)) for text in endpoint.addresses)
        policy = first(endpoint.policies, ProviderAddress)
        if policy is not None:
            yield "provider", network_id, policy.provider_address
    elif _minds_remote(endpoint):
        yield "minds-remote", network_id


def _minds_remote(endpoint: Endpoint) -> bool:
    if endpoint.is_alone:
        return True
    return bool(numbered(endpoint.policies).by(routers))


def block_of(address: str) -> str:
    """The /24 (of IPv4) or /64 (of IPv6) that an address, in a form that has been checked, is in."""
    if ":" in address:
        return socket.inet_pton(socket.AF_INET6, address)[:8].hex()
    return socket.inet_aton(address)[:3].hex()


def blocks_of(prefix: IPv4Network | IPv6Network) -> list[str] | None:
    """The blocks that a prefix has addresses in; None for one with more than `MAX_BLOCKS`."""
    bits = _BLOCK_BITS[prefix.version]
    count = 1 << max(bits - prefix.prefixlen, 0)
    if count > MAX_BLOCKS:
        return None
    start = int(prefix.network_address) >> (prefix.max_prefixlen - bits)
    return [(start + i).to_bytes(bits // 8).hex() for i in range(count)]
