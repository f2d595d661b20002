"""The order of rules, with packets: tiers, network and endpoint, in and out, against the order as the docs have it."""

from __future__ import annotations

import itertools
import random
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from samewire.hcn.policies import ACL, AclAction, AclDirection, NetworkACL, Policy, TierAcl, TierAclRule
from samewire.vfp.constants import Layer, Reason
from tests.kernel.test_switch_acl import World
from tests.support.acl_oracle import Packet, judge
from tests.support.netlab import Lab, poll
from tests.support.node_rig import Pod
from tests.support.traffic import bound, family_of

pytestmark = [pytest.mark.root]

PORTS = (80, 81, 82, 83)
SOURCES = (9000, 9001)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with Lab() as lab:
        yield World(lab)


class Chance:
    """Random policies over so few values that their rules meet."""

    def __init__(self, seed: int, addresses: list[str]) -> None:
        self._random = random.Random(seed)
        self._addresses = ["", "", *addresses]
        self._ids = itertools.count()

    def _fields(self) -> dict[str, Any]:
        pick = self._random.choice
        low, high = sorted(self._random.choices(PORTS, k=2))
        return {
            "protocols": pick(("", "17", "6", "17,6")),
            "local_ports": pick(("", f"{low}-{high}", str(low))),
            "remote_ports": pick(("", "", "9000", f"{low}-{high}")),
            "remote_addresses": pick(self._addresses),
            "local_addresses": pick(self._addresses),
            "priority": self._random.randrange(3),
        }

    def _action(self) -> AclAction:
        return self._random.choice((AclAction.ALLOW, AclAction.ALLOW, AclAction.BLOCK, AclAction.PASS))

    def _direction(self) -> AclDirection:
        return self._random.choice(tuple(AclDirection))

    def network(self) -> list[Policy]:
        """Rules for all endpoints."""
        return [
            NetworkACL(action=self._action(), direction=self._direction(), **self._fields())
            for _ in range(self._random.randrange(3))
        ]

    def endpoint(self) -> list[Policy]:
        """Rules and tiers of one endpoint, in any order."""
        made: list[Policy] = [
            ACL(action=self._action(), direction=self._direction(), **self._fields())
            for _ in range(self._random.randrange(4))
        ]
        for _ in range(self._random.randrange(4)):
            rules = [
                TierAclRule(tier_acl_rule_action=self._action(), **self._fields())
                for _ in range(self._random.randrange(1, 4))
            ]
            made.append(
                TierAcl(
                    name=f"tier {next(self._ids)}",
                    direction=self._direction(),
                    order=self._random.randrange(3),
                    tier_acl_rules=tuple(rules),
                )
            )
        self._random.shuffle(made)
        return made


def verdict(world: World, client: Pod, server: Pod, packet: Packet) -> str:
    """What becomes of one datagram: it arrives, or which side has dropped it."""
    dropped = {
        "out": (client.port, Layer.ACL_OUT, Reason.BLOCKED),
        "in": (server.port, Layer.ACL_IN, Reason.BLOCKED),
    }
    before = world.node.drops()
    found: list[str] = []
    with (
        bound(server.space, socket.SOCK_DGRAM, packet.destination, packet.destination_port) as far,
        client.space.socket(family_of(packet.source), socket.SOCK_DGRAM) as near,
    ):
        near.bind((packet.source, packet.source_port))
        near.sendto(b"here", (packet.destination, packet.destination_port))
        far.setblocking(False)

        def decided() -> bool:
            try:
                far.recv(10)
                found.append("arrives")
            except BlockingIOError:
                after = world.node.drops()
                found.extend(side for side, key in dropped.items() if after.get(key, 0) > before.get(key, 0))
            return bool(found)

        poll("a verdict", decided)
    return found[0]


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("seed", range(8))
def test_the_order_of_rules(world: World, seed: int, family: int) -> None:
    """Each datagram begins a connection: its client's rules out are asked, then its server's rules in."""
    pods = world.pods[:2]
    addresses = [pod.address(family) for pod in pods]
    chance = Chance(seed * 10 + family, addresses)
    seen: set[str] = set()
    for _ in range(4):
        network = chance.network()
        world.network_policies(*network)
        policies = [chance.endpoint() for _ in pods]
        for pod, own in zip(pods, policies, strict=True):
            world.node.policies(pod, *own)
        for port, source, (client, server) in itertools.product(PORTS, SOURCES, ((0, 1), (1, 0))):
            packet = Packet(17, addresses[client], addresses[server], source, port)
            if not judge(AclDirection.OUT, network, policies[client], packet).passes:
                wanted = "out"
            elif not judge(AclDirection.IN, network, policies[server], packet).passes:
                wanted = "in"
            else:
                wanted = "arrives"
            assert verdict(world, pods[client], pods[server], packet) == wanted, (packet, network, policies)
            seen.add(wanted)
    world.clear()
    assert len(seen) > 1
