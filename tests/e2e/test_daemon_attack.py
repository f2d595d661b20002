"""What others do to a running node, on purpose or not: it notices, repairs itself, and keeps its connections."""

from __future__ import annotations

import resource
import shutil
import signal
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from samewire.errors import NotFound
from samewire.kernel import netns
from samewire.kernel.bpf import BpfLink, unmount_bpffs
from tests.support.cgroups import own_cgroup
from tests.support.node import (
    NODE_IP,
    PREFIX,
    ROUTER_IP,
    SHORT_S,
    UPLINK_SUBNET,
    DaemonProcess,
    NodeNet,
    can_ping,
    daemon,
    exchange,
    in_namespace,
    ip,
    ip_json,
    overlay,
    path_of,
    poll,
    remove_namespace,
)

pytestmark = pytest.mark.root

POD_IP = "10.244.0.2"


@pytest.fixture
def node(net: NodeNet, tmp_path: Path) -> Iterator[DaemonProcess]:
    """A running daemon that audits each second, with an overlay network."""
    with daemon(net, tmp_path, audit_interval_s=1) as process:
        process.start()
        process.request("POST", "/v2/networks", overlay())
        yield process


@pytest.fixture
def pod(net: NodeNet, node: DaemonProcess) -> str:
    """A pod at POD_IP."""
    name = net.pod()
    node.add("pod", name, node.conf())
    return name


def whole(net: NodeNet, node: DaemonProcess, pod: str) -> None:
    """Wait until nothing differs and packets pass every way."""
    poll("the node is as wanted", lambda: node.differences() == [])
    poll("the node reaches the pod", lambda: can_ping(net.node, POD_IP, wait_s=SHORT_S))
    poll("the pod reaches the outside", lambda: can_ping(pod, ROUTER_IP, wait_s=SHORT_S))
    poll("it is healthy", lambda: node.request("GET", "/v2/health")["status"] == "ok")


def rename(net: NodeNet, old: str, new: str) -> None:
    ip("link", "set", old, "down", netns_name=net.node)
    ip("link", "set", old, "name", new, netns_name=net.node)


@pytest.mark.parametrize("name", ["samewire0", "samewire1", "swvxlan0"])
def test_a_renamed_device_is_replaced(net: NodeNet, node: DaemonProcess, pod: str, name: str) -> None:
    rename(net, name, "renamed")
    whole(net, node, pod)
    names = {link["ifname"] for link in ip_json("link", netns_name=net.node)}
    assert "renamed" not in names
    assert {"samewire0", "samewire1", "swvxlan0"} <= names


@pytest.mark.parametrize("name", ["samewire0", "swvxlan0"])
def test_a_device_renamed_while_the_daemon_is_away_is_replaced(
    net: NodeNet, node: DaemonProcess, pod: str, name: str
) -> None:
    node.stop()
    rename(net, name, "renamed")
    node.start()
    whole(net, node, pod)


def test_a_device_moved_away_is_replaced(net: NodeNet, node: DaemonProcess, pod: str) -> None:
    ip("link", "set", "samewire1", "netns", net.router, netns_name=net.node)
    whole(net, node, pod)


def test_a_device_that_is_not_ours_is_left_alone(net: NodeNet, node: DaemonProcess, pod: str) -> None:
    rename(net, "samewire0", "renamed")
    ip("link", "add", "samewire0", "type", "veth", "peer", "other", netns_name=net.node)
    poll("it is said", lambda: "did not make" in str(node.request("GET", "/v2/health")["problems"]))
    assert node.request("GET", "/v2/health")["status"] == "degraded"
    ip("link", "delete", "samewire0", netns_name=net.node)
    whole(net, node, pod)
    assert node.log.read_text().count("did not make") == 1


def test_a_device_set_down_comes_back_with_its_routes(net: NodeNet, tmp_path: Path) -> None:
    with daemon(net, tmp_path) as node:  # no audit of its own accord within the time of this test
        node.start()
        node.request("POST", "/v2/networks", overlay())
        pod = net.pod()
        node.add("pod", pod, node.conf())
        ip("link", "set", "samewire0", "down", netns_name=net.node)
        whole(net, node, pod)


def test_a_changed_setting_of_a_device_is_set_right(net: NodeNet, node: DaemonProcess, pod: str) -> None:
    key = "net.ipv4.conf.samewire0.rp_filter"
    in_namespace(net.node, "sysctl", "-w", f"{key}=1")
    poll("it is set again", lambda: in_namespace(net.node, "sysctl", "-n", key).stdout.strip() == "2")
    whole(net, node, pod)


def test_the_nat_pool_stays_reserved(net: NodeNet, node: DaemonProcess) -> None:
    key = "net.ipv4.ip_local_reserved_ports"
    in_namespace(net.node, "sysctl", "-w", f"{key}=8080")
    poll("it is reserved again", lambda: "49152-65535" in in_namespace(net.node, "sysctl", key).stdout)
    assert "8080," in in_namespace(net.node, "sysctl", key).stdout
    poll("nothing differs", lambda: node.differences() == [])


def pins(node: DaemonProcess) -> set[str]:
    return {str(path) for path in (node.run_dir / "bpf").rglob("*")}


@pytest.mark.parametrize("how", ["unlink", "unmount"])
def test_lost_pins_are_given_back(net: NodeNet, node: DaemonProcess, pod: str, how: str) -> None:
    before = pins(node)
    if how == "unmount":
        unmount_bpffs(node.run_dir / "bpf")
    else:
        for directory in ("maps", "programs", "links"):
            for path in (node.run_dir / "bpf" / directory).iterdir():
                path.unlink()
    poll("they are back", lambda: pins(node) == before)
    whole(net, node, pod)
    flows = len(node.table("sw_flows"))
    node.stop(signal.SIGKILL)
    assert can_ping(pod, ROUTER_IP)
    node.start()
    assert node.differences() == []
    assert "switch loaded" not in node.tail().rpartition("serving")[2]
    assert len(node.table("sw_flows")) >= flows > 0


def test_lost_sockets_are_given_back(net: NodeNet, node: DaemonProcess, pod: str) -> None:
    """Until then no pod can be made, or removed."""
    sockets = [node.run_dir / "samewire.sock", node.run_dir / "cni.sock"]
    for path in sockets:
        path.unlink()
    poll("they are back", lambda: all(path.exists() for path in sockets))
    assert [path.stat().st_mode & 0o777 for path in sockets] == [0o600, 0o600]
    node.add("second", net.pod(), node.conf())
    whole(net, node, pod)
    for path in sockets:
        assert node.log.read_text().count(f'"subject":"{path.name}"') == 1


def test_the_socket_programs_run_again(net: NodeNet, tmp_path: Path) -> None:
    """After somebody detached one, and after the control group was removed and made anew."""
    with (
        own_cgroup(f"{PREFIX}-again") as group,
        daemon(net, tmp_path, audit_interval_s=1, host_cgroup=str(group)) as node,
    ):
        node.start()

        def run() -> bool:
            inode = group.stat().st_ino
            try:
                with BpfLink.open_pinned(node.run_dir / "bpf" / "links" / f"sw_connect4_{inode}") as link:
                    return link.info().target == inode
            except NotFound:
                return False

        assert run()
        with BpfLink.open_pinned(next((node.run_dir / "bpf" / "links").glob("sw_connect4_*"))) as link:
            link.detach()
        poll("it runs again", run)
        group.rmdir()
        group.mkdir()
        poll("they run there", run)
        poll("nothing differs", lambda: node.differences() == [])


def test_no_route_of_the_node_is_replaced(net: NodeNet, node: DaemonProcess, pod: str) -> None:
    (network,) = node.request("GET", "/v2/networks")
    before = ip_json("route", netns_name=net.node)
    for prefix in ("0.0.0.0/0", UPLINK_SUBNET):
        remote = {
            "Type": "RemoteSubnetRoute",
            "Settings": {
                "DestinationPrefix": prefix,
                "IsolationId": 4096,
                "ProviderAddress": "192.168.77.9",
                "DistributedRouterMacAddress": "02-11-22-33-44-55",
            },
        }
        change = {"ResourceType": "Policy", "RequestType": "Add", "Settings": {"Policies": [remote]}}
        node.request("POST", f"/v2/networks/{network['ID']}", change)
        assert can_ping(net.node, ROUTER_IP), prefix
        assert node.differences() == []
        node.request("POST", f"/v2/networks/{network['ID']}", {**change, "RequestType": "Remove"})
        assert ip_json("route", netns_name=net.node) == before
    whole(net, node, pod)


def test_a_network_in_the_underlay_s_subnet_is_refused(net: NodeNet, node: DaemonProcess) -> None:
    before = ip_json("address", netns_name=net.node), ip_json("route", netns_name=net.node)
    status, answer = node.ask("POST", "/v2/networks", overlay("clash", UPLINK_SUBNET, 4097))
    assert (status, answer["ErrorCode"]) == (400, 0x803B0032), answer
    assert (ip_json("address", netns_name=net.node), ip_json("route", netns_name=net.node)) == before


def test_a_slow_client_does_not_keep_the_daemon_from_ending(node: DaemonProcess) -> None:
    with socket.socket(socket.AF_UNIX) as slow:
        slow.connect(str(node.run_dir / "samewire.sock"))
        slow.sendall(b"POST /v2/networks HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        poll("it is heard", lambda: node.ask("GET", "/v2/version")[0] == 200)
        assert node.stop() == 0  # within the bound of stop()


def test_idle_connections_leave_descriptors_for_pods(net: NodeNet, tmp_path: Path) -> None:
    """They wait for one another, and the log has a line about it; asyncio's servers wrote a thousand each second."""
    with daemon(net, tmp_path, metrics_listen=f"{NODE_IP}:9100") as node, ExitStack() as held:
        node.spawn()
        resource.prlimit(node.pid, resource.RLIMIT_NOFILE, (256, 256))
        poll("it serves", node.serves)
        node.request("POST", "/v2/networks", overlay())
        for _ in range(300):
            with net.inside():
                held.enter_context(socket.create_connection((NODE_IP, 9100)))
            held.enter_context(socket.socket(socket.AF_UNIX)).connect(str(node.run_dir / "samewire.sock"))
        pod = net.pod()
        node.add("pod", pod, node.conf())
        assert can_ping(pod, ROUTER_IP)
        held.close()
        poll("nothing differs", lambda: node.differences() == [])
        assert node.log.read_text().count("connections have to wait") == 2
        assert "Too many open files" not in node.log.read_text()


def test_a_body_that_cannot_be_decoded_is_the_clients_fault(node: DaemonProcess) -> None:
    head = b"POST /v2/networks HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Encoding: gzip\r\n"
    answer = exchange(node.run_dir / "samewire.sock", head + b"Content-Length: 2\r\n\r\n{}", half_close=False)
    assert answer.startswith(b"HTTP/1.1 400 "), answer
    assert b"a request failed by a bug" not in node.log.read_bytes()


def test_a_vxlan_port_that_is_taken(net: NodeNet, tmp_path: Path) -> None:
    """Overlays need it, and the start of a node that has one; nothing else does."""
    other = ("link", "add", "other", "type", "vxlan", "id", "9", "dstport", "4789", "dev", "eth0")
    with daemon(net, tmp_path, audit_interval_s=1) as node:
        ip(*other, netns_name=net.node)
        ip("link", "set", "other", "up", netns_name=net.node)
        node.start()
        assert "UDP port 4789 (vxlan_port) is in use" in str(node.request("GET", "/v2/health")["problems"])
        status, error = node.ask("POST", "/v2/networks", overlay())
        assert (status, "vxlan_port is taken" in error["Error"]) == (404, True), error
        ip("link", "delete", "other", netns_name=net.node)
        poll("the tunnel is up", lambda: node.ask("POST", "/v2/networks", overlay())[0] in (200, 201))
        poll("nothing differs", lambda: node.differences() == [])
        node.stop(signal.SIGKILL)
        ip("link", "delete", "swvxlan0", netns_name=net.node)
        ip(*other, netns_name=net.node)
        ip("link", "set", "other", "up", netns_name=net.node)
        node.spawn()
        assert node.wait_dead() == 1
        assert "UDP port 4789 (vxlan_port) is in use" in node.tail()
        ip("link", "delete", "other", netns_name=net.node)
        node.start()
        assert node.differences() == []


def test_a_new_namespace_at_the_path_of_a_dead_one(net: NodeNet, node: DaemonProcess, pod: str) -> None:
    remove_namespace(pod)
    poll("the pod is lost", lambda: node.request("GET", "/v2/health")["degraded_endpoints"])
    netns.create(path_of(pod)).close()
    poll("it is seen", lambda: "another namespace" in str(node.request("GET", "/v2/health")["problems"]))
    # the dead pod's interface is not made in the stranger's namespace, however often the audit looks
    first = node.request("GET", "/v2/health")["last_audit"]["at_unix_s"]
    poll("audits", lambda: node.request("GET", "/v2/health")["last_audit"]["at_unix_s"] > first + 2)
    assert [link["ifname"] for link in ip_json("link", netns_name=pod)] == ["lo"]
    node.add("successor", pod, node.conf())
    assert can_ping(pod, ROUTER_IP)
    node.delete("pod", pod, node.conf())  # the runtime's late DEL of the dead one
    assert can_ping(pod, ROUTER_IP)
    poll("nothing differs", lambda: node.differences() == [])
    assert len(node.endpoints()) == 1


def test_a_new_namespace_at_the_path_of_one_that_died_while_the_daemon_was_away(
    net: NodeNet, node: DaemonProcess, pod: str
) -> None:
    node.stop(signal.SIGKILL)
    remove_namespace(pod)
    netns.create(path_of(pod)).close()
    node.start()
    poll("it is seen", lambda: "another namespace" in str(node.request("GET", "/v2/health")["problems"]))
    assert [link["ifname"] for link in ip_json("link", netns_name=pod)] == ["lo"]
    node.add("successor", pod, node.conf())
    assert can_ping(pod, ROUTER_IP)
    node.stop(signal.SIGKILL)
    node.start()  # what is remembered now is the new one
    assert can_ping(pod, ROUTER_IP)
    poll("nothing differs", lambda: node.differences() == [])


def test_the_state_directory_deleted_under_the_daemon(net: NodeNet, node: DaemonProcess, pod: str) -> None:
    state = node.directory / "state"
    moved = node.directory / "moved"
    state.rename(moved)
    status, error = node.cni("ADD", "second", net.pod(), node.conf())
    assert (status, "deleted or replaced" in str(error)) == (1, True), error
    assert "deleted or replaced" in str(node.request("GET", "/v2/health")["problems"])
    findings = node.request("GET", "/v2/doctor")["findings"]
    assert [item["check"] for item in findings if "deleted" in str(item)] == ["state"]
    assert can_ping(pod, ROUTER_IP)
    node.stop(signal.SIGKILL)
    node.spawn()
    assert node.wait_dead() == 1
    assert "samewire uninstall" in node.tail()
    assert can_ping(pod, ROUTER_IP), "a start without the database takes nothing away"
    if state.exists():
        shutil.rmtree(state)
    moved.rename(state)
    node.start()
    assert can_ping(pod, ROUTER_IP)
    node.add("second", net.pod(), node.conf())
    assert node.differences() == []


def test_a_database_that_cannot_be_written(net: NodeNet, node: DaemonProcess, pod: str) -> None:
    """Every tool says so, and CNI's STATUS, until it can be again."""

    def said() -> tuple[str, list[str], int]:
        checks = [item["check"] for item in node.request("GET", "/v2/doctor")["findings"]]
        return node.request("GET", "/v2/health")["status"], checks, node.cni("STATUS", "", "", node.conf())[0]

    assert said() == ("ok", [], 0)
    with closing(sqlite3.connect(node.state_dir / "samewire.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert node.cni("DEL", "pod", pod, node.conf())[0] == 1
        assert said() == ("degraded", ["state"], 1)
        assert can_ping(pod, ROUTER_IP)
    assert said() == ("ok", [], 0)
    node.delete("pod", pod, node.conf())


@pytest.mark.parametrize("found", ["a copy", "no log"])
def test_a_database_that_has_lost_its_latest(net: NodeNet, node: DaemonProcess, found: str) -> None:
    """SQLite takes it for whole, and the pods that it does not know would be leftovers."""
    older, newer = node.directory / "older", node.directory / "newer"
    node.stop()
    shutil.copytree(node.state_dir, older)
    node.start()
    pod = net.pod()
    node.add("pod", pod, node.conf())
    node.stop(signal.SIGKILL)
    node.state_dir.rename(newer)
    shutil.copytree(older if found == "a copy" else newer, node.state_dir)
    for path in node.state_dir.glob("samewire.db-*"):
        path.unlink()
    for _ in range(2):  # systemd starts it again and again
        node.spawn()
        assert node.wait_dead() == 1
        assert "samewire.db is older than the node" in node.tail()
        assert can_ping(pod, ROUTER_IP), "a start with it takes nothing away"
    shutil.rmtree(node.state_dir)
    newer.rename(node.state_dir)
    node.start()
    whole(net, node, pod)


def test_a_host_port_cannot_take_the_tunnels_packets(net: NodeNet, node: DaemonProcess) -> None:
    mapping = {"hostPort": 4789, "containerPort": 53, "protocol": "udp"}
    conf = node.conf(capabilities={"portMappings": True}, runtimeConfig={"portMappings": [mapping]})
    status, answer = node.cni("ADD", "pod", net.pod(), conf)
    assert (status, answer["code"]) == (1, 7), answer
    assert "UDP port 4789 is that of this node's tunnels" in answer["msg"]
    assert node.endpoints() == []


def test_what_cannot_be_set_right_is_logged_once(net: NodeNet, node: DaemonProcess, pod: str) -> None:
    ip("link", "set", "eth0", "down", netns_name=pod)
    ip("link", "set", "eth0", "name", "other", netns_name=pod)
    poll("it is noticed", lambda: "could not set something right" in node.log.read_text())
    first = node.request("GET", "/v2/health")["last_audit"]["at_unix_s"]
    poll("audits", lambda: node.request("GET", "/v2/health")["last_audit"]["at_unix_s"] > first + 2)
    assert node.log.read_text().count("could not set something right") == 1
    ip("link", "set", "other", "name", "eth0", netns_name=pod)
    whole(net, node, pod)
