"""What the tools' endpoints take and answer, as structs; JSON has the fields' names in lower case.

Addresses and MACs are text, ports and counts integers, frames hexadecimal.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from samewire.trace.context import EndpointInfo
from samewire.vfp.layers import LayerView

PortNumber = Annotated[int, Meta(ge=0, le=65535)]
ArrivalName = Literal["pod", "uplink", "tunnel", "host"]
ProtocolName = Literal["tcp", "udp", "sctp", "icmp"]


class TraceRequest(
    Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    omit_defaults=True,
    rename={"origin": "from", "destination": "to"},
):
    """Body of POST /v2/switch/trace.

    From a pod (``arrival`` "pod"): ``from`` names an endpoint (id, name, address, interface), the probe is built
    from ``to``, ``port``, ``protocol`` and ``source_port`` (0 = one that no flow has). Other arrivals: ``frame`` is
    what arrives there; from the tunnel with its ``vni`` and the sender's provider address, on the uplink with the
    ``vlan`` of its tag (0: none), which is not in ``frame``.
    """

    origin: str = ""
    destination: str = ""
    port: PortNumber = 0
    protocol: ProtocolName = "tcp"
    source_port: PortNumber = 0
    arrival: ArrivalName = "pod"
    vni: Annotated[int, Meta(ge=0, le=0xFFFFFF)] = 0
    vlan: Annotated[int, Meta(ge=0, le=0xFFF)] = 0
    tunnel_source: str = ""
    frame: Annotated[str, Meta(max_length=20000, pattern="^([0-9A-Fa-f]{2})*$")] = ""


class TupleView(Struct, frozen=True, kw_only=True):
    """A connection by its ends. For ICMP echo the identifier is the requester's port. All empty where none were
    read: of a dropped frame that is not IP, or ends before its addresses."""

    protocol: str
    source: str
    source_port: int
    destination: str
    destination_port: int


class StepView(Struct, frozen=True, kw_only=True):
    """What one layer did. ``matched`` is the rule or table entry in words; ``ends`` the packet after it."""

    layer: str
    verdict: str
    rule: int = 0
    matched: str = ""
    ends: TupleView | None = None


class DropView(Struct, frozen=True, kw_only=True):
    """Why the packet ends here, and what to do about it."""

    layer: str
    reason: str
    rule: int
    explanation: str
    remedy: str


class TunnelView(Struct, frozen=True, kw_only=True):
    """What the far node needs to go on; the inner frame is the answer's ``frame``."""

    provider_address: str
    local_address: str
    vni: int
    inner_mac: str


class UplinkView(Struct, frozen=True, kw_only=True):
    """The way out of the node: the device, and the next hop's address (the destination itself when on-link). ``vlan``:
    the tag, 0 for none; with one it is the endpoint that knows the next hop.
    """

    interface: str
    next_hop: str
    vlan: int = 0


class TraceAnswer(Struct, frozen=True, kw_only=True):
    """One node's part of a trace.

    ``fate``: port, uplink, tunnel, host, "ingress" (goes on as if it had come by the uplink), "stack" (not the
    switch's: the node's own stack has it as it arrived) or "dropped". ``received`` is the packet as it arrived,
    ``sent`` as it leaves; ``endpoint`` the one it is delivered to. ``established``: an existing flow decided.
    ``disagreement``: what the simulator says otherwise ("" = it agrees); that is a bug of Samewire.
    """

    node: str
    arrival: ArrivalName
    received: TupleView
    steps: tuple[StepView, ...]
    fate: Literal["port", "uplink", "tunnel", "host", "ingress", "stack", "dropped"]
    sent: TupleView
    frame: str
    origin: EndpointInfo | None = None
    endpoint: EndpointInfo | None = None
    drop: DropView | None = None
    tunnel: TunnelView | None = None
    uplink: UplinkView | None = None
    established: bool = False
    notes: tuple[str, ...] = ()
    disagreement: str = ""


class PortRow(Struct, frozen=True, kw_only=True):
    """One port of GET /v2/switch/ports; ``layers`` is filled by GET /v2/switch/layers only. ``dropped``: packets that
    are charged to it.
    """

    id: int
    kind: str
    interface: str
    scope: int
    generation: int
    flags: tuple[str, ...]
    mac: str
    addresses: tuple[str, ...]
    endpoint: EndpointInfo | None
    vlan: int = 0
    layers: tuple[LayerView, ...] = ()
    dropped: int = 0


class FlowEnd(Struct, frozen=True, kw_only=True):
    """One end of a flow: the local port with its endpoint's name, or 0 and where it is instead.

    ``packets``, ``bytes`` (of IP packets, headers included): what this end has sent; None where the node does not count
    flows (its ``flow_counters``).
    """

    port: int
    name: str
    packets: int | None = None
    bytes: int | None = None


class FlowRow(Struct, frozen=True, kw_only=True):
    """One connection of GET /v2/switch/flows.

    ``ends`` as the initiator sees it, ``translated`` after the switch (None = the same). ``entries``: how many
    entries of the table it takes. ``rules``: ACL rules that allowed it, out and in. ``state``: half-open,
    established, closing or denied (by an ACL that has come since) for TCP; single or replied for others; host for ports
    of the pool that the node itself uses.
    """

    ends: TupleView
    translated: TupleView | None
    scope: int
    arrival: str
    initiator: FlowEnd
    target: FlowEnd
    state: str
    idle_s: float
    rules: tuple[int, int]
    entries: int


class FlowSummary(Struct, frozen=True, kw_only=True):
    """Answer of GET /v2/switch/flows?summary=1: counters since the switch was loaded; ``entries`` of the table now."""

    flow_inserts: int
    first_packets: int
    stateless: int
    redecided: int
    recycled: int
    aged: int
    entries: int


class DropRow(Struct, frozen=True, kw_only=True):
    """One kind of drop of GET /v2/switch/drops: how many packets, where, by which rule, why."""

    packets: int
    port: int
    interface: str
    endpoint: str
    layer: str
    reason: str
    rule: int
    arrival: str
    explanation: str
    remedy: str


class DropEventView(Struct, frozen=True, kw_only=True):
    """One line of GET /v2/switch/drops?watch=1: a packet that was dropped. ``time_ns`` since the node booted."""

    time_ns: int
    ends: TupleView
    drop: DropRow
