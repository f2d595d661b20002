"""What flanneld says of a node, in annotations of its Node: how the other nodes reach its pods. Pure."""

from __future__ import annotations

import ipaddress
from typing import Final

import msgspec
from msgspec import Struct, field

from samewire.errors import Invalid
from samewire.hcn.normalise_policies import Scope, check_policy
from samewire.hcn.policies import RemoteSubnetRoute, SDNRoute
from samewire.kube.model import Node

PREFIX: Final = "flannel.alpha.coreos.com/"
"""flanneld's ``-kube-annotation-prefix``, as it is unless somebody sets it."""

_TYPE: Final = PREFIX + "backend-type"
_VXLAN: Final = "vxlan"
_HOST_GW: Final = "host-gw"
_DATA: Final = {4: PREFIX + "backend-data", 6: PREFIX + "backend-v6-data"}
_ADDRESS: Final = {4: PREFIX + "public-ip", 6: PREFIX + "public-ipv6"}


class _BackendData(Struct, frozen=True):
    """Of one family: its VXLAN device."""

    vni: int = field(name="VNI")
    mac: str = field(name="VtepMAC")


def remote_subnets(node: Node) -> tuple[RemoteSubnetRoute, ...]:
    """The ways to a node's pods, one a family; none for a node without flannel, or with another backend than VXLAN.

    Raises Invalid for annotations that say something else than flanneld's, HcnError for values that no policy may have.
    """
    annotations = node.metadata.annotations
    if annotations.get(_TYPE) != _VXLAN:
        return ()
    found = []
    for prefix in node.pod_cidrs:
        family = 6 if ":" in prefix else 4
        data, address = _backend_data(annotations.get(_DATA[family], "")), annotations.get(_ADDRESS[family])
        if data is None or not address:
            continue
        policy = RemoteSubnetRoute(
            destination_prefix=canonical(prefix),
            isolation_id=data.vni,
            provider_address=address,
            distributed_router_mac_address=data.mac.upper().replace(":", "-"),
        )
        found.append(check_policy(policy, Scope.NETWORK, _TYPE))
    return tuple(policy for policy in found if isinstance(policy, RemoteSubnetRoute))


def next_hops(node: Node) -> tuple[SDNRoute, ...]:
    """The ways to a node's pods by its own address, one a family; none with another backend than host-gw.

    Raises Invalid, HcnError for values that no policy may have.
    """
    annotations = node.metadata.annotations
    if annotations.get(_TYPE) != _HOST_GW:
        return ()
    found = []
    for prefix in node.pod_cidrs:
        address = annotations.get(_ADDRESS[6 if ":" in prefix else 4])
        if address:
            policy = SDNRoute(destination_prefix=canonical(prefix), next_hop=address)
            found.append(check_policy(policy, Scope.NETWORK, _TYPE))
    return tuple(policy for policy in found if isinstance(policy, SDNRoute))


def _backend_data(text: str) -> _BackendData | None:
    """None, too, for the ``null`` that flanneld writes of a family which it does not serve."""
    try:
        return msgspec.json.decode(text, type=_BackendData | None) if text else None
    except (msgspec.MsgspecError, RecursionError) as error:
        raise Invalid(_DATA[4], f"{text[:128]!r} is not flannel's: {error}") from error


def canonical(prefix: str) -> str:
    """A pod CIDR in canonical form, its host bits cleared, as flanneld reads it. Raises Invalid."""
    try:
        return str(ipaddress.ip_network(prefix, strict=False))
    except ValueError as error:
        raise Invalid("podCIDRs", str(error)) from error
