"""What hits services hard: thousands of changes with a crash among them, ports and addresses that were somebody's."""

from __future__ import annotations

import random
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.api_node import NODE_PORT, PORT, PORTS, TWINS, VIP, far
from tests.support.churn import ENDED, FAR, MANY, Churn
from tests.support.crowd import answering, crowds, endpoint
from tests.support.node import NODE_IP, NODE_IP6, poll

pytestmark = pytest.mark.root

CHANGES = 2000
SERVICES = 200


class Storm:
    """Services that come, go, change their ports, addresses and backends; what they ought to be now."""

    def __init__(self, churn: Churn, seed: int) -> None:
        self.world = churn.world
        self.chance = random.Random(seed)
        self.backends: dict[str, list[str]] = {}
        self.ports: dict[str, int] = {}

    def blow(self) -> None:
        """One change."""
        name = f"s{self.chance.randrange(SERVICES)}"
        what = self.chance.choice(("endpoints", "endpoints", "endpoints", "ports", "gone"))
        if name not in self.backends or what == "ports":
            self.ports[name] = self.chance.randrange(80, 90)
            port = {"name": "http", "port": self.ports[name], "protocol": "TCP"}
            self.world.service(name, vip_of(name), type="ClusterIP", ports=[port])
            self.backends.setdefault(name, [])
        elif what == "gone":
            self.world.api.delete("services", name)
            if self.backends.pop(name):
                self.world.remove_endpoints("all", name)
        else:
            wanted = [
                far(number) for number in self.chance.sample(range(100, 140), self.chance.randint(1, 4))
            ]
            self.world.endpoints("all", *map(endpoint, wanted), of=name)
            self.backends[name] = wanted

    def wanted(self) -> dict[str, tuple[str, int, set[str]]]:
        """Address, port and backends by service."""
        return {
            name: (vip_of(name), self.ports[name], {f"{address}:{PORT}" for address in backends})
            for name, backends in self.backends.items()
        }

    def found(self) -> dict[str, tuple[str, int, set[str]]]:
        """The same, as the switch has it, beside what drains."""
        return {
            one["name"]: (
                address["address"],
                address["port"],
                {f"{b['address']}:{b['port']}" for b in address.get("backends", ()) if not b.get("draining")},
            )
            for one in self.world.node.request("GET", "/v2/services")
            if one["name"] != "web"
            for address in one.get("addresses", ())
        }


def vip_of(name: str) -> str:
    return f"10.96.1.{int(name[1:]) + 1}"


def test_two_thousand_changes_and_a_crash_move_nothing(churn: Churn, tmp_path: Path) -> None:
    """1,000 connections and datagrams all the time to a service that is edited, but keeps its backends."""
    churn.publish(*churn.near, *FAR)
    storm = Storm(churn, 7)
    with ExitStack() as stack:
        held = stack.enter_context(churn.pod.open(MANY, VIP, 80))
        outside = stack.enter_context(churn.outside.open(100, NODE_IP, NODE_PORT))
        busy = stack.enter_context(crowds(churn.client, twins=TWINS)).open(60, VIP, 80, "udp")
        stack.enter_context(busy)
        with busy.asking(tmp_path / "flag") as heard:
            for number in range(CHANGES):
                storm.blow()
                if number % 100 == 0:
                    churn.world.service(annotations={"example.org/change": str(number)})
                if number == CHANGES // 2:
                    churn.world.node.stop(signal.SIGKILL)
                if number == CHANGES // 2 + 200:
                    churn.world.node.start()
            poll("all of it is in the switch", lambda: storm.found() == storm.wanted())
        assert heard == busy.first
        held.expect()
        outside.expect()


def test_an_address_that_gets_other_ports_in_one_event(churn: Churn) -> None:
    """A Service is deleted and another one made with its cluster IP and node port, before anybody has looked."""
    world = churn.world
    churn.publish(*FAR[:2])
    later = [{**PORTS[0], "port": 8000}, {**PORTS[0], "port": 80, "name": "more", "nodePort": NODE_PORT + 1}]
    world.endpoints("all", endpoint(FAR[2]), of="later")
    with churn.pod.open(50, VIP, 80) as held, churn.outside.open(50, NODE_IP, NODE_PORT) as outside:
        process = world.node.process
        assert process is not None
        process.send_signal(signal.SIGSTOP)
        world.api.delete("services", "web")
        ports = [{**port, "name": name} for port, name in zip(later, ("http", "more"), strict=True)]
        world.service("later", VIP, ports=ports)
        process.send_signal(signal.SIGCONT)
        poll(
            "the later one",
            lambda: [one["name"] for one in world.node.request("GET", "/v2/services")] == ["later"],
        )
        for crowd in (held, outside):
            crowd.expect(*FAR[:2])
    with churn.pod.open(20, VIP, 8000) as new, churn.outside.open(20, NODE_IP, NODE_PORT) as outside:
        assert new.addresses | outside.addresses == {FAR[2]}


def test_a_node_port_at_which_a_process_of_the_node_listens(churn: Churn) -> None:
    """The service has it for who comes now; what the process has goes on, and it has the port again afterwards."""
    world = churn.world
    with ExitStack() as stack:
        stack.enter_context(answering(world.net.node, "process", NODE_PORT))
        clients = (churn.outside, churn.pod)
        before = [stack.enter_context(client.open(20, NODE_IP, NODE_PORT)) for client in clients]
        churn.publish(*FAR[:2])
        now = [stack.enter_context(client.open(20, NODE_IP, NODE_PORT)) for client in clients]
        for old, new in zip(before, now, strict=True):
            assert old.addresses == {NODE_IP, NODE_IP6}
            assert new.addresses <= set(FAR[:2])
            old.expect()
        world.clear()
        for old, new in zip(before, now, strict=True):
            new.expect(*FAR[:2], ends_with=ENDED)
            old.expect()
        for client in clients:
            assert stack.enter_context(client.open(5, NODE_IP, NODE_PORT)).addresses == {NODE_IP, NODE_IP6}


def test_a_connection_of_the_nodes_own_from_a_port_that_becomes_a_node_port(churn: Churn) -> None:
    """What comes back to it is not for the service."""
    with churn.host.open(1, FAR[0], PORT, source=NODE_PORT) as own:
        churn.publish(*FAR[1:3])
        own.expect()
        assert own.addresses == {FAR[0]}
