"""The tools on two real nodes: what they say, and that real packets do it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from tests.support.node import (
    NODE_IP,
    ROUTER_IP,
    SHORT_S,
    DaemonProcess,
    Json,
    can_ping,
    in_namespace,
    path_of,
    poll,
)
from tests.support.two_nodes import CLIENT, FAR, FAR6, FAR_IP, WEB, WEB6, World, in_pod, modify, run

pytestmark = pytest.mark.root

SEND_LLDP = """
import socket
raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
raw.bind(("eth0", 0))
raw.send(b"\\xff" * 6 + bytes(6) + b"\\x88\\xcc" + bytes(50))
"""

PORT = 8080
ONLY_HTTP = {
    "Type": "ACL",
    "Settings": {"Action": "Allow", "Direction": "In", "Protocols": "6", "LocalPorts": "80", "Priority": 100},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with ExitStack() as stack:
        yield World(stack, tmp_path_factory.mktemp("world"))


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
    for name, protocol in ((f"{WEB}:80", "tcp"), (f"{WEB}:53", "udp"), (f"{WEB}:9", "sctp"), (WEB, "icmp")):
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


def test_the_ports_of_sctp_are_translated_too(world: World) -> None:
    (hop,) = trace(world, "--to", f"{ROUTER_IP}:{PORT}", "--proto", "sctp", "--source-port", "45678")["hops"]
    assert (hop["fate"], hop["sent"]["protocol"], hop["sent"]["source"]) == ("uplink", "sctp", NODE_IP)


def test_the_outside_sees_what_the_trace_has_said(world: World) -> None:
    """The same tuple gets the same translation: the port of the pool too."""
    with listener(world.net.router, PORT) as server:
        said = trace(world, "--to", f"{ROUTER_IP}:{PORT}", "--source-port", "45678")["hops"][0]
        assert said["fate"] == "uplink"
        assert said["uplink"] == {"interface": "eth0", "next_hop": ROUTER_IP, "vlan": 0}

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
            assert not can_ping(world.client, WEB, wait_s=SHORT_S)
            shown = f"shop/web  acl_in: blocked  icmp {CLIENT} > {WEB}"
            poll(
                "the drop is shown", lambda: any(shown in line for line in lines())
            )  # and what the pod asks by itself
        (row,) = [r for r in values(world.near, "drops", "web") if r["reason"] == "blocked"]
        assert (row["layer"], row["arrival"]) == ("acl_in", "pod")
        assert row["packets"] >= 1
    finally:
        modify(world.near, "endpoints", number, policies, "Update")
    assert can_ping(world.client, WEB)


def test_a_question_for_nobody_is_shown_as_arp(world: World) -> None:
    """Not as the protocol of the packet that the CPU has seen before."""
    assert can_ping(world.client, WEB)
    nobody = "10.244.0.99"
    with watching(world, "client") as lines:
        assert not can_ping(world.client, nobody, wait_s=SHORT_S)
        poll("the drop is shown", lambda: any(nobody in line for line in lines()))
        shown = [line.partition("  ")[2] for line in lines() if nobody in line]
    assert set(shown) == {f"shop/client  route: no_endpoint  arp {CLIENT} > {nobody}"}


def test_a_frame_without_addresses_is_shown_without_any(world: World) -> None:
    """Not with those of the packet that the CPU has seen before."""
    assert can_ping(world.client, WEB)
    with watching(world, "client") as lines:
        in_namespace(world.client, sys.executable, "-c", SEND_LLDP)
        poll("the drop is shown", lambda: any("not_ip" in line for line in lines()))
        shown = [line.partition("  ")[2] for line in lines() if "not_ip" in line]
    assert set(shown) == {"shop/client  parse: not_ip  no address read"}


def _config_flags(world: World) -> str:
    return str(world.near.table("sw_config")[0]["value"]["flags"])


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
            poll("somebody listens to drops", lambda: "events" in _config_flags(world))
            yield lambda: file.read_text().splitlines()
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0
    poll("nobody listens any more", lambda: "events" not in _config_flags(world))


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
        FAR,
        NODE_IP,
        ROUTER_IP,
        FAR_IP,
        "10.244.0.1",
        "10.244.0.77",
        "8.8.8.8",
    )
    for target in (*targets, "224.0.0.1", "255.255.255.255"):
        for protocol in ("tcp", "udp", "icmp"):
            name = target if protocol == "icmp" else f"{target}:80"
            assert trace(world, "--to", name, "--proto", protocol)["hops"]


def test_what_cannot_be_traced(world: World) -> None:
    for arguments, status, message in (
        (("nobody", WEB), 3, "endpoint 'nobody' not found"),
        (("client", "not-an-address"), 2, "is not ADDR[:PORT]"),
        (("client", CLIENT), 1, "is shop/client itself"),
        (("client", "127.0.0.1"), 1, "is shop/client itself"),
    ):
        result = run(world.near, "trace", "--from", arguments[0], "--to", arguments[1])
        assert result.exit_code == status
        assert message in result.stderr


# --- diff and doctor ------------------------------------------------------------------------------


def test_a_healthy_node(world: World) -> None:
    for process in (world.near, world.far):
        assert (run(process, "diff").exit_code, run(process, "diff").output) == (0, "")
        doctor = run(process, "doctor")
        assert (doctor.exit_code, doctor.output) == (0, "healthy: every check passed\n")


@contextmanager
def sending(pod: str, to: str) -> Iterator[None]:
    """Datagrams from a pod, some dozens a second, while the block runs."""
    ended = threading.Event()

    def send() -> None:
        while not ended.wait(0.02):
            sender.sendto(b"word", (to, 9))

    with in_pod(pod, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sender:
        thread = threading.Thread(target=send)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


@contextmanager
def firewall(space: str, hook: str, rule: str) -> Iterator[None]:
    """A rule of somebody else's in a node."""
    chain = f"{{ type filter hook {hook} priority 0; }}"
    in_namespace(space, "nft", f"add table inet foreign; add chain inet foreign c {chain}")
    try:
        in_namespace(space, "nft", f"add rule inet foreign c {rule}")
        yield
    finally:
        in_namespace(space, "nft", "delete table inet foreign")


def of_the_tunnel(process: DaemonProcess) -> list[tuple[str, str]]:
    """What the doctor finds of the tunnel: level and message."""
    found = json.loads(run(process, "doctor", "--json").stdout)["findings"]
    return [(finding["level"], finding["message"]) for finding in found if finding["check"] == "tunnel"]


def test_a_firewall_between_the_wire_and_the_tunnel(world: World) -> None:
    """It is on one node, and the doctor there sees it; the other one's sees nothing wrong."""
    with sending(world.client, FAR):
        assert not of_the_tunnel(world.far)
        with firewall(world.far_net.node, "input", "udp dport 4789 drop"):
            ((level, message),) = of_the_tunnel(world.far)
            assert level == "error"
            assert "none came out of the tunnel" in message
            assert not of_the_tunnel(world.near)
        with firewall(world.net.node, "output", "udp dport 4789 drop"):
            ((level, message),) = of_the_tunnel(world.near)
            assert level == "warning"
            assert "could not be sent" in message
            assert not of_the_tunnel(world.far)
        assert not of_the_tunnel(world.near)


def test_what_is_wrong_with_a_pod_has_the_pods_name(world: World) -> None:
    def mtu(value: str) -> None:
        in_namespace(world.client, "ip", "link", "set", "eth0", "mtu", value)

    found = json.loads(in_namespace(world.client, "ip", "-j", "link", "show", "eth0").stdout)[0]["mtu"]
    (port,) = values(world.near, "ports", "shop/client")
    mtu("1300")
    in_namespace(world.net.node, "tc", "filter", "del", "dev", port["interface"], "ingress")
    try:
        findings = json.loads(run(world.near, "doctor", "--json").stdout)["findings"]
    finally:
        mtu(str(found))
        world.near.stop()
        world.near.start()
    assert {finding["object"] for finding in findings} == {
        f"pod shop/client: MTU is 1300, not {found}",
        f"hook {port['interface']} of shop/client: the switch's program does not run",
    }


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
