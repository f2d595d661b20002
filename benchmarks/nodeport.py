"""A node port called from another namespace, its pod on a second node: translated (SNAT), and with DSR.

Each beside the same client calling the pod itself over the same hops: the first node is on the way there as a router,
and on the way back where translation puts it there. With DSR the way there is a tunnel; straight, it is the kernel's.
"""

from __future__ import annotations

from benchmarks.native import Endpoints
from benchmarks.netns import address, ip, sysctl, veth
from benchmarks.ours import NAME, UNDERLAY, SamewireScenario, dr_mac, overlay
from benchmarks.peers import VXLAN_OVERHEAD, flannel_vxlan
from benchmarks.samewire_node import Json, SamewireNode, network
from benchmarks.services import FIRST_PORT, PORTS

NODES = ("192.168.77.11", "192.168.77.12")
CLIENT, CLIENT_BEHIND, BEHIND = "192.168.77.200", "192.168.79.2", "192.168.79.1"
GATEWAY = "192.168.77.1"
SUBNETS = ("10.244.0.0/24", "10.244.1.0/24")
DSR_FLAG, LOCAL = 1, 1


class TwoNodes(SamewireScenario):
    """A client, two nodes and a wire between all three (a Linux bridge); one pod, on the second node."""

    def __init__(self) -> None:
        super().__init__()
        self.client = self.pod = self.pod_ip = ""

    def wire(self) -> list[str]:
        """The machines; returns the two nodes."""
        switch, self.client = self.sandbox.netns("wire"), self.sandbox.netns("client")
        nodes = [self.sandbox.netns("node-a"), self.sandbox.netns("node-b")]
        ip(switch, "link", "add", "br0", "type", "bridge")
        ip(switch, "link", "set", "br0", "up")
        for index, name in enumerate((*nodes, self.client)):
            veth((name, "eth0"), (switch, f"port{index}"))
            ip(switch, "link", "set", f"port{index}", "master", "br0")
        for name, own in zip(nodes, NODES, strict=True):
            address(name, "eth0", f"{own}/24")
        # A router that sends packets out by the device that they came by, whatever their source.
        for key, value in (
            ("ip_forward", 1),
            ("conf.all.send_redirects", 0),
            ("conf.eth0.send_redirects", 0),
        ):
            sysctl(nodes[0], f"net.ipv4.{key}", value)
        for name in (*nodes, self.client):
            for device in ("all", "eth0"):
                sysctl(name, f"net.ipv4.conf.{device}.rp_filter", 0)
        return nodes

    def daemons(self) -> list[SamewireNode]:
        """The same, with a daemon on either node."""
        return [self.start_node("ab"[index], name) for index, name in enumerate(self.wire())]

    def publish(self, daemon: SamewireNode, backend: Json, flags: int) -> None:
        """A load balancer for the node's own addresses: every port that a measurement uses leads to the pod's own."""
        mappings = [
            {"Protocol": protocol, "InternalPort": port, "ExternalPort": port, "Flags": 0}
            for port in range(FIRST_PORT, FIRST_PORT + PORTS)
            for protocol in (6, 17)
        ]
        body = {"SchemaVersion": {"Major": 2}, "FrontendVIPs": [], "PortMappings": mappings}
        daemon.request("POST", "/v2/loadbalancers", {**body, "Backends": [backend], "Flags": flags})


class Translated(TwoNodes):
    """Both ways by the first node, whose service hides the client; pods are on the underlay (L2Bridge)."""

    name = f"{NAME}, node port"
    label = "ours-np"
    called = BEHIND

    def setup(self) -> Endpoints:
        near, far = self.daemons()
        address(near.node, "eth0", f"{BEHIND}/24")
        address(self.client, "eth0", f"{CLIENT_BEHIND}/24")
        ip(self.client, "route", "add", "default", "via", BEHIND)
        ip(far.node, "route", "add", "default", "via", NODES[0])
        for daemon in (near, far):
            daemon.create_network(network("bench", "L2Bridge", UNDERLAY, GATEWAY))
        self.pod = self.sandbox.netns("pod")
        ranges = {"rangeStart": "192.168.77.64", "subnet": UNDERLAY, "gateway": NODES[0]}
        self.pod_ip = far.add(self.pod, far.write_conf("bench", ranges, []))
        self.publish(near, {"IpAddress": self.pod_ip}, 0)
        return Endpoints(self.client, self.pod, self.called or self.pod_ip, self.pod_ip)


class TranslatedStraight(Translated):
    """The same, the client calling the pod: the first node forwards both ways."""

    name = "pod, both ways over the node"
    label = "ours-np-straight"
    called = ""


class Direct(TwoNodes):
    """There by the first node and the tunnel, back directly: direct server return on an overlay network."""

    name = f"{NAME}, node port with DSR"
    label = "ours-dsr"

    def setup(self) -> Endpoints:
        daemons = self.daemons()
        address(self.client, "eth0", f"{CLIENT}/24")
        created = [
            daemon.create_network(overlay("bench", subnet))
            for daemon, subnet in zip(daemons, SUBNETS, strict=True)
        ]
        for index, daemon in enumerate(daemons):
            other = 1 - index
            daemon.add_remote_subnet(
                created[index]["ID"], SUBNETS[other], NODES[other], dr_mac(created[other])
            )
        far = daemons[1]
        self.pod = self.sandbox.netns("pod")
        self.pod_ip = far.add(self.pod, far.write_conf("bench", {"subnet": SUBNETS[1]}, []))
        endpoint = far.endpoint_of(self.pod_ip)
        there = {"ProviderAddress": NODES[1], "MacAddress": endpoint["MacAddress"]}
        self.publish(daemons[0], {"IpAddress": self.pod_ip, **there}, DSR_FLAG)
        self.publish(far, {"IpAddress": self.pod_ip, "Flags": LOCAL}, DSR_FLAG)
        return Endpoints(self.client, self.pod, NODES[0], self.pod_ip)


class DirectStraight(TwoNodes):
    """The client calls a pod over flannel's VXLAN: the first node forwards into the tunnel, answers come directly."""

    name = "pod, there over the node and kernel VXLAN"
    label = "ours-dsr-straight"

    def setup(self) -> Endpoints:
        near, far = self.wire()
        address(self.client, "eth0", f"{CLIENT}/24")
        ip(self.client, "route", "add", SUBNETS[1], "via", NODES[0])
        flannel_vxlan(near, far)
        sysctl(far, "net.ipv4.ip_forward", 1)
        self.pod = self.sandbox.netns("pod")
        veth((self.pod, "eth0"), (far, "pod"), mtu=1500 - VXLAN_OVERHEAD)
        address(far, "pod", "10.244.1.1/24")
        address(self.pod, "eth0", "10.244.1.2/24")
        ip(self.pod, "route", "add", "default", "via", "10.244.1.1")
        return Endpoints(self.client, self.pod, "10.244.1.2")

    def flow_inserts(self) -> int | None:
        return None
