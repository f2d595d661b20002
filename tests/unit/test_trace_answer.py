"""From the traced build's record to an answer, and the answer as people see it (golden texts)."""

from __future__ import annotations

import io

import pytest
from msgspec.structs import replace
from rich.console import Console

from samewire.errors import Invalid
from samewire.trace.answer import Arrived, Node, make_answer, parse_frame
from samewire.trace.context import TraceRun
from samewire.trace.follow import Trail
from samewire.trace.model import TraceAnswer
from samewire.trace.render import render
from samewire.vfp.acl_names import AclNames
from samewire.vfp.address import ZERO, parse_address
from samewire.vfp.constants import (
    LOOPBACK,
    Arrival,
    Choice,
    Fate,
    Layer,
    PortFlag,
    Reason,
    RouteKind,
    StepVerdict,
)
from samewire.vfp.model import Entries
from samewire.vfp.tables import Id, Nexthop, Port, TraceOutput, TraceStep
from tests.support.tools import (
    CLIENT_PORT,
    HOST,
    INFOS,
    INTERFACES,
    SERVICE_NAMES,
    TUNNEL,
    UPLINK,
    WEB_PORT,
    compiled,
    output,
    probe,
)

NODE = Node(
    name="node-1",
    endpoints=INFOS,
    interface=lambda ifindex: INTERFACES.get(ifindex, ""),
    service=lambda number: SERVICE_NAMES.get(number, ""),
    acl=lambda ifindex: AclNames(),
)
CLIENT4, WEB4, FAR4, OUTSIDE4, SNAT4 = (
    "10.244.1.6",
    "10.244.1.5",
    "10.244.2.9",
    "93.184.216.34",
    "192.168.1.10",
)


@pytest.fixture
def tables() -> Entries:
    return compiled()


def packed(text: str) -> bytes:
    return parse_address(text).packed


def step(
    layer: Layer,
    verdict: StepVerdict,
    ends: tuple[str, int, str, int],
    *,
    kind: int = 0,
    rule: int = 0,
    target: int = 0,
    reason: Reason = Reason.NONE,
) -> TraceStep:
    source, source_port, destination, destination_port = ends
    return TraceStep(
        layer,
        verdict,
        reason,
        kind,
        rule,
        target,
        source_port,
        destination_port,
        packed(source),
        packed(destination),
    )


def hop_number(tables: Entries, kind: RouteKind, address: str = "") -> int:
    for key, hop in tables["sw_nexthops"].items():
        assert isinstance(key, Id)
        assert isinstance(hop, Nexthop)
        if hop.kind == kind and hop.address == (packed(address) if address else ZERO):
            return key.value
    raise AssertionError("no such next hop")


def from_pod(
    tables: Entries, record: TraceOutput, destination: str, sent: bytes | None = None, port: int = 80
) -> TraceAnswer:
    frame = probe(CLIENT4, destination, port)
    arrived = Arrived(arrival=Arrival.POD, ifindex=CLIENT_PORT, frame=frame)
    return make_answer(NODE, tables, arrived, TraceRun(record, sent or frame))


def text(*hops: TraceAnswer, end: str = "") -> list[str]:
    """What the command prints, without trailing blanks."""
    console = Console(file=io.StringIO(), width=150, highlight=False, force_terminal=False)
    console.print(render(Trail(hops, end)))
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def same_node(tables: Entries) -> TraceAnswer:
    ends = (CLIENT4, 40000, WEB4, 80)
    record = output(
        step(Layer.ROUTE, StepVerdict.PASS, ends, kind=Fate.PORT, target=WEB_PORT),
        step(Layer.ACL_OUT, StepVerdict.PASS, ends, target=CLIENT_PORT),
        step(Layer.ACL_IN, StepVerdict.PASS, ends, kind=1, rule=1, target=WEB_PORT),
        step(Layer.L2, StepVerdict.FINAL, ends, kind=Fate.PORT, target=WEB_PORT),
        fate=Fate.PORT,
    )
    return from_pod(tables, record, WEB4)


def test_delivered_on_the_same_node(tables: Entries) -> None:
    answer = same_node(tables)
    assert answer.fate == "port"
    assert answer.endpoint == INFOS[0]
    assert answer.origin == INFOS[1]
    assert answer.drop is None
    assert text(answer) == [
        "node-1  from shop/client (10.244.1.6, fd00:244:1::6)  tcp 10.244.1.6:40000 > 10.244.1.5:80",
        "  GUARD    pass     source MAC and address are the endpoint's own",
        "  ROUTE    to port  10.244.1.0/24 is this network's own",
        "  ACL OUT  pass     no rules: everything passes",
        "  ACL IN   pass     rule 1, priority 100: allow, tcp, local port 80",
        "  L2       send     to shop/web-0 (sw00000000042)",
        "  the simulator agrees",
        "→ delivered on node-1 to shop/web-0 (10.244.1.5, fd00:244:1::5)",
    ]


def test_out_through_nat(tables: Entries) -> None:
    before, after = (CLIENT4, 40000, OUTSIDE4, 80), (SNAT4, 51234, OUTSIDE4, 80)
    number = hop_number(tables, RouteKind.UPLINK, "192.168.1.1")
    record = output(
        step(Layer.ROUTE, StepVerdict.PASS, before, kind=Fate.UPLINK, target=number),
        step(Layer.ACL_OUT, StepVerdict.PASS, before, target=CLIENT_PORT),
        step(Layer.NAT, StepVerdict.REWRITE, (SNAT4, 40000, OUTSIDE4, 80), kind=1, rule=1),
        step(Layer.L2, StepVerdict.FINAL, after, kind=Fate.UPLINK, target=UPLINK),
        fate=Fate.UPLINK,
    )
    answer = from_pod(tables, record, OUTSIDE4, probe(SNAT4, OUTSIDE4, source_port=51234))
    assert answer.uplink is not None
    assert (answer.uplink.interface, answer.uplink.next_hop) == ("eth0", "192.168.1.1")
    assert (answer.sent.source, answer.sent.source_port) == (SNAT4, 51234)
    assert text(answer)[1:] == [
        "  GUARD    pass       source MAC and address are the endpoint's own",
        "  ROUTE    to uplink  0.0.0.0/0 via 192.168.1.1 on the uplink, MTU 1500",
        "  ACL OUT  pass       no rules: everything passes",
        "  NAT      rewrite    rule 1: to 0.0.0.0/0 as 192.168.1.10: tcp 192.168.1.10:51234 > 93.184.216.34:80",
        "  L2       send       eth0",
        "  the simulator agrees",
        "→ leaves node-1 by eth0, next hop 192.168.1.1",
    ]


def tunnelled(tables: Entries) -> TraceAnswer:
    ends = (CLIENT4, 40000, FAR4, 80)
    number = hop_number(tables, RouteKind.TUNNEL, "192.168.1.11")
    record = output(
        step(Layer.ROUTE, StepVerdict.PASS, ends, kind=Fate.TUNNEL, target=number),
        step(Layer.ACL_OUT, StepVerdict.PASS, ends, target=CLIENT_PORT),
        step(Layer.ENCAP, StepVerdict.FINAL, ends, kind=Fate.TUNNEL, target=4096),
        fate=Fate.TUNNEL,
    )
    return from_pod(tables, record, FAR4)


def test_both_halves_of_a_way_through_the_tunnel(tables: Entries) -> None:
    near = tunnelled(tables)
    assert near.tunnel is not None
    assert (near.tunnel.provider_address, near.tunnel.local_address) == ("192.168.1.11", "192.168.1.10")
    assert (near.tunnel.vni, near.tunnel.inner_mac) == (4096, "02-BB-00-00-00-02")
    ends = (FAR4, 40000, WEB4, 80)
    record = output(
        step(Layer.ROUTE, StepVerdict.PASS, ends, kind=Fate.PORT, target=WEB_PORT),
        step(Layer.ACL_IN, StepVerdict.PASS, ends, kind=1, rule=1, target=WEB_PORT),
        step(Layer.L2, StepVerdict.FINAL, ends, kind=Fate.PORT, target=WEB_PORT),
        fate=Fate.PORT,
    )
    frame = probe(FAR4, WEB4)
    arrived = Arrived(arrival=Arrival.TUNNEL, ifindex=TUNNEL, frame=frame, vni=4096)
    far = make_answer(replace(NODE, name="node-2"), tables, arrived, TraceRun(record, frame))
    assert text(near, far)[-7:] == [
        "node-2  out of the tunnel  tcp 10.244.2.9:40000 > 10.244.1.5:80",
        "  DECAP   pass     VNI 4096 is network 1's",
        "  ROUTE   to port  10.244.1.0/24 is this network's own",
        "  ACL IN  pass     rule 1, priority 100: allow, tcp, local port 80",
        "  L2      send     to shop/web-0 (sw00000000042)",
        "  the simulator agrees",
        "→ delivered on node-2 to shop/web-0 (10.244.1.5, fd00:244:1::5)",
    ]


def test_a_trail_that_ends_early_says_so(tables: Entries) -> None:
    lines = text(tunnelled(tables), end="192.168.1.11 is not among the nodes that can be asked")
    assert lines[2:] == [
        "  ROUTE    to tunnel  10.244.2.0/24 via 192.168.1.11 in VXLAN 4096, MTU 1450",
        "  ACL OUT  pass       no rules: everything passes",
        "  ENCAP    send       VXLAN 4096",
        "  the simulator agrees",
        "→ sent to node 192.168.1.11 in VXLAN 4096; not followed: 192.168.1.11 is not among the nodes that can be "
        "asked",
    ]


def test_blocked_by_an_acl(tables: Entries) -> None:
    ends = (CLIENT4, 40000, WEB4, 81)
    record = output(
        step(Layer.ROUTE, StepVerdict.PASS, ends, kind=Fate.PORT, target=WEB_PORT),
        step(Layer.ACL_OUT, StepVerdict.PASS, ends, target=CLIENT_PORT),
        step(Layer.ACL_IN, StepVerdict.DROP, ends, target=WEB_PORT, reason=Reason.BLOCKED),
        drop=(Layer.ACL_IN, Reason.BLOCKED),
    )
    answer = from_pod(tables, record, WEB4, port=81)
    assert answer.fate == "dropped"
    assert answer.drop is not None
    assert (answer.drop.layer, answer.drop.reason, answer.drop.rule) == ("acl_in", "blocked", 0)
    assert text(answer)[4:] == [
        "  ACL IN   drop     no match in 1 rule",
        "  the simulator agrees",
        "✗ dropped on node-1 by ACL IN, which asks the receiver's rules: blocked",
        "  An ACL rule says Block, or the endpoint has rules and none of them allows this.",
        "  What to do: See the rules with `samewire get layers POD`; none named means none matched: add an Allow "
        "rule, for the direction that the layer names.",
        "  At `guard` it is VXLAN that a pod has made itself: it would speak for any other.",
    ]


def test_dropped_before_the_walk(tables: Entries) -> None:
    """GUARD has not passed then, and the record's tuple means nothing."""
    record = output(
        step(Layer.GUARD, StepVerdict.DROP, ("1.2.3.4", 9, "5.6.7.8", 9), reason=Reason.SPOOFED_IP),
        drop=(Layer.GUARD, Reason.SPOOFED_IP),
    )
    answer = from_pod(tables, record, WEB4)
    assert [(s.layer, s.verdict, s.matched, s.ends) for s in answer.steps] == [
        ("guard", "drop", "spoofed_ip", None)
    ]


def test_no_route(tables: Entries) -> None:
    ends = (CLIENT4, 40000, OUTSIDE4, 80)
    record = output(
        step(Layer.ROUTE, StepVerdict.DROP, ends, reason=Reason.NO_ROUTE), drop=(Layer.ROUTE, Reason.NO_ROUTE)
    )
    answer = from_pod({**tables, "sw_routes": {}}, record, OUTSIDE4)
    assert [step.matched for step in answer.steps][1:] == ["no route"]


def test_host_port_of_the_pod_itself(tables: Entries) -> None:
    """ACL and NAT judge the destination behind PORTMAP; ROUTE the one in the packet."""
    ends = (CLIENT4, 40000, CLIENT4, 80)
    record = output(
        step(Layer.PORTMAP, StepVerdict.REWRITE, ends, target=CLIENT_PORT),
        step(Layer.ROUTE, StepVerdict.PASS, ends, kind=Fate.PORT, target=CLIENT_PORT),
        step(Layer.ACL_OUT, StepVerdict.PASS, ends, target=CLIENT_PORT),
        step(Layer.ACL_IN, StepVerdict.PASS, ends, target=CLIENT_PORT),
        step(Layer.NAT, StepVerdict.REWRITE, ("10.244.1.1", 40000, CLIENT4, 80), kind=1, target=CLIENT_PORT),
        step(
            Layer.L2,
            StepVerdict.FINAL,
            ("10.244.1.1", 50000, CLIENT4, 80),
            kind=Fate.PORT,
            target=CLIENT_PORT,
        ),
        fate=Fate.PORT,
    )
    answer = from_pod(tables, record, SNAT4, probe("10.244.1.1", CLIENT4, source_port=50000), port=8080)
    assert [step.matched for step in answer.steps[1:]] == [
        "a port of the node that belongs to shop/client (sw00000000043)",
        "192.168.1.10/32 is the node's own",
        "no rules: everything passes",
        "no rules: everything passes",
        "hairpin: the gateway stands in for the sender",
        "to shop/client (sw00000000043)",
    ]
    assert answer.steps[5].ends is not None
    assert answer.steps[5].ends.source_port == 50000


def test_a_client_from_outside_whose_backend_is_elsewhere(tables: Entries) -> None:
    """No hairpin: the node's address in the pod network takes the client's place, for the answers to come back."""
    client = (OUTSIDE4, 40000, FAR4, 80)
    after = ("10.244.1.1", 50000, FAR4, 80)
    number = hop_number(tables, RouteKind.TUNNEL, "192.168.1.11")
    record = output(
        step(Layer.LB, StepVerdict.REWRITE, client, kind=Choice.HASH, rule=7),
        step(Layer.NAT, StepVerdict.REWRITE, ("10.244.1.1", 40000, FAR4, 80)),
        step(Layer.ROUTE, StepVerdict.PASS, after, kind=Fate.TUNNEL, target=number),
        step(Layer.ENCAP, StepVerdict.FINAL, after, kind=Fate.TUNNEL, target=4096),
        fate=Fate.TUNNEL,
    )
    arrived = Arrived(arrival=Arrival.UPLINK, ifindex=UPLINK, frame=probe(OUTSIDE4, SNAT4, 30080))
    answer = make_answer(
        NODE, tables, arrived, TraceRun(record, probe("10.244.1.1", FAR4, source_port=50000))
    )
    (nat,) = [step for step in answer.steps if step.layer == "nat"]
    assert nat.matched == "10.244.1.1 stands in for the client, so that the backend's answers come back here"


def test_an_established_flow(tables: Entries) -> None:
    ends = (CLIENT4, 40000, WEB4, 80)
    record = output(
        step(Layer.FLOW, StepVerdict.REWRITE, ends, kind=Fate.PORT, rule=3, target=WEB_PORT),
        step(Layer.L2, StepVerdict.FINAL, ends, kind=Fate.PORT, target=WEB_PORT),
        fate=Fate.PORT,
        flow_hit=1,
    )
    answer = from_pod(tables, record, WEB4)
    assert answer.established
    assert [(s.verdict, s.matched) for s in answer.steps][1] == (
        "established",
        "this connection was decided before, allowed by rule 3",
    )


def test_to_the_node_itself(tables: Entries) -> None:
    ends = (CLIENT4, 40000, SNAT4, 10250)
    record = output(
        step(Layer.ROUTE, StepVerdict.PASS, ends, kind=Fate.HOST),
        step(Layer.ACL_OUT, StepVerdict.PASS, ends, target=CLIENT_PORT),
        step(Layer.L2, StepVerdict.FINAL, ends, kind=Fate.HOST, target=HOST),
        fate=Fate.HOST,
    )
    answer = from_pod(tables, record, SNAT4, port=10250)
    assert text(answer)[-1] == "→ handed to node-1 itself"
    assert answer.steps[-1].matched == "samewire0"


def test_not_the_switchs(tables: Entries) -> None:
    frame = probe(OUTSIDE4, SNAT4, 22)
    arrived = Arrived(arrival=Arrival.UPLINK, ifindex=UPLINK, frame=frame)
    answer = make_answer(NODE, tables, arrived, TraceRun(output(), frame))
    assert (answer.fate, answer.steps, answer.origin) == ("stack", (), None)
    assert text(answer) == [
        "node-1  from the uplink  tcp 93.184.216.34:40000 > 192.168.1.10:22",
        "  the simulator agrees",
        "→ left to node-1's own stack: it is not the switch's",
    ]


def test_to_a_process_of_the_node_behind_a_service(tables: Entries) -> None:
    """It goes on to the node's own stack, with another port: that is the switch's work."""
    frame, after = probe(OUTSIDE4, SNAT4, 30080), (OUTSIDE4, 40000, SNAT4, 9100)
    record = output(step(Layer.LB, StepVerdict.REWRITE, after, kind=Choice.HASH, rule=7))
    arrived = Arrived(arrival=Arrival.UPLINK, ifindex=UPLINK, frame=frame)
    answer = make_answer(NODE, tables, arrived, TraceRun(record, probe(OUTSIDE4, SNAT4, 9100)))
    assert answer.fate == "stack"
    assert text(answer)[-1] == "→ handed to node-1 itself"


def test_from_the_node(tables: Entries) -> None:
    """The network is the one that the node means by the address."""
    ends = ("10.244.1.1", 40000, WEB4, 80)
    record = output(
        step(Layer.ROUTE, StepVerdict.PASS, ends, kind=Fate.PORT, target=WEB_PORT),
        step(Layer.L2, StepVerdict.FINAL, ends, kind=Fate.PORT, target=WEB_PORT),
        fate=Fate.PORT,
    )
    frame = probe("10.244.1.1", WEB4)
    arrived = Arrived(arrival=Arrival.HOST, ifindex=7, frame=frame)
    answer = make_answer(NODE, tables, arrived, TraceRun(record, frame))
    assert (answer.steps[0].layer, answer.steps[0].matched) == (
        "route",
        "10.244.1.0/24 is this network's own",
    )
    assert text(answer)[0].startswith("node-1  from the node itself  tcp 10.244.1.1")


@pytest.mark.parametrize("own", [SNAT4, "127.0.0.1"])
def test_from_the_node_to_itself(tables: Entries, own: str) -> None:
    """That lo has handed over, and no table has a route for it."""
    ends = (own, 40000, own, 13868)
    record = output(
        step(Layer.ROUTE, StepVerdict.PASS, ends, kind=Fate.HOST, target=LOOPBACK),
        step(Layer.L2, StepVerdict.FINAL, ends, kind=Fate.HOST, target=LOOPBACK),
        fate=Fate.HOST,
    )
    frame = probe(own, own, 13868)
    arrived = Arrived(arrival=Arrival.HOST, ifindex=7, frame=frame)
    answer = make_answer(NODE, tables, arrived, TraceRun(record, frame))
    assert (answer.steps[0].verdict, answer.steps[0].matched) == ("to host", f"{own} is the node's own")
    dropped = step(Layer.ROUTE, StepVerdict.DROP, (own, 40000, "8.8.8.8", 1), reason=Reason.NO_ROUTE)
    frame = probe(own, "8.8.8.8", 1)
    answer = make_answer(NODE, tables, replace(arrived, frame=frame), TraceRun(output(dropped), frame))
    assert [one.matched for one in answer.steps] == ["no route"]


def test_ipv6(tables: Entries) -> None:
    ends = ("fd00:244:1::6", 40000, "fd00:244:2::9", 80)
    number = hop_number(tables, RouteKind.TUNNEL, "192.168.1.11")
    record = output(
        step(Layer.ROUTE, StepVerdict.PASS, ends, kind=Fate.TUNNEL, target=number),
        step(Layer.ENCAP, StepVerdict.FINAL, ends, kind=Fate.TUNNEL, target=4096),
        fate=Fate.TUNNEL,
    )
    frame = probe("fd00:244:1::6", "fd00:244:2::9")
    arrived = Arrived(arrival=Arrival.POD, ifindex=CLIENT_PORT, frame=frame)
    answer = make_answer(NODE, tables, arrived, TraceRun(record, frame))
    assert answer.steps[1].matched == "fd00:244:2::/64 via 192.168.1.11 in VXLAN 4096, MTU 1450"
    assert answer.received.source == "fd00:244:1::6"


def with_flags(tables: Entries, ifindex: int, flags: PortFlag) -> Entries:
    port = tables["sw_ports"][Id(ifindex)]
    assert isinstance(port, Port)
    return {**tables, "sw_ports": {**tables["sw_ports"], Id(ifindex): replace(port, flags=int(flags))}}


def test_notes_about_caps(tables: Entries) -> None:
    capped = with_flags(with_flags(tables, CLIENT_PORT, PortFlag.CAP_OUT), WEB_PORT, PortFlag.CAP_IN)
    assert same_node(tables).notes == ()
    assert len(same_node(capped).notes) == 2
    assert sum("bandwidth cap" in line for line in text(same_node(capped))) == 2


def test_guard_that_is_off(tables: Entries) -> None:
    answer = same_node(with_flags(tables, CLIENT_PORT, PortFlag.NO_GUARD))
    assert answer.steps[0].matched == "spoof guard is off"


def test_a_disagreement_is_a_bug_and_shows(tables: Entries) -> None:
    lines = text(replace(same_node(tables), disagreement="the simulator drops it"))
    assert "  BUG of Samewire, please report: the simulator drops it" in lines
    assert "  the simulator agrees" not in lines
    assert not Trail((replace(same_node(tables), disagreement="x"),)).arrived


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (bytes(60), "not_ip"),
        (bytes(12) + b"\x08\x00" + bytes(4), "malformed"),
        (b"", "not_ip"),
    ],
)
def test_frames_that_cannot_be_traced(frame: bytes, message: str) -> None:
    with pytest.raises(Invalid, match=message):
        parse_frame(frame)


def test_tables_of_a_newer_switch(tables: Entries) -> None:
    """Numbers that this version has no names for are shown as numbers."""
    unknown = TraceStep(99, StepVerdict.DROP, 88, 0, 0, 0, 0, 0, packed(CLIENT4), packed(WEB4))
    answer = from_pod(tables, output(unknown, drop=(99, 88)), WEB4)
    assert answer.drop is not None
    assert (answer.drop.layer, answer.drop.reason) == ("99", "88")
    assert "✗ dropped on node-1 by 99: 88" in text(answer)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Choice.HASH, "shop/web:http: backend 10.244.1.5:8080, chosen by the connection's hash"),
        (Choice.AFFINITY, "shop/web:http: backend 10.244.1.5:8080, where this client has been before"),
        (Choice.DIRECT, "DSR: this node's endpoint, named by the node that balances"),
    ],
)
def test_a_service_says_which_backend_and_why(tables: Entries, kind: Choice, words: str) -> None:
    ends = (CLIENT4, 40000, WEB4, 8080)
    record = output(
        step(Layer.LB, StepVerdict.REWRITE, ends, kind=kind, rule=7, target=31),
        step(Layer.ROUTE, StepVerdict.PASS, ends, kind=Fate.PORT, target=WEB_PORT),
        step(Layer.ACL_OUT, StepVerdict.PASS, ends, target=CLIENT_PORT),
        step(Layer.L2, StepVerdict.FINAL, ends, kind=Fate.PORT, target=WEB_PORT),
        fate=Fate.PORT,
    )
    steps = {view.layer: view for view in from_pod(tables, record, "10.96.0.10").steps}
    assert steps["lb"].matched == words
    assert steps["route"].matched == f"shop/web-0 ({INTERFACES[WEB_PORT]}) is here"


def test_a_backend_behind_another_node(tables: Entries) -> None:
    ends = (CLIENT4, 40000, FAR4, 8080)
    hop = hop_number(tables, RouteKind.TUNNEL, "192.168.1.11")
    record = output(
        step(Layer.LB, StepVerdict.REWRITE, ends, kind=Choice.HASH, rule=7, target=31),
        step(Layer.ROUTE, StepVerdict.PASS, ends, kind=Fate.TUNNEL, target=hop),
        step(Layer.ENCAP, StepVerdict.FINAL, ends, kind=Fate.TUNNEL, target=4096),
        fate=Fate.TUNNEL,
    )
    steps = {view.layer: view for view in from_pod(tables, record, "10.96.0.10").steps}
    assert steps["route"].matched == "behind node 192.168.1.11"


def test_a_backend_that_is_not_there(tables: Entries) -> None:
    """The route of the service's own address, which was shown here, has nothing to do with it."""
    ends = (CLIENT4, 40000, "10.244.1.77", 8080)
    record = output(
        step(Layer.LB, StepVerdict.REWRITE, ends, kind=Choice.HASH, rule=7, target=31),
        step(Layer.ROUTE, StepVerdict.DROP, ends, reason=Reason.NO_ENDPOINT),
        fate=Fate.NOWHERE,
    )
    steps = {view.layer: view for view in from_pod(tables, record, "10.96.0.10").steps}
    assert steps["route"].matched == "to the backend 10.244.1.77: no_endpoint"
