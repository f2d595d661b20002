"""The netlink codec and the request builders, as bytes, without a kernel."""

from __future__ import annotations

import errno
import ipaddress
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg
from pyroute2.netlink.rtnl.tcmsg import tcmsg

from samewire.errors import Invalid, KernelError
from samewire.kernel import rtnetlink as rt
from samewire.kernel.rtnetlink import addresses, codec, links, routes

MAC = bytes.fromhex("025377000001")
V4 = ipaddress.ip_address("10.244.1.7").packed
V6 = ipaddress.ip_address("fd00:1::7").packed


def parse(kind: Callable[[bytes], Any], request: codec.Request) -> Any:
    """The request as pyroute2 reads it."""
    data = codec.pack(request.type, request.flags, 1, request.body)
    message = kind(data)
    message.decode()
    return message


@given(
    st.dictionaries(st.integers(1, 0x3FFF), st.binary(max_size=300), max_size=20),
    st.booleans(),
)
def test_attributes_come_back(values: dict[int, bytes], nest: bool) -> None:
    encoded = [codec.attribute(kind, value) for kind, value in values.items()]
    data = b"".join(encoded)
    assert len(data) % 4 == 0
    if nest:
        outer = codec.attributes(memoryview(codec.nested(18, *encoded)))
        assert list(outer) == [18]
        found = codec.attributes(outer[18])
    else:
        found = codec.attributes(memoryview(data))
    assert {kind: bytes(value) for kind, value in found.items()} == values


@given(
    st.lists(st.tuples(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF), st.binary(max_size=99)), max_size=9)
)
def test_messages_come_back(values: list[tuple[int, int, bytes]]) -> None:
    data = b"".join(codec.pack(kind, flags, 7, body) for kind, flags, body in values)
    found = [(m.type, m.flags, bytes(m.body)) for m in codec.messages(memoryview(data))]
    assert found == values


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_read_within_bounds(data: bytes) -> None:
    view = memoryview(data)

    def decode_all() -> None:
        for message in codec.messages(view):
            codec.error_of(message)

    decoders = (codec.attributes, links.decode_link, routes.decode_route, addresses.decode_address)
    for attempt in (decode_all, *(lambda decode=decode: decode(view) for decode in decoders)):
        try:
            attempt()
        except KernelError as error:
            if error.errno != errno.EBADMSG:
                raise


@pytest.mark.parametrize("data", ["0300010000000000", "0900010000000000", "00000100"])
def test_attribute_lengths_are_checked(data: str) -> None:
    with pytest.raises(KernelError, match="attribute of"):
        codec.attributes(memoryview(bytes.fromhex(data)))


def test_message_longer_than_its_datagram_is_refused() -> None:
    data = codec.pack(16, 0, 1, bytes(16))[:-4]
    with pytest.raises(KernelError, match="message of 32 bytes in 28"):
        list(codec.messages(memoryview(data)))


@pytest.mark.parametrize("capped", [True, False])
def test_error_message_with_extended_ack(capped: bool) -> None:
    original = codec.pack(16, 5, 3, b"body of 13 by")
    echoed = original[:16] if capped else original
    flags = codec.NLM_F_ACK_TLVS | (codec.NLM_F_CAPPED if capped else 0)
    body = struct.pack("=i", -errno.EINVAL) + echoed + codec.text(1, "no such thing")
    (message,) = codec.messages(memoryview(codec.pack(codec.NLMSG_ERROR, flags, 3, body)))
    assert codec.error_of(message) == (errno.EINVAL, "no such thing")


@pytest.mark.parametrize("name", ["", "sixteen-bytes-xx", "a/b", "a b", "a:b", "..", "a\n", "ä" * 8])
def test_impossible_interface_names(name: str) -> None:
    with pytest.raises(Invalid):
        rt.link_get(name)


def test_longest_interface_name() -> None:
    assert rt.link_get("fifteen-bytes-x").name == "fifteen-bytes-x"


@pytest.mark.parametrize(
    "build",
    [
        lambda: rt.address_add(1, V4, 33, family=4),
        lambda: rt.address_add(1, V4, 24, family=6),
        lambda: rt.address_add(1, V4, 24, family=5),
        lambda: rt.route_replace(None, 8, family=4),
        lambda: rt.route_replace(V4, 32, family=4, kind="sideways"),
        lambda: rt.route_replace(V4, 32, family=4, gateway=b"abc"),
        lambda: rt.route_replace(V4, 32, family=4, source=V6),
        lambda: rt.neighbour_replace(1, V4, b"short", family=4),
        lambda: rt.link_set("sw0", new_name="sw1"),
        lambda: rt.link_del_group(0),
        lambda: rt.link_get(0),
    ],
)
def test_builders_refuse_nonsense(build: Callable[[], object]) -> None:
    with pytest.raises(Invalid):
        build()


def test_tolerating_adds_and_keeps_the_original() -> None:
    request = rt.clsact_add(3)
    more = request.tolerating(errno.ENODEV)
    assert more.tolerate == {errno.EEXIST, errno.ENODEV}
    assert request.tolerate == {errno.EEXIST}
    assert more.body == request.body


def test_pyroute2_reads_links_alike() -> None:
    message = parse(
        ifinfmsg, rt.veth_add("sw0", "eth0", mac=MAC, peer_mac=MAC, mtu=1400, group=21367, up=True)
    )
    assert message.get_attr("IFLA_IFNAME") == "sw0"
    assert message.get_attr("IFLA_ADDRESS") == "02:53:77:00:00:01"
    assert message.get_attr("IFLA_GROUP") == 21367
    assert (message["flags"], message["change"]) == (1, 1)
    peer = message.get_attr("IFLA_LINKINFO").get_attr("IFLA_INFO_DATA").get_attr("VETH_INFO_PEER")
    assert peer.get_attr("IFLA_IFNAME") == "eth0"
    assert peer.get_attr("IFLA_GROUP") is None
    data = parse(ifinfmsg, rt.vxlan_external_add("swvxlan0", port=4789)).get_attr("IFLA_LINKINFO")
    vxlan = data.get_attr("IFLA_INFO_DATA")
    assert vxlan.get_attr("IFLA_VXLAN_PORT") == 4789
    assert vxlan.get_attr("IFLA_VXLAN_COLLECT_METADATA") == 1
    assert vxlan.get_attr("IFLA_VXLAN_LEARNING") == 0


def test_pyroute2_reads_changes_alike() -> None:
    message = parse(ifinfmsg, rt.link_set(7, up=False, arp=False, alias="samewire", mtu=1300))
    assert (message["index"], message["flags"], message["change"]) == (7, 0x80, 0x81)
    assert message.get_attr("IFLA_IFALIAS") == "samewire"
    assert message.get_attr("IFLA_MTU") == 1300


def test_pyroute2_reads_addresses_and_neighbours_alike() -> None:
    address = parse(ifaddrmsg, rt.address_add(7, V6, 64, family=6, noprefixroute=True))
    assert (address["family"], address["prefixlen"], address["index"]) == (10, 64, 7)
    assert address.get_attr("IFA_ADDRESS") == "fd00:1::7"
    assert address.get_attr("IFA_FLAGS") == 0x202
    neighbour = parse(ndmsg, rt.neighbour_replace(7, V4, MAC, family=4))
    assert (neighbour["ifindex"], neighbour["state"]) == (7, 0x80)
    assert neighbour.get_attr("NDA_DST") == "10.244.1.7"
    assert neighbour.get_attr("NDA_LLADDR") == "02:53:77:00:00:01"


def test_pyroute2_reads_routes_alike() -> None:
    message = parse(
        rtmsg, rt.route_replace(V4, 32, family=4, oif=7, gateway=V4, onlink=True, table=1000, metric=5)
    )
    assert (message["dst_len"], message["table"], message["scope"], message["flags"]) == (32, 0, 0, 4)
    assert message["proto"] == 83
    assert message.get_attr("RTA_TABLE") == 1000
    assert message.get_attr("RTA_GATEWAY") == "10.244.1.7"
    assert message.get_attr("RTA_PRIORITY") == 5
    assert parse(rtmsg, rt.route_replace(V4, 32, family=4, oif=7))["scope"] == 253
    assert parse(rtmsg, rt.route_replace(V4, 32, family=4, kind="local", oif=1))["scope"] == 254
    assert parse(rtmsg, rt.route_replace(V6, 128, family=6, oif=7))["scope"] == 0


def test_pyroute2_reads_traffic_control_alike() -> None:
    message = parse(tcmsg, rt.bpf_filter_replace(7, "egress", 9, "samewire", priority=2, handle=3))
    assert (message["index"], message["parent"], message["handle"]) == (7, 0xFFFFFFF3, 3)
    assert message["info"] == 2 << 16 | 0x0300
    assert message.get_attr("TCA_KIND") == "bpf"
    options = message.get_attr("TCA_OPTIONS")
    assert options.get_attr("TCA_BPF_FD") == 9
    assert options.get_attr("TCA_BPF_FLAGS") == 1


def test_the_tag_of_a_vlans_interface() -> None:
    """IFLA_LINKINFO {IFLA_INFO_KIND, IFLA_INFO_DATA {IFLA_VLAN_ID}}; a veth's data mean something else."""
    head = struct.pack("=BxHiII", 0, 1, 7, 0, 0)
    for kind, vlan in (("vlan", 100), ("veth", 0)):
        data = codec.nested(2, codec.attribute(1, struct.pack("=H", 100)))
        info = codec.nested(18, codec.text(1, kind), data)
        found = links.decode_link(memoryview(head + info))
        assert (found.ifindex, found.kind, found.vlan) == (7, kind, vlan)
