"""The netlink layer against the real kernel; the oracles are ``ip -j``, ``tc -j`` and pyroute2."""

from __future__ import annotations

import errno
import ipaddress
import json
import os
import select
import socket
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from pyroute2 import IPRoute

from samewire.errors import KernelError, NotFound
from samewire.kernel import rtnetlink as rt
from samewire.kernel.netns import NetNamespace, run_in
from samewire.kernel.rtnetlink import codec
from samewire.kernel.rtnetlink import monitor as rt_monitor
from samewire.kernel.rtnetlink import socket as rt_socket
from tests.support.node import poll

pytestmark = pytest.mark.root
Factory = Callable[[], NetNamespace]

GROUP = 21367
MAC = bytes.fromhex("025377000001")
PEER_MAC = bytes.fromhex("025377000002")
OTHER_MAC = bytes.fromhex("025377000009")


def packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


def ip(namespace: NetNamespace, *words: str) -> list[dict[str, Any]]:
    """What ``ip -j`` says, as it says it, without the empty objects it prints for entries it left out."""
    command = ["ip", "-n", os.path.basename(namespace.path), "-d", "-j", *words]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [entry for entry in json.loads(output or "[]") if entry]


def tc(namespace: NetNamespace, *words: str) -> list[dict[str, Any]]:
    command = ["tc", "-n", os.path.basename(namespace.path), "-j", *words]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return list(json.loads(output or "[]"))


@pytest.fixture
def node(netns_factory: Factory) -> NetNamespace:
    return netns_factory()


@pytest.fixture
def netlink(node: NetNamespace) -> Iterator[rt.Netlink]:
    with rt.Netlink(node.fd) as opened:
        yield opened


@pytest.fixture
def ifindex(netlink: rt.Netlink) -> int:
    """A veth ``sw0`` that is up, its peer ``p0`` in the same namespace."""
    netlink.request(rt.veth_add("sw0", "p0", mac=MAC, up=True))
    netlink.request(rt.link_set("p0", up=True))
    return netlink.get(rt.link_get("sw0")).ifindex


def test_veth_into_another_namespace(node: NetNamespace, netns_factory: Factory, netlink: rt.Netlink) -> None:
    pod = netns_factory()
    request = rt.veth_add(
        "sw0",
        "eth0",
        peer_netns_fd=pod.fd,
        mac=MAC,
        peer_mac=PEER_MAC,
        mtu=1400,
        peer_mtu=1300,
        group=GROUP,
        up=True,
    )
    assert netlink.request(request) == 0
    (near,) = ip(node, "link", "show", "sw0")
    (far,) = ip(pod, "link", "show", "eth0")
    assert (near["address"], near["mtu"], near["group"]) == (MAC.hex(":"), 1400, str(GROUP))
    assert (far["address"], far["mtu"], far["group"]) == (PEER_MAC.hex(":"), 1300, "default")
    assert "UP" in near["flags"]
    assert "UP" not in far["flags"]
    for space, name in ((node, "sw0"), (pod, "eth0")):
        (details,) = ip(space, "-d", "link", "show", name)
        assert (details["num_tx_queues"], details["num_rx_queues"]) == (1, 1)
    link = netlink.get(rt.link_get("sw0"))
    assert (link.kind, link.group, link.up, link.mtu, link.mac) == ("veth", GROUP, True, 1400, MAC)
    assert (link.peer_ifindex, link.peer_netnsid) == (far["ifindex"], near["link_netnsid"])
    assert netlink.get(rt.link_get(link.ifindex)) == link
    with pytest.raises(KernelError, match=r"create veth sw0: EEXIST"):
        netlink.request(request)
    assert netlink.request(request, tolerate=frozenset({errno.EEXIST})) == errno.EEXIST


def test_external_vxlan(node: NetNamespace, netlink: rt.Netlink) -> None:
    netlink.request(rt.vxlan_external_add("swvxlan0", port=4790, mac=MAC, mtu=1450, group=GROUP))
    (shown,) = ip(node, "link", "show", "swvxlan0")
    data = shown["linkinfo"]["info_data"]
    assert shown["linkinfo"]["info_kind"] == "vxlan"
    assert (data["external"], data["port"], data["learning"]) == (True, 4790, False)
    assert data["udp_zero_csum6_rx"] is True
    assert (shown["mtu"], shown["address"], shown["group"]) == (1450, MAC.hex(":"), str(GROUP))


def test_link_set_changes_what_is_given(node: NetNamespace, netlink: rt.Netlink, ifindex: int) -> None:
    netlink.request(rt.link_set("sw0", alias="samewire pod", mtu=1280, group=7, arp=False, mac=OTHER_MAC))
    (shown,) = ip(node, "link", "show", "sw0")
    assert (shown["ifalias"], shown["mtu"], shown["group"]) == ("samewire pod", 1280, "7")
    assert shown["address"] == OTHER_MAC.hex(":")
    assert {"UP", "NOARP"} <= set(shown["flags"])
    netlink.batch([rt.link_set(ifindex, up=False, arp=True), rt.link_set(ifindex, new_name="renamed")])
    (shown,) = ip(node, "link", "show", "renamed")
    assert not {"UP", "NOARP"} & set(shown["flags"])
    assert (shown["ifalias"], shown["mtu"]) == ("samewire pod", 1280)
    assert netlink.get(rt.link_get("renamed")).alias == "samewire pod"


def test_link_moves_to_another_namespace(netns_factory: Factory, netlink: rt.Netlink, ifindex: int) -> None:
    pod = netns_factory()
    netlink.request(rt.link_set("p0", netns_fd=pod.fd))
    assert [link["ifname"] for link in ip(pod, "link")] == ["lo", "p0"]
    assert {link.name for link in netlink.dump(rt.link_dump())} == {"lo", "sw0"}


def test_link_dump_agrees_with_ip(node: NetNamespace, netlink: rt.Netlink, ifindex: int) -> None:
    netlink.batch([rt.veth_add(f"a{i}", f"b{i}", mtu=1000 + i, group=i) for i in range(1, 40)])
    ours = {
        (link.ifindex, link.name, link.mac.hex(":"), link.mtu, link.kind, link.group, link.up)
        for link in netlink.dump(rt.link_dump())
    }
    theirs = {
        (
            link["ifindex"],
            link["ifname"],
            link["address"],
            link["mtu"],
            link.get("linkinfo", {}).get("info_kind", ""),
            0 if link["group"] == "default" else int(link["group"]),
            "UP" in link["flags"],
        )
        for link in ip(node, "link")
    }
    assert ours == theirs
    assert len(ours) == 81


def test_link_statistics(node: NetNamespace, netlink: rt.Netlink, ifindex: int) -> None:
    netlink.request(rt.address_add(ifindex, packed("10.9.0.1"), 24, family=4))
    netlink.request(rt.neighbour_replace(ifindex, packed("10.9.0.2"), PEER_MAC, family=4))

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            for _ in range(5):
                udp.sendto(bytes(100), ("10.9.0.2", 9))

    before = netlink.get(rt.link_get(ifindex)).stats
    run_in(node.fd, send)
    after = netlink.get(rt.link_get(ifindex)).stats
    theirs = ip(node, "-s", "link", "show", "sw0")[0]["stats64"]
    assert after.tx_packets >= before.tx_packets + 5
    assert after.tx_bytes >= before.tx_bytes + 5 * 142
    assert theirs["tx"]["bytes"] >= after.tx_bytes
    peer = netlink.get(rt.link_get("p0")).stats
    assert peer.rx_packets >= 5
    assert peer.rx_bytes >= 5 * 142


def test_links_are_deleted_one_by_one_and_by_group(netlink: rt.Netlink, ifindex: int) -> None:
    netlink.batch([rt.veth_add(f"a{i}", f"b{i}", group=GROUP) for i in range(10)])
    netlink.request(rt.link_del("a0"))
    assert len(netlink.dump(rt.link_dump())) == 1 + 2 + 18
    netlink.request(rt.link_del_group(GROUP))
    assert {link.name for link in netlink.dump(rt.link_dump())} == {"lo", "sw0", "p0"}
    netlink.request(rt.link_del(ifindex))
    assert [link.name for link in netlink.dump(rt.link_dump())] == ["lo"]
    for request in (rt.link_del("sw0"), rt.link_del(ifindex), rt.link_del_group(GROUP)):
        assert netlink.request(request.tolerating(errno.ENODEV)) == errno.ENODEV
    with pytest.raises(NotFound, match="interface 'sw0'"):
        netlink.get(rt.link_get("sw0"))


@pytest.mark.parametrize(
    ("family", "address", "bits"), [(4, "10.244.1.1", 24), (6, "fd00:1::1", 64), (4, "10.1.1.1", 32)]
)
@pytest.mark.parametrize("noprefixroute", [False, True])
def test_addresses(
    node: NetNamespace,
    netlink: rt.Netlink,
    ifindex: int,
    family: int,
    address: str,
    bits: int,
    noprefixroute: bool,
) -> None:
    add = rt.address_add(ifindex, packed(address), bits, family=family, noprefixroute=noprefixroute)
    assert netlink.batch([add, add]) == [0, 0]
    shown = ip(node, "addr", "show", "dev", "sw0")[0]["addr_info"]
    (mine,) = [entry for entry in shown if entry["local"] == address]
    assert (mine["prefixlen"], mine["scope"]) == (bits, "global")
    assert mine.get("noprefixroute", False) is noprefixroute
    assert not mine.get("tentative", False)
    assert len(shown) == len(netlink.dump(rt.address_dump(ifindex)))
    (found,) = [a for a in netlink.dump(rt.address_dump(ifindex)) if a.address == packed(address)]
    assert (found.family, found.bits, found.scope) == (family, bits, 0)
    made = [r for r in netlink.dump(rt.route_dump(family, 254)) if r.protocol == 2 and r.bits == bits]
    assert bool([r for r in made if family == 4 or r.destination[:2] == b"\xfd\0"]) is (
        not noprefixroute and not (family == 4 and bits == 32)
    )
    delete = rt.address_del(ifindex, packed(address), bits, family=family)
    netlink.request(delete)
    assert packed(address) not in {a.address for a in netlink.dump(rt.address_dump())}
    with pytest.raises(KernelError) as caught:
        netlink.request(delete)
    assert caught.value.errno == errno.EADDRNOTAVAIL


def _route_key(route: dict[str, Any], family: int) -> tuple[Any, ...]:
    everything = "0.0.0.0/0" if family == 4 else "::/0"
    network = ipaddress.ip_network(everything if route["dst"] == "default" else route["dst"])
    gateway = route.get("gateway") or route.get("via", {}).get("host", "")
    return (
        str(network),
        route.get("dev", ""),
        gateway,
        route.get("prefsrc", ""),
        route["type"],
        route.get("metric", 0),
        "onlink" in route["flags"],
        str(route["protocol"]),
        next((metric["mtu"] for metric in route.get("metrics", ()) if "mtu" in metric), 0),
    )


def _our_key(route: rt.Route, names: dict[int, str]) -> tuple[Any, ...]:
    return (
        f"{ipaddress.ip_address(route.destination)}/{route.bits}",
        names.get(route.oif, ""),
        str(ipaddress.ip_address(route.gateway)) if route.gateway else "",
        str(ipaddress.ip_address(route.source)) if route.source else "",
        route.kind,
        route.metric,
        route.onlink,
        {2: "kernel", 83: "83"}[route.protocol],
        route.mtu,
    )


def _assert_routes_agree(node: NetNamespace, netlink: rt.Netlink, family: int, table: int) -> None:
    names = {link.ifindex: link.name for link in netlink.dump(rt.link_dump())}
    ours = sorted(_our_key(route, names) for route in netlink.dump(rt.route_dump(family, table)))
    shown = ip(node, f"-{family}", "route", "show", "table", str(table))
    assert ours == sorted(_route_key(route, family) for route in shown)
    assert ours


def test_ipv4_routes(node: NetNamespace, netlink: rt.Netlink, ifindex: int) -> None:
    gateway, source = packed("10.244.1.1"), packed("10.244.1.9")
    netlink.batch(
        [
            rt.address_add(ifindex, source, 24, family=4),
            rt.route_replace(None, 0, family=4, oif=ifindex, gateway=gateway),
            rt.route_replace(packed("10.5.0.0"), 16, family=4, oif=ifindex),
            rt.route_replace(packed("10.6.0.0"), 16, family=4, oif=ifindex, source=source, metric=9),
            rt.route_replace(packed("10.6.7.0"), 24, family=4, oif=ifindex, mtu=1450),
            rt.route_replace(
                packed("10.7.0.1"), 32, family=4, oif=ifindex, gateway=packed("9.9.9.9"), onlink=True
            ),
            rt.route_replace(packed("10.8.0.0"), 24, family=4, oif=ifindex, gateway=packed("fe80::1")),
            rt.route_replace(packed("10.9.0.0"), 24, family=4, kind="blackhole"),
            rt.route_replace(packed("10.10.0.0"), 24, family=4, kind="local", oif=1, table=1000),
        ]
    )
    _assert_routes_agree(node, netlink, 4, 254)
    _assert_routes_agree(node, netlink, 4, 1000)
    _assert_routes_agree(node, netlink, 4, 255)
    assert netlink.dump(rt.route_dump(4, 4242)) == []


@pytest.mark.parametrize(("family", "prefix"), [(4, "10.{}.0.0"), (6, "fd00:{}::")])
def test_the_routes_by_one_interface_are_no_others(
    netlink: rt.Netlink, ifindex: int, family: int, prefix: str
) -> None:
    """A pod may have hundreds of thousands by another one: the kernel does not have to list them."""
    other = netlink.get(rt.link_get("p0")).ifindex
    netlink.batch([rt.link_set(ifindex, up=True), rt.link_set(other, up=True)])
    netlink.batch(
        [
            rt.route_replace(
                packed(prefix.format(number)), 48 if family == 6 else 16, family=family, oif=by, table=t
            )
            for number, by, t in ((1, ifindex, 254), (2, other, 254), (3, ifindex, 1000), (4, other, 1000))
        ]
    )
    query = rt.route_dump(family, oif=ifindex)
    answered: list[rt.Route | None] = []

    def decode(body: memoryview) -> rt.Route | None:
        answered.append(query.decode(body))
        return answered[-1]

    found = netlink.dump(msgspec.structs.replace(query, decode=decode))
    assert found == [route for route in netlink.dump(rt.route_dump(family)) if route.oif == ifindex]
    assert {packed(prefix.format(number)) for number in (1, 3)} <= {route.destination for route in found}
    assert answered == found, "what others have is not even sent"


@pytest.mark.parametrize(
    ("family", "prefix", "via"), [(4, "10.5.0.0/16", "10.244.1.1"), (6, "fd00:5::/48", "fd00:1::1")]
)
def test_of_a_multipath_route_the_first_next_hop_counts(
    node: NetNamespace, netlink: rt.Netlink, ifindex: int, family: int, prefix: str, via: str
) -> None:
    own = "10.244.1.9/24" if family == 4 else "fd00:1::9/64"
    ip(node, "address", "add", own, "dev", "sw0", *(["nodad"] if family == 6 else []))
    hops = [word for gateway in (via, f"{via}1") for word in ("nexthop", "via", gateway, "dev", "sw0")]
    ip(node, f"-{family}", "route", "add", prefix, *hops)
    destination = packed(prefix.partition("/")[0])
    found = [r for r in netlink.dump(rt.route_dump(family, 254)) if r.destination == destination]
    assert [(route.oif, route.gateway) for route in found][:1] == [(ifindex, packed(via))]


def test_ipv6_routes(node: NetNamespace, netlink: rt.Netlink, ifindex: int) -> None:
    netlink.batch(
        [
            rt.address_add(ifindex, packed("fd00:1::9"), 64, family=6),
            rt.route_replace(None, 0, family=6, oif=ifindex, gateway=packed("fe80::1"), onlink=True),
            rt.route_replace(packed("fd00:5::"), 48, family=6, oif=ifindex, metric=7, mtu=1400),
            rt.route_replace(packed("fd00:6::"), 48, family=6, oif=ifindex, source=packed("fd00:1::9")),
            rt.route_replace(packed("fd00:7::"), 64, family=6, kind="unreachable"),
            rt.route_replace(packed("fd00:8::1"), 128, family=6, oif=ifindex, table=1000),
        ]
    )
    shown = ip(node, "-6", "route", "show", "table", "1000")
    assert [(route["dst"], route["dev"]) for route in shown] == [("fd00:8::1", "sw0")]
    (unreachable,) = [r for r in netlink.dump(rt.route_dump(6, 254)) if r.kind == "unreachable"]
    assert unreachable.destination == packed("fd00:7::")
    netlink.request(rt.route_del(packed("fd00:7::"), 64, family=6))
    _assert_routes_agree(node, netlink, 6, 254)


def test_an_own_address_stands_in_and_goes_by_itself(
    node: NetNamespace, netlink: rt.Netlink, ifindex: int
) -> None:
    address = packed("fd00:1::9")

    def standing() -> list[tuple[str, bool]]:
        shown = ip(node, "-6", "route", "show", "table", "local", "fd00:1::9")
        return sorted((str(route["protocol"]), 0 < route.get("expires", 0) <= 60) for route in shown)

    netlink.request(rt.link_set(ifindex, up=True))
    for _ in range(2):
        netlink.batch([rt.address_add(ifindex, address, 64, family=6), rt.own_address(ifindex, address)])
    # The kernel's own comes after a while, and does not mind it.
    poll("both stand", lambda: standing() == [("83", True), ("kernel", False)])
    netlink.batch([rt.address_del(ifindex, address, 64, family=6), rt.own_address_del(ifindex, address)])
    assert standing() == []
    netlink.request(rt.own_address_del(ifindex, address))


@pytest.mark.parametrize(("family", "prefix", "bits"), [(4, "10.5.0.0", 16), (6, "fd00:5::", 48)])
def test_route_is_replaced_and_deleted_once(
    node: NetNamespace, netlink: rt.Netlink, ifindex: int, family: int, prefix: str, bits: int
) -> None:
    peer = netlink.get(rt.link_get("p0")).ifindex
    destination = packed(prefix)
    netlink.request(rt.route_replace(destination, bits, family=family, oif=ifindex))
    netlink.request(rt.route_replace(destination, bits, family=family, oif=peer))
    (shown,) = [r for r in ip(node, f"-{family}", "route", "show") if r["dst"] == f"{prefix}/{bits}"]
    assert shown["dev"] == "p0"
    foreign = rt.route_del(destination, bits, family=family, protocol=4)
    assert netlink.request(foreign.tolerating(errno.ESRCH)) == errno.ESRCH
    netlink.request(rt.route_del(destination, bits, family=family))
    with pytest.raises(KernelError) as caught:
        netlink.request(rt.route_del(destination, bits, family=family))
    assert caught.value.errno == errno.ESRCH


def test_route_dump_agrees_with_pyroute2(node: NetNamespace, netlink: rt.Netlink, ifindex: int) -> None:
    routes = [packed(f"10.{100 + i // 250}.{i % 250}.0") for i in range(600)]
    assert netlink.batch([rt.route_replace(r, 24, family=4, oif=ifindex) for r in routes]) == [0] * 600

    def theirs() -> list[tuple[str, int, int]]:
        with IPRoute() as oracle:
            found = oracle.get_routes(family=socket.AF_INET)
            return sorted(
                (r.get_attr("RTA_DST"), r["dst_len"], r.get_attr("RTA_OIF"))
                for r in found
                if r["proto"] == 83 and r.get_attr("RTA_TABLE") == 254
            )

    ours = [r for r in netlink.dump(rt.route_dump(4, 254)) if r.protocol == 83]
    assert sorted((str(ipaddress.ip_address(r.destination)), r.bits, r.oif) for r in ours) == node.run(theirs)
    assert len(ours) == 600


@pytest.mark.parametrize(("family", "address"), [(4, "10.244.1.1"), (6, "fe80::1")])
def test_neighbours(node: NetNamespace, netlink: rt.Netlink, ifindex: int, family: int, address: str) -> None:
    netlink.request(rt.neighbour_replace(ifindex, packed(address), MAC, family=family))
    netlink.request(rt.neighbour_replace(ifindex, packed(address), OTHER_MAC, family=family))
    (shown,) = ip(node, f"-{family}", "neigh", "show", "dev", "sw0", "nud", "permanent")
    assert (shown["dst"], shown["lladdr"]) == (address, OTHER_MAC.hex(":"))


def test_own_link_addresses(node: NetNamespace, netlink: rt.Netlink, ifindex: int) -> None:
    netlink.request(rt.fdb_add_self(ifindex, OTHER_MAC))
    command = ["bridge", "-n", os.path.basename(node.path), "-j", "fdb", "show", "dev", "sw0"]
    shown = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    ours = {entry.mac for entry in netlink.dump(rt.fdb_dump(ifindex))}
    theirs = {bytes.fromhex(entry["mac"].replace(":", "")) for entry in shown}
    assert {mac for mac in ours ^ theirs if not mac[0] & 1} == set()  # groups are joined and left meanwhile
    assert OTHER_MAC in ours
    netlink.request(rt.fdb_del_self(ifindex, OTHER_MAC))
    assert OTHER_MAC not in {entry.mac for entry in netlink.dump(rt.fdb_dump())}


def test_programs_on_clsact(node: NetNamespace, netlink: rt.Netlink, ifindex: int, pass_program: int) -> None:
    assert netlink.batch([rt.clsact_add(ifindex), rt.clsact_add(ifindex)]) == [0, errno.EEXIST]
    attach = rt.bpf_filter_replace(ifindex, "ingress", pass_program, "samewire:pod")
    egress = rt.bpf_filter_replace(ifindex, "egress", pass_program, "other", priority=3, handle=5)
    netlink.batch([attach, attach, egress])
    filters = [f for f in tc(node, "filter", "show", "dev", "sw0", "ingress") if "options" in f]
    assert [(f["pref"], f["kind"], f["options"]["bpf_name"]) for f in filters] == [(1, "bpf", "samewire:pod")]
    assert filters[0]["options"]["direct-action"] is True
    (found,) = netlink.dump(rt.filter_dump(ifindex, "ingress"))
    expected_id = filters[0]["options"]["prog"]["id"]
    assert found == rt.Filter(priority=1, handle=1, name="samewire:pod", program_id=expected_id)
    assert netlink.dump(rt.filter_dump(ifindex, "egress")) == [rt.Filter(3, 5, "other", expected_id)]
    netlink.request(rt.bpf_filter_del(ifindex, "ingress"))
    assert netlink.dump(rt.filter_dump(ifindex, "ingress")) == []
    assert [q.kind for q in netlink.dump(rt.qdisc_dump(ifindex))].count("clsact") == 1
    netlink.request(rt.clsact_del(ifindex))
    assert "clsact" not in [q.kind for q in netlink.dump(rt.qdisc_dump(ifindex))]
    assert netlink.dump(rt.filter_dump(ifindex, "egress")) == []
    with pytest.raises(KernelError, match="attach samewire:pod to ingress"):
        netlink.request(attach)


@pytest.mark.parametrize("rate", [125_000, 1_250_000_000, 12_500_000_000])
def test_shaping(node: NetNamespace, netlink: rt.Netlink, ifindex: int, rate: int) -> None:
    netlink.request(rt.tbf_replace(ifindex, 1_000, 2_000, 3_000))
    netlink.request(rt.tbf_replace(ifindex, rate, 64_000, 128_000))
    (shown,) = [q for q in tc(node, "qdisc", "show", "dev", "sw0") if q.get("root")]
    assert (shown["kind"], shown["options"]["rate"]) == ("tbf", rate)
    (found,) = [q for q in netlink.dump(rt.qdisc_dump(ifindex)) if q.root]
    assert (found.kind, found.rate_bytes_per_s, found.limit_bytes) == ("tbf", rate, 128_000)
    assert abs(found.burst_bytes - 64_000) <= 64 * rate / 1e9 + 1
    netlink.request(rt.qdisc_del_root(ifindex))
    assert "tbf" not in [q.kind for q in netlink.dump(rt.qdisc_dump())]
    assert netlink.request(rt.qdisc_del_root(ifindex).tolerating(errno.ENOENT)) == errno.ENOENT


def test_what_is_made_is_described(node: NetNamespace, netns_factory: Factory, netlink: rt.Netlink) -> None:
    pod = netns_factory()
    request = rt.veth_add("sw0", "eth0", peer_netns_fd=pod.fd)
    made = netlink.make(request, rt.decode_ends)
    (near,), (far,) = ip(node, "link", "show", "sw0"), ip(pod, "link", "show", "eth0")
    assert made in (None, (near["ifindex"], far["ifindex"]))  # Linux 6.1 does not say
    with pytest.raises(KernelError) as caught:
        netlink.make(request, rt.decode_ends)
    assert caught.value.errno == errno.EEXIST
    assert netlink.make(rt.link_set("sw0", mtu=1300), rt.decode_ends) is None
    assert netlink.get(rt.link_get("sw0")).mtu == 1300


def test_batch_tries_all_and_names_the_first_failure(netlink: rt.Netlink, ifindex: int) -> None:
    good = [rt.route_replace(packed(f"10.1.{i}.0"), 24, family=4, oif=ifindex) for i in range(250)]
    bad = rt.route_replace(packed("10.2.0.0"), 24, family=4, gateway=packed("203.0.113.1"), oif=ifindex)
    gone = rt.link_del("nope")
    with pytest.raises(KernelError) as caught:
        netlink.batch([*good[:120], bad, gone, *good[120:]])
    assert caught.value.operation == "set route 10.2.0.0/24"
    assert caught.value.errno == errno.ENETUNREACH
    assert caught.value.detail == "Nexthop has invalid gateway"
    assert len([r for r in netlink.dump(rt.route_dump(4)) if r.protocol == 83]) == 250
    codes = netlink.batch([gone.tolerating(errno.ENODEV), good[0]])
    assert codes == [errno.ENODEV, 0]
    assert netlink.batch([]) == []


def test_dump_is_repeated_when_the_kernel_says_it_was_interrupted(
    netlink: rt.Netlink, ifindex: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    interruptions = 0
    real = codec.messages

    def interrupted(data: memoryview) -> Iterator[codec.Message]:
        nonlocal interruptions
        for message in real(data):
            if message.type != codec.NLMSG_DONE or interruptions == 0:
                yield message
                continue
            interruptions -= 1
            flags = message.flags | codec.NLM_F_DUMP_INTR
            yield codec.Message(message.type, flags, message.sequence, message.body)

    monkeypatch.setattr(codec, "messages", interrupted)
    interruptions = 3
    names = [link.name for link in netlink.dump(rt.link_dump())]
    assert sorted(names) == ["lo", "p0", "sw0"]
    assert interruptions == 0
    interruptions = 1000
    with pytest.raises(KernelError) as caught:
        netlink.dump(rt.link_dump())
    assert caught.value.errno == errno.EAGAIN
    interruptions = 0
    assert len(netlink.dump(rt.link_dump())) == 3


def test_socket_outlives_the_descriptor_of_its_namespace(netns_factory: Factory) -> None:
    namespace = netns_factory()
    with NetNamespace(namespace.path) as opened:
        netlink = rt.Netlink(opened.fd)
    with netlink:
        assert [link.name for link in netlink.dump(rt.link_dump())] == ["lo"]


def _events(monitor: rt.LinkMonitor, last: Callable[[rt.Event], bool]) -> list[rt.Event]:
    """What is announced up to and with the event ``last``."""
    events: list[rt.Event] = []
    while not any(last(event) for event in events):
        readable, _, _ = select.select([monitor], [], [], 5)
        assert readable, f"the event did not come; got {events}"
        events += monitor.receive()
    return events


def test_monitor_tells_links_addresses_and_routes(node: NetNamespace, netlink: rt.Netlink) -> None:
    with rt.LinkMonitor(node.fd) as monitor:
        assert monitor.receive() == []
        netlink.request(rt.veth_add("sw0", "p0", mac=MAC, up=True))
        netlink.request(rt.link_set("p0", up=True))
        index = netlink.get(rt.link_get("sw0")).ifindex
        netlink.request(rt.address_add(index, packed("10.1.1.1"), 24, family=4))
        netlink.request(rt.route_replace(packed("fd00:5::"), 48, family=6, oif=index))
        netlink.request(rt.link_del("sw0"))
        events = _events(monitor, lambda e: isinstance(e, rt.LinkGone) and e.name == "sw0")
    assert [e for e in events if isinstance(e, rt.LinkNew) and e.link.name == "sw0" and e.link.mac == MAC]
    addresses = [(e.present, e.address.address) for e in events if isinstance(e, rt.AddressChanged)]
    assert addresses.index((True, packed("10.1.1.1"))) < addresses.index((False, packed("10.1.1.1")))
    routes = [(e.present, e.route.destination) for e in events if isinstance(e, rt.RouteChanged)]
    assert (True, packed("10.1.1.0")) in routes
    assert routes.index((True, packed("fd00:5::"))) < routes.index((False, packed("fd00:5::")))
    assert rt.LinkGone(index, "sw0") in events


def test_monitor_hears_only_its_groups_and_its_namespace(
    node: NetNamespace, netns_factory: Factory, netlink: rt.Netlink, ifindex: int
) -> None:
    with (
        rt.LinkMonitor(node.fd, groups=[rt.GROUP_IPV4_ROUTE]) as monitor,
        rt.Netlink(netns_factory().fd) as far,
    ):
        far.request(rt.route_replace(packed("10.4.0.0"), 16, family=4, kind="blackhole"))
        netlink.request(rt.link_set(ifindex, mtu=1300))
        netlink.request(rt.route_replace(packed("10.5.0.0"), 16, family=4, oif=ifindex))
        events = _events(monitor, lambda event: isinstance(event, rt.RouteChanged))
    assert [e.route.destination for e in events if isinstance(e, rt.RouteChanged)] == [packed("10.5.0.0")]
    assert len(events) == 1


@pytest.mark.parametrize("quiet", [None, rt.Names("sw", 13)])
def test_monitor_hears_of_quiet_interfaces_only_the_end(
    node: NetNamespace, netlink: rt.Netlink, quiet: rt.Names | None
) -> None:
    pods = ["sw0123456789a", "sw0123456789b"]
    others = ["sw0", "sw0123456789ab", "xw0123456789a"]
    with rt.LinkMonitor(node.fd, quiet=quiet) as monitor:
        netlink.batch([rt.veth_add(name, f"p{i}") for i, name in enumerate([*pods, *others])])
        netlink.batch([rt.link_set(name, up=True, alias="a") for name in [*pods, *others]])
        netlink.batch([rt.link_set(pods[0], up=False), rt.link_set(pods[0], mtu=1300)])
        netlink.request(rt.link_del(pods[1]))
        events = _events(monitor, lambda e: isinstance(e, rt.LinkGone) and e.name == pods[1])
    states = {
        name: [event.link.up for event in events if isinstance(event, rt.LinkNew) and event.link.name == name]
        for name in [*pods, *others]
    }
    assert all(True in states[name] and False in states[name] for name in others)
    if quiet is None:
        assert True in states[pods[0]]
    else:
        assert [states[name] for name in pods] == [[False], [False]]


@pytest.mark.parametrize("quiet", [None, rt.Names("sw", 13)])
def test_monitor_tells_routes_of_the_main_table(
    node: NetNamespace, netlink: rt.Netlink, ifindex: int, quiet: rt.Names | None
) -> None:
    groups = [rt.GROUP_IPV4_ROUTE, rt.GROUP_IPV6_ROUTE]
    with rt.LinkMonitor(node.fd, groups, quiet=quiet) as monitor:
        netlink.request(rt.route_replace(packed("10.6.0.0"), 16, family=4, oif=ifindex, table=100))
        netlink.request(rt.route_replace(packed("fd00:6::"), 48, family=6, oif=ifindex, table=1000))
        netlink.request(rt.route_replace(packed("10.7.0.0"), 16, family=4, oif=ifindex))
        netlink.request(rt.route_del(packed("10.7.0.0"), 16, family=4, oif=ifindex))
        events = _events(monitor, lambda event: isinstance(event, rt.RouteChanged) and not event.present)
    assert [e.route.destination for e in events if isinstance(e, rt.RouteChanged)] == [packed("10.7.0.0")] * 2


def test_monitor_tells_very_much_in_parts(
    node: NetNamespace, netlink: rt.Netlink, ifindex: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who reads it has other work, too, and the kernel may announce for as long as it is read."""
    monkeypatch.setattr(rt_monitor, "_AT_ONCE", 2)
    with rt.LinkMonitor(node.fd, groups=[rt.GROUP_IPV4_ROUTE]) as monitor:
        netlink.batch([rt.route_replace(packed(f"10.1.{i}.0"), 24, family=4, oif=ifindex) for i in range(5)])
        parts = [monitor.receive() for _ in range(4)]
    assert [len(part) for part in parts] == [2, 2, 1, 0]


def test_monitor_reports_lost_announcements(
    node: NetNamespace, netlink: rt.Netlink, ifindex: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rt_socket, "_RECEIVE_BUFFER_BYTES", 4096)
    with rt.LinkMonitor(node.fd) as monitor:
        netlink.batch(
            [rt.route_replace(packed(f"10.1.{i}.0"), 24, family=4, oif=ifindex) for i in range(200)]
        )
        events = monitor.receive()
        assert events.count(rt.Overrun()) == 1
        netlink.request(rt.route_replace(packed("10.9.0.0"), 16, family=4, oif=ifindex))
        (event,) = _events(monitor, lambda event: isinstance(event, rt.RouteChanged))
        assert isinstance(event, rt.RouteChanged)
        assert event.route.destination == packed("10.9.0.0")
