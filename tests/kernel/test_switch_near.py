"""What the programs remember of ports and next hops (bpf/near.h) is what the tables say, and never another port's."""

from __future__ import annotations

from typing import Final

import pytest
from msgspec.structs import replace

from samewire.vfp.address import ZERO
from samewire.vfp.constants import Counter, PortFlag, Reason, RouteKind
from samewire.vfp.record import Record
from samewire.vfp.tables import Endpoint, EndpointKey, Id, Nexthop, Port, Route, RouteKey
from tests.support.frames import ip_packet
from tests.support.switch_rig import Run, SwitchRig
from tests.support.universe import GATEWAY_MAC, config, packed

pytestmark = [pytest.mark.root, pytest.mark.kernelcore]

_SCOPE: Final = 1
_PLACES: Final = 256  # SW_NEAR_PORTS: ports whose numbers are so far apart share a place
_CLIENT, _ONE, _OTHER = "10.1.0.10", "10.1.0.11", "10.1.0.12"
_MACS: Final = {_CLIENT: "02dddddddd01", _ONE: "02dddddddd02", _OTHER: "02dddddddd03"}


class World:
    """Three pods of a network in which every connection has a flow; two of them share a place."""

    def __init__(self, rig: SwitchRig) -> None:
        self.rig = rig
        self.client = rig.devices[0]
        self.numbers = {_CLIENT: self.client, _ONE: self.client + 1, _OTHER: self.client + 1 + _PLACES}
        self.ports = {name: self._port(name) for name in self.numbers}
        tables: dict[str, dict[Record, Record]] = {
            "sw_config": {Id(0): config(rig.devices)},
            "sw_ports": {Id(number): self.ports[name] for name, number in self.numbers.items()},
            "sw_endpoints": {
                EndpointKey(packed(name), _SCOPE, 4): Endpoint(number, 0, self.ports[name].mac)
                for name, number in self.numbers.items()
            },
            "sw_routes": {
                RouteKey(32 + 24, _SCOPE, 4, packed("10.1.0.0")): Route(RouteKind.LOCAL, 0, 0, 0, 24),
                RouteKey(32, _SCOPE, 4, ZERO): Route(RouteKind.UPLINK, 0, 0, 1, 0),
            },
            "sw_nexthops": {
                Id(1): Nexthop(RouteKind.UPLINK, 4, 1500, rig.devices[-1], 0, ZERO, ZERO, bytes(6))
            },
        }
        rig.load_tables(tables)

    def put(self, name: str, port: Port) -> None:
        """Change a pod's port."""
        self.rig.put("sw_ports", Id(self.numbers[name]), port)

    def send(self, to: str) -> Run:
        """A datagram of the client's to another pod."""
        udp = bytes.fromhex("9c40 0035 0009 0000") + b"x"
        packet = ip_packet(4, packed(_CLIENT), packed(to), 17, udp, 64, 0, 1)
        frame = GATEWAY_MAC + self.ports[_CLIENT].mac + b"\x08\x00" + packet
        return self.rig.run(frame, self.client)

    def _port(self, name: str) -> Port:
        return Port(
            generation=1,
            scope=_SCOPE,
            flags=PortFlag.NAT_EXPLICIT,
            mac=bytes.fromhex(_MACS[name]),
            gateway_mac=GATEWAY_MAC,
            address=(packed(name), ZERO),
            gateway=(packed("10.1.0.1"), ZERO),
            nat_set=1,
            acl_table=(0, 0),
            acl_space=0,
            route_set=0,
            acl_words=(0, 0),
            acl_shape=(0, 0),
            mtu=1500,
        )


@pytest.fixture
def world(rig: SwitchRig) -> World:
    return World(rig)


def test_ports_that_share_a_place_are_not_taken_for_one_another(world: World) -> None:
    for to in (_ONE, _OTHER, _ONE, _ONE, _OTHER, _OTHER, _ONE):
        assert world.send(to).frame[:6].hex() == _MACS[to]
    assert len(world.rig.table("sw_flows")) == 2


def test_a_change_counts_for_the_next_packet(world: World) -> None:
    """Of the port that sends and of the one that receives, with and without a new generation."""
    world.send(_ONE)
    world.send(_ONE)
    before = world.rig.counter(Counter.FLOW_REDECIDED)
    moved = replace(world.ports[_ONE], mac=bytes.fromhex("02dddddddd99"))
    world.put(_ONE, moved)
    assert world.send(_ONE).frame[:6] == moved.mac
    assert world.rig.counter(Counter.FLOW_REDECIDED) == before
    world.put(_ONE, replace(moved, generation=2))
    world.send(_ONE)
    world.send(_ONE)
    assert world.rig.counter(Counter.FLOW_REDECIDED) == before + 1
    world.put(_CLIENT, replace(world.ports[_CLIENT], flags=PortFlag.BLOCKED))
    drop = world.send(_ONE).drop
    assert drop is not None
    assert drop.reason == Reason.PORT_BLOCKED


def test_a_port_that_is_gone_is_forgotten(world: World) -> None:
    world.send(_ONE)
    world.send(_ONE)
    world.rig.remove("sw_ports", Id(world.numbers[_ONE]))
    drop = world.send(_ONE).drop
    assert drop is not None
    assert drop.reason == Reason.NO_ENDPOINT
    world.rig.remove("sw_ports", Id(world.client))
    drop = world.send(_OTHER).drop
    assert drop is not None
    assert drop.reason == Reason.UNKNOWN_PORT


def test_a_next_hop_that_is_gone_is_forgotten(world: World) -> None:
    for _ in range(2):
        assert world.send("203.0.113.5").drop is None
    world.rig.remove("sw_nexthops", Id(1))
    drop = world.send("203.0.113.5").drop
    assert drop is not None
    assert drop.reason == Reason.NO_NEXTHOP
