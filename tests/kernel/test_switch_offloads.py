"""Frames as NICs and their drivers hand them over: summed up whole, joined, with nothing but a header in one piece."""

from __future__ import annotations

import fcntl
import os
import select
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from msgspec.structs import replace

from samewire.kernel import rtnetlink as rt
from samewire.kernel.bpf import SkbContext
from samewire.node.tables import KernelTables
from samewire.vfp.address import ZERO
from samewire.vfp.constants import NAT_KEY_BITS, ROUTE_KEY_BITS, ConfigFlag, NatAction, RouteKind
from samewire.vfp.diff import Put
from samewire.vfp.record import Record
from samewire.vfp.tables import Endpoint, EndpointKey, Id, Nat, NatKey, Nexthop, Port, Route, RouteKey
from tests.support.frames import fill, ip_packet, pseudo
from tests.support.replies import reply_to
from tests.support.switch_rig import SwitchRig
from tests.support.traffic import TIMEOUT_S
from tests.support.universe import GATEWAY_MAC, PEER_MAC, UPLINK_MAC, config, packed

pytestmark = pytest.mark.root

_REDIRECT = 7
_SCOPE = 5
_POD_MAC = bytes.fromhex("02dddddddd01")
_POD, _GATEWAY, _NODE, _OUT = (packed(text) for text in ("fd01::10", "fd01::1", "fd09::11", "fd44::44"))
_PATH_MTU = 1400
_TUN_SET = 0x400454CA
_TAP_IN_PAGES = 0x02 | 0x1000 | 0x10 | 0x20  # IFF_TAP, IFF_NO_PI, IFF_NAPI, IFF_NAPI_FRAGS


def fill_tables(rig: SwitchRig, *, knows_ipv6: bool = True, hops: int = 1) -> tuple[int, int]:
    """A pod whose address is translated on its way out. Returns its interface's number, and the uplink's."""
    ifindex, uplink = rig.devices[0], rig.devices[-1]
    node = config(rig.devices)
    prefix = ROUTE_KEY_BITS + 64
    tables: dict[str, dict[Record, Record]] = {
        "sw_config": {Id(0): replace(node, flags=ConfigFlag.CSUM_IPV6 if knows_ipv6 else 0)},
        "sw_ports": {
            Id(ifindex): Port(
                1,
                _SCOPE,
                0,
                _POD_MAC,
                GATEWAY_MAC,
                (ZERO, _POD),
                (ZERO, _GATEWAY),
                7,
                (0, 0),
                0,
                0,
                (0, 0),
                (0, 0),
                1500,
            )
        },
        "sw_endpoints": {EndpointKey(_POD, _SCOPE, 6): Endpoint(ifindex, 0, _POD_MAC)},
        "sw_routes": {
            RouteKey(prefix, _SCOPE, 6, packed("fd01::")): Route(RouteKind.LOCAL, 0, 0, 0, 64),
            RouteKey(ROUTE_KEY_BITS, _SCOPE, 6, ZERO): Route(RouteKind.UPLINK, hops, 0, 1, 0),
        },
        "sw_nat": {NatKey(NAT_KEY_BITS, 7, 6, ZERO): Nat(NatAction.SNAT, 0, 0, 0, _NODE)},
        "sw_nexthops": {Id(1): Nexthop(RouteKind.UPLINK, 6, _PATH_MTU, uplink, 0, ZERO, ZERO, bytes(6))},
    }
    rig.load_tables(tables)
    return ifindex, uplink


def question(protocol: int) -> bytes:
    """What the pod sends to a port 53 outside."""
    size = 32
    ports = b"\x9c\x40\x00\x35"
    if protocol == 6:
        l4, at = ports + bytes(8) + b"\x50\x02" + bytes(6 + size), 16
    elif protocol == 17:
        l4, at = ports + (8 + size).to_bytes(2, "big") + bytes(2 + size), 6
    else:
        l4, at = b"\x80\0\0\0\x12\x34" + bytes(2 + size), 2
    l4 = fill(l4, at, pseudo(6, _POD, _OUT, protocol, len(l4)) + l4)
    return GATEWAY_MAC + _POD_MAC + b"\x86\xdd" + ip_packet(6, _POD, _OUT, protocol, l4, 64, 0, 1)


@pytest.mark.parametrize("knows_ipv6", [True, False], ids=["new-helper", "old-helper"])
@pytest.mark.parametrize("protocol", [6, 17, 58])
def test_a_nics_sum_stays_right(rig: SwitchRig, protocol: int, knows_ipv6: bool) -> None:
    """It covers the IPv6 header, too, whose hop limit goes down. Where it is wrong, the kernel adds up every packet
    again, and says that the hardware is broken.
    """
    pod, uplink = fill_tables(rig, knows_ipv6=knows_ipv6)
    sent = rig.run(question(protocol), pod)
    answer = reply_to(PEER_MAC + UPLINK_MAC + sent.frame[12:], 0x12)
    assert sent.verdict == _REDIRECT
    assert answer is not None
    ran = rig.run_as(answer, SkbContext(ifindex=uplink), summed=True)
    assert ran.retval == _REDIRECT
    assert (ran.data[:6], ran.data[14 + 24 : 14 + 40], ran.data[14 + 7]) == (
        _POD_MAC,
        _POD,
        answer[14 + 7] - 1,
    )


@pytest.mark.parametrize("knows_ipv6", [True, False], ids=["new-helper", "old-helper"])
def test_a_nics_sums_of_fragments_stay_right(rig: SwitchRig, knows_ipv6: bool) -> None:
    """Only the first has a checksum that makes up for another address."""
    pod, uplink = fill_tables(rig, knows_ipv6=knows_ipv6)
    port = rig.run(question(17), pod).frame[54:56]
    datagram = b"\x00\x35" + port + b"\x00\x28" + bytes(34)
    datagram = fill(datagram, 6, pseudo(6, _OUT, _NODE, 17, 40) + datagram)
    for offset, part in ((0x2000, datagram[:24]), (3, datagram[24:])):
        packet = ip_packet(6, _OUT, _NODE, 17, part, 64, offset, 77)
        ran = rig.run_as(
            UPLINK_MAC + PEER_MAC + b"\x86\xdd" + packet, SkbContext(ifindex=uplink), summed=True
        )
        assert (ran.retval, ran.data[14 + 24 : 14 + 40]) == (_REDIRECT, _POD)


@pytest.mark.parametrize("knows_ipv6", [True, False], ids=["new-helper", "old-helper"])
def test_the_sum_of_what_leaves_in_fragments_stays_right(rig: SwitchRig, knows_ipv6: bool) -> None:
    """Their identification is another one, too."""
    pod, _ = fill_tables(rig, knows_ipv6=knows_ipv6, hops=0)
    datagram = b"\x9c\x40\x00\x35\x00\x28" + bytes(34)
    datagram = fill(datagram, 6, pseudo(6, _POD, _OUT, 17, 40) + datagram)
    for offset, part in ((0x2000, datagram[:24]), (3, datagram[24:])):
        packet = ip_packet(6, _POD, _OUT, 17, part, 2, offset, 77)
        frame = GATEWAY_MAC + _POD_MAC + b"\x86\xdd" + packet
        ran = rig.run_as(frame, SkbContext(ifindex=pod), summed=True)
        assert (ran.retval, ran.data[14 + 8 : 14 + 24]) == (_REDIRECT, _NODE)


@pytest.mark.parametrize(("joined", "passes"), [(2, True), (1, False)])
def test_joined_sctp_packets_are_no_longer_than_they_are(rig: SwitchRig, joined: int, passes: bool) -> None:
    """The kernel does not say how long each is, but 65,535: all that came joined were answered with "too big"."""
    pod, _ = fill_tables(rig)
    chunk = b"\0\x03" + (500).to_bytes(2, "big") + bytes(496)
    l4 = b"\x9c\x40\x00\x35" + bytes(8) + chunk * 4
    frame = GATEWAY_MAC + _POD_MAC + b"\x86\xdd" + ip_packet(6, _POD, _OUT, 132, l4, 64, 0, 1)
    ran = rig.run_as(frame, SkbContext(ifindex=pod, gso_size=0xFFFF, gso_segs=joined))
    assert ran.retval == _REDIRECT
    assert (ran.data[14 + 24 : 14 + 40] == _OUT) == passes


@contextmanager
def tap_in_pages(name: str) -> Iterator[int]:
    """A device whose driver leaves in pages what is written to it in more than one piece."""
    with open("/dev/net/tun", "r+b", buffering=0) as tun:
        fcntl.ioctl(tun, _TUN_SET, struct.pack("16sH22x", name.encode(), _TAP_IN_PAGES))
        yield tun.fileno()


def test_arp_that_stands_in_pages_is_answered(rig: SwitchRig) -> None:
    """As drivers that build on napi_gro_frags() hand it over: only the Ethernet header is in one piece."""
    fill_tables(rig)
    rig.call(lambda: _ask_in_pages(rig))


def _ask_in_pages(rig: SwitchRig) -> None:
    asked, asker = bytes((10, 1, 0, 7)), bytes((10, 1, 0, 9))
    question = b"\0\x01\x08\0\x06\x04\0\x01" + PEER_MAC + asker + bytes(6) + asked
    program = rig.object.programs["sw_ingress"]
    with tap_in_pages("pages") as tap, rt.Netlink() as netlink:
        ifindex = netlink.get(rt.link_get("pages")).ifindex
        KernelTables(rig.object.maps).write(
            [
                Put("sw_config", Id(0), replace(config(rig.devices), uplink_ifindex=ifindex)),
                Put(
                    "sw_endpoints",
                    EndpointKey(asked + bytes(12), 0, 4),
                    Endpoint(rig.devices[0], 0, _POD_MAC),
                ),
            ]
        )
        netlink.batch([rt.link_set("pages", up=True), rt.clsact_add(ifindex)])
        netlink.request(rt.bpf_filter_replace(ifindex, "ingress", program.fd, "sw_ingress"))
        os.writev(tap, [b"\xff" * 6 + PEER_MAC + b"\x08\x06", question])
        while True:
            assert select.select([tap], [], [], TIMEOUT_S)[0], "no answer"
            frame = os.read(tap, 2048)
            if frame[12:14] == b"\x08\x06" and frame[:6] == PEER_MAC:
                break
    assert frame[20:42] == b"\0\x02" + UPLINK_MAC + asked + PEER_MAC + asker
