"""What the daemon makes of HNS objects and CNI calls, seen from outside: ip, tc, ping, sockets."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from samewire.kernel.bpf import BpfMap
from tests.support.cgroup_mount import cgroup2_mount
from tests.support.crowd import answering
from tests.support.node import (
    NODE_IP,
    NODE_IP6,
    PREFIX,
    ROUTER_IP,
    ROUTER_IP6,
    SHORT_S,
    STALL_S,
    DaemonProcess,
    Json,
    NodeNet,
    bound_s,
    can_ping,
    daemon,
    in_namespace,
    ip,
    ip_json,
    overlay,
    path_of,
    poll,
    serving,
)

pytestmark = pytest.mark.root


def policy(kind: str, **settings: Any) -> Json:
    """An endpoint policy as a CNI configuration has it."""
    return {"name": "EndpointPolicy", "value": {"Type": kind, "Settings": settings}}


def network(kind: str, subnet: str, gateway: str, *more: tuple[str, str]) -> Json:
    """A network without VNI; its name is its type."""
    subnets = [
        {
            "IpAddressPrefix": prefix,
            "Routes": [{"NextHop": via, "DestinationPrefix": "::/0" if ":" in via else "0.0.0.0/0"}],
        }
        for prefix, via in ((subnet, gateway), *more)
    ]
    return {"Name": kind, "Type": kind, "SchemaVersion": {"Major": 2}, "Ipams": [{"Subnets": subnets}]}


def mac_of(namespace: str, name: str = "eth0") -> str:
    (link,) = ip_json("link", "show", name, netns_name=namespace)
    return str(link["address"])


@contextmanager
def echo_server(namespace: str, port: int) -> Iterator[None]:
    """A TCP server inside a namespace that sends back what it gets."""
    code = (
        "import socket\nlistener = socket.create_server(('::', int(__import__('sys').argv[1])), "
        "family=socket.AF_INET6, dualstack_ipv6=True)\nprint('ready', flush=True)\n"
        "while True:\n peer = listener.accept()[0]\n peer.sendall(peer.recv(100))\n peer.close()\n"
    )
    with serving(namespace, code, port):
        yield


_ASK = (
    "import os, socket, sys\n"
    "if len(sys.argv) > 3: open(sys.argv[3], 'w').write(str(os.getpid()))\n"
    "with socket.create_connection((sys.argv[1], int(sys.argv[2])), 20) as peer:\n"
    "    peer.sendall(b'hello'); print(peer.recv(100).decode(), peer.getpeername()[:2])\n"
)


def ask(namespace: str, host: str, port: int, cgroup: Path | None = None) -> str:
    """Connect from a namespace (and cgroup); the answer with the peer's name, empty when it fails."""
    extra = [str(cgroup / "cgroup.procs")] if cgroup else []
    done = in_namespace(namespace, sys.executable, "-c", _ASK, host, str(port), *extra, check=False)
    return done.stdout.strip()


def test_l2bridge(net: NodeNet, node: DaemonProcess) -> None:
    node.request(
        "POST", "/v2/networks", network("L2Bridge", "192.168.77.0/24", ROUTER_IP, ("fd77::/64", ROUTER_IP6))
    )
    pod = net.pod()
    conf = node.conf("L2Bridge", policies=[])
    conf["ipam"] = {
        "type": "host-local",
        "dataDir": str(node.directory / "ipam"),
        "ranges": [
            [{"subnet": "192.168.77.0/24", "rangeStart": "192.168.77.100", "gateway": ROUTER_IP}],
            [{"subnet": "fd77::/64", "rangeStart": "fd77::100", "gateway": ROUTER_IP6}],
        ],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    }
    node.add("pod", pod, conf)
    assert can_ping(net.router, "192.168.77.100")
    assert can_ping(net.router, "fd77::100")
    assert can_ping(pod, ROUTER_IP)
    assert can_ping(net.node, "192.168.77.100")
    assert can_ping(pod, NODE_IP)
    seen = ip_json("neigh", "show", "192.168.77.100", netns_name=net.router)
    assert [entry["lladdr"] for entry in seen] == [mac_of(net.node)], "one MAC a node"
    assert "33:33:ff:00:01:00" in in_namespace(net.node, "bridge", "fdb", "show", "dev", "eth0").stdout
    assert node.differences() == []
    node.delete("pod", pod, conf)
    assert "33:33:ff:00:01:00" not in in_namespace(net.node, "bridge", "fdb", "show", "dev", "eth0").stdout
    assert ip_json("route", "show", "192.168.77.100", netns_name=net.node) == []
    assert node.differences() == []


def test_the_routers_address_stays_the_routers(net: NodeNet, node: DaemonProcess) -> None:
    """While the uplink has no address, or a start finds none, an L2Bridge network is still on the underlay.

    A node that took the router's address would refuse the default route that DHCP brings right after the address.
    """
    node.request("POST", "/v2/networks", network("L2Bridge", "192.168.77.0/24", ROUTER_IP))
    ip("address", "flush", "dev", "eth0", netns_name=net.node)
    for _ in range(2):
        poll("it is noticed", lambda: node.request("GET", "/v2/health")["uplink"]["addresses"] == [])
        poll("nothing differs", lambda: node.differences() == [])
        assert ip_json("address", "show", "to", ROUTER_IP, netns_name=net.node) == []
        node.stop()
        node.start()
    ip("address", "add", f"{NODE_IP}/24", "dev", "eth0", netns_name=net.node)
    ip("route", "add", "default", "via", ROUTER_IP, "dev", "eth0", netns_name=net.node)
    pod = net.pod()
    conf = node.conf("L2Bridge", policies=[])
    conf["ipam"]["ranges"] = [
        [{"subnet": "192.168.77.0/24", "rangeStart": "192.168.77.100", "gateway": ROUTER_IP}]
    ]
    poll("the address is taken over", lambda: node.request("GET", "/v2/health")["uplink"]["addresses"] != [])
    node.add("pod", pod, conf)
    assert can_ping(pod, ROUTER_IP)
    poll("nothing differs", lambda: node.differences() == [])


@pytest.mark.parametrize("kind", ["NAT", "Internal", "Private"])
def test_other_networks(net: NodeNet, node: DaemonProcess, kind: str) -> None:
    node.request("POST", "/v2/networks", network(kind, "10.50.0.0/24", "10.50.0.1"))
    pods = net.pod(), net.pod()
    conf = node.conf(kind, "10.50.0.0/24", policies=[])
    for number, pod in enumerate(pods):
        node.add(f"pod{number}", pod, conf)
    assert can_ping(pods[0], "10.50.0.3")
    assert can_ping(pods[0], ROUTER_IP, wait_s=bound_s(kind == "NAT")) is (kind == "NAT")
    assert can_ping(pods[0], NODE_IP, wait_s=bound_s(kind != "Private")) is (kind != "Private")
    assert can_ping(net.node, "10.50.0.2", wait_s=bound_s(kind != "Private")) is (kind != "Private")
    assert node.differences() == []


def test_dual_stack_where_the_runtime_switched_ipv6_off(net: NodeNet, node: DaemonProcess) -> None:
    node.request("POST", "/v2/networks", overlay(subnet6="fd00:244::/64"))
    pod = net.pod()
    in_namespace(pod, "sysctl", "-w", "net.ipv6.conf.default.disable_ipv6=1")
    node.add("pod", pod, node.conf("pods", "10.244.0.0/24", "fd00:244::/64"))
    assert can_ping(pod, NODE_IP)
    assert can_ping(pod, NODE_IP6)
    assert can_ping(net.node, "fd00:244::2")


@pytest.mark.parametrize("family", [4, 6])
def test_the_first_datagram_of_a_pod_is_answered(net: NodeNet, node: DaemonProcess, family: int) -> None:
    """A datagram is sent once: what is not ready when ADD returns, loses it or its answer."""
    node.request("POST", "/v2/networks", overlay(subnet6="fd00:244::/64"))
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    with net.inside(), socket.socket(kind, socket.SOCK_DGRAM) as server:
        server.bind(("", 0))
        server.settimeout(STALL_S)
        target = NODE_IP if family == 4 else NODE_IP6, server.getsockname()[1]
        for number in range(40):
            pod = net.pod()
            with net.inside(pod), socket.socket(kind, socket.SOCK_DGRAM) as client:
                client.settimeout(STALL_S)
                node.add(f"pod{number}", pod, node.conf("pods", "10.244.0.0/24", "fd00:244::/64"))
                client.sendto(b"first", target)
                data, sender = server.recvfrom(100)
                server.sendto(data, sender)
                assert client.recv(100) == b"first", f"pod {number}"


def test_who_waits_in_the_pod_for_its_address_is_answered(net: NodeNet, node: DaemonProcess) -> None:
    """It sends in the middle of ADD; were the answer to its question for the neighbour lost, it would ask once more."""
    node.request("POST", "/v2/networks", overlay())
    peer = net.pod()
    address = node.add("peer", peer, node.conf())["ips"][0]["address"].partition("/")[0]
    with answering(peer, "peer", 7):
        for number in range(30):
            pod = net.pod()
            with net.inside(pod):
                sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
                client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            with sniffer, client, ThreadPoolExecutor(1) as pool:
                client.settimeout(STALL_S)
                sent = pool.submit(send_when_possible, client, (address, 7))
                node.add(f"pod{number}", pod, node.conf())
                sent.result()
                client.recv(100)
                assert arp_requests(sniffer) == 1, f"pod {number}"


def send_when_possible(client: socket.socket, target: tuple[str, int]) -> None:
    """Try until there is a route."""
    deadline = time.monotonic() + STALL_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            client.sendto(b"first", target)
            return


def arp_requests(sniffer: socket.socket) -> int:
    """How many have been sent, of what has been seen."""
    sniffer.setblocking(False)
    found = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            frame, (_, _, kind, *_) = sniffer.recvfrom(100)
            found += kind == 4 and frame[12:14] == b"\x08\x06" and frame[20:22] == b"\x00\x01"
    return found


def test_a_bandwidth_cap_is_a_shaper_and_a_bucket(net: NodeNet, node: DaemonProcess) -> None:
    node.request("POST", "/v2/networks", overlay())
    pod = net.pod()
    caps = policy("QOS", MaximumIncomingBandwidthInBytes=10**6, MaximumOutgoingBandwidthInBytes=2 * 10**6)
    result = node.add("pod", pod, node.conf(policies=[caps]))
    host = result["interfaces"][0]["name"]
    shown = in_namespace(net.node, "tc", "-j", "qdisc", "show", "dev", host, "root").stdout
    (shaper,) = json.loads(shown)
    assert (shaper["kind"], shaper["options"]["rate"]) == ("tbf", 10**6)
    assert [entry["value"]["rate_bytes_per_s"] for entry in node.table("sw_buckets")] == [2 * 10**6]
    (endpoint,) = node.endpoints()
    update = {"ResourceType": "Policy", "RequestType": "Update", "Settings": {"Policies": []}}
    node.request("POST", f"/v2/endpoints/{endpoint['ID']}", update)
    assert "tbf" not in in_namespace(net.node, "tc", "qdisc", "show", "dev", host).stdout
    assert node.table("sw_buckets") == []
    assert node.differences() == []


@pytest.mark.parametrize("bits_per_s", [8, 10**12, 10**15, 2**63 - 1])
def test_every_bandwidth_that_can_be_said_can_be_set(
    net: NodeNet, node: DaemonProcess, bits_per_s: int
) -> None:
    """10**15 is the most that Kubernetes' annotations take, and so its word for none."""
    node.request("POST", "/v2/networks", overlay())
    caps = dict.fromkeys(("ingressRate", "ingressBurst", "egressRate", "egressBurst"), bits_per_s)
    pod = net.pod()
    node.add("pod", pod, node.conf(runtimeConfig={"bandwidth": caps}))
    assert node.differences() == []
    assert can_ping(pod, NODE_IP)


def test_hns_objects_without_cni(net: NodeNet, node: DaemonProcess) -> None:
    made = node.request("POST", "/v2/networks", overlay())
    endpoint = node.request("POST", "/v2/endpoints", {"HostComputeNetwork": made["ID"], "Name": "web"})
    assert (endpoint["State"], node.table("sw_ports")) == (1, [])
    pod = net.pod()
    space = node.request("POST", "/v2/namespaces", {"NetnsPath": path_of(pod)})
    settings = {"EndpointId": endpoint["ID"]}
    request = {"ResourceType": "Endpoint", "RequestType": "Add", "Settings": settings}
    node.request("POST", f"/v2/namespaces/{space['ID']}", request)
    assert can_ping(pod, NODE_IP)
    assert node.request("GET", f"/v2/endpoints/{endpoint['ID']}")["State"] == 3
    stats = node.request("GET", f"/v2/endpoints/{endpoint['ID']}/stats")
    assert stats["PacketsSent"] > 0
    assert stats["PacketsReceived"] > 0
    node.request("POST", f"/v2/namespaces/{space['ID']}", {**request, "RequestType": "Remove"})
    assert ip_json("link", "show", "type", "veth", netns_name=pod) == []
    assert node.differences() == []
    node.request("DELETE", f"/v2/namespaces/{space['ID']}")
    node.request("DELETE", f"/v2/networks/{made['ID']}")
    assert node.endpoints() == []
    assert node.table("sw_endpoints") == []
    assert [a for a in ip_json("address", "show", "samewire0", netns_name=net.node) if a["addr_info"]] == []


def test_remote_subnets_are_routes_of_the_host_too(net: NodeNet, node: DaemonProcess) -> None:
    made = node.request("POST", "/v2/networks", overlay())
    settings = {
        "DestinationPrefix": "10.244.9.0/24",
        "IsolationId": 4096,
        "ProviderAddress": "192.168.77.9",
        "DistributedRouterMacAddress": "0E-2A-00-00-00-09",
    }
    policies = {"Policies": [{"Type": "RemoteSubnetRoute", "Settings": settings}]}
    request = {"ResourceType": "Policy", "RequestType": "Add", "Settings": policies}
    node.request("POST", f"/v2/networks/{made['ID']}", request)
    (route,) = ip_json("route", "show", "10.244.9.0/24", netns_name=net.node)
    assert (route["dev"], route["prefsrc"], route["protocol"]) == ("samewire0", "10.244.0.1", "83")
    assert node.differences() == []
    node.request("POST", f"/v2/networks/{made['ID']}", {**request, "RequestType": "Remove"})
    assert ip_json("route", "show", "10.244.9.0/24", netns_name=net.node) == []
    assert node.differences() == []


def test_a_route_that_was_removed_comes_back(net: NodeNet, node: DaemonProcess) -> None:
    node.request("POST", "/v2/networks", overlay())
    ip("route", "delete", "10.244.0.0/24", netns_name=net.node)
    ip("address", "delete", "10.244.0.1/32", "dev", "samewire0", netns_name=net.node)
    poll("they are back", lambda: node.differences() == [])
    assert ip_json("route", "show", "10.244.0.0/24", netns_name=net.node)


def test_the_uplinks_mtu_reaches_the_pods(net: NodeNet, node: DaemonProcess) -> None:
    node.request("POST", "/v2/networks", overlay())
    pod = net.pod()
    node.add("pod", pod, node.conf())
    ip("link", "set", "eth0", "mtu", "1400", netns_name=net.node)
    poll("the pod has it", lambda: ip_json("link", "show", "eth0", netns_name=pod)[0]["mtu"] == 1350)
    poll("nothing differs", lambda: node.differences() == [])


def test_a_new_nic_takes_the_place_of_the_old(net: NodeNet, node: DaemonProcess) -> None:
    node.request("POST", "/v2/networks", overlay())
    pod = net.pod()
    node.add("pod", pod, node.conf())
    ip("link", "delete", "eth0", netns_name=net.node)
    poll("its absence is seen", lambda: node.request("GET", "/v2/health")["status"] == "degraded")
    assert can_ping(net.node, "10.244.0.2")
    ip("link", "add", "eth0", "netns", net.node, "type", "veth", "peer", "eth0", "netns", net.router)
    for name, address in ((net.node, NODE_IP), (net.router, ROUTER_IP)):
        ip("address", "add", f"{address}/24", "dev", "eth0", netns_name=name)
        ip("link", "set", "eth0", "up", netns_name=name)
    ip("route", "add", "default", "via", ROUTER_IP, netns_name=net.node)
    poll("the pod reaches the router", lambda: can_ping(pod, ROUTER_IP, wait_s=SHORT_S))
    poll("it is healthy", lambda: node.request("GET", "/v2/health")["status"] == "ok")
    poll("nothing differs", lambda: node.differences() == [])
    pins = [path.name for path in (node.run_dir / "bpf" / "links").iterdir()]
    assert len(pins) in (0, 2), pins


def knows(node: DaemonProcess, gateway: str) -> bool:
    return gateway in str(node.table("sw_nexthops"))


def test_another_gateway_is_taken_over(net: NodeNet, tmp_path: Path) -> None:
    """Nothing but the default route changes: who follows it has an uplink, loses it, and gets it back."""
    ip("route", "del", "default", netns_name=net.node)
    ip("-6", "route", "del", "default", netns_name=net.node)
    with daemon(net, tmp_path, uplink="") as node:
        node.start()
        assert node.request("GET", "/v2/health")["status"] == "degraded"
        for gateway in (ROUTER_IP, "192.168.77.77"):
            ip("route", "replace", "default", "via", gateway, netns_name=net.node)
            poll("it is known", partial(knows, node, gateway))
        assert node.request("GET", "/v2/health")["status"] == "ok"
        ip("route", "del", "default", netns_name=net.node)
        poll("there is none", lambda: node.request("GET", "/v2/health")["status"] == "degraded")
        ip("route", "add", "default", "via", ROUTER_IP6, netns_name=net.node)
        poll("there is one", lambda: node.request("GET", "/v2/health")["status"] == "ok")


def test_other_filters_on_the_uplink_stay(net: NodeNet, node: DaemonProcess) -> None:
    in_namespace(net.node, "tc", "qdisc", "add", "dev", "eth0", "clsact")
    other = ("dev", "eth0", "ingress", "prio", "7", "bpf", "bytecode", "1,6 0 0 0")
    in_namespace(net.node, "tc", "filter", "add", *other)
    node.request("POST", "/v2/networks", overlay())
    pod = net.pod()
    node.add("pod", pod, node.conf())
    assert can_ping(pod, ROUTER_IP)
    node.stop()
    in_namespace(
        net.node, sys.executable, "-c", "from samewire.cli.node import uninstall; uninstall()",
        "--config", str(node.config),
    )  # fmt: skip
    assert "pref 7" in in_namespace(net.node, "tc", "filter", "show", "dev", "eth0", "ingress").stdout


def test_check_compares_the_kernel(net: NodeNet, node: DaemonProcess) -> None:
    node.request("POST", "/v2/networks", overlay())
    pod = net.pod()
    conf = node.conf()
    result = node.add("pod", pod, conf)
    checked = {**conf, "prevResult": result}
    host = result["interfaces"][0]["name"]

    def complaint() -> str:
        status, answer = node.cni("CHECK", "pod", pod, checked)
        return str(answer["msg"]) if status else ""

    def is_seen(breaks: Callable[[], object], words: str) -> bool:
        """Whether CHECK tells of it, unless an audit has mended it before CHECK's turn came: then it breaks again."""
        for _ in range(5):
            breaks()
            if words in complaint():
                return True
        return False

    assert complaint() == ""
    (port,) = (entry["key"]["value"] for entry in node.table("sw_ports"))
    with BpfMap.open_pinned(node.run_dir / "bpf" / "maps" / "sw_ports") as ports:
        key = int(port).to_bytes(4, "little")
        value = ports.lookup(key)
        assert value is not None
        assert is_seen(lambda: ports.delete(key), "sw_ports")
        ports.update(key, value)
    assert complaint() == ""
    # What an earlier plugin of the chain made is on another interface, or in another table.
    others = [
        {"dst": "10.98.0.0/16"},
        {"dst": "10.99.0.0/16", "gw": "10.98.0.1"},
        {"dst": "10.97.0.0/16", "table": 100},
    ]
    checked["prevResult"] = {**result, "routes": [*result["routes"], *others]}
    ip("link", "add", "net1", "up", "type", "veth", "peer", "net2", netns_name=pod)
    ip("route", "add", "10.98.0.0/16", "dev", "net1", netns_name=pod)
    ip("route", "add", "10.99.0.0/16", "via", "10.98.0.1", "dev", "net1", "onlink", netns_name=pod)
    assert "route to 10.97.0.0/16" in complaint()
    ip("route", "add", "10.97.0.0/16", "dev", "net1", "table", "100", netns_name=pod)
    assert complaint() == ""
    ip("route", "delete", "10.99.0.0/16", netns_name=pod)
    assert "route to 10.99.0.0/16" in complaint()
    checked["prevResult"] = result
    route = ("route", "replace", "default", "via", "10.244.0.1")
    address = ("address", "replace", "10.244.0.2/24", "dev", "eth0")
    broken = [
        (net.node, ("link", "set", host, "mtu", "1200"), [("link", "set", host, "mtu", "1450")], "MTU"),
        (pod, ("link", "set", "eth0", "mtu", "1200"), [("link", "set", "eth0", "mtu", "1450")], "MTU"),
        (pod, ("route", "delete", "default"), [route], "route"),
        (pod, ("address", "delete", "10.244.0.2/24", "dev", "eth0"), [address, route], "10.244.0.2"),
    ]
    for where, breaks, mends, words in broken:
        assert is_seen(partial(_ip, where, breaks), words), breaks
        for mend in mends:
            _ip(where, mend)
        assert complaint() == ""
    _ip(pod, ("address", "add", "10.244.0.77/24", "dev", "eth0"))
    assert complaint() == ""
    assert is_seen(partial(_ip, pod, ("link", "delete", "eth0")), "eth0")


def _ip(where: str, words: tuple[str, ...]) -> None:
    ip(*words, netns_name=where)


_FROM_PORT = (
    "import socket, sys\n"
    "with socket.socket() as one:\n"
    "    one.settimeout(20); one.connect((sys.argv[1], int(sys.argv[2])))\n"
    "    one.sendall(b'hello'); print(one.recv(100).decode(), one.getsockname()[1])\n"
)


def test_the_nodes_sockets_are_not_given_mapped_ports(net: NodeNet, node: DaemonProcess) -> None:
    """The answers to a connection from such a port would be taken to the pod; who has reserved it says so (flag 4)."""

    def reserved() -> set[str]:
        found = in_namespace(net.node, "cat", "/proc/sys/net/ipv4/ip_local_reserved_ports").stdout
        return set(found.strip().split(","))

    node.request("POST", "/v2/networks", overlay())
    always = reserved()
    pod, other = net.pod(), net.pod()
    low = 40000
    mappings = [policy("PortMapping", Protocol=6, InternalPort=7000, ExternalPort=low)]
    theirs = [policy("PortMapping", Protocol=6, InternalPort=7000, ExternalPort=low + 2, Flags=4)]
    node.add("pod", pod, node.conf(policies=mappings))
    node.add("other", other, node.conf(policies=theirs))
    assert reserved() == always | {str(low)}
    in_namespace(net.node, "sysctl", "-qw", f"net.ipv4.ip_local_port_range={low} {low + 1}")
    with echo_server(net.router, 7000):
        asked = in_namespace(net.node, sys.executable, "-c", _FROM_PORT, ROUTER_IP, "7000")
        assert asked.stdout.split() == ["hello", str(low + 1)]
    node.stop()
    node.start()
    assert reserved() == always | {str(low)}
    assert node.differences() == []
    node.delete("pod", pod, node.conf(policies=mappings))
    assert reserved() == always


def test_a_port_that_outbound_nat_uses_may_be_mapped(net: NodeNet, tmp_path: Path) -> None:
    """All are mapped here, so that an outbound connection has one that is."""
    with daemon(net, tmp_path, nat_ports=[50000, 50001]) as node:
        node.start()
        node.request("POST", "/v2/networks", overlay())
        pod, other = net.pod(), net.pod()
        ports = (50000, 50001)
        mappings = [policy("PortMapping", Protocol=6, InternalPort=7000, ExternalPort=port) for port in ports]
        node.add("pod", pod, node.conf(policies=mappings))
        node.add("other", other, node.conf(policies=[policy("OutBoundNAT")]))
        with echo_server(pod, 7000), echo_server(net.router, 7000):
            for port in ports:
                assert ask(net.router, NODE_IP, port) == f"hello ('{NODE_IP}', {port})"
                asked = in_namespace(other, sys.executable, "-c", _FROM_PORT, ROUTER_IP, "7000")
                assert asked.stdout.startswith("hello")
        assert node.differences() == []


def test_host_ports_from_the_nodes_own_sockets(net: NodeNet, tmp_path: Path) -> None:
    mount = cgroup2_mount()
    assert mount is not None, "no cgroup2 file system is mounted"
    cgroup = mount / PREFIX
    cgroup.mkdir()
    try:
        with daemon(net, tmp_path) as node:
            node.start()
            node.stop()
            settings = json.loads(node.config.read_text())
            node.config.write_text(json.dumps({**settings, "host_cgroup": str(cgroup)}))
            node.start()
            node.request("POST", "/v2/networks", overlay())
            pod = net.pod()
            mapping = policy("PortMapping", Protocol=6, InternalPort=7000, ExternalPort=8080)
            node.add("pod", pod, node.conf(policies=[mapping]))
            with echo_server(pod, 7000):
                assert ask(net.router, NODE_IP, 8080).startswith("hello")
                assert ask(net.node, NODE_IP, 8080, cgroup) == f"hello ('{NODE_IP}', 8080)"
                assert ask(net.node, "127.0.0.1", 8080, cgroup) == "hello ('127.0.0.1', 8080)"
                assert ask(net.node, "127.0.0.1", 8080) == "", "only inside the cgroup"
                node.stop()
                assert ask(net.node, "127.0.0.1", 8080, cgroup) == "hello ('127.0.0.1', 8080)"
                node.start()
                assert ask(net.node, "127.0.0.1", 8080, cgroup) == "hello ('127.0.0.1', 8080)"
                for wanted, answer in (("", ""), (str(cgroup), "hello ('127.0.0.1', 8080)")):
                    node.stop()  # the socket programs are loaded for who needs them only
                    node.config.write_text(json.dumps({**settings, "host_cgroup": wanted}))
                    node.start()
                    assert ask(net.node, "127.0.0.1", 8080, cgroup) == answer
                    assert can_ping(pod, NODE_IP)
                    assert node.differences() == []
    finally:
        cgroup.rmdir()


def test_drops_can_be_watched(net: NodeNet, node: DaemonProcess) -> None:
    node.request("POST", "/v2/networks", overlay())
    pod = net.pod()
    node.add("pod", pod, node.conf())
    with socket.socket(socket.AF_UNIX) as watch:
        watch.settimeout(10)
        watch.connect(str(node.run_dir / "samewire.sock"))
        watch.sendall(b"GET /v2/switch/drops?watch=1 HTTP/1.1\r\nHost: x\r\n\r\n")
        received = b""
        while b"\r\n\r\n" not in received:
            received += watch.recv(4096)
        in_namespace(pod, "ping", "-c", "1", "-W", "1", "10.244.0.99", check=False)
        while b'"no_endpoint"' not in received:
            received += watch.recv(4096)
        assert "events" in node.table("sw_config")[0]["value"]["flags"]
    drops = node.request("GET", "/v2/switch/drops?endpoint=10.244.0.2")
    assert "no_endpoint" in {row["reason"] for row in drops}
    poll(
        "it costs nothing when nobody looks",
        lambda: "events" not in node.table("sw_config")[0]["value"]["flags"],
    )


def test_metrics(net: NodeNet, tmp_path: Path) -> None:
    with daemon(net, tmp_path, metrics_listen=f"{NODE_IP}:9100") as node:
        node.start()
        network = node.request("POST", "/v2/networks", overlay())["ID"]
        pod = net.pod()
        node.add("pod", pod, node.conf())
        in_namespace(pod, "ping", "-c", "1", "-W", "1", "10.244.0.99", check=False)
        acl = {"Type": "NetworkACL", "Settings": {"Action": "Block", "Direction": "Out", "Priority": 100}}
        change = {"ResourceType": "Policy", "RequestType": "Add", "Settings": {"Policies": [acl]}}
        node.request("POST", f"/v2/networks/{network}", change)
        in_namespace(pod, "ping", "-c", "1", "-W", "1", ROUTER_IP, check=False)
        (endpoint,) = node.endpoints()
        text = str(node.request("GET", "/v2/metrics"))
        code = (
            f"import urllib.request as u; print(u.urlopen('http://{NODE_IP}:9100/metrics').read().decode())"
        )
        served = in_namespace(net.router, sys.executable, "-c", code).stdout
        for found in (text, served):
            assert 'samewire_objects{kind="endpoints"} 1.0' in found
            assert "samewire_ports 1.0" in found
            assert f'samewire_drops_total{{arrival="pod",layer="route",port="{endpoint["ID"]}"' in found
            assert 'reason="blocked",rule="network ' in found
            assert "samewire_flow_inserts_total" in found
            assert "process_resident_memory_bytes" in found


def test_many_at_once(net: NodeNet, node: DaemonProcess) -> None:
    node.request("POST", "/v2/networks", overlay())
    conf = node.conf()
    pods = [net.pod() for _ in range(24)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(2):
            results = list(pool.map(lambda item: node.add(f"pod{item[0]}", item[1], conf), enumerate(pods)))
            assert len({result["ips"][0]["address"] for result in results}) == len(pods)
            assert node.differences() == []
            list(pool.map(lambda item: node.delete(f"pod{item[0]}", item[1], conf), enumerate(pods)))
            assert all(ip_json("link", "show", "type", "veth", netns_name=pod) == [] for pod in pods)
            assert node.differences() == []
    assert os.listdir(node.directory / "ipam" / "pods")


def test_gc_removes_what_the_runtime_forgot(net: NodeNet, node: DaemonProcess) -> None:
    node.request("POST", "/v2/networks", overlay())
    conf = node.conf()
    pods = net.pod(), net.pod()
    for number, pod in enumerate(pods):
        node.add(f"pod{number}", pod, conf)
    valid = [{"containerID": "pod1", "ifname": "eth0"}]
    status, answer = node.cni("GC", "", "", {**conf, "cni.dev/valid-attachments": valid})
    assert status == 0, answer
    assert [endpoint["ContainerId"] for endpoint in node.endpoints()] == ["pod1"]
    assert ip_json("link", "show", "type", "veth", netns_name=pods[0]) == []
    assert can_ping(pods[1], NODE_IP)


def test_doctor_finds_a_healthy_node_healthy(net: NodeNet, node: DaemonProcess) -> None:
    node.request("POST", "/v2/networks", overlay())
    node.add("pod", net.pod(), node.conf())
    answer = node.request("GET", "/v2/doctor")
    assert answer == {"healthy": True, "findings": []}


def test_statistics_say_what_came_and_what_was_dropped(net: NodeNet, node: DaemonProcess) -> None:
    node.request("POST", "/v2/networks", overlay())
    pods = {name: net.pod() for name in ("one", "two")}
    for name, pod in pods.items():
        node.add(name, pod, node.conf())
    two = next(item for item in node.endpoints() if item["ContainerId"] == "two")
    path, address = f"/v2/endpoints/{two['ID']}", two["IpConfigurations"][0]["IpAddress"]
    assert can_ping(pods["one"], address)  # who is where has been asked then
    before = node.request("GET", f"{path}/stats")
    in_namespace(pods["one"], "ping", "-n", "-c", "3", "-i", "0.01", "-s", "1000", address)
    after = node.request("GET", f"{path}/stats")
    assert after["PacketsReceived"] - before["PacketsReceived"] == 3
    assert after["BytesReceived"] - before["BytesReceived"] == 3 * (14 + 20 + 8 + 1000)
    acl = {"Type": "ACL", "Settings": {"Action": "Block", "Direction": "In", "Priority": 100}}
    change = {"ResourceType": "Policy", "RequestType": "Add", "Settings": {"Policies": [acl]}}
    node.request("POST", path, change)
    in_namespace(pods["one"], "ping", "-n", "-c", "2", "-i", "0.01", "-W", "1", address, check=False)
    blocked = node.request("GET", f"{path}/stats")
    assert blocked["DroppedPacketsIncoming"] - after["DroppedPacketsIncoming"] == 2
    assert blocked["PacketsReceived"] == after["PacketsReceived"]


@pytest.mark.parametrize(("flags", "way_out"), [(0, 0), (8, 1)])
def test_which_interface_of_a_pod_has_the_way_out(
    net: NodeNet, node: DaemonProcess, flags: int, way_out: int
) -> None:
    """EnableLowInterfaceMetric: the further interface, else the first."""
    pod = net.pod()
    space = node.request("POST", "/v2/namespaces", {"NetnsPath": path_of(pod)})
    ids = []
    for number, with_flags in enumerate((0, flags)):
        subnet, gateway = f"10.{50 + number}.0.0/24", f"10.{50 + number}.0.1"
        made = node.request(
            "POST", "/v2/networks", {**network("NAT", subnet, gateway), "Name": f"nat{number}"}
        )
        wanted = {
            "HostComputeNetwork": made["ID"],
            "Flags": with_flags,
            "Policies": [{"Type": "OutBoundNAT"}],
        }
        endpoint = node.request("POST", "/v2/endpoints", wanted)
        ids.append(endpoint["ID"])
        change = {
            "ResourceType": "Endpoint",
            "RequestType": "Add",
            "Settings": {"EndpointId": endpoint["ID"]},
        }
        node.request("POST", f"/v2/namespaces/{space['ID']}", change)

    def sent() -> list[int]:
        return [node.request("GET", f"/v2/endpoints/{each}/stats")["PacketsSent"] for each in ids]

    before = sent()
    assert all(can_ping(pod, ROUTER_IP) for _ in range(20))
    grown = [after - was for after, was in zip(sent(), before, strict=True)]
    assert grown[way_out] >= 20
    assert grown[1 - way_out] < 20, "what a new interface says of itself, and no more"
