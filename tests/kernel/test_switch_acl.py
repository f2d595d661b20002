"""ACLs on real packets: IP sets and their members, nested sets, tiers, the network's rules, and rule counters."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pytest
from msgspec.structs import replace

from samewire.hcn.policies import (
    ACL,
    AclAction,
    AclDirection,
    NetworkACL,
    Policy,
    SetPolicy,
    SetType,
    TierAcl,
    TierAclRule,
)
from samewire.hcn.schema import NetworkType
from samewire.vfp.compile import compile_sets
from samewire.vfp.constants import Counter, Layer, Reason
from samewire.vfp.tables import Count, RuleCountKey
from tests.support.netlab import Lab, poll
from tests.support.node_rig import Node, Pod
from tests.support.traffic import bound, echo_over, ping, tcp, tcp_pair, udp
from tests.support.worlds import Underlay, own

pytestmark = [pytest.mark.root, pytest.mark.kernelcore]


class World:
    """A node with a network and three pods."""

    def __init__(self, lab: Lab) -> None:
        self.node: Node = Underlay(lab).node(11)
        self.network = self.node.network(own(NetworkType.NAT, 8))
        self.pods = [self.node.pod(self.network, f"10.8.0.{i}", f"fd08::{i}") for i in (10, 11, 12)]

    def network_policies(self, *policies: Policy) -> None:
        """Give the network these sets and rules, beside what it has."""
        network = replace(self.network, policies=(*self.network.policies, *policies))
        self.node.generation += 1
        compiled = compile_sets(network, self.node.generation)
        for pod in self.pods:
            pod.network = network
        self.node.apply(self.node.owned.replace(("sets", network.id), compiled.entries))

    def clear(self) -> None:
        """No rules and no sets."""
        for pod in self.pods:
            self.node.policies(pod)
        self.network_policies()


@pytest.fixture(scope="module")
def worlds() -> Iterator[World]:
    with Lab() as lab:
        yield World(lab)


@pytest.fixture
def world(worlds: World) -> Iterator[World]:
    yield worlds
    worlds.clear()


def allow(direction: AclDirection = AclDirection.IN, **fields: Any) -> ACL:
    return ACL(action=AclAction.ALLOW, direction=direction, **fields)


def block(direction: AclDirection = AclDirection.IN, **fields: Any) -> ACL:
    return ACL(action=AclAction.BLOCK, direction=direction, **fields)


def tier(order: int, *rules: tuple[AclAction, str]) -> TierAcl:
    made = tuple(
        TierAclRule(tier_acl_rule_action=action, protocols="6", local_ports=ports, priority=place)
        for place, (action, ports) in enumerate(rules)
    )
    return TierAcl(name=f"tier {order}", direction=AclDirection.IN, order=order, tier_acl_rules=made)


def ips(name: str, *pods: Pod) -> SetPolicy:
    return SetPolicy(
        set_id=name, values=",".join(address for pod in pods for address in pod.endpoint.addresses)
    )


def is_let_in(world: World, client: Pod, server: Pod, port: int = 80, family: int = 4) -> bool:
    """One datagram: arrived, or dropped and counted."""
    to = server.address(family)
    before = world.node.drops()
    with (
        bound(server.space, socket.SOCK_DGRAM, to, port) as far,
        bound(client.space, socket.SOCK_DGRAM, client.address(family)) as near,
    ):
        near.sendto(b"here", (to, port))
        far.setblocking(False)
        verdict: list[bool] = []

        def decided() -> bool:
            try:
                verdict.append(far.recv(10) == b"here")
            except BlockingIOError:
                dropped = world.node.dropped(server.port, Layer.ACL_IN, Reason.BLOCKED)
                if dropped > before.get((server.port, Layer.ACL_IN, Reason.BLOCKED), 0):
                    verdict.append(False)
            return bool(verdict)

        poll("verdict", decided)
    return verdict[0]


@pytest.mark.parametrize("family", [4, 6])
def test_members_come_and_go(world: World, family: int) -> None:
    """Who is in the set is let in; no port is touched when a member changes."""
    client, stranger, server = world.pods
    world.network_policies(ips("clients", client))
    # A rule that names sets has its sources in LocalAddresses.
    world.node.policies(server, allow(local_addresses="clients", protocols="17"))
    port = world.node.owned.entries(("endpoint", server.endpoint.id))["sw_ports"]
    assert is_let_in(world, client, server, family=family)
    assert not is_let_in(world, stranger, server, family=family)
    world.network_policies(ips("clients", client, stranger))
    assert is_let_in(world, stranger, server, family=family)
    world.network_policies(ips("clients", stranger))
    assert not is_let_in(world, client, server, family=family)
    assert world.node.owned.entries(("endpoint", server.endpoint.id))["sw_ports"] == port


def test_a_connection_ends_when_its_client_leaves_the_set(world: World) -> None:
    """And goes on when others do, after one more look."""
    client, other, server = world.pods
    node = world.node
    world.network_policies(ips("clients", client, other))
    node.policies(server, allow(local_addresses="clients", protocols="6"))
    with tcp_pair(client.space, server.space, server.ip, 81) as (near, far):
        echo_over(near, far)
        redecided = node.counter(Counter.FLOW_REDECIDED)
        world.network_policies(ips("clients", client))
        echo_over(near, far)
        assert node.counter(Counter.FLOW_REDECIDED) > redecided
        redecided = node.counter(Counter.FLOW_REDECIDED)
        echo_over(near, far)
        assert node.counter(Counter.FLOW_REDECIDED) == redecided, "one decision a change"
        world.network_policies(ips("clients", other))
        before = node.dropped(server.port, Layer.ACL_IN, Reason.BLOCKED)
        near.send(b"after the change")
        poll("drop", lambda: node.dropped(server.port, Layer.ACL_IN, Reason.BLOCKED) > before)
        world.network_policies(ips("clients", client))
        assert far.recv(100) == b"after the change"  # sent again by the kernel


def test_nested_sets_prefixes_and_destinations(world: World) -> None:
    client, stranger, server = world.pods
    nested = SetPolicy(set_id="all", policy_type=SetType.NESTEDIPSET, values="ranges,nobody")
    ranges = SetPolicy(set_id="ranges", values="10.8.0.8/29")
    hole = ips("hole", stranger)
    world.network_policies(ranges, SetPolicy(set_id="nobody"), nested, hole)
    world.node.policies(
        server,
        block(local_addresses="hole", priority=1),
        allow(local_addresses="all", priority=2),
    )
    assert is_let_in(world, client, server)
    assert not is_let_in(world, stranger, server)
    # Out: the destination's sets in RemoteAddresses, of the pod that sends.
    world.node.policies(server)
    world.node.policies(
        client, block(AclDirection.OUT, remote_addresses="hole"), allow(AclDirection.OUT, priority=9)
    )
    assert is_let_in(world, client, server)
    with pytest.raises(TimeoutError):
        ping(client.space, stranger.ip, wait_s=1.0)


def _more(count: Callable[[], int], than: int) -> bool:
    return count() > than


def test_tiers_pass_to_the_list(world: World) -> None:
    client, _, server = world.pods
    world.node.policies(
        server,
        tier(2, (AclAction.BLOCK, "81")),
        tier(1, (AclAction.ALLOW, "80"), (AclAction.PASS, "81-90")),
        block(local_ports="82", protocols="6", priority=1),
        allow(priority=2),
    )
    tcp(client.space, server.space, server.ip, 80)
    tcp(client.space, server.space, server.ip, 83)
    for port in (81, 82):
        with client.space.socket(socket.AF_INET, socket.SOCK_STREAM) as near:
            drops = partial(world.node.dropped, server.port, Layer.ACL_IN, Reason.BLOCKED)
            before = drops()
            near.setblocking(False)
            near.connect_ex((server.ip, port))
            poll("drop", partial(_more, drops, before))
    udp(client.space, server.space, server.ip, 90)


def test_rules_of_the_network_are_every_endpoints(world: World) -> None:
    client, _, server = world.pods
    blocked = NetworkACL(
        action=AclAction.BLOCK, direction=AclDirection.IN, protocols="17", local_ports="53", priority=5
    )
    world.network_policies(blocked)
    world.node.policies(server, allow(priority=6))
    assert not is_let_in(world, client, server, 53)
    assert is_let_in(world, client, server, 54)
    world.node.policies(server, allow(priority=4))
    assert is_let_in(world, client, server, 53)


def test_rules_are_counted(world: World) -> None:
    client, _, server = world.pods
    world.node.policies(
        server, allow(local_ports="80", protocols="17"), block(local_ports="81", protocols="17")
    )
    for port in (80, 81, 82, 80):
        is_let_in(world, client, server, port)
    found = world.node.map("sw_rule_counts")
    counts = {
        RuleCountKey.unpack(key).rule: sum(Count.unpack(one).value for one in found.per_cpu_values(value))
        for key, value in found.items()
        if RuleCountKey.unpack(key).port == server.port
    }
    assert counts[1] >= 2
    assert counts[2] >= 1
    assert set(counts) >= {1, 2}
    assert 0 not in counts


def _many(count: int) -> Sequence[Policy]:
    rules = [
        block(
            remote_addresses=f"10.{i // 250}.{i % 250}.0/24",
            local_ports=str(1000 + i),
            protocols="6",
            priority=i,
        )
        for i in range(count - 1)
    ]
    return [*rules, allow(remote_addresses="10.8.0.10", protocols="17", local_ports="80", priority=count)]


def test_four_thousand_rules(world: World) -> None:
    client, stranger, server = world.pods
    world.node.policies(server, *_many(4000))
    assert is_let_in(world, client, server)
    assert not is_let_in(world, stranger, server)
    assert not is_let_in(world, client, server, 81)
