"""One line a packet."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6ND_NS, ICMPv6PacketTooBig, IPv6
from scapy.layers.l2 import ARP, Dot3, Ether
from scapy.packet import Packet, Raw

from samewire.trace.model import TupleView
from samewire.trace.summary import ends_text, summary

L2 = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")


@pytest.mark.parametrize(
    ("packet", "line"),
    [
        (
            IP(src="10.0.0.1", dst="10.0.0.2") / TCP(sport=1, dport=80),
            "tcp 10.0.0.1:1 > 10.0.0.2:80 [S], length 40",
        ),
        (
            IP(src="10.0.0.1", dst="10.0.0.2") / TCP(sport=1, dport=80, flags="FPA"),
            "tcp 10.0.0.1:1 > 10.0.0.2:80 [FP.], length 40",
        ),
        (
            IPv6(src="fd00::1", dst="fd00::2") / UDP(sport=53, dport=5353) / Raw(b"abc"),
            "udp [fd00::1]:53 > [fd00::2]:5353, length 51",
        ),
        (
            IP(src="10.0.0.1", dst="10.0.0.2") / ICMP(type=8, id=7),
            "icmp 10.0.0.1 > 10.0.0.2 id 7 echo request, length 28",
        ),
        (
            IPv6(src="fd00::1", dst="fd00::2") / ICMPv6PacketTooBig(mtu=1280),
            "icmpv6 fd00::1 > fd00::2 packet too big, length 48",
        ),
        (
            IPv6(src="fd00::1", dst="fd00::2") / ICMPv6ND_NS(tgt="fd00::2"),
            "icmpv6 fd00::1 > fd00::2 neighbour solicitation, length 64",
        ),
        (
            IP(src="10.0.0.1", dst="10.0.0.2", proto=17, frag=100) / Raw(b"abcd"),
            "udp 10.0.0.1 > 10.0.0.2 later fragment, length 24",
        ),
        (IP(src="10.0.0.1", dst="10.0.0.2", proto=47) / Raw(b"abcd"), "47 10.0.0.1 > 10.0.0.2, length 24"),
        (
            ARP(op=1, psrc="10.0.0.1", pdst="10.0.0.2", hwsrc="02:00:00:00:00:01"),
            "arp who has 10.0.0.2? tell 10.0.0.1",
        ),
        (
            ARP(op=2, psrc="10.0.0.1", pdst="10.0.0.2", hwsrc="02:00:00:00:00:01"),
            "arp 10.0.0.1 is at 02-00-00-00-00-01",
        ),
    ],
)
def test_lines(packet: Packet, line: str) -> None:
    assert summary(bytes(L2 / packet)) == line


def test_what_the_switch_does_not_carry() -> None:
    frame = bytes(Dot3(src="02:00:00:00:00:01", dst="01:80:c2:00:00:00") / Raw(bytes(38)))
    text = summary(frame)
    assert text.startswith("02-00-00-00-00-01 > 01-80-C2-00-00-00 type 0x")
    assert "not_ip" in text


def test_ends_without_ports() -> None:
    view = TupleView(
        protocol="47", source="10.0.0.1", source_port=0, destination="10.0.0.2", destination_port=0
    )
    assert ends_text(view) == "47 10.0.0.1 > 10.0.0.2"


@given(st.binary(min_size=14, max_size=120), st.sampled_from([b"\x08\x00", b"\x86\xdd", b"\x08\x06", b""]))
def test_any_frame_has_a_line(data: bytes, kind: bytes) -> None:
    assert "\n" not in summary(data[:12] + kind + data[12 + len(kind) :])
