"""The peers: a raw veth pair, a stateless eBPF switch, and Linux networking the way stock nodes are built.

What is installed on the kernel's side follows the published behaviour of the CNI ``bridge`` plugin (the real
plugin is executed) and of flannel's ``vxlan`` and ``host-gw`` backends with their masquerade rules. "One
conntrack rule" is the accept of established connections in FORWARD, the least that a node with any stateful
policy has.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from pathlib import Path

import msgspec

from benchmarks import native, netns
from benchmarks.errors import BenchError
from benchmarks.native import Endpoints
from benchmarks.netns import ADDRESSES, Sandbox, address, inside, ip, sysctl, veth
from benchmarks.scenario import Scenario

CNI_BIN = Path("/usr/lib/cni")
CNI_VERSION = "1.0.0"
CLUSTER = "10.244.0.0/16"
VXLAN_OVERHEAD = 50


class BridgePlugin:
    """Debian's ``bridge`` + ``host-local`` plugins on one node."""

    def __init__(self, tmp: Path, node: str, subnet: str, *, ip_masq: bool = False, mtu: int = 1500) -> None:
        self.plugin = CNI_BIN / "bridge"
        self.node = node
        self.tmp = tmp / node
        self.tmp.mkdir()
        self._addresses = tmp / ADDRESSES / node
        self.conf = self.tmp / "bridge.conf"
        self.env = {"PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), "CNI_PATH": str(CNI_BIN)}
        self.conf.write_text(json.dumps(self._conf(subnet, ip_masq, mtu)))

    def _conf(self, subnet: str, ip_masq: bool, mtu: int) -> dict[str, object]:
        return {
            "cniVersion": CNI_VERSION,
            "name": "bench",
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "ipMasq": ip_masq,
            "mtu": mtu,
            "ipam": {
                "type": "host-local",
                "subnet": subnet,
                "routes": [{"dst": "0.0.0.0/0"}],
                "dataDir": str(self._addresses),
            },
        }

    def add(self, pod: str) -> str:
        """Attach a pod; returns its address. Raises ``BenchError``."""
        native.execute_cni("ADD", self.plugin, self.conf, {pod: pod}, self.node, self.tmp, self.env)
        return pod_address(pod)


class _Interface(msgspec.Struct):
    addr_info: list[dict[str, object]]


def pod_address(pod: str) -> str:
    """The global IPv4 address of a pod's eth0. Raises ``BenchError`` if it has none."""
    found = msgspec.json.decode(ip(pod, "-j", "-4", "addr", "show", "dev", "eth0"), type=list[_Interface])
    for info in (info for interface in found for info in interface.addr_info):
        if info.get("scope") == "global":
            return str(info["local"])
    raise BenchError(f"{pod}: eth0 has no address")


def underlay(sandbox: Sandbox, mtu: int = 1500) -> tuple[str, str]:
    """Two nodes on one wire: 192.168.77.11 and .12 on their ``eth0``."""
    a, b = sandbox.netns("node-a"), sandbox.netns("node-b")
    veth((a, "eth0"), (b, "eth0"), mtu)
    address(a, "eth0", "192.168.77.11/24")
    address(b, "eth0", "192.168.77.12/24")
    return a, b


def outside_wire(sandbox: Sandbox, mtu: int = 1500) -> tuple[str, str]:
    """A node (192.168.77.11 on ``eth0``) and, as its default gateway, an outside host (192.168.77.200)."""
    node, outside = sandbox.netns("node"), sandbox.netns("outside")
    veth((node, "eth0"), (outside, "eth0"), mtu)
    address(node, "eth0", "192.168.77.11/24")
    address(outside, "eth0", "192.168.77.200/24")
    ip(node, "route", "add", "default", "via", "192.168.77.200")
    return node, outside


def conntrack_rule(node: str) -> None:
    """One stateful rule on whatever the node forwards."""
    inside(
        node,
        "iptables",
        "-w",
        "-A",
        "FORWARD",
        "-m",
        "conntrack",
        "--ctstate",
        "ESTABLISHED,RELATED",
        "-j",
        "ACCEPT",
    )


def flannel_masquerade(node: str, pod_cidr: str) -> None:
    """The masquerade rules flannel installs (``--ip-masq``): cluster traffic keeps its source."""
    rules = (
        f"-s {CLUSTER} -d {CLUSTER} -j RETURN",
        f"-s {CLUSTER} ! -d 224.0.0.0/4 -j MASQUERADE --random-fully",
        f"! -s {CLUSTER} -d {pod_cidr} -j RETURN",
        f"! -s {CLUSTER} -d {CLUSTER} -j MASQUERADE --random-fully",
    )
    for rule in rules:
        inside(node, "iptables", "-w", "-t", "nat", "-A", "POSTROUTING", *rule.split())


def flannel_vxlan(a: str, b: str) -> None:
    """Join two nodes (192.168.77.11 and .12) as flannel does, with 10.244.0.0/24 and 10.244.1.0/24."""
    for index, node in enumerate((a, b)):
        vxlan = ["type", "vxlan", "id", "1", "dstport", "8472", "nolearning", "dev", "eth0"]
        ip(node, "link", "add", "flannel.1", *vxlan, "local", f"192.168.77.{11 + index}")
        address(node, "flannel.1", f"10.244.{index}.0/32")
        ip(node, "link", "set", "flannel.1", "up")
    for index, (node, other) in enumerate(((a, b), (b, a))):
        remote, vtep = f"10.244.{1 - index}.0", netns.mac(other, "flannel.1")
        ip(node, "neigh", "add", remote, "lladdr", vtep, "dev", "flannel.1", "nud", "permanent")
        fdb = [
            "bridge",
            "fdb",
            "add",
            vtep,
            "dev",
            "flannel.1",
            "dst",
            f"192.168.77.{12 - index}",
            "self",
        ]
        inside(node, *fdb, "permanent")
        ip(node, "route", "add", f"{remote}/24", "via", remote, "dev", "flannel.1", "onlink")


class RawVeth(Scenario):
    """Two namespaces joined by one veth pair: the limit of all."""

    name = "raw veth"
    label = "raw"

    def setup(self) -> Endpoints:
        client, server = self.sandbox.netns("client"), self.sandbox.netns("server")
        veth((client, "eth0"), (server, "eth0"))
        address(client, "eth0", "10.244.0.2/24")
        address(server, "eth0", "10.244.0.3/24")
        return Endpoints(client, server, "10.244.0.3")


class Stateless(Scenario):
    """Two pods on a node whose switch is native/stateless.c: one look-up and redirect_peer."""

    name = "stateless redirect_peer"
    label = "stateless"

    def setup(self) -> Endpoints:
        node = self.sandbox.netns("node")
        pods = {"10.244.0.2": self.sandbox.netns("client"), "10.244.0.3": self.sandbox.netns("server")}
        for port, (pod_ip, pod) in enumerate(pods.items()):
            veth((node, f"port{port}"), (pod, "eth0"))
            address(pod, "eth0", f"{pod_ip}/24")
        client, server = pods.values()
        ip(client, "neigh", "add", "10.244.0.3", "lladdr", netns.mac(server, "eth0"), "dev", "eth0")
        ip(server, "neigh", "add", "10.244.0.2", "lladdr", netns.mac(client, "eth0"), "dev", "eth0")
        self._attach(node, list(pods))
        return Endpoints(client, server, "10.244.0.3")

    def _attach(self, node: str, pod_ips: list[str]) -> None:
        """Load the program, fill its map and attach it. The pins live in a bpf file system that only this one
        shell sees; the attached filters keep program and map alive."""
        tmp = self.sandbox.tmp
        script = [
            f"mount -t bpf bpf {tmp}",
            f"bpftool prog load {native.BUILD / 'stateless.o'} {tmp}/prog pinmaps {tmp}",
        ]
        for port, pod_ip in enumerate(pod_ips):
            key = pod_ip.replace(".", " ")
            value = " ".join(str(byte) for byte in netns.ifindex(node, f"port{port}").to_bytes(4, "little"))
            script.append(f"bpftool map update pinned {tmp}/ports key {key} value {value}")
            for command in (
                "qdisc add dev {} clsact",
                f"filter add dev {{}} ingress bpf da pinned {tmp}/prog",
            ):
                script.append(f"nsenter --net={netns.path(node)} tc {command.format(f'port{port}')}")
        netns.run(["unshare", "--mount", "sh", "-ec", "\n".join(script)])


class BridgePods(Scenario):
    """Two pods of the ``bridge`` plugin as it is by default: a bridge, no netfilter on its way."""

    name = "bridge"
    label = "bridge"
    ip_masq = False

    def setup(self) -> Endpoints:
        node = self.sandbox.netns("node")
        plugin = BridgePlugin(self.sandbox.tmp, node, "10.244.0.0/24", ip_masq=self.ip_masq)
        client, server = self.sandbox.netns("client"), self.sandbox.netns("server")
        plugin.add(client)
        server_ip = plugin.add(server)
        self._policy(node)
        return Endpoints(client, server, server_ip)

    def _policy(self, node: str) -> None:
        sysctl(node, "net.bridge.bridge-nf-call-iptables", 0)


class BridgeMasqPods(BridgePods):
    """The same with ipMasq and one conntrack rule. bridge-nf-call-iptables is on, as Kubernetes requires it:
    without it the rule would not see traffic between two pods of a node."""

    name = "bridge + ipMasq + conntrack"
    label = "bridgemasq"
    ip_masq = True

    def _policy(self, node: str) -> None:
        sysctl(node, "net.bridge.bridge-nf-call-iptables", 1)
        conntrack_rule(node)


class _TwoKernelNodes(Scenario):
    """A pod on each of two stock nodes, routed; subclasses say how the nodes reach each other's pods."""

    pod_mtu = 1500

    def setup(self) -> Endpoints:
        a, b = nodes = underlay(self.sandbox)
        pods: list[tuple[str, str]] = []
        for index, node in enumerate(nodes):
            subnet = f"10.244.{index}.0/24"
            sysctl(node, "net.ipv4.ip_forward", 1)
            pod = self.sandbox.netns(f"pod-{index}")
            plugin = BridgePlugin(self.sandbox.tmp, node, subnet, mtu=self.pod_mtu)
            pods.append((pod, plugin.add(pod)))
            sysctl(node, "net.bridge.bridge-nf-call-iptables", 0)
            flannel_masquerade(node, subnet)
            conntrack_rule(node)
        self._join(a, b)
        return Endpoints(pods[0][0], pods[1][0], pods[1][1])

    def _join(self, a: str, b: str) -> None:
        raise NotImplementedError


class KernelVxlan(_TwoKernelNodes):
    """flannel's vxlan backend: a static neighbour, FDB entry and onlink route per remote subnet."""

    name = "kernel VXLAN + masq + conntrack"
    label = "vxlan"
    pod_mtu = 1500 - VXLAN_OVERHEAD

    def _join(self, a: str, b: str) -> None:
        flannel_vxlan(a, b)


class KernelHostGateway(_TwoKernelNodes):
    """flannel's host-gw backend: one plain route per remote subnet."""

    name = "host-gw + masq + conntrack"
    label = "hostgw"

    def _join(self, a: str, b: str) -> None:
        ip(a, "route", "add", "10.244.1.0/24", "via", "192.168.77.12")
        ip(b, "route", "add", "10.244.0.0/24", "via", "192.168.77.11")


class LeastPrograms(Scenario):
    """A pod that calls an outside host through native/least.c: the limit of any switch between the two."""

    name = "two programs that do nothing"
    label = "least"

    def setup(self) -> Endpoints:
        node, outside = outside_wire(self.sandbox)
        pod = self.sandbox.netns("pod")
        veth((node, "port"), (pod, "eth0"))
        address(pod, "eth0", "10.244.0.2/32")
        ip(pod, "route", "add", "192.168.77.200", "dev", "eth0")
        ip(pod, "neigh", "add", "192.168.77.200", "lladdr", netns.mac(node, "port"), "dev", "eth0")
        ip(outside, "route", "add", "10.244.0.2", "via", "192.168.77.11")
        self._attach(node, pod)
        return Endpoints(pod, outside, "192.168.77.200")

    def _attach(self, node: str, pod: str) -> None:
        numbers = struct.pack("=II", netns.ifindex(node, "eth0"), netns.ifindex(node, "port"))
        addresses = b"".join(map(socket.inet_aton, ("192.168.77.200", "10.244.0.2")))
        way = numbers + addresses + bytes.fromhex(netns.mac(pod, "eth0").replace(":", "")) + bytes(2)
        tmp = self.sandbox.tmp
        script = [
            f"mount -t bpf bpf {tmp}",
            f"bpftool prog loadall {native.BUILD / 'least.o'} {tmp}/progs pinmaps {tmp}",
            f"bpftool map update pinned {tmp}/ways key 0 0 0 0 value {' '.join(map(str, way))}",
        ]
        for device, program in (("port", "out"), ("eth0", "back")):
            for command in (
                f"qdisc add dev {device} clsact",
                f"filter add dev {device} ingress bpf da pinned {tmp}/progs/{program}",
            ):
                script.append(f"nsenter --net={netns.path(node)} tc {command}")
        netns.run(["unshare", "--mount", "sh", "-ec", "\n".join(script)])


class KernelMasquerade(Scenario):
    """A pod of the ``bridge`` plugin that calls an outside host through the plugin's ipMasq."""

    name = "bridge + masquerade"
    label = "masq"

    def setup(self) -> Endpoints:
        node, outside = outside_wire(self.sandbox)
        sysctl(node, "net.ipv4.ip_forward", 1)
        plugin = BridgePlugin(self.sandbox.tmp, node, "10.244.0.0/24", ip_masq=True)
        pod = self.sandbox.netns("pod")
        plugin.add(pod)
        sysctl(node, "net.bridge.bridge-nf-call-iptables", 0)
        return Endpoints(pod, outside, "192.168.77.200")
