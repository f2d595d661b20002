"""Samewire's scenarios: the same topologies as the peers', with OutBoundNAT and one stateful ACL each way."""

from __future__ import annotations

from benchmarks.errors import BenchError
from benchmarks.native import Endpoints
from benchmarks.peers import CLUSTER, VXLAN_OVERHEAD, outside_wire, underlay
from benchmarks.samewire_node import VNI, Json, SamewireNode, network, outbound_nat, stateful_acl
from benchmarks.scenario import Scenario

NAME = "samewire"
UNDERLAY = "192.168.77.0/24"
POD_MTU = 1500


def pod_policies(inside: str) -> list[Json]:
    """What every endpoint here carries: NAT for all but ``inside``, one stateful ACL each way."""
    return [outbound_nat(inside), stateful_acl("In", "0.0.0.0/0"), stateful_acl("Out", "0.0.0.0/0")]


def overlay(name: str, subnet: str) -> Json:
    """An overlay network of one node, which the node is part of; the gateway is the subnet's .1."""
    gateway = subnet.rpartition(".")[0] + ".1"
    made = network(name, "Overlay", subnet, gateway, vni=VNI)
    return {**made, "Policies": [{"Type": "HostRoute", "Settings": {}}]}


def dr_mac(created: Json) -> str:
    """The distributed router's MAC that the service published on an overlay network."""
    for policy in created.get("Policies", []):
        if policy["Type"] == "DrMacAddress":
            return str(policy["Settings"]["Address"])
    raise BenchError(f"network {created.get('Name')} has no DrMacAddress")


class SamewireScenario(Scenario):
    """A scenario with daemons; they end before the namespaces go."""

    name = NAME

    def __init__(self) -> None:
        super().__init__()
        self.nodes: list[SamewireNode] = []

    def start_node(self, name: str, node: str) -> SamewireNode:
        """Start a daemon whose uplink is ``eth0``."""
        daemon = SamewireNode(self.sandbox.tmp, name, node, "eth0")
        self.nodes.append(daemon)
        daemon.start()
        return daemon

    def teardown(self) -> None:
        try:
            for node in self.nodes:
                node.stop()
        finally:
            super().teardown()

    def flow_inserts(self) -> int | None:
        return sum(node.flow_inserts() for node in self.nodes)


class SameNode(SamewireScenario):
    """Two pods of an overlay network on one node. The wire is so wide that they have the peers' MTU."""

    label = "ours-same"

    def setup(self) -> Endpoints:
        node, _ = outside_wire(self.sandbox, POD_MTU + VXLAN_OVERHEAD)
        daemon = self.start_node("a", node)
        daemon.create_network(overlay("bench", "10.244.0.0/24"))
        self.conf = daemon.write_conf("bench", {"subnet": "10.244.0.0/24"}, pod_policies(CLUSTER))
        client, server = self.sandbox.netns("client"), self.sandbox.netns("server")
        daemon.add(client, self.conf)
        return Endpoints(client, server, daemon.add(server, self.conf))


class CrossNodeOverlay(SamewireScenario):
    """A pod on each of two nodes of an overlay network."""

    label = "ours-overlay"

    def setup(self) -> Endpoints:
        pods: list[tuple[str, str]] = []
        created: list[Json] = []
        for index, node in enumerate(underlay(self.sandbox)):
            subnet = f"10.244.{index}.0/24"
            daemon = self.start_node("ab"[index], node)
            created.append(daemon.create_network(overlay("bench", subnet)))
            pod = self.sandbox.netns(f"pod-{index}")
            conf = daemon.write_conf("bench", {"subnet": subnet}, pod_policies(CLUSTER))
            pods.append((pod, daemon.add(pod, conf)))
        for index, daemon in enumerate(self.nodes):
            far = 1 - index
            remote = (f"10.244.{far}.0/24", f"192.168.77.{11 + far}", dr_mac(created[far]))
            daemon.add_remote_subnet(created[index]["ID"], *remote)
        return Endpoints(pods[0][0], pods[1][0], pods[1][1])


class CrossNodeL2Bridge(SamewireScenario):
    """A pod on each of two nodes, with addresses of the underlay's own subnet."""

    label = "ours-l2bridge"

    def setup(self) -> Endpoints:
        pods: list[tuple[str, str]] = []
        for index, node in enumerate(underlay(self.sandbox)):
            daemon = self.start_node("ab"[index], node)
            daemon.create_network(network("bench", "L2Bridge", UNDERLAY, "192.168.77.1"))
            first = 64 * (index + 1)
            ranges = {"rangeStart": f"192.168.77.{first}", "rangeEnd": f"192.168.77.{first + 62}"}
            ranges |= {"subnet": UNDERLAY, "gateway": "192.168.77.1"}
            pod = self.sandbox.netns(f"pod-{index}")
            conf = daemon.write_conf("bench", ranges, pod_policies(UNDERLAY))
            pods.append((pod, daemon.add(pod, conf)))
        return Endpoints(pods[0][0], pods[1][0], pods[1][1])


class Outside(SamewireScenario):
    """A pod that calls an outside host through its endpoint's OutBoundNAT."""

    label = "ours-outside"

    def setup(self) -> Endpoints:
        node, outside = outside_wire(self.sandbox)
        daemon = self.start_node("a", node)
        daemon.create_network(overlay("bench", "10.244.0.0/24"))
        conf = daemon.write_conf("bench", {"subnet": "10.244.0.0/24"}, pod_policies(CLUSTER))
        pod = self.sandbox.netns("pod")
        daemon.add(pod, conf)
        return Endpoints(pod, outside, "192.168.77.200")
