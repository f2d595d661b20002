"""The daemon as a process: start, pods, restart, crashes, what others do behind its back, uninstall."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

import samewire
from samewire.hcn.errors import HcnCode
from samewire.vfp.tables import TABLES, Kind
from tests.support.node import (
    NODE_IP,
    NODE_IP6,
    ROUTER_IP,
    SHORT_S,
    STALL_S,
    DaemonProcess,
    Json,
    NodeNet,
    can_ping,
    daemon,
    in_namespace,
    ip,
    ip_json,
    node_net,
    overlay,
    path_of,
    poll,
    remove_namespace,
    serving,
)

pytestmark = pytest.mark.root


@pytest.fixture
def node(unstarted: DaemonProcess) -> DaemonProcess:
    """Not started yet."""
    return unstarted


@pytest.fixture
def pods(net: NodeNet, node: DaemonProcess) -> tuple[str, str]:
    """A running daemon with an overlay network and two pods, at 10.244.0.2 and .3."""
    node.start()
    node.request("POST", "/v2/networks", overlay())
    names = net.pod(), net.pod()
    for number, name in enumerate(names):
        node.add(f"pod{number}", name, node.conf())
    return names


def host_ends(net: NodeNet) -> dict[str, Json]:
    """The pods' host ends by name."""
    links = ip_json("link", "show", "type", "veth", netns_name=net.node)
    return {
        link["ifname"]: link for link in links if link["ifname"].startswith("sw") and link["group"] == "21367"
    }


def switch_identity(node: DaemonProcess) -> dict[str, list[int]]:
    """Ids of the pinned maps and programs, from the kernel's own listing of the pins."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom samewire.kernel.bpf import BpfMap, BpfProgram\n"
        "root = Path(sys.argv[1])\n"
        "print([BpfMap.open_pinned(p).id for p in sorted((root / 'maps').iterdir())])\n"
        "print([BpfProgram.open_pinned(p).id for p in sorted((root / 'programs').iterdir())])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(node.run_dir / "bpf")], check=True, capture_output=True, text=True
    )
    maps, programs = (json.loads(line) for line in done.stdout.splitlines())
    return {"maps": maps, "programs": programs}


def test_pods_can_talk(net: NodeNet, node: DaemonProcess, pods: tuple[str, str]) -> None:
    first, second = pods
    assert can_ping(first, "10.244.0.3")
    assert can_ping(second, NODE_IP)
    assert can_ping(first, ROUTER_IP)
    assert can_ping(net.node, "10.244.0.2")
    assert node.differences() == []
    assert node.request("GET", "/v2/health")["status"] == "ok"


def test_what_a_pod_gets(net: NodeNet, node: DaemonProcess, pods: tuple[str, str]) -> None:
    (link,) = ip_json("address", "show", "eth0", netns_name=pods[0])
    assert (link["mtu"], link["operstate"]) == (1450, "UP")
    assert [a["local"] for a in link["addr_info"] if a["family"] == "inet"] == ["10.244.0.2"]
    (default,) = ip_json("route", "show", "default", netns_name=pods[0])
    assert default["gateway"] == "10.244.0.1"
    assert [n["state"] for n in ip_json("neigh", "show", "10.244.0.1", netns_name=pods[0])] == [["PERMANENT"]]
    for end in host_ends(net).values():
        assert (end["operstate"], end.get("ifalias")) == ("UP", "samewire")
    # a host end has no address and says nothing of its own
    assert not any(
        link["addr_info"]
        for link in ip_json("address", "show", "group", "21367", netns_name=net.node)
        if link["ifname"] in host_ends(net)
    )


def test_sigterm_leaves_the_data_path(net: NodeNet, node: DaemonProcess, pods: tuple[str, str]) -> None:
    assert node.stop() == 0
    assert can_ping(pods[0], "10.244.0.3")
    assert can_ping(pods[0], ROUTER_IP)
    assert not (node.run_dir / "samewire.sock").exists()


def test_a_restart_changes_nothing(net: NodeNet, node: DaemonProcess, pods: tuple[str, str]) -> None:
    before = switch_identity(node), host_ends(net), ip_json("link", netns_name=net.node)
    with subprocess.Popen(
        ["nsenter", f"--net={path_of(pods[0])}", "ping", "-n", "-i", "0.02", "-c", "150", "10.244.0.3"],
        stdout=subprocess.PIPE,
        text=True,
    ) as ping:
        node.stop(signal.SIGKILL)
        node.start()
        out, _ = ping.communicate(timeout=30)
    assert "150 received" in out, out
    assert (switch_identity(node), host_ends(net), ip_json("link", netns_name=net.node)) == before
    assert node.differences() == []
    assert "changed" not in node.tail()


def test_two_daemons_cannot_share_a_run_directory(net: NodeNet, node: DaemonProcess) -> None:
    node.start()
    other = DaemonProcess(net, node.directory)
    other.spawn()
    assert other.wait_dead() == 1
    assert f"in use by the process {node.pid}" in node.tail()
    assert node.request("GET", "/v2/health")["status"] == "ok"
    node.stop()
    other.start()  # as whoever starts it again does: an upgrade may overlap
    other.stop()


def test_two_daemons_cannot_share_a_network_namespace(
    net: NodeNet, node: DaemonProcess, pods: tuple[str, str], tmp_path: Path
) -> None:
    """With another run directory, each would take the other's devices and pods for leftovers."""
    before = switch_identity(node), ip_json("link", netns_name=net.node)
    (tmp_path / "other").mkdir()
    with daemon(net, tmp_path / "other") as other, node_net() as elsewhere:
        other.spawn()
        assert other.wait_dead() == 1
        assert f"in use by the process {node.pid}" in other.tail()
        done = in_namespace(
            net.node, sys.executable, "-c", "from samewire.cli.node import uninstall; uninstall()",
            "--config", str(other.config), check=False,
        )  # fmt: skip
        assert (done.returncode, f"in use by the process {node.pid}" in done.stderr) == (1, True)
        assert not other.state_dir.exists()
        assert (switch_identity(node), ip_json("link", netns_name=net.node)) == before
        assert can_ping(pods[0], ROUTER_IP)
        other.net = elsewhere
        other.start()
    node.stop(signal.SIGKILL)
    node.start()
    assert node.differences() == []


_LOCK = "os.setuid(65534); held = open('/proc/self/ns/net'); fcntl.flock(held, fcntl.LOCK_EX)"
_HOLDS_ITSELF = f"import fcntl, os, signal; {_LOCK}; print('ready', flush=True); signal.pause()"
_ENDS_AND_ITS_CHILD_HOLDS = f"""
import fcntl, os, signal
reading, writing = os.pipe()
if not os.fork():
    os.close(writing)
    {_LOCK}
    if not os.fork():
        os.read(reading, 1)  # until the first process ends
    os._exit(0)
os.wait()
print("ready", flush=True)
signal.pause()
"""


@pytest.mark.parametrize("code", [_HOLDS_ITSELF, _ENDS_AND_ITS_CHILD_HOLDS], ids=["itself", "its child"])
def test_who_is_not_root_keeps_no_daemon_from_its_network_namespace(
    net: NodeNet, tmp_path: Path, code: str
) -> None:
    """The kernel names who took the lock, even when that process has ended and left it to a child."""
    with serving(net.node, code), daemon(net, tmp_path) as node:
        node.start()
        assert "holds the network namespace's lock" in node.tail()


def test_a_cgroup_that_is_none_is_named_before_anything_is_made(net: NodeNet, tmp_path: Path) -> None:
    node = DaemonProcess(net, tmp_path, host_cgroup=str(tmp_path))
    node.spawn()
    assert node.wait_dead() == 1
    assert f"host_cgroup: {tmp_path} is no cgroup-v2 directory" in node.tail()
    assert {link["ifname"] for link in ip_json("link", netns_name=net.node)} == {"lo", "eth0"}
    assert not (node.run_dir / "bpf").exists()
    assert not node.state_dir.exists()


def test_a_package_that_is_replaced_under_the_daemon(node: DaemonProcess, tmp_path: Path) -> None:
    """What is loaded goes on; nothing more is loaded, and the answer says what to do."""
    installed = tmp_path / "site" / "samewire"
    shutil.copytree(Path(samewire.__file__).parent, installed)
    environment = {"PYTHONPATH": str(installed.parent)}
    node.start(environment)
    ports = node.request("GET", "/v2/switch/ports")
    doctor = installed / "trace" / "doctor_service.py"
    doctor.write_text("raise RuntimeError\n" + doctor.read_text())
    for path, what in (("/v2/doctor", "/v2/doctor"), ("/v2/metrics", "the metrics page")):
        status, answer = node.ask("GET", path)
        assert (status, answer["ErrorCode"]) == (503, HcnCode.RPC_SERVER_UNAVAILABLE), path
        assert answer["Error"].startswith(f"{what} is unavailable: Samewire was replaced on disk; restart")
    assert node.request("GET", "/v2/switch/ports") == ports
    assert node.request("POST", "/v2/networks", overlay())["Name"]
    node.stop()
    doctor.write_text(doctor.read_text().partition("\n")[2])
    node.start(environment)
    assert node.request("GET", "/v2/doctor")
    assert "samewire_ports" in node.request("GET", "/v2/metrics")


@pytest.mark.parametrize(
    "fault",
    [
        "create veth|kill|1",
        "IPv4 default route|kill|1",
        "attach sw_ingress|kill|1",
        "update sw_ports|kill|1",
        "update sw_ports|memory|1",
    ],
)
def test_killed_during_add(net: NodeNet, node: DaemonProcess, fault: str) -> None:
    node.start()
    node.request("POST", "/v2/networks", overlay())
    node.stop()
    node.start({"SAMEWIRE_TEST_FAULT": fault})
    pod = net.pod()
    with pytest.raises((ConnectionError, AssertionError)):
        node.add("pod", pod, node.conf())
    assert node.wait_dead() == -signal.SIGKILL
    node.start()
    assert node.differences() == []
    assert node.endpoints() == []
    assert host_ends(net) == {}
    node.add("pod", pod, node.conf())
    assert can_ping(pod, NODE_IP)


@pytest.mark.parametrize("fault", ["delete from sw_ports|kill|1", "delete interface|kill|1"])
def test_killed_during_del(net: NodeNet, node: DaemonProcess, fault: str) -> None:
    node.start()
    node.request("POST", "/v2/networks", overlay())
    pod = net.pod()
    node.add("pod", pod, node.conf())
    node.stop()
    node.start({"SAMEWIRE_TEST_FAULT": fault})
    with pytest.raises((ConnectionError, AssertionError)):
        node.delete("pod", pod, node.conf())
    assert node.wait_dead() == -signal.SIGKILL
    node.start()
    assert node.differences() == []
    node.delete("pod", pod, node.conf())
    assert node.endpoints() == []
    assert ip_json("link", "show", "type", "veth", netns_name=pod) == []
    assert node.differences() == []


@pytest.mark.parametrize("fault", ["update sw_routes|kill|3", "add address|kill|1", "set route|kill|1"])
def test_killed_during_network_create(net: NodeNet, node: DaemonProcess, fault: str) -> None:
    node.start()
    node.stop()
    node.start({"SAMEWIRE_TEST_FAULT": fault})
    with pytest.raises((ConnectionError, AssertionError, IndexError)):
        node.request("POST", "/v2/networks", overlay())
    assert node.wait_dead() == -signal.SIGKILL
    node.start()
    assert node.differences() == []
    assert node.request("GET", "/v2/networks") == []
    node.request("POST", "/v2/networks", overlay())
    assert node.differences() == []


def filters(net: NodeNet) -> set[str]:
    """The MACs that the uplink lets in beside its own."""
    lines = in_namespace(net.node, "bridge", "fdb", "show", "dev", "eth0").stdout.splitlines()
    return {line.split()[0] for line in lines}


@pytest.mark.parametrize("moment", ["add", "delete"])
@pytest.mark.parametrize("after", [False, True])
def test_killed_while_the_uplink_lets_in_another_mac(
    net: NodeNet, node: DaemonProcess, moment: str, after: bool
) -> None:
    """Before the filter is made or removed, or right after: in the end it is as the objects say. Others' stay."""
    ours, theirs = "0e:2a:99:00:00:01", "0e:2a:99:00:00:77"
    in_namespace(net.node, "bridge", "fdb", "add", theirs, "dev", "eth0", "self")
    policies = [
        {"Type": "SourceMacAddress", "Settings": {"SourceMacAddress": mac.upper().replace(":", "-")}}
        for mac in (ours, theirs)
    ]
    wanted = {"Name": "l2", "Type": "L2Bridge", "Ipams": [{"Subnets": [{"IpAddressPrefix": "10.88.0.0/24"}]}]}
    node.start()
    before = filters(net)
    made = (
        node.request("POST", "/v2/networks", {**wanted, "Policies": policies[:1]})
        if moment == "delete"
        else {}
    )
    node.stop()
    node.start({"SAMEWIRE_TEST_FAULT": f"{moment} link address {ours}|kill|1"})
    method, body = ("DELETE", None) if made else ("POST", {**wanted, "Policies": policies[:1]})
    with pytest.raises((ConnectionError, AssertionError, IndexError)):
        node.request(method, f"/v2/networks/{made.get('ID', '')}".rstrip("/"), body)
    assert node.wait_dead() == -signal.SIGKILL
    if after:
        in_namespace(net.node, "bridge", "fdb", moment.removesuffix("ete"), ours, "dev", "eth0", "self")
    node.start()
    assert node.differences() == []
    left = node.request("GET", "/v2/networks")
    assert filters(net) == before | {ours for _ in left}
    for network in left:
        node.request("DELETE", f"/v2/networks/{network['ID']}")
    assert filters(net) == before
    # What somebody else has let in is not ours because a network wants it, too.
    made = node.request("POST", "/v2/networks", {**wanted, "Policies": policies[1:]})
    node.request("DELETE", f"/v2/networks/{made['ID']}")
    assert filters(net) == before
    assert node.differences() == []


def test_a_veth_deleted_behind_our_back_is_made_again(
    net: NodeNet, node: DaemonProcess, pods: tuple[str, str]
) -> None:
    ip("link", "delete", "eth0", netns_name=pods[0])
    poll("the link is back", lambda: can_ping(pods[0], "10.244.0.3", wait_s=SHORT_S))
    poll("nothing differs", lambda: node.differences() == [])


@pytest.mark.parametrize("kind", ["endpoints", "networks"])
def test_an_object_deleted_behind_the_runtimes_back(
    net: NodeNet, node: DaemonProcess, pods: tuple[str, str], kind: str
) -> None:
    """By another client of HNS: CHECK misses the pod's interface, DEL succeeds and gives the address back."""
    status, result = node.cni("ADD", "late", net.pod(), node.conf())
    assert status == 0
    (mine,) = [one for one in node.endpoints() if one.get("ContainerId") == "late"]
    pod = result["interfaces"][1]["sandbox"].rpartition("/")[2]
    node.request("DELETE", f"/v2/{kind}/{mine['ID' if kind == 'endpoints' else 'HostComputeNetwork']}")
    assert ip_json("link", "show", "type", "veth", netns_name=pod) == []
    status, answer = node.cni("CHECK", "late", pod, {**node.conf(), "prevResult": result})
    assert (status, answer["msg"]) == (1, "container late interface eth0: there is no such attachment")
    address = result["ips"][0]["address"].partition("/")[0]
    assert (node.directory / "ipam" / "pods" / address).exists()
    for _ in range(2):
        node.delete("late", pod, node.conf())
        assert not (node.directory / "ipam" / "pods" / address).exists()
    assert node.differences() == []
    assert len(node.endpoints()) == (2 if kind == "endpoints" else 0)


def test_what_is_lost_inside_a_pod_is_given_back(net: NodeNet, tmp_path: Path) -> None:
    pod = net.pod()
    with daemon(net, tmp_path, audit_interval_s=1) as process:
        process.start()
        process.request("POST", "/v2/networks", overlay())
        process.add("pod", pod, process.conf())
        ip("address", "flush", "dev", "eth0", netns_name=pod)
        ip("link", "set", "eth0", "mtu", "1300", netns_name=pod)
        poll(
            "the pod is whole again",
            lambda: can_ping(pod, NODE_IP, wait_s=SHORT_S) and process.differences() == [],
        )


def test_a_pod_whose_namespace_died_is_degraded_until_del(
    net: NodeNet, node: DaemonProcess, pods: tuple[str, str]
) -> None:
    remove_namespace(pods[0])
    poll("it is reported", lambda: node.request("GET", "/v2/health")["status"] == "degraded")
    assert len(node.request("GET", "/v2/health")["degraded_endpoints"]) == 1
    assert can_ping(pods[1], ROUTER_IP)
    node.delete("pod0", pods[0], node.conf())
    assert node.request("GET", "/v2/health")["degraded_endpoints"] == {}
    poll("it is healthy again", lambda: node.differences() == [])
    assert len(node.endpoints()) == 1


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("manager", ["host-local", "other"])
def test_a_container_that_comes_back_in_another_namespace(
    net: NodeNet, node: DaemonProcess, tmp_path: Path, manager: str, restarted: bool
) -> None:
    """podman starts a container again under its old id, also when its DEL was lost while the daemon was away."""
    shutil.copy("/usr/lib/cni/host-local", tmp_path / "other")
    node.plugin_path = str(tmp_path)
    node.start()
    node.request("POST", "/v2/networks", overlay())
    old, new = net.pod(), net.pod()
    conf = node.conf()
    conf["ipam"]["type"] = manager
    node.add("c", old, conf)
    remove_namespace(old)
    if restarted:
        node.stop(signal.SIGKILL)
        node.start()
    poll("it is known", lambda: node.request("GET", "/v2/health")["status"] == "degraded")
    node.add("c", new, conf)
    assert can_ping(new, "10.244.0.1")
    assert len(node.endpoints()) == 1
    assert node.differences() == []
    assert len(list((node.directory / "ipam" / "pods").glob("10.*"))) == 1


def test_leftovers_with_our_mark_are_removed(net: NodeNet, node: DaemonProcess) -> None:
    node.start()  # without a database the start would be refused: the leftovers could be pods that live
    node.stop()
    ip("link", "add", "swdeadbeef", "type", "veth", "peer", "x1", netns_name=net.node)
    ip("link", "set", "swdeadbeef", "group", "21367", netns_name=net.node)
    ip("link", "add", "other", "type", "veth", "peer", "x2", netns_name=net.node)
    node.start()
    names = {link["ifname"] for link in ip_json("link", netns_name=net.node)}
    assert "swdeadbeef" not in names
    assert {"other", "x2"} <= names


def test_our_own_devices_come_back(net: NodeNet, node: DaemonProcess, pods: tuple[str, str]) -> None:
    for name in ("samewire0", "swvxlan0"):
        ip("link", "delete", name, netns_name=net.node)
    poll("the node reaches its pods", lambda: can_ping(net.node, "10.244.0.2", wait_s=SHORT_S))
    poll("nothing differs", lambda: node.differences() == [])


@pytest.fixture
def sender(net: NodeNet, pods: tuple[str, str]) -> Iterator[Callable[[], str]]:
    """Sends a datagram to the router, always by the same socket of a pod; from where it comes."""
    with ExitStack() as stack:
        sockets = []
        for where, address in ((net.router, ROUTER_IP), (pods[0], "10.244.0.2")):
            with net.inside(where):
                sockets.append(stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)))
            sockets[-1].bind((address, 5300))
        server, client = sockets
        server.settimeout(SHORT_S)

        def send() -> str:
            client.sendto(b"x", (ROUTER_IP, 5300))
            try:
                return str(server.recvfrom(10)[1][0])
            except TimeoutError:
                return ""

        yield send


def test_a_new_node_address_is_taken_over(
    net: NodeNet, node: DaemonProcess, pods: tuple[str, str], sender: Callable[[], str]
) -> None:

    assert sender() == NODE_IP
    ip("address", "delete", f"{NODE_IP}/24", "dev", "eth0", netns_name=net.node)
    ip("address", "add", "192.168.77.50/24", "dev", "eth0", netns_name=net.node)
    ip("route", "replace", "default", "via", ROUTER_IP, netns_name=net.node)
    poll("SNAT has the new address", lambda: can_ping(pods[0], ROUTER_IP, wait_s=SHORT_S))
    poll("so has who goes on sending", lambda: sender() == "192.168.77.50")

    def providers() -> list[str]:
        (network,) = node.request("GET", "/v2/networks")
        policies = [p for p in network["Policies"] if p["Type"] == "ProviderAddress"]
        return [policy["Settings"]["ProviderAddress"] for policy in policies]

    poll("the network has it, too", lambda: providers() == ["192.168.77.50"])
    poll("nothing differs", lambda: node.differences() == [])


def test_the_uplink_is_left_as_it_was(net: NodeNet, node: DaemonProcess) -> None:
    def looks() -> tuple[str, str, str]:
        links = ip("address", "show", "dev", "eth0", netns_name=net.node)
        routes = ip("route", netns_name=net.node) + ip("-6", "route", netns_name=net.node)
        return links, routes, in_namespace(net.node, "sysctl", "net.ipv4.ip_local_reserved_ports").stdout

    in_namespace(net.node, "sysctl", "-w", "net.ipv4.ip_local_reserved_ports=8080,60000")
    poll("the uplink's own address is settled", lambda: "tentative" not in looks()[0])
    before = looks()
    node.start()
    node.request("POST", "/v2/networks", overlay())
    node.add("pod", net.pod(), node.conf())
    assert looks()[0] == before[0]
    assert "8080,49152-65535" in looks()[2]
    mac = {"Type": "SourceMacAddress", "Settings": {"SourceMacAddress": "0E-2A-99-00-00-01"}}
    subnet = {"Subnets": [{"IpAddressPrefix": "10.88.0.0/24"}]}
    node.request(
        "POST", "/v2/networks", {"Name": "l2", "Type": "L2Bridge", "Policies": [mac], "Ipams": [subnet]}
    )
    assert "0e:2a:99:00:00:01" in in_namespace(net.node, "bridge", "fdb", "show", "dev", "eth0").stdout
    node.stop()
    in_namespace(
        net.node, sys.executable, "-c", "from samewire.cli.node import uninstall; uninstall()",
        "--config", str(node.config), "--purge",
    )  # fmt: skip
    assert looks() == before
    assert "0e:2a:99:00:00:01" not in in_namespace(net.node, "bridge", "fdb", "show", "dev", "eth0").stdout
    assert {link["ifname"] for link in ip_json("link", netns_name=net.node)} == {"lo", "eth0"}
    assert not node.run_dir.exists()
    assert not node.state_dir.exists()
    assert "clsact" not in in_namespace(net.node, "tc", "qdisc").stdout


def test_uninstall_goes_on_after_what_it_cannot_remove(net: NodeNet, node: DaemonProcess) -> None:
    node.start()
    node.stop()
    in_the_way = node.run_dir / "relay.sock"
    in_the_way.mkdir()
    command = (
        *(sys.executable, "-c", "from samewire.cli.node import uninstall; uninstall()"),
        *("--config", str(node.config)),
    )
    done = in_namespace(net.node, *command, check=False)
    assert done.returncode == 1
    assert done.stderr.strip() == f"Error: remove {in_the_way}: EISDIR (Is a directory)"
    assert {link["ifname"] for link in ip_json("link", netns_name=net.node)} == {"lo", "eth0"}
    in_the_way.rmdir()
    in_namespace(net.node, *command)
    assert not node.run_dir.exists()


def test_uninstall_leaves_what_others_have_beside_us(net: NodeNet, node: DaemonProcess) -> None:
    """A configuration may name a directory that is not ours alone, /run for one."""
    node.start()
    node.stop()
    theirs = [node.run_dir / "theirs" / "file", node.state_dir / "theirs" / "file"]
    for path in theirs:
        path.parent.mkdir()
        path.write_text("")
    in_namespace(
        net.node, sys.executable, "-c", "from samewire.cli.node import uninstall; uninstall()",
        "--config", str(node.config), "--purge",
    )  # fmt: skip
    for path in theirs:
        assert path.exists()
        assert [found.name for found in path.parents[1].iterdir()] == ["theirs"]


def test_uninstall_refuses_while_a_daemon_runs(net: NodeNet, node: DaemonProcess) -> None:
    node.start()
    done = in_namespace(
        net.node, sys.executable, "-c", "from samewire.cli.node import uninstall; uninstall()",
        "--config", str(node.config), check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "in use by the process" in done.stderr
    assert node.request("GET", "/v2/health")["status"] == "ok"


def test_the_same_interface_right_after_its_del(net: NodeNet, node: DaemonProcess) -> None:
    node.start()
    node.request("POST", "/v2/networks", overlay())
    pod = net.pod()
    for number in range(20):
        node.add(f"pod{number}", pod, node.conf())
        node.delete(f"pod{number}", pod, node.conf())
        assert ip_json("link", "show", "type", "veth", netns_name=pod) == []
    assert node.differences() == []


def test_an_add_of_what_is_there_leaves_its_address_taken(net: NodeNet, node: DaemonProcess) -> None:
    """Whatever address it asks for: the next pod would be given the one in use."""
    node.start()
    node.request("POST", "/v2/networks", overlay())
    pod, other, conf = net.pod(), net.pod(), node.conf()
    own = node.add("pod", pod, conf)["ips"]
    asking = {**conf, "capabilities": {"ips": True}, "runtimeConfig": {"ips": ["10.244.0.9/24"]}}
    for namespace in (pod, other):
        status, answer = node.cni("ADD", "pod", namespace, asking)
        assert (status, answer["code"]) == (1, 102)
    asking["runtimeConfig"] = {"ips": [own[0]["address"]]}
    status, answer = node.cni("ADD", "other", other, asking)
    assert (status, answer["code"]) == (1, 102), "it is taken, and whose it is does not matter"
    asking["runtimeConfig"] = {"ips": ["10.244.0.9/24"]}
    assert node.add("other", other, asking)["ips"][0]["address"] == "10.244.0.9/24"


def descriptors(node: DaemonProcess) -> int:
    return len(os.listdir(f"/proc/{node.pid}/fd"))


HOST_PORT = 8080
_CAPS = {"ingressRate": 80_000_000, "ingressBurst": 800_000, "egressRate": 40_000_000, "egressBurst": 400_000}
_MAPPINGS = [
    {"hostPort": HOST_PORT + number, "containerPort": 80, "protocol": protocol, **address}
    for protocol in ("tcp", "udp", "sctp")
    for number, address in enumerate(({}, {"hostIP": NODE_IP}, {"hostIP": NODE_IP6}))
]
_WITH: tuple[Json, ...] = (
    {"portMappings": _MAPPINGS},
    {"bandwidth": _CAPS},
    {"portMappings": _MAPPINGS, "bandwidth": _CAPS},
    {},
)


def dual_stack_conf(node: DaemonProcess, arguments: Json) -> Json:
    """With rules, what a runtime asks for, and so few addresses that each comes again and again."""
    conf = node.conf("pods", "10.244.0.0/24", "fd44::/64")
    for (subnet,), prefix in zip(conf["ipam"]["ranges"], ("10.244.0.", "fd44::"), strict=True):
        subnet.update(rangeStart=f"{prefix}10", rangeEnd=f"{prefix}19")
    acl = {"Action": "Allow", "Direction": "In", "Protocols": "6,17", "Priority": 100}
    conf["policies"].append({"name": "EndpointPolicy", "value": {"Type": "ACL", "Settings": acl}})
    capabilities = {"portMappings": True, "bandwidth": True}
    return {**conf, "capabilities": capabilities, "runtimeConfig": arguments}


FORGOTTEN_LATER = ("sw_drops", "sw_rule_counts", "sw_flows")


def everything(net: NodeNet, node: DaemonProcess) -> Json:
    """What pods could leave behind: in the switch, on the node, in the store, of the address management."""
    poll("freed links are freed", lambda: not host_ends(net))
    lasting = [
        name for name, table in TABLES.items() if table.kind in (Kind.HASH, Kind.LPM, Kind.PERCPU_HASH)
    ]
    found: Json = {name: len(node.table(name)) for name in lasting if name not in FORGOTTEN_LATER}
    for what in (
        ("ip", "-br", "link"), ("ip", "address"), ("tc", "qdisc"), ("ip", "neigh", "show", "nud", "permanent"),
        ("ip", "route", "show", "table", "all"), ("sysctl", "net.ipv4.ip_local_reserved_ports"),
    ):  # fmt: skip
        lines = in_namespace(net.node, *what).stdout.splitlines()
        found[" ".join(what)] = [line for line in lines if " expires " not in line]
    with closing(sqlite3.connect(f"file:{node.state_dir}/samewire.db?mode=ro", uri=True)) as store:
        for table in ("objects", "policies", "numbers"):
            found[table] = store.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
    held = sorted(path.name for path in (node.directory / "ipam").rglob("*") if path.is_file())
    return {**found, "addresses": [name for name in held if not name.startswith("last_reserved_ip")]}


def datagrams(net: NodeNet, name: str, stack: ExitStack) -> socket.socket:
    """A UDP socket of both families in a namespace."""
    with net.inside(name):
        made = stack.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    made.settimeout(STALL_S)
    return made


@pytest.mark.slow
def test_two_thousand_cycles_leak_nothing(net: NodeNet, node: DaemonProcess) -> None:
    """Pods of both families with rules, host ports, which a client outside asks for, and bandwidth caps."""
    node.start()
    node.request("POST", "/v2/networks", overlay(subnet6="fd44::/64"))
    confs = [dual_stack_conf(node, arguments) for arguments in _WITH]
    with ExitStack() as stack:
        client = datagrams(net, net.router, stack)
        pods = {name: datagrams(net, name, stack) for name in (net.pod() for _ in range(5))}
        for server in pods.values():
            server.bind(("::", 80))
        names = list(pods)

        def cycle(count: int) -> None:
            for number in range(count):
                pod, conf = names[number % len(names)], confs[number % len(confs)]
                node.add(f"c{number}", pod, conf)
                asked = (f"::ffff:{NODE_IP}", NODE_IP6) if "portMappings" in conf["runtimeConfig"] else ()
                for address in asked:
                    client.sendto(f"{number}".encode(), (address, HOST_PORT))
                    assert pods[pod].recv(100) == f"{number}".encode()
                node.delete(f"c{number}", pod, conf)

        cycle(20)
        before = everything(net, node), descriptors(node)
        cycle(2000)
    assert everything(net, node) == before[0]
    poll("descriptors are closed", lambda: descriptors(node) <= before[1])
    assert node.differences() == []
    poll("drops of ports that are gone are forgotten", lambda: len(node.table("sw_drops")) <= len(names))
    poll("so are counts and flows", lambda: not (node.table("sw_rule_counts") or node.table("sw_flows")))
    assert node.endpoints() == []
