"""What the node is, from what the kernel lists."""

from __future__ import annotations

import ipaddress

from msgspec.structs import replace

from samewire.kernel.rtnetlink import Address, Link, LinkStats, Route
from samewire.node.facts import Uplink, choose_uplink
from samewire.vfp.model import LINK_GROUP


def link(ifindex: int, name: str, *, mtu: int = 1500, group: int = 0) -> Link:
    return Link(
        ifindex=ifindex,
        name=name,
        mac=bytes([2, 0, 0, 0, 0, ifindex]),
        mtu=mtu,
        flags=1,
        up=True,
        kind="",
        group=group,
        alias="",
        peer_ifindex=0,
        peer_netnsid=-1,
        stats=LinkStats(),
    )


def address(ifindex: int, text: str, *, scope: int = 0, flags: int = 0x80) -> Address:
    parsed = ipaddress.ip_interface(text)
    return Address(ifindex, parsed.version, parsed.packed, parsed.network.prefixlen, scope, flags)


def route(oif: int, destination: str, gateway: str = "", *, metric: int = 0, kind: str = "unicast") -> Route:
    parsed = ipaddress.ip_network(destination)
    return Route(
        family=parsed.version,
        destination=parsed.network_address.packed,
        bits=parsed.prefixlen,
        oif=oif,
        gateway=ipaddress.ip_address(gateway).packed if gateway else b"",
        source=b"",
        onlink=False,
        scope=0,
        table=254,
        protocol=3,
        kind=kind,
        metric=metric,
    )


LINKS = [link(1, "lo", mtu=65536), link(2, "eth0"), link(3, "eth1", mtu=9000)]
ADDRESSES = [
    address(1, "127.0.0.1/8", scope=254),
    address(2, "192.0.2.10/24"),
    address(2, "2001:db8::10/64"),
    address(2, "fe80::1/64", scope=253),
]
ROUTES = [route(2, "0.0.0.0/0", "192.0.2.1"), route(2, "::/0", "2001:db8::1"), route(2, "192.0.2.0/24")]


def texts(uplink: Uplink) -> list[str]:
    return [str(prefix) for prefix in uplink.addresses]


def test_the_default_route_names_the_uplink() -> None:
    found = choose_uplink("", LINKS, ADDRESSES, ROUTES)
    assert (found.name, found.ifindex, found.mtu) == ("eth0", 2, 1500)
    assert texts(found) == ["192.0.2.10/24", "2001:db8::10/64"]
    assert [str(gateway) for gateway in found.gateways] == ["192.0.2.1", "2001:db8::1"]
    assert found.management == ("192.0.2.10", "2001:db8::10")


def test_an_mtu_of_the_way_out() -> None:
    found = choose_uplink("", LINKS, ADDRESSES, [replace(ROUTES[0], mtu=1400), *ROUTES[1:]])
    assert found.gateway_mtus == {found.gateways[0]: 1400}


def test_the_lowest_metric_wins() -> None:
    routes = [
        route(3, "0.0.0.0/0", "198.51.100.1", metric=50),
        route(2, "0.0.0.0/0", "192.0.2.1", metric=100),
    ]
    assert choose_uplink("", LINKS, ADDRESSES, routes).name == "eth1"


def test_a_named_uplink_has_only_its_own_gateways() -> None:
    found = choose_uplink("eth1", LINKS, ADDRESSES, ROUTES)
    assert (found.ifindex, found.mtu, found.gateways) == (3, 9000, ())


def test_addresses_of_other_interfaces_are_hosts() -> None:
    others = [address(3, "198.51.100.7/24"), address(1, "203.0.113.5/32")]
    found = choose_uplink("eth0", LINKS, [*others, *ADDRESSES], ROUTES)
    assert texts(found) == ["192.0.2.10/24", "2001:db8::10/64", "198.51.100.7/32", "203.0.113.5/32"]
    assert found.management == ("192.0.2.10", "2001:db8::10")


def test_the_main_address_is_neither_secondary_nor_deprecated() -> None:
    found = choose_uplink(
        "eth0",
        LINKS,
        [
            address(2, "192.0.2.99/24", flags=0x81),
            address(2, "192.0.2.10/24"),
            address(2, "2001:db8::dead/64", flags=0x20),
            address(2, "2001:db8::aaaa/64", flags=0x01),
            address(2, "2001:db8::10/64"),
        ],
        ROUTES,
    )
    assert found.management == ("192.0.2.10", "2001:db8::10")
    assert len(found.addresses) == 5


def test_an_address_that_failed_detection_does_not_count() -> None:
    found = choose_uplink("eth0", LINKS, [address(2, "2001:db8::10/64", flags=0x88)], ROUTES)
    assert found.addresses == ()


def test_our_own_devices_do_not_count() -> None:
    ours = link(7, "samewire0", group=LINK_GROUP)
    found = choose_uplink(
        "",
        [*LINKS, ours],
        [*ADDRESSES, address(7, "10.244.0.1/32")],
        [route(7, "0.0.0.0/0", "10.244.0.9"), route(7, "10.244.0.0/24"), *ROUTES],
    )
    assert found == choose_uplink("", LINKS, ADDRESSES, ROUTES)


def test_a_vlans_interface_as_the_uplink() -> None:
    tagged = [replace(one, vlan=7) if one.name == "eth0" else one for one in LINKS]
    assert choose_uplink("eth0", tagged, ADDRESSES, ROUTES).vlan == 7
    assert choose_uplink("eth0", LINKS, ADDRESSES, ROUTES).vlan == 0


def test_the_nodes_own_vlans_on_the_uplink() -> None:
    """Whose devices are on top of it; those on another NIC are not."""
    nic = next(one for one in LINKS if one.name == "eth0")
    above = [
        replace(nic, name=f"v{vlan}", ifindex=100 + vlan, vlan=vlan, peer_ifindex=below)
        for vlan, below in ((9, nic.ifindex), (8, nic.ifindex), (7, 77))
    ]
    assert choose_uplink("eth0", [*LINKS, *above], ADDRESSES, ROUTES).vlans == (8, 9)


def test_without_an_uplink_the_node_still_has_addresses() -> None:
    found = choose_uplink("eth9", LINKS, ADDRESSES, ROUTES)
    assert (found.name, found.ifindex, found.gateways) == ("eth9", 0, ())
    assert texts(found) == ["192.0.2.10/32", "2001:db8::10/128"]
    assert choose_uplink("", LINKS, ADDRESSES, []).ifindex == 0


def test_prefixes_in_use() -> None:
    routes = [*ROUTES, route(3, "172.16.0.0/12", "198.51.100.1"), route(2, "ff00::/8", kind="multicast")]
    found = choose_uplink("", LINKS, [*ADDRESSES, address(3, "198.51.100.7/24")], routes)
    assert found.local_prefixes == ("172.16.0.0/12", "192.0.2.0/24", "198.51.100.0/24", "2001:db8::/64")
