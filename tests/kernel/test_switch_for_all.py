"""What the wire sends to everybody, or to nobody, and a service is asked for all the same: programs and simulator."""

from __future__ import annotations

import pytest

from samewire.vfp.address import ZERO
from samewire.vfp.constants import (
    ROUTE_KEY_BITS,
    SCOPE_OUTSIDE,
    SCOPE_UPLINK,
    Arrival,
    Reason,
    RouteKind,
    ServiceFlag,
)
from samewire.vfp.record import Record
from samewire.vfp.simulate import Simulator
from samewire.vfp.tables import Id, Nexthop, Route, RouteKey, Service, ServiceKey
from tests.support.frames import ip_packet
from tests.support.switch_rig import Run, SwitchRig, now_tick
from tests.support.universe import PEER_MAC, UPLINK_MAC, config, packed

pytestmark = pytest.mark.root

_PASS, _SHOT, _REDIRECT = -1, 2, 7
_CLIENT = {4: packed("203.0.113.5"), 6: packed("fd44::44")}
_VIP = {4: packed("192.0.2.1"), 6: packed("fd99::1")}
_BROADCAST = b"\xff" * 6
_TCP, _UDP = 6, 17


def receive(rig: SwitchRig, family: int, protocol: int, address: bytes, mac: bytes) -> Run:
    """A packet for a service that has no endpoints, and refuses, at an address and as a node port."""
    uplink = rig.devices[-1]
    nothing = Service(1, 1, 0, ServiceFlag.REJECT, 0, ZERO)
    tables: dict[str, dict[Record, Record]] = {
        "sw_config": {Id(0): config(rig.devices)},
        "sw_services": {
            ServiceKey(vip, 53, protocol, family, SCOPE_OUTSIDE): nothing for vip in (ZERO, _VIP[family])
        },
        "sw_routes": {
            RouteKey(ROUTE_KEY_BITS, SCOPE_UPLINK, family, ZERO): Route(RouteKind.UPLINK, 1, 0, 1, 0)
        },
        "sw_nexthops": {Id(1): Nexthop(RouteKind.UPLINK, 6, 1500, uplink, 0, ZERO, ZERO, bytes(6))},
    }
    rig.load_tables(tables)
    ports = b"\x9c\x40\x00\x35"
    l4 = ports + (b"\0\x08\0\0" if protocol == _UDP else bytes(8) + b"\x50\x02" + bytes(6))
    kind = b"\x08\0" if family == 4 else b"\x86\xdd"
    frame = mac + PEER_MAC + kind + ip_packet(family, _CLIENT[family], address, protocol, l4, 64, 0, 1)
    ran = rig.run(frame, uplink)
    outcome = Simulator(tables, now_tick()).receive(frame, Arrival.UPLINK, uplink, 0)
    assert (outcome.drop is None) == (ran.drop is None)
    assert outcome.answered == (ran.verdict == _REDIRECT)
    return ran


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("protocol", [_TCP, _UDP])
def test_a_frame_for_everybody_is_not_answered(rig: SwitchRig, protocol: int, family: int) -> None:
    """All on the wire would answer at once, and from the MAC that is nobody's. What is for one is."""
    assert receive(rig, family, protocol, _VIP[family], UPLINK_MAC).verdict == _REDIRECT
    ran = receive(rig, family, protocol, _VIP[family], _BROADCAST)
    assert ran.drop is not None
    assert (ran.verdict, ran.drop.reason) == (_SHOT, Reason.NO_BACKEND)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("mac", [UPLINK_MAC, _BROADCAST])
def test_no_address_is_no_node_port(rig: SwitchRig, mac: bytes, family: int) -> None:
    """Node ports stand in the table under the address that is nobody's; a packet for that is for none of them."""
    ran = receive(rig, family, _UDP, ZERO, mac)
    assert (ran.verdict, ran.drop) == (_PASS, None)
