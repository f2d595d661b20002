"""The compiled programs, their traced build and the Python simulator agree: verdict, output bytes, drop, flows.

Tables and packets are drawn from a small universe, so that most packets hit something; answers to what came out
before, new generations and changed tables come in between.
"""

from __future__ import annotations

import struct

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from samewire.vfp.address import ZERO, masked
from samewire.vfp.compile.direct import DIRECT_VNI
from samewire.vfp.constants import (
    CHUNK_BACKENDS,
    NAT_KEY_BITS,
    OWN_ROUTE_KEY_BITS,
    ROUTE_KEY_BITS,
    SCOPE_ANY,
    SCOPE_OUTSIDE,
    SCOPE_UPLINK,
    Arrival,
    Fate,
    FlowFlag,
    NatAction,
    Reason,
    RouteKind,
)
from samewire.vfp.record import Record
from samewire.vfp.simulate import Outcome, Simulator
from samewire.vfp.simulate.packet import SCTP
from samewire.vfp.tables import (
    Backend,
    BackendChunk,
    BackendChunkKey,
    BackendPlace,
    Endpoint,
    EndpointKey,
    Flow,
    FlowKey,
    Id,
    Nat,
    NatKey,
    Nexthop,
    OwnRouteKey,
    Port,
    Route,
    RouteKey,
    Service,
    ServiceKey,
    TraceOutput,
)
from tests.support.frames import (
    Played,
    direct_frames,
    frames,
    ip_packet,
    own_frames,
    service_frames,
    tunnel_frames,
    wire_frames,
)
from tests.support.replies import error_about, reply_to
from tests.support.switch_rig import SwitchRig, now_tick
from tests.support.universe import (
    GATEWAY_MAC,
    NODE,
    OUTSIDE,
    OWN_ROUTES,
    PEER_MAC,
    REMOTE,
    VNI,
    Universe,
    config,
    network_sets,
    packed,
    put_sets,
    tables,
)

# Not of the core for other kernels: it is Python nearly all of the time, half an hour on an emulated machine.
pytestmark = pytest.mark.root

_PASS = -1
_SHOT = 2
_REDIRECT = 7
_MOSTLY = st.sampled_from([True] * 3 + [False])
_REPLY_FLAGS = (0x12, 0x12, 0x10, 0x10, 0x11, 0x14, 0x04, 0x02)
_QUOTES = (28, 48, 60, 96, 200)
_STEPS = (
    ("frame",) * 5
    + ("reply",) * 6
    + (
        "error",
        "error",
        "again",
        "again",
        "tunnel",
        "tunnel",
        "bump",
        "bump",
        "bump",
        "change",
        "change",
        "change",
        "lose",
        "lose",
        "lose",
        "lose",
    )
    + ("service",) * 16
)
_ASKED = ("wire",) * 5 + ("direct",) * 9 + ("reply", "again", "bump", "change")
_MOVED = ("frame",) * 6 + ("tunnel",) * 4 + ("reply", "bump") + ("move",) * 4
_PAST = ("service",) * 8 + ("straight",) * 10 + ("reply",) * 6 + ("again", "bump", "change", "lose", "error")
_OWN = ("own",) * 8 + ("reply",) * 8 + ("error", "again", "bump", "change", "lose", "tunnel")
_CHANGED = (
    "sw_routes",
    "sw_own_routes",
    "sw_nat",
    "sw_portmaps",
    "sw_endpoints",
    "sw_services",
    "sw_backend_sets",
)
_ANSWERED_AT = {Fate.PORT: Arrival.POD, Fate.UPLINK: Arrival.UPLINK, Fate.TUNNEL: Arrival.TUNNEL}


def _expected_verdict(outcome: Outcome) -> int:
    if outcome.answered or outcome.fate != Fate.NOWHERE:
        return _REDIRECT
    return _SHOT if outcome.drop is not None else _PASS


def _comparable(flows: dict[Record, Record]) -> dict[Record, Record]:
    """Flows without what depends on time and place."""
    result: dict[Record, Record] = {}
    for key, flow in flows.items():
        assert isinstance(key, FlowKey)
        assert isinstance(flow, Flow)
        result[key] = replace(flow, seen_tick=0, slot=0, flags=flow.flags & ~FlowFlag.STREAM)
    return result


class _Play:
    """One sequence of packets and changes, on the programs and on the simulator."""

    def __init__(self, rig: SwitchRig, universe: Universe, data: st.DataObject) -> None:
        self.rig = rig
        self.universe = universe
        self.data = data
        self.simulator = Simulator(universe.tables, now_tick())
        self.played: list[Played] = []
        self.generation = 1
        self.outcomes: list[Outcome] = []
        rig.load_tables(universe.tables)

    def step(self, kinds: tuple[str, ...] = _STEPS) -> None:
        """Draw one step and make it."""
        kind = self.data.draw(st.sampled_from(kinds))
        if kind == "tunnel":
            self.receive((Arrival.TUNNEL, 1, self.data.draw(tunnel_frames(self.universe))))
        elif kind == "wire":
            self._ask(self.data.draw(wire_frames(self.universe)))
        elif kind == "direct":
            self._ask((Arrival.TUNNEL, 1, self.data.draw(direct_frames(self.universe))))
        elif kind == "own":
            self.receive(self.data.draw(own_frames(self.universe)))
        elif kind == "service" and self.universe.tables["sw_services"]:
            self.receive(self.data.draw(service_frames(self.universe)))
        else:
            if kind == "bump":
                self._bump()
            elif kind == "change":
                self._change()
            elif kind == "sets":
                self._change_sets()
            elif kind == "lose":
                self._lose()
            special = {"move": self._move, "straight": self._straight}
            self.receive((special[kind]() if kind in special else None) or self._next(kind))

    def chance(self) -> bool:
        """One or the other, as hypothesis likes."""
        return self.data.draw(st.booleans())

    def _next(self, kind: str) -> Played:
        if kind in ("bump", "change", "lose"):
            kind = self.data.draw(st.sampled_from(["again", "reply", "error"]))  # flows made before meet it
        if kind == "again" and self.played:
            return (
                self.played[-1]
                if self.data.draw(st.booleans())
                else self.data.draw(st.sampled_from(self.played))
            )
        answered = [outcome for outcome in self.outcomes if outcome.fate != Fate.NOWHERE]
        outside = [outcome for outcome in answered if outcome.fate == Fate.UPLINK]
        if outside and self.chance():
            answered = outside  # what may be translated
        if kind in ("reply", "error") and answered:
            outcome = (
                answered[-1] if self.data.draw(st.booleans()) else self.data.draw(st.sampled_from(answered))
            )
            if kind == "reply":
                reply = reply_to(outcome.frame, self.data.draw(st.sampled_from(_REPLY_FLAGS)))
            else:
                router = packed(OUTSIDE[4 if outcome.frame[12:14] == b"\x08\0" else 6][1])
                sender = self.data.draw(st.sampled_from([None, router]))
                reply = error_about(outcome.frame, sender, self.data.draw(st.sampled_from(_QUOTES)))
            if reply is not None:
                arrival = _ANSWERED_AT.get(outcome.fate, Arrival.HOST)
                if arrival == Arrival.UPLINK and not self.data.draw(_MOSTLY):
                    arrival = Arrival.TUNNEL  # another node's own process, whose way to pods is that
                devices = {Arrival.POD: outcome.target, Arrival.UPLINK: self.universe.uplink}
                return arrival, devices.get(arrival, self.universe.host_peer), reply
        return self.data.draw(frames(self.universe))

    def _ask(self, played: Played) -> None:
        """One that an endpoint here answers, mostly: by a way that depends on the routes to whom has asked.

        What comes with a tunnel key or a tag is only traced: where its answers go the programs work out when it is
        judged again.
        """
        self.receive(played)
        outcome = self.outcomes[-1]
        if outcome.fate == Fate.PORT and self.data.draw(_MOSTLY):
            if self.data.draw(_MOSTLY):
                port = self.universe.tables["sw_ports"][Id(outcome.target)]
                assert isinstance(port, Port)
                self._renew(Id(outcome.target), port)
            reply = reply_to(outcome.frame, self.data.draw(st.sampled_from(_REPLY_FLAGS)))
            if reply is not None:
                self.receive((Arrival.POD, outcome.target, reply))

    def _bump(self) -> None:
        """A port's policy changes: its lists are those of another port, or none."""
        ports = self.universe.tables["sw_ports"]
        key, model = self.data.draw(st.tuples(*[st.sampled_from(sorted(ports, key=lambda k: k.pack()))] * 2))
        flows = list(self.simulator.flows.values())
        if flows and self.chance():
            known = [Id(port) for port in flows[-1].port if Id(port) in ports]
            key = known[0] if known else key  # one that has a flow
        port, other = ports[key], ports[model]
        assert isinstance(port, Port)
        assert isinstance(other, Port)
        new = port
        change = self.data.draw(st.sampled_from(["nothing", "acl", "none", "nat", "nat", "block", "routes"]))
        if change == "acl":
            new = replace(
                new,
                acl_table=other.acl_table,
                acl_space=other.acl_space,
                acl_words=other.acl_words,
                acl_shape=other.acl_shape,
            )
        elif change == "none":
            new = replace(new, acl_words=(0, 0))
        elif change == "nat":
            new = replace(new, nat_set=7 - port.nat_set)
        elif change == "routes":
            new = replace(new, route_set=OWN_ROUTES - port.route_set)
        elif change == "block":
            new = replace(new, acl_table=(99, 99), acl_words=(1, 1))  # a table that is gone
        self._renew(key, new)

    def _lose(self) -> None:
        """A backend is removed, or in another network: one that has a flow, if there is one."""
        backends: dict[Record, Record] = self.universe.tables["sw_backends"]
        used: list[Record] = [
            Id(flow.backend) for flow in self.simulator.flows.values() if Id(flow.backend) in backends
        ]
        if used or backends:
            key = self.data.draw(st.sampled_from(used or list(backends)))
            backend = backends.pop(key)
            assert isinstance(backend, Backend)
            if self.data.draw(st.booleans()):
                self.rig.remove("sw_backends", key)
            else:
                backends[key] = replace(backend, scope=self.data.draw(st.sampled_from([SCOPE_UPLINK, 1, 2])))
                self.rig.put("sw_backends", key, backends[key])

    def _move(self) -> Played | None:
        """A pod here or one elsewhere goes, another gets its addresses, and says what the first has said."""
        ports, endpoints = (self.universe.tables[name] for name in ("sw_ports", "sw_endpoints"))
        began = {flow.port[0] for flow in self.simulator.flows.values()}
        pods = [pod for pod in self.data.draw(st.permutations(self.universe.pods)) if Id(pod[0]) in ports]
        pods.sort(key=lambda pod: pod[0] in began)
        if len(pods) < 2:
            return None
        ifindex, mac, own = pods[0]
        gone, _, addresses = pods[-1]
        new = ports[Id(ifindex)]
        assert isinstance(new, Port)
        if self.chance():
            addresses = {family: packed(address) for family, address in REMOTE.items()}
            said = [frame for arrival, _, frame in self.played if arrival == Arrival.TUNNEL]
        else:
            self.rig.remove("sw_ports", Id(gone))
            del ports[Id(gone)]
            said = [frame for _, device, frame in self.played if device == gone]
        for family, address in own.items():
            if endpoints.pop(key := EndpointKey(address, new.scope, family), None):
                self.rig.remove("sw_endpoints", key)
            key = EndpointKey(addresses[family], new.scope, family)
            endpoints[key] = Endpoint(ifindex, 0, mac)
            self.rig.put("sw_endpoints", key, endpoints[key])
        self._renew(Id(ifindex), replace(new, address=(addresses[4], addresses[6])))
        self.universe.pods = [
            (ifindex, mac, addresses) if pod[0] == ifindex else pod for pod in self.universe.pods
        ]
        if not said:
            return None
        frame = self.data.draw(st.sampled_from(said))
        return Arrival.POD, ifindex, frame[:6] + mac + frame[12:]

    def _straight(self) -> Played | None:
        """A client of a service sends to the backend itself, from the same port."""
        served = [
            (arrival, ifindex, frame[:12] + outcome.frame[12:])
            for (arrival, ifindex, frame), outcome in zip(self.played, self.outcomes, strict=True)
            if arrival in (Arrival.POD, Arrival.UPLINK) and outcome.fate in (Fate.PORT, Fate.UPLINK)
        ]
        return self.data.draw(st.sampled_from(served[-4:])) if served else None

    def _change_sets(self) -> None:
        """Members of the IP sets change: rules that name them judge anew."""
        before = {name: dict(rows) for name, rows in self.universe.tables.items()}
        self.generation += 1
        put_sets(self.universe.tables, self.data.draw(network_sets()), self.generation)
        for name in ("sw_set_classes", "sw_set_members", "sw_acl_spaces"):
            after = self.universe.tables[name]
            for key in before[name].keys() - after.keys():
                self.rig.remove(name, key)
            for key, value in after.items():
                self.rig.put(name, key, value)

    def _change(self) -> None:
        """An entry of a table goes, or gets the value of another one."""
        name = self.data.draw(st.sampled_from(_CHANGED))
        table = self.universe.tables[name]
        if not table:
            return
        key, model = self.data.draw(st.tuples(*[st.sampled_from(sorted(table, key=lambda k: k.pack()))] * 2))
        if key == model:
            del table[key]
            self.rig.remove(name, key)
        else:
            table[key] = table[model]
            self.rig.put(name, key, table[key])
        for ifindex, port in list(self.universe.tables["sw_ports"].items()):
            assert isinstance(port, Port)
            self._renew(ifindex, port)

    def _renew(self, ifindex: Record, port: Port) -> None:
        """Flows of a port are judged again."""
        new = replace(port, generation=port.generation + 1)
        self.universe.tables["sw_ports"][ifindex] = new
        self.rig.put("sw_ports", ifindex, new)

    def receive(self, played: Played) -> None:
        """One frame, through all three."""
        arrival, ifindex, frame = played
        self.played.append(played)
        vni = VNI if arrival == Arrival.TUNNEL else 0
        if arrival == Arrival.TUNNEL and self.universe.is_bridged and self.data.draw(_MOSTLY):
            vni = DIRECT_VNI
        if arrival == Arrival.UPLINK:
            vni = self.data.draw(st.sampled_from(self.universe.tags))
        in_vlan = arrival == Arrival.POD and self.universe.tags[0] and frame[:6] == GATEWAY_MAC
        if in_vlan and self.data.draw(_MOSTLY):
            frame = PEER_MAC + frame[6:]  # which the pod has found by itself
        traced = self.rig.trace(frame, arrival, ifindex, vni)
        # A test run cannot be given a tunnel key, nor a tag: the trace has to do.
        ran = None if vni else self.rig.run(frame, ifindex)
        self.simulator.state.now_tick = now_tick()
        outcome = self.simulator.receive(frame, arrival, ifindex, vni)
        self.outcomes.append(outcome)
        context = f"{arrival.name} {ifindex} {frame.hex()}\n{outcome}\n{ran}"
        if ran is None:
            state = self.simulator.state
            self.rig.adopt(state.flows, state.fragments, state.affinity, state.counts)
        else:
            verdict = _expected_verdict(outcome)
            assert ran.verdict == verdict, context
            assert verdict == _SHOT or ran.frame == outcome.frame, context
            counted = ran.drop and (ran.drop.port, ran.drop.rule, ran.drop.layer, ran.drop.reason)
            expected = outcome.drop if outcome.drop and outcome.drop[3] != Reason.NONE else None
            assert counted == expected, context
        _compare_trace(traced.output, traced.frame, outcome, context)
        flows = self.rig.table("sw_flows")
        assert _comparable(flows) == _comparable(dict(self.simulator.flows.items())), context
        counts = self.simulator.state.counts
        assert self.rig.flow_counts() == {at: count for at, count in counts.items() if at[0] in flows}, (
            context
        )


def _compare_trace(output: TraceOutput, frame: bytes, outcome: Outcome, context: str) -> None:
    if outcome.drop is not None:
        if outcome.drop[3] != Reason.NONE:
            assert (output.drop_layer, output.drop_reason) == outcome.drop[2:], context
        return
    assert output.drop_reason == Reason.NONE, context
    if outcome.answered:
        return
    assert output.fate == outcome.fate, context
    if outcome.fate != Fate.NOWHERE:
        assert frame == outcome.frame, context


_random = settings(
    max_examples=120,
    # No shrinking: it takes minutes, and the context of a failure is short enough.
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ],
)


@_random
@given(data=st.data())
def test_programs_trace_and_simulator_agree(rig: SwitchRig, data: st.DataObject) -> None:
    play = _Play(rig, data.draw(tables(rig.devices)), data)
    for _ in range(data.draw(st.integers(4, 24))):
        play.step()


@_random
@given(data=st.data())
def test_they_agree_on_what_is_sent_past_a_service(rig: SwitchRig, data: st.DataObject) -> None:
    play = _Play(rig, data.draw(tables(rig.devices)), data)
    for _ in range(data.draw(st.integers(6, 24))):
        play.step(_PAST)


@_random
@given(data=st.data())
def test_they_agree_on_the_ways_back(rig: SwitchRig, data: st.DataObject) -> None:
    """What the other random sequences hardly come to: who has asked is elsewhere, and may be answered by a route of the
    endpoint's own, or without the node that has sent it here.
    """
    play = _Play(rig, data.draw(tables(rig.devices)), data)
    for _ in range(data.draw(st.integers(4, 16))):
        play.step(_ASKED)


@_random
@given(data=st.data())
def test_they_agree_on_addresses_that_are_anothers(rig: SwitchRig, data: st.DataObject) -> None:
    """Whose flows are still there."""
    play = _Play(rig, data.draw(tables(rig.devices)), data)
    for _ in range(data.draw(st.integers(4, 12))):
        play.step(_MOVED)


@_random
@given(data=st.data())
def test_they_agree_on_what_the_node_sends_to_itself(rig: SwitchRig, data: st.DataObject) -> None:
    """By SCTP, to node ports that there are; and on those who say that they are the node."""
    universe = data.draw(tables(rig.devices))
    services = universe.tables["sw_services"]
    for key, service in sorted(services.items(), key=lambda item: item[0].pack()):
        assert isinstance(key, ServiceKey)
        services[ServiceKey(ZERO, 80, SCTP, key.family, SCOPE_ANY)] = service
    play = _Play(rig, universe, data)
    for _ in range(data.draw(st.integers(4, 16))):
        play.step(_OWN)


_POD, _POD_MAC, _FAR = packed("10.1.0.10"), bytes.fromhex("02dddddddd01"), packed("203.0.113.5")


def _one_pod(rig: SwitchRig, route_set: int = 0) -> dict[str, dict[Record, Record]]:
    """Tables of a pod at the first device, and a way to the outside."""
    port = Port(
        1, 0, 0, _POD_MAC, GATEWAY_MAC, (_POD, ZERO), (packed("10.1.0.1"), ZERO), 7, (0, 0), 0, route_set,
        (0, 0), (0, 0), 1500,
    )  # fmt: skip
    return {
        "sw_config": {Id(0): config(rig.devices)},
        "sw_ports": {Id(rig.devices[0]): port},
        "sw_endpoints": {EndpointKey(_POD, 0, 4): Endpoint(rig.devices[0], 0, _POD_MAC)},
        "sw_routes": {
            RouteKey(ROUTE_KEY_BITS + 24, 0, 4, packed("10.1.0.0")): Route(RouteKind.LOCAL, 0, 0, 0, 24),
            RouteKey(ROUTE_KEY_BITS + 8, 0, 4, packed("203.0.0.0")): Route(RouteKind.UPLINK, 0, 0, 1, 8),
        },
    }


@pytest.mark.parametrize(
    ("own", "fate", "target"),
    [
        (None, Fate.UPLINK, 1),
        (Route(RouteKind.UPLINK, 0, 0, 4, 24), Fate.UPLINK, 4),
        (Route(RouteKind.TUNNEL, 0, 0, 2, 24), Fate.TUNNEL, 2),
        (Route(RouteKind.HOST, 0, 0, 0, 24), Fate.HOST, 0),
        (Route(RouteKind.HOST, 0, 0, 0, 0), Fate.UPLINK, 1),
    ],
    ids=["none", "uplink", "tunnel", "host", "shorter"],
)
def test_answers_by_own_routes(rig: SwitchRig, own: Route | None, fate: Fate, target: int) -> None:
    """What few of the random sequences come to: a flow that the wire has begun, with an endpoint that has routes."""
    uplink = rig.devices[-1]
    t = _one_pod(rig, route_set=OWN_ROUTES)
    if own is not None:
        address = masked(packed("203.0.113.0"), own.bits)
        bits = OWN_ROUTE_KEY_BITS + own.bits
        t["sw_own_routes"] = {OwnRouteKey(bits, OWN_ROUTES & 0xFFFFFFFF, OWN_ROUTES >> 32, 4, address): own}
    rig.load_tables(t)
    simulator = Simulator(t, now_tick())
    udp = bytes.fromhex("0035 9c40 0009 0000") + b"x"
    frame = config(rig.devices).uplink_mac + PEER_MAC + b"\x08\x00"
    frame += ip_packet(4, _FAR, _POD, 17, udp, 64, 0, 1)
    rig.run(frame, uplink)
    simulator.receive(frame, Arrival.UPLINK, uplink, 0)
    flows = _comparable(rig.table("sw_flows"))
    assert flows == _comparable(dict(simulator.flows.items()))
    [flow] = flows.values()
    assert isinstance(flow, Flow)
    back = flow.action[0 if flow.flags & FlowFlag.INITIATOR else 1]
    assert (back.fate, back.target) == (fate, target)


def test_a_connection_that_an_acl_comes_to_deny(rig: SwitchRig) -> None:
    """Few of the random sequences come to that, and hardly any to its end."""
    ifindex, uplink = rig.devices[0], rig.devices[-1]
    t = _one_pod(rig)
    port = t["sw_ports"][Id(ifindex)]
    assert isinstance(port, Port)
    rig.load_tables(t)
    simulator = Simulator(t, now_tick())
    denying = replace(port, generation=2, acl_table=(99, 99), acl_words=(1, 1))  # a table that is gone
    # SYN, ACK, FIN that is denied, ACK that is allowed again.
    for now, flags, seen in (
        (port, 2, 1),
        (port, 16, 9),
        (denying, 17, 9),
        (replace(port, generation=3), 16, 9),
    ):
        t["sw_ports"][Id(ifindex)] = now
        rig.put("sw_ports", Id(ifindex), now)
        segment = struct.pack("!HHIIBBHHH", 40000, 80, 1, 1, 0x50, flags, 1000, 0, 0)
        frame = config(rig.devices).uplink_mac + PEER_MAC + b"\x08\x00"
        frame += ip_packet(4, _FAR, _POD, 6, segment, 64, 0, 1)
        ran = rig.run(frame, uplink)
        assert ran.verdict == _expected_verdict(simulator.receive(frame, Arrival.UPLINK, uplink, 0))
        flows = _comparable(rig.table("sw_flows"))
        assert flows == _comparable(dict(simulator.flows.items()))
        [flow] = flows.values()
        assert isinstance(flow, Flow)
        assert bool(flow.flags & FlowFlag.DENIED) == (now is denying)
        assert flow.tcp == (seen, 0)


class _Pool:
    """A pod that asks one remote end, through a pool of four ports; time passes when it is told to."""

    def __init__(self, rig: SwitchRig, protocol: int) -> None:
        self.rig = rig
        self.protocol = protocol
        hop = Nexthop(RouteKind.UPLINK, 4, 1500, rig.devices[-1], 0, ZERO, ZERO, PEER_MAC)
        t = _one_pod(rig) | {
            "sw_nat": {NatKey(NAT_KEY_BITS, 7, 4, ZERO): Nat(NatAction.SNAT, 0, 0, 2, packed(NODE[4]))},
            "sw_nexthops": {Id(1): hop},
        }
        rig.load_tables(t)
        self.simulator = Simulator(t, now_tick())

    def _send(self, frame: bytes, arrival: Arrival, device: int) -> Outcome:
        traced = self.rig.trace(frame, arrival, device, 0)
        ran = self.rig.run(frame, device)
        self.simulator.state.now_tick = now_tick()
        outcome = self.simulator.receive(frame, arrival, device, 0)
        assert ran.verdict == _expected_verdict(outcome)
        assert ran.verdict == _SHOT or ran.frame == outcome.frame
        _compare_trace(traced.output, traced.frame, outcome, outcome.frame.hex())
        assert _comparable(self.rig.table("sw_flows")) == _comparable(dict(self.simulator.flows.items()))
        return outcome

    def ask(self, source: int) -> Outcome:
        udp, echo = struct.pack("!HHHH", source, 53, 9, 0), struct.pack("!BBHHH", 8, 0, 0, source, 1)
        data = (udp if self.protocol == 17 else echo) + b"x"
        frame = GATEWAY_MAC + _POD_MAC + b"\x08\x00" + ip_packet(4, _POD, _FAR, self.protocol, data, 64, 0, 1)
        return self._send(frame, Arrival.POD, self.rig.devices[0])

    def answer(self, asked: Outcome) -> None:
        reply = reply_to(asked.frame, 0)
        assert reply is not None
        reply = config(self.rig.devices).uplink_mac + PEER_MAC + reply[12:]
        assert self._send(reply, Arrival.UPLINK, self.rig.devices[-1]).fate == Fate.PORT

    def wait(self, ticks: int) -> None:
        state = self.simulator.state
        for key, flow in list(state.flows.items()):
            state.flows[key] = replace(flow, seen_tick=flow.seen_tick - ticks)
        self.rig.adopt(state.flows, state.fragments, state.affinity, state.counts)


@pytest.mark.parametrize("protocol", [1, 17])
@pytest.mark.parametrize("ticks", [0, 1, 3, 5])  # a real one may pass, too
def test_ports_of_what_was_answered(rig: SwitchRig, protocol: int, ticks: int) -> None:
    """Random sequences hardly come to a full pool, and time to pass: of its four ports two were answered once."""
    pool = _Pool(rig, protocol)
    asked = [pool.ask(1000 + i) for i in range(4)]
    assert all(outcome.fate == Fate.UPLINK for outcome in asked)
    for outcome in asked[:3]:
        pool.answer(outcome)
    pool.wait(1)
    pool.answer(asked[0])
    pool.wait(ticks)
    # Two were answered once and are silent, one goes on, one waits.
    fates = [pool.ask(2000 + i).fate for i in range(3)]
    assert fates == [*[Fate.UPLINK if ticks >= 3 else Fate.NOWHERE] * 2, Fate.NOWHERE]


def test_a_backend_whose_network_comes_to_be_known(rig: SwitchRig) -> None:
    """Random sequences hardly come to a flow from the wire, of a service, that leads back there."""
    node, backend, outside = packed(NODE[4]), packed("10.1.1.10"), packed("203.0.113.5")
    uplink = rig.devices[-1]
    known = Backend(backend, 8080, 4, 0, 1, 0, SCOPE_UPLINK)
    far = packed("192.168.9.3")
    place = (BackendPlace(1, 1), *[BackendPlace(0, 0)] * (CHUNK_BACKENDS - 1))
    t: dict[str, dict[Record, Record]] = {
        "sw_config": {Id(0): config(rig.devices)},
        "sw_services": {
            ServiceKey(node, 80, 17, 4, SCOPE_OUTSIDE): Service(1, 1, 1, 0, 0, packed("10.1.0.1"))
        },
        "sw_backend_sets": {BackendChunkKey(1, 0): BackendChunk(place)},
        "sw_backends": {Id(1): known},
        "sw_nexthops": {
            Id(1): Nexthop(RouteKind.UPLINK, 4, 1500, uplink, 0, ZERO, ZERO, bytes(6)),
            Id(2): Nexthop(RouteKind.TUNNEL, 4, 1450, 0, VNI, far, ZERO, PEER_MAC),
        },
        "sw_routes": {
            RouteKey(ROUTE_KEY_BITS, SCOPE_UPLINK, 4, ZERO): Route(RouteKind.UPLINK, 0, 0, 1, 0),
            RouteKey(ROUTE_KEY_BITS + 24, 1, 4, packed("10.1.1.0")): Route(RouteKind.TUNNEL, 0, 0, 2, 24),
        },
    }
    rig.load_tables(t)
    simulator = Simulator(t, now_tick())
    udp = bytes.fromhex("9c40 0050 0009 0000") + b"x"
    frame = config(rig.devices).uplink_mac + PEER_MAC + b"\x08\x00"
    frame += ip_packet(4, outside, node, 17, udp, 64, 0, 1)
    for scope, fate in ((SCOPE_UPLINK, Fate.UPLINK), (1, Fate.TUNNEL), (SCOPE_UPLINK, Fate.UPLINK)):
        t["sw_backends"][Id(1)] = replace(known, scope=scope)
        rig.put("sw_backends", Id(1), t["sw_backends"][Id(1)])
        outcome = simulator.receive(frame, Arrival.UPLINK, uplink, 0)
        assert rig.run(frame, uplink).frame == outcome.frame
        assert outcome.fate == fate
        flows = _comparable(rig.table("sw_flows"))
        assert flows == _comparable(dict(simulator.flows.items()))
        assert len(flows) == 2
