"""What the benchmarks say to a Samewire daemon (a stand-in on a unix socket); packets for test runs."""

from __future__ import annotations

import http.server
import json
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from benchmarks import ours, packet_cost, samewire_node
from benchmarks.errors import BenchError
from benchmarks.samewire_node import SamewireNode
from samewire.hcn import codec, normalise, normalise_policies
from samewire.hcn.schema import Kind, Network

ANSWERS: dict[tuple[str, str], tuple[int, Any]] = {
    ("GET", "/v2/health"): (200, {"Success": True}),
    ("POST", "/v2/networks"): (200, {"ID": "N1"}),
    ("GET", "/v2/networks/N1"): (
        200,
        {"ID": "N1", "Policies": [{"Type": "DrMacAddress", "Settings": {"Address": "02-11-22-33-44-55"}}]},
    ),
    ("POST", "/v2/networks/N1"): (200, None),
    ("POST", "/v2/endpoints/E2"): (200, None),
    ("GET", "/v2/endpoints"): (
        200,
        [{"ID": "E1"}, {"ID": "E2", "IpConfigurations": [{"IpAddress": "10.244.0.3"}]}],
    ),
    ("GET", "/v2/switch/flows?summary=1"): (200, {"flow_inserts": 42}),
    ("GET", "/v2/routes"): (500, {"Success": False, "Error": "it broke", "ErrorCode": 1}),
}


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = False
    seen: list[tuple[str, str, Any]]


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = json.loads(self.rfile.read(length)) if length else None
        self.server.seen.append((self.command, self.path, body))
        status, answer = ANSWERS[self.command, self.path]
        said = b"" if answer is None else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    do_GET = do_POST = _answer

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def address_string(self) -> str:
        return "unix"


@pytest.fixture
def node(tmp_path: Path) -> SamewireNode:
    return SamewireNode(tmp_path, "a", "some-netns", "eth0")


@pytest.fixture
def server(tmp_path: Path, node: SamewireNode) -> Iterator[_Server]:
    with _Server(str(tmp_path / "a" / "run" / "samewire.sock"), _Handler) as served:
        served.seen = []
        thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield served
        served.shutdown()
        thread.join()


def test_networks_and_remote_subnets(node: SamewireNode, server: _Server) -> None:
    created = node.create_network(ours.overlay("bench", "10.244.0.0/24"))
    assert ours.dr_mac(created) == "02-11-22-33-44-55"
    node.add_remote_subnet("N1", "10.244.1.0/24", "192.168.77.12", "02-00-00-00-00-09")
    sent = [body for method, _, body in server.seen if method == "POST"]
    subnet = sent[0]["Ipams"][0]["Subnets"][0]
    assert (sent[0]["Name"], sent[0]["Type"]) == ("bench", "Overlay")
    assert subnet["Routes"] == [{"NextHop": "10.244.0.1", "DestinationPrefix": "0.0.0.0/0"}]
    assert subnet["Policies"] == [{"Type": "VSID", "Settings": {"IsolationId": samewire_node.VNI}}]
    assert sent[1]["Settings"]["Policies"][0]["Settings"] == {
        "DestinationPrefix": "10.244.1.0/24",
        "IsolationId": samewire_node.VNI,
        "ProviderAddress": "192.168.77.12",
        "DistributedRouterMacAddress": "02-00-00-00-00-09",
    }


def test_endpoints_and_counters(node: SamewireNode, server: _Server) -> None:
    assert node.flow_inserts() == 42
    assert node.endpoint_of("10.244.0.3")["ID"] == "E2"
    with pytest.raises(BenchError, match=r"no endpoint has the address 10\.244\.0\.9"):
        node.endpoint_of("10.244.0.9")
    node.set_endpoint_policies("E2", [samewire_node.outbound_nat("10.0.0.0/8")])
    assert server.seen[-1][2]["RequestType"] == "Update"


def test_an_error_answer_is_an_error(node: SamewireNode, server: _Server) -> None:
    with pytest.raises(BenchError, match=r"GET /v2/routes: 500: .*it broke"):
        node.request("GET", "/v2/routes")


def test_no_daemon_is_an_os_error_and_costs_are_refused(node: SamewireNode) -> None:
    with pytest.raises(OSError, match="No such file"):
        node.request("GET", "/v2/health")
    with pytest.raises(BenchError, match="does not run"):
        node.cpu_s()
    node.stop()


def test_the_conf_is_that_of_our_plugin(node: SamewireNode, tmp_path: Path) -> None:
    path = node.write_conf("bench", {"subnet": "10.244.0.0/24"}, ours.pod_policies("10.244.0.0/16"))
    conf = json.loads(path.read_text())
    assert (conf["name"], conf["type"]) == ("bench", "samewire-cni")
    assert conf["ipam"]["ranges"] == [[{"subnet": "10.244.0.0/24"}]]
    types = [policy["value"]["Type"] for policy in conf["policies"]]
    assert types == ["OutBoundNAT", "ACL", "ACL"]
    assert {policy["name"] for policy in conf["policies"]} == {"EndpointPolicy"}


def test_the_test_packet_is_what_scapy_would_build() -> None:
    macs, ips = ("02:00:00:00:00:01", "02:00:00:00:00:02"), ("10.244.0.2", "10.244.0.3")
    wanted = Ether(src=macs[0], dst=macs[1]) / IP(src=ips[0], dst=ips[1], id=0, flags="DF", ttl=64)
    wanted /= UDP(sport=30000, dport=9, chksum=0) / b"x"
    assert packet_cost.udp_packet(macs, ips, (30000, 9)) == bytes(wanted)


def test_extra_rules_are_asked_first_and_match_nothing_here() -> None:
    rules = packet_cost.extra_rules(3)
    allowed = samewire_node.stateful_acl("Out", "0.0.0.0/0")
    assert len({rule["Settings"]["RemoteAddresses"] for rule in rules}) == 3
    assert all(rule["Settings"]["Priority"] < allowed["Settings"]["Priority"] for rule in rules)


@pytest.mark.parametrize(
    "wanted",
    [
        ours.overlay("bench", "10.244.0.0/22"),
        samewire_node.network("bench", "L2Bridge", ours.UNDERLAY, "192.168.77.1"),
    ],
)
def test_the_service_accepts_our_networks(wanted: samewire_node.Json) -> None:
    decoded = codec.decode_object(Kind.NETWORK, wanted)
    assert isinstance(decoded, Network)
    assert normalise.check_network(decoded).name == "bench"


def test_the_service_accepts_our_policies() -> None:
    policies = [*packet_cost.extra_rules(2), *ours.pod_policies("10.244.0.0/16")]
    decoded = [codec.decode_policy(policy) for policy in policies]
    checked = normalise_policies.check_policies(decoded, normalise_policies.Scope.ENDPOINT, "$")
    for sent, kept in zip(policies, map(codec.encode_policy, checked), strict=True):
        assert kept["Type"] == sent["Type"]
        assert kept["Settings"].items() >= sent["Settings"].items()


def test_the_service_accepts_our_modify_requests(node: SamewireNode, server: _Server) -> None:
    node.add_remote_subnet("N1", "10.244.1.0/24", "192.168.77.12", "02-00-00-00-00-09")
    node.set_endpoint_policies("E2", ours.pod_policies("10.244.0.0/16"))
    (_, _, add), (_, _, update) = server.seen
    assert codec.decode_modify(Kind.NETWORK, add).request_type == "Add"
    assert codec.decode_modify(Kind.ENDPOINT, update).request_type == "Update"
