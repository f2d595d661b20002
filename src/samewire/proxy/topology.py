"""Which members of a service port carry its traffic, as seen from this node.

The rules are kube-proxy's (its ``CategorizeEndpoints``), in words:

- *Cluster* policy takes the ready members that the topology hints leave; are there none that are ready anywhere, those
  that terminate and still serve.
- *Local* policy takes this node's ready members; are there none, this node's that terminate and still serve. Hints do
  not matter to it.
- Hints count only if every ready member has one, and at least one is for this node (or else, for its zone).
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import NamedTuple

import msgspec


class Member(msgspec.Struct, frozen=True, gc=False):
    """One endpoint behind one service port. ``port`` is its target port.

    ``local``: its pod is on this node. ``for_zones``, ``for_nodes``: its hints. ``node``: the name of its node.
    ``uid``: the pod's, where that is known.
    """

    address: str
    port: int
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    local: bool = False
    for_zones: tuple[str, ...] = ()
    for_nodes: tuple[str, ...] = ()
    node: str = ""
    uid: str = ""

    @property
    def last_resort(self) -> bool:
        """It ends, and still answers: used where nobody is ready."""
        return not self.ready and self.serving and self.terminating


class Distribution(enum.Enum):
    """How the Cluster policy narrows the members down."""

    EVERYWHERE = "all"
    SAME_ZONE = "same zone"
    SAME_NODE = "same node"


class Place(NamedTuple):
    """Where this node is. ``zone`` is "" when it has no zone label."""

    node: str
    zone: str


class Choice(msgspec.Struct, frozen=True, gc=False):
    """What carries traffic. ``cluster`` and ``local`` are None where the service never uses that policy.

    ``any_usable``: there is one somewhere in the cluster, even if this node must not use it.
    """

    cluster: tuple[Member, ...] | None
    local: tuple[Member, ...] | None
    any_usable: bool


def choose(members: Sequence[Member], place: Place, *, uses_cluster: bool, uses_local: bool) -> Choice:
    """Choose among the members of one service port and one family."""
    cluster = _cluster(members, place) if uses_cluster else None
    usable = bool(cluster)
    local: tuple[Member, ...] | None = None
    if uses_local:
        local = _ready_or_last_resort([member for member in members if member.local])
        usable = usable or any(member.ready or member.last_resort for member in members)
    return Choice(cluster, local, usable)


def distribution_of(members: Sequence[Member], place: Place) -> Distribution:
    """What the hints of the ready members say for this node."""
    ready = [member for member in members if member.ready]
    if not ready or not (ready[0].for_nodes or ready[0].for_zones):
        return Distribution.EVERYWHERE
    if all(member.for_nodes for member in ready) and any(place.node in m.for_nodes for m in ready):
        return Distribution.SAME_NODE
    if all(member.for_zones for member in ready) and any(place.zone in m.for_zones for m in ready):
        return Distribution.SAME_ZONE
    return Distribution.EVERYWHERE


def _cluster(members: Sequence[Member], place: Place) -> tuple[Member, ...]:
    if not members or not (members[0].for_nodes or members[0].for_zones or not members[0].ready):
        return _ready_or_last_resort(members)  # a ready member without a hint
    match distribution_of(members, place):
        case Distribution.SAME_NODE:
            return tuple(m for m in members if m.ready and place.node in m.for_nodes)
        case Distribution.SAME_ZONE:
            return tuple(m for m in members if m.ready and place.zone in m.for_zones)
        case Distribution.EVERYWHERE:
            return _ready_or_last_resort(members)


def _ready_or_last_resort(members: Sequence[Member]) -> tuple[Member, ...]:
    ready = tuple([member for member in members if member.ready])
    return ready or tuple([member for member in members if member.last_resort])
