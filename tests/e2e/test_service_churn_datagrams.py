"""Datagrams, and addresses that change hands: what belonged to a backend that is gone goes elsewhere, or ends."""

from __future__ import annotations

import signal
from contextlib import ExitStack

import pytest

from tests.support.api_node import NODE_PORT, PORT, VIP
from tests.support.churn import ENDED, FAR, Churn
from tests.support.crowd import endpoint, who
from tests.support.node import NODE_IP

pytestmark = pytest.mark.root

SENDERS = 100  # so many that none of six backends is missed by chance


def test_datagrams_to_a_removed_backend_go_elsewhere_at_once(churn: Churn) -> None:
    """Senders that never change their port, everywhere; those of other backends stay where they are."""
    backends = [*churn.near, *FAR[:3]]
    churn.publish(*backends)
    with ExitStack() as stack:
        told = stack.enter_context(churn.host.open(SENDERS, VIP, 80, "udp"))
        silent = [
            stack.enter_context(opened)
            for opened in (
                churn.pod.open(SENDERS, VIP, 80, "udp"),
                churn.pod.open(SENDERS, NODE_IP, NODE_PORT, "udp", connected=False),
                churn.host.open(SENDERS, VIP, 80, "udp", connected=False),
                churn.host.open(SENDERS, "127.0.0.1", NODE_PORT, "udp", connected=False),
                churn.outside.open(SENDERS, NODE_IP, NODE_PORT, "udp"),
                churn.outside.open(SENDERS, NODE_IP, NODE_PORT, "udp", connected=False),
            )
        ]
        for crowd in (told, *silent):
            assert crowd.addresses == set(backends)
        gone = {churn.near[0], FAR[0]}
        churn.backends(*(address for address in backends if address not in gone))
        for crowd in silent:
            for before, after in zip(crowd.first, crowd.ask(), strict=True):
                assert who(after) not in gone
                assert (before == after) == (who(before) not in gone)
        told.expect(*gone, ends_with=frozenset({"EDESTADDRREQ", "ECONNABORTED"}))
        # as an application does that is told: it connects again, with the socket that it has
        for before, after in zip(told.first, told.mend(), strict=True):
            assert who(after) not in gone
            assert (before == after) == (who(before) not in gone)


def test_one_backend_none_and_one_again(churn: Churn) -> None:
    """Datagrams are refused in between, and go on afterwards, all from the same ports."""
    churn.publish(churn.near[0])
    with ExitStack() as stack:
        host = stack.enter_context(churn.host.open(2, VIP, 80, "udp"))
        loose = stack.enter_context(churn.host.open(2, VIP, 80, "udp", connected=False))
        pod = stack.enter_context(churn.pod.open(1, VIP, 80, "udp", source=45000))
        outside = stack.enter_context(churn.outside.open(2, NODE_IP, NODE_PORT, "udp"))
        churn.backends()
        for crowd in (loose, pod, outside):
            assert set(crowd.ask()) == {"ECONNREFUSED"}
        assert set(host.ask()) <= {"EDESTADDRREQ", "ECONNABORTED"}
        assert set(host.connect_again()) == {"ECONNREFUSED"}
        for client, where in ((churn.pod, VIP), (churn.host, VIP), (churn.outside, NODE_IP)):
            port = 80 if where == VIP else NODE_PORT
            with client.open(1, where, port, "tcp") as refused:
                assert refused.first == ["ECONNREFUSED"] * 2
        churn.backends(FAR[0])
        for crowd in (loose, pod, outside):
            assert {who(answer) for answer in crowd.ask()} == {FAR[0]}
        assert set(host.connect_again()) == {"connected"}
        assert {who(answer) for answer in host.ask()} == {FAR[0]}


@pytest.mark.parametrize("fault", ["kill", "EIO"])
def test_a_connected_socket_is_ended_at_the_latest_by_the_next_start(churn: Churn, fault: str) -> None:
    """The daemon dies over it, or the kernel refuses; sockets that go to the pod itself are nobody's business."""
    world = churn.world
    churn.publish(FAR[0], FAR[1])
    with churn.host.open(20, VIP, 80, "udp") as held, churn.host.open(3, FAR[0], PORT, "udp") as direct:
        world.node.stop(signal.SIGKILL)
        world.node.start({"SAMEWIRE_TEST_FAULT": f"end a connected socket|{fault}|1"})
        world.settle()
        world.endpoints("all", endpoint(FAR[1]))
        if fault == "kill":
            world.node.wait_dead()
        else:
            world.wait_for(FAR[1])
            kept = {before for before, now in zip(held.first, held.ask(), strict=True) if now == before}
            assert FAR[0] in map(who, kept), "one family's, or both where both slices are one change"
            world.node.stop(signal.SIGKILL)
        world.node.start()
        world.wait_for(FAR[1])
        held.expect(FAR[0], ends_with=frozenset({"EDESTADDRREQ", "ECONNABORTED"}))
        direct.expect()


def test_an_address_that_another_pod_gets(churn: Churn) -> None:
    """A far pod is replaced within one event, by one with the same address: old flows are not for the new pod."""
    world = churn.world
    world.service()
    world.endpoints("all", endpoint(FAR[0], uid="one"), endpoint(FAR[1], uid="other"))
    world.wait_for(*FAR[:2])
    with churn.pod.open(100, VIP, 80) as held, churn.outside.open(40, NODE_IP, NODE_PORT) as outside:
        world.endpoints("all", endpoint(FAR[0], uid="two"), endpoint(FAR[1], uid="other"))
        world.settle()
        held.expect(FAR[0], ends_with=ENDED)
        outside.expect(FAR[0], ends_with=ENDED)
    # the same while nobody watches: only a list shows it, and only to the next daemon
    with churn.pod.open(100, VIP, 80) as held:
        world.node.stop(signal.SIGKILL)
        world.endpoints("all", endpoint(FAR[0], uid="three"), endpoint(FAR[1], uid="other"))
        world.node.start()
        world.settle()
        held.expect(FAR[0], ends_with=ENDED)
        with churn.pod.open(40, VIP, 80) as new:
            assert new.addresses == set(FAR[:2])


def test_an_address_that_another_pod_of_the_node_gets(churn: Churn) -> None:
    """The runtime replaces the pod before Kubernetes has said anything of it."""
    world = churn.world
    first, address = world.pod("first", server="first")
    churn.publish(address, churn.near[1])
    churn.near.append(address)
    with churn.pod.open(60, VIP, 80) as held, churn.pod.open(40, VIP, 80, "udp") as datagrams:
        assert datagrams.addresses == {address, churn.near[1]}
        world.remove("first", first)
        _, again = world.pod("second", server="second", address=address)
        assert again == address
        held.expect(address, ends_with=ENDED)
        churn.backends(churn.near[1])
        assert {who(answer) for answer in datagrams.ask()} == {churn.near[1]}
