"""Edits of an endpoint's rules at a whole daemon, and what becomes of connections that are up."""

from __future__ import annotations

import itertools
import select
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import pytest

from samewire.kernel.netns import NetNamespace
from tests.support.node import (
    NODE_IP,
    ROUTER_IP,
    SHORT_S,
    STALL_S,
    DaemonProcess,
    Json,
    NodeNet,
    overlay,
    path_of,
    serving,
)

pytestmark = pytest.mark.root

PORT = 8080
TABLES = ("sw_ports", "sw_acl_vectors", "sw_acl_rules", "sw_acl_prefixes", "sw_acl_ports")


ECHO = """
import selectors, socket, sys
port = int(sys.argv[1])
watch = selectors.DefaultSelector()
tcp = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
udp.bind(("::", port))
for found in (tcp, udp):
    watch.register(found, selectors.EVENT_READ)
print("ready", flush=True)
while True:
    for key, _ in watch.select():
        if key.fileobj is tcp:
            watch.register(tcp.accept()[0], selectors.EVENT_READ)
        elif key.fileobj is udp:
            udp.sendto(*udp.recvfrom(2000))
        elif data := key.fileobj.recv(2000):
            key.fileobj.sendall(data)
        else:
            watch.unregister(key.fileobj)
"""


def acl(action: str, direction: str, priority: int, remote: str = "", **fields: str) -> Json:
    settings = {"Action": action, "Direction": direction, "Priority": priority, "RemoteAddresses": remote}
    return {"Type": "ACL", "Settings": {**settings, **fields}}


def others(direction: str, count: int) -> list[Json]:
    """Rules that concern nobody here."""
    return [
        acl("Block", direction, 100 + i, f"192.0.2.{i % 250}", Protocols="6", LocalPorts=str(i + 1))
        for i in range(count)
    ]


class Edited:
    """A pod that asks, one that answers, and the rules of either; both ends are in both families."""

    def __init__(self, net: NodeNet, node: DaemonProcess) -> None:
        self.node = node
        node.request("POST", "/v2/networks", overlay(subnet6="fd44::/64"))
        conf = node.conf("pods", "10.244.0.0/24", "fd44::/64")
        self.near, self.far = net.pod(), net.pod()
        for name, pod in (("near", self.near), ("far", self.far)):
            node.add(name, pod, conf)
        # in the order of the ADDs
        found = dict(zip(("near", "far"), node.endpoints(), strict=True))
        self.ids = {name: str(value["ID"]) for name, value in found.items()}
        self.addresses = {
            name: [str(item["IpAddress"]) for item in value["IpConfigurations"]]
            for name, value in found.items()
        }

    def change(self, name: str, how: str, *policies: Json) -> None:
        body = {"ResourceType": "Policy", "RequestType": how, "Settings": {"Policies": list(policies)}}
        self.node.request("POST", f"/v2/endpoints/{self.ids[name]}", body)

    def policies(self, name: str) -> list[Json]:
        return list(self.node.request("GET", f"/v2/endpoints/{self.ids[name]}")["Policies"])


@pytest.fixture
def edited(net: NodeNet, node: DaemonProcess) -> Iterator[Edited]:
    made = Edited(net, node)
    with serving(made.far, ECHO, PORT):
        yield made


class Connections:
    """TCP and UDP in both families, all up."""

    def __init__(self, edited: Edited, stack: ExitStack) -> None:
        self._asked = 0
        self._open: dict[socket.socket, bytes] = {}
        for six, kind in itertools.product((False, True), (socket.SOCK_STREAM, socket.SOCK_DGRAM)):
            family = socket.AF_INET6 if six else socket.AF_INET
            with NetNamespace(path_of(edited.near)) as space:
                made = stack.enter_context(space.run(partial(socket.socket, family, kind)))
            made.settimeout(STALL_S)
            made.connect((edited.addresses["far"][six], PORT))
            self._open[made] = b""
        assert self.answered() == len(self._open)

    def answered(self, wait_s: float = STALL_S) -> int:
        """Ask a new question on each; on how many it comes back, whatever comes of earlier ones."""
        self._asked += 1
        question = f"<{self._asked}>".encode()
        for one in self._open:
            one.send(question)
        missing = set(self._open)
        while missing and (ready := select.select(list(missing), [], [], wait_s)[0]):
            for one in ready:
                self._open[one] = (self._open[one] + one.recv(2000))[-2000:]
            missing -= {one for one in ready if question in self._open[one]}
        return len(self._open) - len(missing)


@pytest.mark.parametrize("count", [1, 300], ids=["a few rules", "very many"])
@pytest.mark.parametrize(("judge", "direction", "other"), [("near", "Out", "far"), ("far", "In", "near")])
def test_connections_obey_an_edit(edited: Edited, judge: str, direction: str, other: str, count: int) -> None:
    """A rule that denies what is up holds from the next packet on, over a crash, until it goes; another does not."""
    some = others(direction, count)
    allow = [acl("Allow", direction, 5000), acl("Allow", "In" if direction == "Out" else "Out", 5000)]
    edited.change(judge, "Add", *some, *allow)
    with ExitStack() as stack:
        held = Connections(edited, stack)
        edited.change(judge, "Add", acl("Block", direction, 50, "192.0.2.99", Protocols="6"))
        assert held.answered() == 4
        block = [acl("Block", direction, 60, address) for address in edited.addresses[other]]
        edited.change(judge, "Add", *block)
        assert held.answered(SHORT_S) == 0
        edited.change(judge, "Remove", *block)
        assert held.answered() == 4
        edited.change(judge, "Add", *block)
        edited.node.stop(signal.SIGKILL)
        assert held.answered(SHORT_S) == 0
        edited.node.start()
        assert held.answered(SHORT_S) == 0
        edited.change(judge, "Remove", *block)
        assert held.answered() == 4
    assert edited.node.differences() == []


@pytest.mark.parametrize("count", [1, 300], ids=["a few rules", "very many"])
def test_an_edit_that_changes_nothing_touches_nothing(edited: Edited, count: int) -> None:
    """The same rules again, and beside them what has no meaning here: no entry moves, not even a generation."""
    edited.change("far", "Add", *others("In", count), acl("Allow", "In", 5000))

    def tables() -> dict[str, list[Json]]:
        return {name: edited.node.table(name) for name in TABLES}

    before = tables()
    edited.change("far", "Update", *edited.policies("far"))
    assert tables() == before
    edited.change("far", "Add", {"Type": "NotKnownHere", "Settings": {"Label": "new"}})
    assert tables() == before
    edited.change("far", "Add", acl("Block", "In", 50, "192.0.2.99"))
    assert tables() != before


def datagrams(namespace: str, address: str) -> socket.socket:
    with NetNamespace(path_of(namespace)) as there:
        opened = there.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    opened.settimeout(STALL_S)
    opened.bind((address, PORT))
    return opened


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_pod_with_the_address_of_one_that_has_gone(
    net: NodeNet, node: DaemonProcess, how: signal.Signals
) -> None:
    """After a restart, too, the flows of that one are not for it: what its own rules forbid does not leave."""
    node.request("POST", "/v2/networks", overlay())
    address, to = "10.244.0.77", (ROUTER_IP, PORT)
    allowed = node.conf(runtimeConfig={"ips": [f"{address}/24"]}, capabilities={"ips": True})
    rule = {"name": "EndpointPolicy", "value": acl("Block", "Out", 10)}
    denied = {**allowed, "policies": [*allowed["policies"], rule]}

    def pod_of(generation: int, conf: Json) -> tuple[str, int]:
        """The first one of this generation, or of a later one."""
        while True:
            pod = net.pod()
            node.add("pod", pod, conf)
            (row,) = node.table("sw_ports")
            if row["value"]["generation"] >= generation:
                return pod, row["value"]["generation"]
            node.delete("pod", pod, conf)

    with datagrams(net.router, ROUTER_IP) as server, datagrams(net.node, NODE_IP) as last:
        pod, generation = pod_of(10, allowed)
        with datagrams(pod, address) as client:
            client.sendto(b"the first's", to)
        assert server.recv(100) == b"the first's"
        node.delete("pod", pod, allowed)
        node.stop(how)
        node.start()
        pod, _ = pod_of(generation, denied)
        with datagrams(pod, address) as client:
            client.sendto(b"another's", to)
        last.sendto(b"no more", to)
        assert server.recv(100) == b"no more"
