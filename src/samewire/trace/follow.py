"""One packet over several nodes: when a node sends it to another one that is known, that node's daemon goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol, TypeVar, cast

import msgspec
from msgspec import Struct

from samewire.errors import SamewireError, Unavailable
from samewire.hcn.client import HnsClient
from samewire.trace.context import EndpointInfo
from samewire.trace.model import TraceAnswer, TraceRequest

_Answer = TypeVar("_Answer")

_LONGEST_WAY: Final = 4
_ON_THE_UNDERLAY: Final = frozenset({"L2Bridge", "L2Tunnel", "Transparent"})


class Trail(Struct, frozen=True):
    """A packet's way. ``end``: why it is not followed beyond the last node, "" when it ends there."""

    hops: tuple[TraceAnswer, ...]
    end: str = ""

    @property
    def arrived(self) -> bool:
        """It was dropped nowhere, and no node's simulator disagrees."""
        return all(hop.fate != "dropped" and not hop.disagreement for hop in self.hops)


class Nodes(Protocol):
    """Daemons by their sockets. Methods raise SamewireError."""

    def trace(self, socket: str, request: TraceRequest) -> TraceAnswer:
        """Run one node's part."""
        ...

    def has_endpoint(self, socket: str, address: str) -> bool:
        """Whether a pod of that node has the address on the underlay (L2Bridge, Transparent)."""
        ...


class Daemons:
    """The real ones."""

    def trace(self, socket: str, request: TraceRequest) -> TraceAnswer:
        """POST /v2/switch/trace."""
        body = cast(dict[str, Any], msgspec.to_builtins(request))
        return _read(socket, HnsClient(socket).post_json("/v2/switch/trace", body), TraceAnswer)

    def has_endpoint(self, socket: str, address: str) -> bool:
        """Look through its endpoints."""
        found = _read(socket, HnsClient(socket).get_json("/v2/switch/endpoints"), list[EndpointInfo])
        return any(
            address in info.addresses and info.network_type in _ON_THE_UNDERLAY and not info.remote
            for info in found
        )


def _read(socket: str, value: Any, kind: type[_Answer]) -> _Answer:
    """A daemon's answer. Another node's daemon may be of another version. Raises Unavailable."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        message = f"answers in a form that this version cannot read: {error}"
        raise Unavailable(f"samewire at {socket}", message) from error


def follow(socket: str, request: TraceRequest, peers: Mapping[str, str], nodes: Nodes | None = None) -> Trail:
    """Trace from the node at ``socket`` on; ``peers`` are the sockets of nodes by their addresses.

    Raises SamewireError when the first node cannot answer; a later one that cannot ends the trail.
    """
    nodes = nodes or Daemons()
    hops = [nodes.trace(socket, request)]
    while len(hops) < _LONGEST_WAY:
        try:
            following = _onward(hops[-1], peers, nodes)
            if isinstance(following, str):
                return Trail(tuple(hops), following)
            hops.append(nodes.trace(*following))
        except SamewireError as error:
            return Trail(tuple(hops), f"the far node did not answer: {error}")
    return Trail(tuple(hops), f"more than {_LONGEST_WAY} nodes: a loop?")


def _onward(hop: TraceAnswer, peers: Mapping[str, str], nodes: Nodes) -> tuple[str, TraceRequest] | str:
    """Who is asked next and what; or why nobody is."""
    if hop.fate == "tunnel" and hop.tunnel is not None:
        tunnel = hop.tunnel
        socket = peers.get(tunnel.provider_address)
        if socket is None:
            return f"{tunnel.provider_address} is not among the nodes that can be asked"
        source = tunnel.local_address
        return socket, TraceRequest(arrival="tunnel", vni=tunnel.vni, tunnel_source=source, frame=hop.frame)
    if hop.fate == "uplink" and hop.uplink is not None:
        found = _behind(hop.uplink.next_hop, hop.sent.destination, peers, nodes)
        return (found, TraceRequest(arrival="uplink", vlan=hop.uplink.vlan, frame=hop.frame)) if found else ""
    return ""


def _behind(next_hop: str, destination: str, peers: Mapping[str, str], nodes: Nodes) -> str:
    """The node that a packet on the underlay comes to: the next hop, or behind routers the one that has the
    destination, itself or as an L2Bridge pod.
    """
    for address in (next_hop, destination):
        if address in peers:
            return peers[address]
    sockets = dict.fromkeys(peers.values())
    return next((socket for socket in sockets if nodes.has_endpoint(socket, destination)), "")
