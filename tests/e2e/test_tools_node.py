"""The tools on two real nodes: what they say, and that real packets do it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result
from scapy.layers.inet import ICMP, IP
from scapy.utils import PcapNgReader

from samewire.cli.main import cli
from samewire.kernel.netns import NetNamespace
from tests.support.node import (
    NODE_IP,
    ROUTER_IP,
    DaemonProcess,
    Json,
    NodeNet,
    can_ping,
    daemon,
    in_namespace,
    ip,
    node_net,
    overlay,
    path_of,
    poll,
)

pytestmark = pytest.mark.root

FAR_IP, FAR_ROUTER_IP = "192.168.78.2", "192.168.78.1"
CLIENT, WEB, FAR = "10.244.0.2", "10.244.0.3", "10.244.1.2"
WEB6, FAR6 = "fd00:244::3", "fd00:244:1::2"
NEAR_SUBNETS = ("10.244.0.0/24", "fd00:244::/64")
FAR_SUBNETS = ("10.244.1.0/24", "fd00:244:1::/64")
PORT = 8080
ONLY_HTTP = {
    "Type": "ACL",
    "Settings": {"Action": "Allow", "Direction": "In", "Protocols": "6", "LocalPorts": "80", "Priority": 100},
}


class FarNet(msgspec.Struct):
    """The second node, in a subnet of its own behind the router."""

    node: str


class World:
    """Two nodes with an overlay network: two pods on the first, one on the second."""

    def __init__(self, stack: ExitStack, directory: Path) -> None:
        self.net = stack.enter_context(node_net())
        self.far_net = FarNet(self._second_node())
        for name in ("near", "far"):
            (directory / name).mkdir()
        self.near = stack.enter_context(daemon(self.net, directory / "near", name="near"))
        far_net: Any = self.far_net
        self.far = stack.enter_context(daemon(far_net, directory / "far", name="far"))
        for process in (self.near, self.far):
            process.start()
        self._networks()
        self.client, self.web = self._pod(self.near, "shop/client"), self._pod(self.near, "shop/web")
        self.remote = self._pod(self.far, "shop/remote", FAR_SUBNETS)
        self.peers = directory / "peers.json"
        self.peers.write_text(json.dumps({NODE_IP: self.socket(self.near), FAR_IP: self.socket(self.far)}))

    @staticmethod
    def socket(process: DaemonProcess) -> str:
        return str(process.run_dir / "samewire.sock")

    def _second_node(self) -> str:
        name, router = self.net.namespace("f"), self.net.router
        ip("link", "add", "eth0", "netns", name, "type", "veth", "peer", "eth1", "netns", router)
        for where, device, address in (
            (name, "eth0", f"{FAR_IP}/24"),
            (router, "eth1", f"{FAR_ROUTER_IP}/24"),
        ):
            ip("address", "add", address, "dev", device, netns_name=where)
            ip("link", "set", device, "up", netns_name=where)
        ip("link", "set", "lo", "up", netns_name=name)
        ip("route", "add", "default", "via", FAR_ROUTER_IP, netns_name=name)
        in_namespace(router, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        return name

    def _networks(self) -> None:
        near, far = (
            process.request("POST", "/v2/networks", overlay(subnet=subnet, subnet6=subnet6))
            for process, (subnet, subnet6) in ((self.near, NEAR_SUBNETS), (self.far, FAR_SUBNETS))
        )
        for process, own, other, prefixes, address in (
            (self.near, near, far, FAR_SUBNETS, FAR_IP),
            (self.far, far, near, NEAR_SUBNETS, NODE_IP),
        ):
            mac = next(p["Settings"]["Address"] for p in other["Policies"] if p["Type"] == "DrMacAddress")
            routes = [
                {
                    "DestinationPrefix": prefix,
                    "IsolationId": 4096,
                    "ProviderAddress": address,
                    "DistributedRouterMacAddress": mac,
                }
                for prefix in prefixes
            ]
            policies = [{"Type": "RemoteSubnetRoute", "Settings": settings} for settings in routes]
            modify(process, "networks", own["ID"], policies)

    def _pod(self, process: DaemonProcess, name: str, subnets: tuple[str, str] = NEAR_SUBNETS) -> str:
        pod = self.net.pod()
        space, _, short = name.partition("/")
        conf = process.conf("pods", *subnets)
        environment = f"IgnoreUnknown=1;K8S_POD_NAMESPACE={space};K8S_POD_NAME={short}"
        add(process, f"c-{short}", pod, conf, environment)
        return pod

    def endpoint_id(self, name: str) -> str:
        return next(e["ID"] for e in self.near.endpoints() if e["Name"] == name)


def modify(process: DaemonProcess, kind: str, number: str, policies: list[Json], how: str = "Add") -> None:
    body = {"ResourceType": "Policy", "RequestType": how, "Settings": {"Policies": policies}}
    process.request("POST", f"/v2/{kind}/{number}", body)


def add(process: DaemonProcess, container: str, pod: str, conf: Json, arguments: str) -> None:
    """ADD as a kubelet's runtime does it, with the pod's name."""
    variables = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": container,
        "CNI_NETNS": path_of(pod),
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": arguments,
        "CNI_PATH": "/usr/lib/cni",
    }
    head = b"".join(f"{key}={value}\0".encode() for key, value in variables.items()) + b"\0"
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(20)
        peer.connect(str(process.run_dir / "cni.sock"))
        peer.sendall(head + json.dumps(conf).encode())
        peer.shutdown(socket.SHUT_WR)
        answer = bytearray()
        while piece := peer.recv(65536):
            answer += piece
    assert answer.startswith(b"0\n"), answer


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with ExitStack() as stack:
        yield World(stack, tmp_path_factory.mktemp("world"))


def run(process: DaemonProcess, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["--socket", World.socket(process), *arguments])


def values(process: DaemonProcess, *arguments: str) -> Any:
    result = run(process, "get", *arguments, "-o", "json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def trace(world: World, *arguments: str, origin: str = "shop/client") -> Json:
    """A trace over both nodes, on which traced build and simulator agree."""
    result = run(world.near, "trace", "--from", origin, "--peers", str(world.peers), "--json", *arguments)
    assert result.stdout, result.output
    found: Json = json.loads(result.stdout)
    assert result.exit_code == (0 if found["arrived"] else 1)
    for hop in found["hops"]:
        assert hop["disagreement"] == ""
    return found


def in_pod(pod: str, function: Any) -> Any:
    with NetNamespace(path_of(pod)) as netns:
        return netns.run(function)


def listener(pod: str, port: int) -> socket.socket:
    def opened() -> socket.socket:
        made = socket.create_server(("", port))
        made.settimeout(10)
        return made

    found: socket.socket = in_pod(pod, opened)
    return found


@contextmanager
def connection(pod: str, server: socket.socket, to: str, port: int) -> Iterator[tuple[int, str, int]]:
    """An open connection: the client's own port, and the address and port that the server sees."""

    def connect() -> socket.socket:
        return socket.create_connection((to, port), timeout=10)

    client = in_pod(pod, connect)
    with client:
        accepted, (address, seen) = server.accept()
        with accepted:
            yield client.getsockname()[1], address, seen


# --- get ------------------------------------------------------------------------------------------


def test_endpoints_by_every_name(world: World) -> None:
    (client,) = [e for e in values(world.near, "endpoints") if e["Name"] == "shop/client"]
    port = next(
        p for p in values(world.near, "ports") if p["endpoint"] and p["endpoint"]["id"] == client["ID"]
    )
    names = ("shop/client", "client", client["ID"], CLIENT, "c-client", port["interface"], str(port["id"]))
    for name in names:
        assert values(world.near, "endpoints", name)["ID"] == client["ID"], name
        (row,) = values(world.near, "ports", name)
        assert row["id"] == port["id"], name
    assert port["endpoint"]["netns_path"] == path_of(world.client)


def test_every_kind_has_a_table(world: World) -> None:
    for kind in ("networks", "endpoints", "namespaces", "ports"):
        for form in ("table", "wide"):
            result = run(world.near, "get", kind, "-o", form)
            assert result.exit_code == 0
            assert len(result.stdout.splitlines()) > 1, kind
    found = run(world.near, "get", "layers", "client").stdout
    for word in ("GUARD_OUT", "ACL_IN", "ROUTE_OUT", "NAT_OUT", "10.244.1.0/24", FAR_IP):
        assert word in found


# --- trace ----------------------------------------------------------------------------------------


def test_to_a_pod_of_the_same_node(world: World) -> None:
    for name, protocol in ((f"{WEB}:80", "tcp"), (f"{WEB}:53", "udp"), (WEB, "icmp")):
        (hop,) = trace(world, "--to", name, "--proto", protocol)["hops"]
        assert (hop["fate"], hop["endpoint"]["name"]) == ("port", "shop/web")
        assert [step["layer"] for step in hop["steps"]][:2] == ["guard", "route"]
    assert can_ping(world.client, WEB)


def test_both_halves_of_the_way_to_another_node(world: World) -> None:
    near, far = trace(world, "--to", f"{FAR}:80")["hops"]
    assert near["tunnel"]["provider_address"] == FAR_IP
    assert (far["node"], far["arrival"], far["endpoint"]["name"]) == ("far", "tunnel", "shop/remote")
    assert far["steps"][0]["layer"] == "decap"
    assert far["received"] == near["sent"]
    assert can_ping(world.client, FAR)
    printed = run(
        world.near, "trace", "--from", "client", "--to", f"{FAR}:80", "--peers", str(world.peers)
    ).stdout.splitlines()
    assert printed[-1] == f"→ delivered on far to shop/remote ({FAR}, {FAR6})"


def test_ipv6(world: World) -> None:
    (hop,) = trace(world, "--to", f"[{WEB6}]:80")["hops"]
    assert hop["endpoint"]["name"] == "shop/web"
    near, far = trace(world, "--to", FAR6)["hops"]
    assert (near["tunnel"]["provider_address"], far["endpoint"]["name"]) == (FAR_IP, "shop/remote")
    assert near["received"]["protocol"] == "icmpv6"
    assert can_ping(world.client, FAR6)


def test_without_peers_the_trail_ends_at_the_tunnel(world: World) -> None:
    result = run(world.near, "trace", "--from", "client", "--to", f"{FAR}:80")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1].startswith(f"→ sent to node {FAR_IP} in VXLAN 4096; not followed")


def test_to_the_node_and_to_nobody(world: World) -> None:
    (hop,) = trace(world, "--to", f"{NODE_IP}:10250")["hops"]
    assert hop["fate"] == "host"
    nobody = trace(world, "--to", "10.244.0.99:80")
    assert (nobody["arrived"], nobody["hops"][0]["drop"]["reason"]) == (False, "no_endpoint")


def test_the_outside_sees_what_the_trace_has_said(world: World) -> None:
    """The same tuple gets the same translation: the port of the pool too."""
    with listener(world.net.router, PORT) as server:
        said = trace(world, "--to", f"{ROUTER_IP}:{PORT}", "--source-port", "45678")["hops"][0]
        assert said["fate"] == "uplink"
        assert said["uplink"] == {"interface": "eth0", "next_hop": ROUTER_IP}

        def connect() -> socket.socket:
            return socket.create_connection((ROUTER_IP, PORT), 10, ("0.0.0.0", 45678))

        with in_pod(world.client, connect):
            accepted, seen = server.accept()
            accepted.close()
    assert seen == (NODE_IP, said["sent"]["source_port"])


def test_a_connection_that_is_open(world: World) -> None:
    with (
        listener(world.net.router, PORT) as server,
        connection(world.client, server, ROUTER_IP, PORT) as (own, address, seen),
    ):
        (hop,) = trace(world, "--to", f"{ROUTER_IP}:{PORT}", "--source-port", str(own))["hops"]
        assert hop["established"]
        assert hop["notes"] == []
        assert (hop["sent"]["source"], hop["sent"]["source_port"]) == (address, seen)
        (row,) = [r for r in values(world.near, "flows", "client") if r["ends"]["source_port"] == own]
        assert (row["state"], row["translated"]["source_port"]) == ("established", seen)
        # A changed policy means that the connection is judged anew; it keeps its port.
        number = world.endpoint_id("shop/client")
        policies = next(e for e in world.near.endpoints() if e["ID"] == number)["Policies"]
        allow = {"Type": "ACL", "Settings": {"Action": "Allow", "Direction": "Out", "Priority": 9}}
        modify(world.near, "endpoints", number, [*policies, allow], "Update")
        (anew,) = trace(world, "--to", f"{ROUTER_IP}:{PORT}", "--source-port", str(own))["hops"]
        modify(world.near, "endpoints", number, policies, "Update")
        assert not anew["established"]
        assert any("judged anew" in note for note in anew["notes"])


def test_an_acl_blocks(world: World) -> None:
    number = world.endpoint_id("shop/web")
    policies = next(e for e in world.near.endpoints() if e["ID"] == number)["Policies"]
    modify(world.near, "endpoints", number, [*policies, ONLY_HTTP], "Update")
    try:
        rule = str(len(policies) + 1)
        allowed = trace(world, "--to", f"{WEB}:80")
        steps = {step["layer"]: step for step in allowed["hops"][0]["steps"]}
        assert steps["acl_in"]["matched"] == f"rule {rule}, priority 100: allow, tcp, local port 80"
        blocked = trace(world, "--to", f"{WEB}:81")["hops"][0]["drop"]
        assert (blocked["layer"], blocked["reason"], blocked["rule"]) == ("acl_in", "blocked", 0)
        with watching(world, "web") as lines:
            assert not can_ping(world.client, WEB)
            poll("the drop is shown", lambda: bool(lines()))
            shown = lines()[0]
        assert f"shop/web  acl_in: blocked  icmp {CLIENT} > {WEB}" in shown
        (row,) = [r for r in values(world.near, "drops", "web") if r["reason"] == "blocked"]
        assert (row["layer"], row["arrival"]) == ("acl_in", "pod")
        assert row["packets"] >= 1
    finally:
        modify(world.near, "endpoints", number, policies, "Update")
    assert can_ping(world.client, WEB)


@contextmanager
def watching(world: World, endpoint: str) -> Iterator[Any]:
    """``get drops --watch`` in a process; gives a function that returns the lines so far."""
    command = [sys.executable, "-m", "samewire.cli.main", "--socket", World.socket(world.near)]
    file = world.peers.with_name("watch.txt")
    with file.open("wb") as output:
        process = subprocess.Popen(
            [*command, "get", "drops", endpoint, "--watch"],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        try:
            flags = lambda: world.near.table("sw_config")[0]["value"]["flags"]  # noqa: E731
            poll("somebody listens to drops", lambda: "events" in flags())
            yield lambda: file.read_text().splitlines()
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0
    poll("nobody listens any more", lambda: "events" not in flags())


def test_host_ports(world: World) -> None:
    number = world.endpoint_id("shop/web")
    policies = next(e for e in world.near.endpoints() if e["ID"] == number)["Policies"]
    mapping = {"Type": "PortMapping", "Settings": {"Protocol": 6, "InternalPort": 80, "ExternalPort": 8088}}
    modify(world.near, "endpoints", number, [*policies, mapping], "Update")
    try:
        (hop,) = trace(world, "--to", f"{NODE_IP}:8088")["hops"]
        assert (hop["endpoint"]["name"], hop["sent"]["destination"]) == ("shop/web", WEB)
        (own,) = trace(world, "--to", f"{NODE_IP}:8088", origin="web")["hops"]
        assert own["sent"]["source"] == "10.244.0.1"  # a pod that reaches itself
        # From the other node, which sends it over the underlay.
        result = run(
            world.far,
            "trace",
            "--from",
            "remote",
            "--to",
            f"{NODE_IP}:8088",
            "--peers",
            str(world.peers),
            "--json",
        )
        out, into = json.loads(result.stdout)["hops"]
        assert (out["fate"], into["arrival"], into["endpoint"]["name"]) == ("uplink", "uplink", "shop/web")
        assert into["disagreement"] == ""
    finally:
        modify(world.near, "endpoints", number, policies, "Update")


def test_traced_build_and_simulator_agree_on_everything_from_here(world: World) -> None:
    targets = (
        WEB,
        CLIENT,
        FAR,
        NODE_IP,
        ROUTER_IP,
        FAR_IP,
        "10.244.0.1",
        "10.244.0.77",
        "8.8.8.8",
        "127.0.0.1",
    )
    for target in (*targets, "224.0.0.1", "255.255.255.255", "0.0.0.0"):
        for protocol in ("tcp", "udp", "icmp"):
            name = target if protocol == "icmp" else f"{target}:80"
            assert trace(world, "--to", name, "--proto", protocol)["hops"]


def test_what_cannot_be_traced(world: World) -> None:
    for arguments, status, message in (
        (("nobody", WEB), 3, "endpoint 'nobody' not found"),
        (("client", "not-an-address"), 2, "is not ADDR[:PORT]"),
    ):
        result = run(world.near, "trace", "--from", arguments[0], "--to", arguments[1])
        assert result.exit_code == status
        assert message in result.stderr


# --- diff and doctor ------------------------------------------------------------------------------


def test_a_healthy_node(world: World) -> None:
    for process in (world.near, world.far):
        assert (run(process, "diff").exit_code, run(process, "diff").output) == (0, "")
    near, far = run(world.near, "doctor"), run(world.far, "doctor")
    assert (near.exit_code, near.output) == (0, "healthy: every check passed\n")
    # A real ailment of the second node, which has no IPv6 of its own.
    assert far.exit_code == 0
    assert len(far.output.splitlines()) == 2
    assert far.output.startswith(
        "warning families: IPv6: 1 endpoints have IPv6 addresses and the node has none"
    )


def test_a_filter_that_somebody_removed(world: World) -> None:
    """Nobody tells of it: the comparison finds it, and the audit repairs it later."""
    in_namespace(world.far_net.node, "tc", "filter", "del", "dev", "swvxlan0", "ingress")
    result = run(world.far, "diff")
    assert result.exit_code == 1
    assert "hook swvxlan0" in result.output
    sick = run(world.far, "doctor", "--json")
    assert sick.exit_code == 1
    assert any(
        f["check"] == "diff" and "swvxlan0" in f["object"] for f in json.loads(sick.stdout)["findings"]
    )
    world.far.stop()
    world.far.start()
    assert run(world.far, "diff").exit_code == 0
    assert can_ping(world.client, FAR)


# --- capture --------------------------------------------------------------------------------------


@contextmanager
def capturing(world: World, pod: str, *arguments: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    command = [
        sys.executable,
        "-m",
        "samewire.cli.main",
        "--socket",
        World.socket(world.near),
        "capture",
        pod,
    ]
    with subprocess.Popen([*command, *arguments], stderr=subprocess.PIPE, **options) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def wait_for_socket(pod: str) -> None:
    """Wait until somebody has a packet socket in the pod."""

    def open_sockets() -> bool:
        lines = in_pod(pod, lambda: Path("/proc/thread-self/net/packet").read_text().splitlines())
        return len(lines) > 1

    poll("the capture runs", open_sockets)


def test_both_directions(world: World, tmp_path: Path) -> None:
    file = tmp_path / "web.pcapng"
    with capturing(world, "shop/web", "-w", str(file)) as process:
        wait_for_socket(world.web)
        assert can_ping(world.client, WEB, count=3)
        process.send_signal(signal.SIGINT)
        _, message = process.communicate(timeout=20)
    assert process.returncode == 0
    assert b"packets of shop/web (eth0)" in message
    with PcapNgReader(str(file)) as reader:
        packets = [(str(p.direction), p[IP].src, p[IP].dst, p[ICMP].type) for p in reader if ICMP in p]
    assert packets == [("1", CLIENT, WEB, 8), ("2", WEB, CLIENT, 0)] * 3


def test_into_a_pipe_and_so_many(world: World) -> None:
    with capturing(world, WEB, "-w", "-", "--count", "2", stdout=subprocess.PIPE) as process:
        wait_for_socket(world.web)
        assert can_ping(world.client, WEB)
        data, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    done = subprocess.run(["tcpdump", "-nn", "-r", "-"], input=data, capture_output=True, check=True)
    assert len(done.stdout.splitlines()) == 2


def test_as_text_for_some_time(world: World) -> None:
    with capturing(world, "web", "--seconds", "2", stdout=subprocess.PIPE) as process:
        wait_for_socket(world.web)
        assert can_ping(world.client, WEB)
        text, _ = process.communicate(timeout=20)
    lines = [line.split(maxsplit=1)[1] for line in text.decode().splitlines() if "icmp " in line]
    assert len(lines) == 2
    assert lines[0].startswith(f"in  icmp {CLIENT} > {WEB} id ")
    assert lines[1].startswith(f"out icmp {WEB} > {CLIENT} id ")


def test_termination_leaves_a_whole_file(world: World, tmp_path: Path) -> None:
    file = tmp_path / "web.pcapng"
    with capturing(world, "web", "-w", str(file)) as process:
        wait_for_socket(world.web)
        process.terminate()
        process.communicate(timeout=20)
    assert process.returncode == 0
    subprocess.run(["tcpdump", "-r", str(file)], capture_output=True, check=True)


def test_a_pod_that_goes_ends_its_capture(world: World, tmp_path: Path) -> None:
    pod = world._pod(world.near, "shop/short")
    file = tmp_path / "short.pcapng"
    with capturing(world, "shop/short", "-w", str(file)) as process:
        wait_for_socket(pod)
        world.near.delete("c-short", pod, world.near.conf("pods", *NEAR_SUBNETS))
        _, message = process.communicate(timeout=20)
    assert process.returncode == 0
    assert b"the pod is gone" in message
    subprocess.run(["tcpdump", "-r", str(file)], capture_output=True, check=True)


def test_a_file_that_cannot_be_written(world: World, tmp_path: Path) -> None:
    result = run(world.near, "capture", "web", "-w", str(tmp_path / "none" / "x"))
    assert result.exit_code == 1
    assert "No such file or directory" in result.stderr


def test_the_net_is_what_the_tests_think(world: World) -> None:
    assert isinstance(world.net, NodeNet)
    assert {e["IpConfigurations"][0]["IpAddress"] for e in world.near.endpoints()} >= {CLIENT, WEB}
