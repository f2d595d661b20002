"""Records that the programs write: flows, fragments, drops, sockets, events and traces.

The daemon reads them (``samewire get flows|drops``, trace) and removes flows; it never writes them. Import
them from ``samewire.vfp.tables``.
"""

from typing import Annotated, ClassVar

from samewire.vfp.record import U8, U16, U32, U64, Addr, Be16, Pad, Record, record


@record("sw_flow_key")
class FlowKey(Record, frozen=True, gc=False):
    """A connection as seen in one scope; the two ends are sorted by (address, port)."""

    address: tuple[Addr, Addr]
    port: tuple[Be16, Be16]
    scope: U16
    family: U8
    protocol: U8


@record("sw_action")
class Action(Record, frozen=True, gc=False):
    """The composed transposition of one direction."""

    fate: U8
    flags: U8
    source_port: Be16
    destination_port: Be16
    reserved: ClassVar[Pad] = Pad(2)
    target: U32
    source: Addr
    destination: Addr


@record("sw_flow")
class Flow(Record, frozen=True, gc=False):
    """A unified flow. ``generation``, ``port``, ``rule`` and ``tcp`` are pairs as in layout.h."""

    action: tuple[Action, Action]
    port: tuple[U32, U32]
    generation: tuple[U32, U32]
    rule: tuple[U32, U32]
    seen_tick: U32
    slot: U32
    peer_scope: U16
    flags: U8
    tcp: tuple[U8, U8]
    arrival: U8
    reserved: ClassVar[Pad] = Pad(2)
    backend: U32 = 0
    service: U32 = 0


@record("sw_flow_count")
class FlowCount(Record, frozen=True, gc=False):
    """What has arrived of a flow in one direction: packets as on the wire, bytes of IP packets."""

    packets: U64
    bytes: U64


@record("sw_fragment_key")
class FragmentKey(Record, frozen=True, gc=False):
    """A fragmented datagram. ``id`` is the IPv4 (16 bits) or IPv6 identification as it stands in memory."""

    source: Addr
    destination: Addr
    id: U32
    scope: U16
    family: U8
    protocol: U8


@record("sw_fragment")
class Fragment(Record, frozen=True, gc=False):
    """The ports that the datagram's first fragment carried."""

    source_port: Be16
    destination_port: Be16
    seen_tick: U32


@record("sw_drop_key")
class DropKey(Record, frozen=True, gc=False):
    """One kind of drop: whose port, which layer and rule, why."""

    port: U32
    rule: U32
    layer: U8
    reason: U8
    arrival: U8
    reserved: ClassVar[Pad] = Pad(1)


@record("sw_socket_key")
class SocketKey(Record, frozen=True, gc=False):
    """A host socket, and the endpoint or backend it was redirected to (or the VIP that it sends to)."""

    cookie: U64
    address: Addr
    port: Be16
    family: U8
    protocol: U8
    reserved: ClassVar[Pad] = Pad(4)


@record("sw_socket")
class Socket(Record, frozen=True, gc=False):
    """What the application asked for, and the service's backend that it got (0 = a host port)."""

    address: Addr
    port: Be16
    family: U8
    reserved: ClassVar[Pad] = Pad(1)
    backend: U32 = 0


@record("sw_drop_event")
class DropEvent(Record, frozen=True, gc=False):
    """One dropped packet, from the ring buffer."""

    time_ns: U64
    drop: DropKey
    source: Addr
    destination: Addr
    source_port: Be16
    destination_port: Be16
    scope: U16
    family: U8
    protocol: U8
    reserved: ClassVar[Pad] = Pad(4)


@record("sw_cursors")
class Cursors(Record, frozen=True, gc=False):
    """Where recycling and ageing have got to in sw_flow_slots; ``host_replies``: the node serves outside clients;
    ``asides``: there are, or have been, flows that stand aside.
    """

    recycle: U64
    age: U64
    host_replies: U64 = 0
    asides: U64 = 0


@record("sw_affinity_key")
class AffinityKey(Record, frozen=True, gc=False):
    """A client of a backend set; the node's own sockets have the zero address."""

    client: Addr
    set: U32
    family: U8
    reserved: ClassVar[Pad] = Pad(3)


@record("sw_affinity")
class Affinity(Record, frozen=True, gc=False):
    """The backend that a client is to stay with, and when it last opened a connection."""

    backend: U32
    seen_tick: U32


@record("sw_service_count")
class ServiceCount(Record, frozen=True, gc=False):
    """What has become of a service's connections, on one CPU."""

    connections: U64
    refused: U64
    ended: U64


@record("sw_trace_input")
class TraceInput(Record, frozen=True, gc=False):
    """Where a traced packet arrives."""

    ifindex: U32
    vni: U32
    tunnel_source: Addr
    arrival: U8
    family: U8
    reserved: ClassVar[Pad] = Pad(2)


@record("sw_trace_step")
class TraceStep(Record, frozen=True, gc=False):
    """What one layer did, with the tuple after it."""

    layer: U8
    verdict: U8
    reason: U8
    kind: U8
    rule: U32
    target: U32
    source_port: Be16
    destination_port: Be16
    source: Addr
    destination: Addr


@record("sw_trace_output")
class TraceOutput(Record, frozen=True, gc=False):
    """A whole trace; ``step`` has SW_TRACE_STEPS elements, of which ``count`` are valid."""

    count: U32
    fate: U8
    drop_layer: U8
    drop_reason: U8
    flow_hit: U8
    step: Annotated[tuple[TraceStep, ...], 24]
