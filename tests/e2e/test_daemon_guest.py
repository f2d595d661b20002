"""The node's own traffic and settings while Samewire comes, works and goes: nothing is lost, nothing is another one."""

from __future__ import annotations

import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

import pytest

from samewire.kernel.netns import NetNamespace
from tests.support.node import (
    NODE_IP,
    NODE_IP6,
    ROUTER_IP,
    ROUTER_IP6,
    STALL_S,
    DaemonProcess,
    Json,
    NodeNet,
    in_namespace,
    ip,
    ip_json,
    overlay,
    path_of,
    poll,
)

pytestmark = pytest.mark.root

PORT: Final = 7000
EVERY_S: Final = 0.005
UPLINK = {
    "192.168.77.0/24": ROUTER_IP,
    "fd77::/64": ROUTER_IP6,
}
OWN = {"10.50.0.0/24": "10.50.0.1", "fd50::/64": "fd50::1"}


class Questions:
    """Datagrams with numbers to an address, one every few milliseconds, and those that have been answered."""

    def __init__(self, asker: str, answerer: str, address: str) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.server, self.client = (_opened(name, family) for name in (answerer, asker))
        self.server.bind((address, PORT))
        self.client.connect((address, PORT))
        self.asked = 0
        self.missing: set[int] = set()

    def ask(self) -> None:
        """One more."""
        self.missing.add(self.asked)
        with suppress(OSError):  # no way there: lost
            self.client.send(self.asked.to_bytes(4, "big"))
        self.asked += 1

    def answer(self) -> None:
        """One that has come."""
        data, peer = self.server.recvfrom(4)
        self.server.sendto(data, peer)

    def hear(self) -> None:
        """An answer to one."""
        self.missing.discard(int.from_bytes(self.client.recv(4), "big"))


def _opened(namespace: str, family: int) -> socket.socket:
    with NetNamespace(path_of(namespace)) as space:
        made = space.run(lambda: socket.socket(family, socket.SOCK_DGRAM))
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    return made


@contextmanager
def nothing_lost(*lines: Questions) -> Iterator[None]:
    """Both ends of all lines are served meanwhile; every question is answered in the end."""
    over = threading.Event()
    ready: dict[socket.socket, Callable[[], None]] = {}
    for line in lines:
        ready |= {line.server: line.answer, line.client: line.hear}

    def serve() -> None:
        while not over.is_set():
            for line in lines:
                line.ask()
            while found := select.select(list(ready), [], [], EVERY_S)[0]:
                for one in found:
                    ready[one]()
        while found := select.select(list(ready), [], [], STALL_S if any(x.missing for x in lines) else 0)[0]:
            for one in found:
                ready[one]()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        for one in ready:
            one.close()
    for line in lines:
        assert line.asked > 10
        assert line.missing == set(), f"{len(line.missing)} of {line.asked} are lost"


def network(kind: str, subnets: dict[str, str]) -> Json:
    """A network of both families."""
    found = [
        {
            "IpAddressPrefix": prefix,
            "Routes": [{"NextHop": via, "DestinationPrefix": "::/0" if ":" in via else "0.0.0.0/0"}],
        }
        for prefix, via in subnets.items()
    ]
    return {"Name": kind, "Type": kind, "SchemaVersion": {"Major": 2}, "Ipams": [{"Subnets": found}]}


NETWORKS = {
    "Overlay": overlay("Overlay", "10.50.0.0/24", subnet6="fd50::/64"),
    **{kind: network(kind, UPLINK) for kind in ("L2Bridge", "Transparent")},
    **{kind: network(kind, OWN) for kind in ("NAT", "Internal", "Private")},
}


def looks(net: NodeNet) -> tuple[str, ...]:
    """Everything about the uplink that somebody could have set."""
    show = [
        ip("address", "show", "dev", "eth0", netns_name=net.node),
        *(
            ip(family, "route", "show", "table", "all", "dev", "eth0", netns_name=net.node)
            for family in ("-4", "-6")
        ),
        *(ip(family, "rule", netns_name=net.node) for family in ("-4", "-6")),
        in_namespace(net.node, "ethtool", "-k", "eth0").stdout,
    ]
    settings = in_namespace(net.node, "sysctl", "-a", "--pattern", r"^net\.").stdout.splitlines()
    kept = [line for line in settings if "ip_local_reserved_ports" not in line and ".samewire" not in line]
    return (*show, "\n".join(line for line in kept if ".swvxlan" not in line and ".sw" not in line))


def test_a_guest_on_the_node(net: NodeNet, unstarted: DaemonProcess) -> None:
    """From the first start to the removal: networks of every type with a pod each, a crash, a start after it."""
    node = unstarted
    poll("the uplink's own address is settled", lambda: "tentative" not in looks(net)[0])
    before = looks(net)
    lines = [
        Questions(net.router, net.node, NODE_IP),
        Questions(net.router, net.node, NODE_IP6),
        Questions(net.node, net.router, ROUTER_IP),
        Questions(net.node, net.router, ROUTER_IP6),
    ]
    with nothing_lost(*lines):
        node.start()
        assert looks(net) == before, "started"
        for kind, body in NETWORKS.items():
            made = node.request("POST", "/v2/networks", body)["ID"]
            pod = net.pod()
            conf: Json = {"cniVersion": "1.1.0", "name": kind, "type": "samewire-cni"}
            node.add(kind, pod, conf)
            assert looks(net) == before, kind
            if kind == "L2Bridge":
                node.stop(signal.SIGKILL)
                node.start()
                assert looks(net) == before, "after a crash"
            node.delete(kind, pod, conf)
            node.request("DELETE", f"/v2/networks/{made}")
            assert looks(net) == before, f"{kind} is deleted"
        node.stop()
        code = "from samewire.cli.node import uninstall; uninstall()"
        in_namespace(net.node, sys.executable, "-c", code, "--config", str(node.config), "--purge")
    assert looks(net) == before, "uninstalled"
    assert {link["ifname"] for link in ip_json("link", netns_name=net.node)} == {"lo", "eth0"}
