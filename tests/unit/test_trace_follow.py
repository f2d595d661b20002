"""A trace over several nodes."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from samewire.errors import Unavailable
from samewire.hcn.errors import HcnError
from samewire.trace.follow import Daemons, follow
from samewire.trace.model import TraceAnswer, TraceRequest, TunnelView, TupleView, UplinkView
from tests.support.tools import INFOS, StubDaemon

REQUEST = TraceRequest(origin="client", destination="10.244.2.9", port=80)
ENDS = TupleView(
    protocol="tcp", source="10.244.1.6", source_port=40000, destination="10.244.2.9", destination_port=80
)
DELIVERED = TraceAnswer(
    node="n", arrival="pod", received=ENDS, steps=(), fate="port", sent=ENDS, frame="aabb", endpoint=INFOS[0]
)
TUNNELLED = replace(
    DELIVERED,
    fate="tunnel",
    endpoint=None,
    tunnel=TunnelView(
        provider_address="192.168.1.11",
        local_address="192.168.1.10",
        vni=4096,
        inner_mac="02-BB-00-00-00-02",
    ),
)
LEAVING = replace(
    DELIVERED, fate="uplink", endpoint=None, uplink=UplinkView(interface="eth0", next_hop="192.168.1.1")
)
PEERS = {"192.168.1.10": "n1", "192.168.1.11": "n2"}


class Nodes:
    """Answers by socket, in order."""

    def __init__(self, **answers: list[TraceAnswer]) -> None:
        self.answers = answers
        self.asked: list[tuple[str, TraceRequest]] = []
        self.pods: dict[str, str] = {}

    def trace(self, socket: str, request: TraceRequest) -> TraceAnswer:
        self.asked.append((socket, request))
        if not self.answers.get(socket):
            raise Unavailable(socket, "gone")
        return self.answers[socket].pop(0)

    def has_endpoint(self, socket: str, address: str) -> bool:
        return self.pods.get(address) == socket


def test_one_node() -> None:
    nodes = Nodes(n1=[DELIVERED])
    trail = follow("n1", REQUEST, PEERS, nodes)
    assert (trail.hops, trail.end, trail.arrived) == ((DELIVERED,), "", True)
    assert nodes.asked == [("n1", REQUEST)]


def test_the_far_node_gets_what_the_tunnel_carries() -> None:
    nodes = Nodes(n1=[TUNNELLED], n2=[DELIVERED])
    trail = follow("n1", REQUEST, PEERS, nodes)
    assert trail.hops == (TUNNELLED, DELIVERED)
    assert trail.end == ""
    arrival = TraceRequest(arrival="tunnel", vni=4096, tunnel_source="192.168.1.10", frame="aabb")
    assert nodes.asked[1] == ("n2", arrival)


def test_dropped_on_the_far_node() -> None:
    dropped = replace(DELIVERED, fate="dropped")
    assert not follow("n1", REQUEST, PEERS, Nodes(n1=[TUNNELLED], n2=[dropped])).arrived


def test_a_node_that_is_not_known() -> None:
    trail = follow("n1", REQUEST, {}, Nodes(n1=[TUNNELLED]))
    assert trail.end == "192.168.1.11 is not among the nodes that can be asked"
    assert trail.arrived


def test_a_far_node_that_does_not_answer() -> None:
    trail = follow("n1", REQUEST, PEERS, Nodes(n1=[TUNNELLED]))
    assert trail.hops == (TUNNELLED,)
    assert trail.end.startswith("the far node did not answer: n2 is unavailable")


def test_the_first_node_must_answer() -> None:
    with pytest.raises(Unavailable):
        follow("n1", REQUEST, PEERS, Nodes())


def test_out_into_the_world() -> None:
    trail = follow("n1", REQUEST, PEERS, Nodes(n1=[LEAVING]))
    assert (trail.hops, trail.end) == ((LEAVING,), "")


@pytest.mark.parametrize(
    ("next_hop", "destination"),
    [
        ("192.168.1.11", "192.168.1.11"),
        ("192.168.1.1", "192.168.1.11"),
        ("192.168.1.11", "10.9.9.9"),
        ("192.168.1.77", "192.168.1.77"),
        ("192.168.1.1", "192.168.1.77"),
    ],
)
def test_over_the_underlay(next_hop: str, destination: str) -> None:
    """To a node's own address (a host port) or an L2Bridge pod that a node has, on-link or behind a router."""
    leaving = replace(
        LEAVING,
        uplink=UplinkView(interface="eth0", next_hop=next_hop),
        sent=replace(ENDS, destination=destination),
    )
    nodes = Nodes(n1=[leaving], n2=[DELIVERED])
    nodes.pods["192.168.1.77"] = "n2"
    trail = follow("n1", REQUEST, PEERS, nodes)
    assert trail.hops == (leaving, DELIVERED)
    assert nodes.asked[1] == ("n2", TraceRequest(arrival="uplink", frame="aabb"))


def test_a_loop_ends() -> None:
    assert TUNNELLED.tunnel is not None
    back = replace(TUNNELLED, tunnel=replace(TUNNELLED.tunnel, provider_address="192.168.1.10"))
    trail = follow("n1", REQUEST, PEERS, Nodes(n1=[TUNNELLED] * 9, n2=[back] * 9))
    assert len(trail.hops) == 4
    assert "a loop" in trail.end


def test_real_daemons(tmp_path: Path) -> None:
    with StubDaemon(tmp_path) as daemon:
        daemon.answers["POST /v2/switch/trace"] = (200, msgspec.to_builtins(TUNNELLED))
        daemon.answers["GET /v2/switch/endpoints"] = (200, msgspec.to_builtins(INFOS))
        nodes = Daemons()
        assert nodes.trace(daemon.socket, REQUEST) == TUNNELLED
        asked = {"from": "client", "to": "10.244.2.9", "port": 80}
        assert daemon.requests == [("POST /v2/switch/trace", asked)]
        assert not nodes.has_endpoint(daemon.socket, "10.244.1.5")  # on an overlay
        bridged = [replace(info, network_type="L2Bridge") for info in INFOS]
        daemon.answers["GET /v2/switch/endpoints"] = (200, msgspec.to_builtins(bridged))
        assert nodes.has_endpoint(daemon.socket, "10.244.1.5")
        assert not nodes.has_endpoint(daemon.socket, "10.244.2.9")  # it only knows it as remote
        assert not nodes.has_endpoint(daemon.socket, "8.8.8.8")


def test_errors_of_a_daemon(tmp_path: Path) -> None:
    with StubDaemon(tmp_path) as daemon, pytest.raises(HcnError, match="no answer to POST"):
        Daemons().trace(daemon.socket, REQUEST)


@pytest.mark.parametrize("answer", [{"node": "n2"}, [], None, {**msgspec.to_builtins(DELIVERED), "steps": 3}])
def test_a_far_daemon_of_another_version(tmp_path: Path, answer: object) -> None:
    with StubDaemon(tmp_path) as daemon:
        daemon.answers["POST /v2/switch/trace"] = (200, answer)
        daemon.answers["GET /v2/switch/endpoints"] = (200, [{"name": "x"}])
        with pytest.raises(Unavailable, match="that this version cannot read"):
            Daemons().trace(daemon.socket, REQUEST)
        with pytest.raises(Unavailable, match="that this version cannot read"):
            Daemons().has_endpoint(daemon.socket, "10.244.1.5")
