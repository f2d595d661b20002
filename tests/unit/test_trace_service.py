"""POST /v2/switch/trace on a node without a kernel."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from msgspec.structs import replace

from samewire.errors import Unavailable
from samewire.hcn.client import AsyncHnsClient
from samewire.hcn.errors import HcnError
from samewire.hcn.http import HttpServer, make_app
from samewire.hcn.service import HnsService
from samewire.hcn.store import Store
from samewire.trace import service
from samewire.trace.context import TraceRun
from samewire.trace.model import TraceAnswer
from samewire.trace.probe import view_of
from samewire.vfp.address import ZERO, parse_address, parse_prefix
from samewire.vfp.constants import SCOPE_ANY, VLAN, Arrival, Fate
from samewire.vfp.model import ProxyRule
from samewire.vfp.simulate.packet import parse
from samewire.vfp.tables import Id, Port, Service, ServiceKey, TraceStep, Vni
from tests.support.hcn import FakeSwitch
from tests.support.tools import (
    CLIENT_ID,
    CLIENT_PORT,
    HOST_PEER,
    TUNNEL,
    UPLINK,
    WEB_PORT,
    FakeNode,
    compiled,
    flows_of,
    output,
    probe,
)

PATH = "/v2/switch/trace"
TO_WEB = {"from": "shop/client", "to": "10.244.1.5", "port": 80}


@pytest.fixture
def node() -> FakeNode:
    return FakeNode(compiled())


@pytest.fixture
async def client(node: FakeNode, tmp_path: Path) -> AsyncIterator[AsyncHnsClient]:
    store = Store(tmp_path / "hns.db")
    server = HttpServer(make_app(HnsService(store, FakeSwitch()), service.routes(node)), tmp_path / "s.sock")
    await server.start()
    yield AsyncHnsClient(tmp_path / "s.sock")
    await server.close()
    store.close()


async def ask(client: AsyncHnsClient, **request: Any) -> TraceAnswer:
    return msgspec.convert(await client.post_json(PATH, request), TraceAnswer)


async def test_the_probe_is_the_pods_own(node: FakeNode, client: AsyncHnsClient) -> None:
    answer = await ask(client, **TO_WEB)
    (frame, arrival, ifindex, vni, family, source) = node.runs[0]
    assert (arrival, ifindex, vni, family, source) == (Arrival.POD, CLIENT_PORT, 0, 4, ZERO)
    port = node.content["sw_ports"][Id(CLIENT_PORT)]
    assert isinstance(port, Port)
    assert (frame[6:12], frame[0:6]) == (port.mac, port.gateway_mac)
    view = view_of(parse(bytearray(frame)))
    assert (view.source, view.destination, view.destination_port) == ("10.244.1.6", "10.244.1.5", 80)
    assert frame[47] == 0x02
    assert answer.fate == "port"
    assert answer.endpoint is not None
    assert answer.endpoint.name == "shop/web-0"
    assert answer.disagreement == ""
    assert answer.node == "node-1"


@pytest.mark.parametrize(
    ("protocol", "port", "to", "shown"),
    [
        ("udp", 53, "10.244.1.5", "udp"),
        ("icmp", 0, "10.244.1.5", "icmp"),
        ("icmp", 0, "fd00:244:1::5", "icmpv6"),
        ("tcp", 80, "fd00:244:1::5", "tcp"),
        ("sctp", 80, "fd00:244:1::5", "sctp"),
    ],
)
async def test_protocols_and_families(
    client: AsyncHnsClient, protocol: str, port: int, to: str, shown: str
) -> None:
    answer = await ask(client, **{"from": CLIENT_ID, "to": to, "port": port, "protocol": protocol})
    assert (answer.received.protocol, answer.received.destination) == (shown, to)
    assert answer.received.source_port >= 40000


async def test_a_source_port_that_no_flow_has(node: FakeNode, client: AsyncHnsClient) -> None:
    taken = (await ask(client, **TO_WEB)).received.source_port
    node.content = dict(flows_of(node.content, node.runs[0][0], Arrival.POD, CLIENT_PORT))
    assert len(node.content["sw_flows"]) == 1
    assert (await ask(client, **TO_WEB)).received.source_port == taken + 1


async def test_a_connection_that_exists_is_asked_about_with_an_ack(
    node: FakeNode, client: AsyncHnsClient
) -> None:
    """A SYN would be judged as a new connection."""
    await ask(client, **TO_WEB)
    node.content = dict(flows_of(node.content, node.runs[0][0], Arrival.POD, CLIENT_PORT))
    answer = await ask(client, **TO_WEB, source_port=40000)
    assert answer.received.source_port == 40000
    assert node.runs[-1][0][47] == 0x10
    assert any("judged anew" in note for note in answer.notes)  # the fake records no flow hit


async def test_what_the_pods_own_stacks_do_is_a_note(node: FakeNode, client: AsyncHnsClient) -> None:
    out = ProxyRule(name="policy 1", outbound=True, family=4, protocol=6, port=15001, user=1337)
    into = ProxyRule(
        name="policy 2",
        outbound=False,
        family=4,
        protocol=6,
        port=15006,
        remote=(parse_prefix("10.244.1.0/24"),),
        except_ports=((81, 90),),
    )
    node.proxy_rules = {CLIENT_PORT: (out,), WEB_PORT: (into,)}
    sent = (
        "the sender's own stack hands a new connection like this to port 15001 of the pod (policy 1), "
        "unless user 1337 opens it"
    )
    received = "the receiver's own stack hands a new connection like this to port 15006 of the pod (policy 2)"
    assert (await ask(client, **TO_WEB)).notes == (sent, received)
    assert (await ask(client, **{**TO_WEB, "port": 85})).notes == (sent,)
    assert (await ask(client, **{**TO_WEB, "protocol": "udp"})).notes == ()


async def test_a_flow_hit_needs_no_note(node: FakeNode, client: AsyncHnsClient) -> None:
    await ask(client, **TO_WEB)
    node.content = dict(flows_of(node.content, node.runs[0][0], Arrival.POD, CLIENT_PORT))
    step = TraceStep(3, 3, 0, Fate.PORT, 0, WEB_PORT, 0, 0, ZERO, ZERO)
    final = TraceStep(14, 4, 0, Fate.PORT, 0, WEB_PORT, 0, 0, ZERO, ZERO)
    hit = output(step, final, fate=Fate.PORT, flow_hit=1)
    await ask(client, **TO_WEB, source_port=40000)
    frame = bytearray(node.runs[-1][0])
    port = node.content["sw_ports"][Id(WEB_PORT)]
    assert isinstance(port, Port)
    frame[0:6], frame[6:12] = port.mac, port.gateway_mac
    node.answers = [TraceRun(hit, bytes(frame))]
    answer = await ask(client, **TO_WEB, source_port=40000)
    assert answer.established
    assert answer.notes == ()
    assert answer.disagreement == ""


async def test_a_race_is_no_disagreement(node: FakeNode, client: AsyncHnsClient) -> None:
    """The tables may change between reading them and running the probe: it is tried again."""
    frame = probe("10.244.1.6", "10.244.1.5")
    node.answers = [TraceRun(output(fate=Fate.HOST), frame)] * 2
    answer = await ask(client, **TO_WEB)
    assert answer.disagreement == ""
    assert len(node.runs) == 3


async def test_a_lasting_disagreement_is_reported(node: FakeNode, client: AsyncHnsClient) -> None:
    frame = probe("10.244.1.6", "10.244.1.5")
    node.answers = [TraceRun(output(fate=Fate.HOST), frame)] * 4
    answer = await ask(client, **TO_WEB)
    assert answer.disagreement == "the simulator sends it to PORT, the switch sends it to HOST"
    assert len(node.runs) == 3


async def test_a_simulator_that_fails_is_reported(node: FakeNode, client: AsyncHnsClient) -> None:
    port = node.content["sw_ports"][Id(CLIENT_PORT)]
    assert isinstance(port, Port)
    frame = probe("10.244.1.6", "10.244.1.5")
    node.answers = [TraceRun(output(fate=Fate.PORT), frame)] * 3
    node.content["sw_acl_rules"] = dict.fromkeys(node.content["sw_acl_rules"], port)  # rows of a wrong type
    answer = await ask(client, **TO_WEB)
    assert answer.disagreement.startswith("the simulator failed: AttributeError")


@pytest.mark.parametrize(
    ("arrival", "ifindex", "number"),
    [
        ("tunnel", TUNNEL, Arrival.TUNNEL),
        ("uplink", UPLINK, Arrival.UPLINK),
        ("host", HOST_PEER, Arrival.HOST),
    ],
)
async def test_other_arrivals(
    node: FakeNode, client: AsyncHnsClient, arrival: str, ifindex: int, number: Arrival
) -> None:
    source = "10.244.1.1" if arrival == "host" else "10.244.2.9"
    frame = probe(source, "10.244.1.5")
    answer = await ask(
        client, arrival=arrival, vni=4096, tunnel_source="192.168.1.11", frame=frame.hex().upper()
    )
    assert answer.arrival == arrival
    assert answer.disagreement == ""
    packed = parse_address("192.168.1.11").packed
    assert node.runs == [(frame, number, ifindex, 0 if arrival == "uplink" else 4096, 4, packed)]
    assert answer.fate == ("stack" if arrival == "uplink" else "port")
    assert answer.origin is None


async def test_a_connection_of_the_nodes_own_is_known(node: FakeNode, client: AsyncHnsClient) -> None:
    """Its flow is in the network that the node means by the address."""
    frame = probe("10.244.1.1", "10.244.1.5")
    node.content = dict(flows_of(node.content, frame, Arrival.HOST, HOST_PEER))
    assert len(node.content["sw_flows"]) == 1
    node.flow_capacity = 1
    answer = await ask(client, arrival="host", frame=frame.hex())
    assert any("judged anew" in note for note in answer.notes)  # the fake records no flow hit
    assert not any("flow_table_full" in note for note in answer.notes)


async def test_an_arrival_with_a_tag(node: FakeNode, client: AsyncHnsClient) -> None:
    """Beside the frame, as the kernel has it."""
    node.content = {**node.content, "sw_vnis": {Id(VLAN | 7): Vni(1)}}
    frame = probe("10.244.2.9", "10.244.1.5")
    answer = await ask(client, arrival="uplink", vlan=7, frame=frame.hex())
    assert node.runs == [(frame, Arrival.UPLINK, UPLINK, VLAN | 7, 4, bytes(16))]
    assert answer.disagreement == ""
    assert answer.steps[0].matched == "VLAN 7 is network 1's"


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({}, "needs `from` and `to`"),
        ({"from": "shop/client"}, "needs `from` and `to`"),
        ({**TO_WEB, "frame": "00"}, "built from the other fields"),
        ({"from": "shop/client", "to": "10.244.1.5"}, "tcp needs a destination port"),
        ({**TO_WEB, "to": "web"}, "'web' is not an IP address"),
        ({**TO_WEB, "port": 65536}, r"\$\.port"),
        ({**TO_WEB, "protocol": "gre"}, r"\$\.protocol"),
        ({**TO_WEB, "colour": 1}, "colour"),
        ({"arrival": "tunnel"}, "needs the frame"),
        ({"arrival": "pod "}, r"\$\.arrival"),
        ({"arrival": "tunnel", "frame": "0"}, r"\$\.frame"),
        ({"arrival": "tunnel", "frame": "00" * 60}, "is no IP packet"),
        ({"arrival": "tunnel", "frame": "00" * 60, "vni": 1 << 24}, r"\$\.vni"),
        ({"from": "far", "to": "10.0.0.1", "port": 1}, "far is on another node"),
    ],
)
async def test_requests_that_are_refused(
    client: AsyncHnsClient, request_: dict[str, Any], message: str
) -> None:
    with pytest.raises(HcnError, match=message):
        await client.post_json(PATH, request_)


async def test_what_is_no_json(client: AsyncHnsClient, tmp_path: Path) -> None:
    for body in (b"", b"{", b"[" * 100_000, b"\xff"):
        connector = aiohttp.UnixConnector(str(tmp_path / "s.sock"))
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.post(f"http://x{PATH}", data=body) as response,
        ):
            assert response.status == 400
            assert (await response.json())["Success"] is False


async def test_who_cannot_be_traced_from(node: FakeNode, client: AsyncHnsClient) -> None:
    with pytest.raises(HcnError) as missing:
        await ask(client, **{**TO_WEB, "from": "nobody"})
    assert missing.value.code.name == "ERROR_NOT_FOUND"
    node.infos = [replace(info, port=0, host_interface="") for info in node.infos]
    with pytest.raises(HcnError, match="not attached"):
        await ask(client, **TO_WEB)


async def test_a_port_that_is_not_in_the_switch(node: FakeNode, client: AsyncHnsClient) -> None:
    node.content["sw_ports"] = {}
    with pytest.raises(HcnError, match="port 'sw00000000043 of shop/client' not found"):
        await ask(client, **TO_WEB)


async def test_a_family_that_the_pod_does_not_have(node: FakeNode, client: AsyncHnsClient) -> None:
    port = node.content["sw_ports"][Id(CLIENT_PORT)]
    assert isinstance(port, Port)
    node.content["sw_ports"] = {Id(CLIENT_PORT): replace(port, address=(port.address[0], ZERO))}
    with pytest.raises(HcnError, match="has no IPv6 address"):
        await ask(client, **{**TO_WEB, "to": "fd00:244:1::5"})


@pytest.mark.parametrize(
    "to", ["10.244.1.6", "fd00:244:1::6", "127.0.0.1", "127.9.9.9", "::1", "0.0.0.0", "::"]
)
async def test_what_a_pod_sends_to_itself_is_no_drop(node: FakeNode, client: AsyncHnsClient, to: str) -> None:
    """It never leaves the pod: the switch would call such a packet a martian, and the pod has its answer."""
    with pytest.raises(HcnError, match="own stack answers"):
        await ask(client, **{**TO_WEB, "to": to})
    assert not node.runs


@pytest.mark.parametrize("capacity", [1, 2])
async def test_a_full_flow_table(node: FakeNode, client: AsyncHnsClient, capacity: int) -> None:
    """A trace inserts nothing, so it does not meet what a new connection meets; one that is there is not concerned."""
    await ask(client, **TO_WEB, source_port=45000)
    node.content = dict(flows_of(node.content, node.runs[0][0], Arrival.POD, CLIENT_PORT))
    assert len(node.content["sw_flows"]) == 1
    node.flow_capacity = capacity
    new, known = [await ask(client, **TO_WEB, source_port=port) for port in (45001, 45000)]
    assert any("flow_table_full" in note for note in new.notes) == (capacity == 1)
    assert not any("flow_table_full" in note for note in known.notes)


async def test_a_services_address_at_a_port_that_it_has_not(node: FakeNode, client: AsyncHnsClient) -> None:
    """It is routed like any other, mostly into nowhere, and whoever asks has mistaken the port."""
    vip, other = parse_address("10.96.0.1").packed, parse_address("10.96.0.2").packed
    (scope,) = {port.scope for port in node.content["sw_ports"].values() if isinstance(port, Port)}
    found = Service(7, 0, 0, 0, 0, ZERO)
    node.content["sw_services"] = {
        ServiceKey(vip, 80, 6, 4, SCOPE_ANY): found,
        ServiceKey(vip, 79, 17, 4, scope): found,
        ServiceKey(vip, 90, 6, 4, scope + 1): found,
        ServiceKey(other, 91, 6, 4, SCOPE_ANY): found,
        ServiceKey(vip, 92, 6, 6, SCOPE_ANY): found,
    }
    asked = {**TO_WEB, "to": "10.96.0.1", "port": 8080}
    said = "10.96.0.1 is a service's address, at other ports: "
    assert (await ask(client, **asked)).notes == (f"{said}shop/web:http 80/tcp, shop/web:http 79/udp",)
    node.content["sw_services"] = {ServiceKey(vip, port, 6, 4, SCOPE_ANY): found for port in range(80, 86)}
    ports = ", ".join(f"shop/web:http {number}/tcp" for number in range(80, 85))
    assert (await ask(client, **asked)).notes == (f"{said}{ports}, ...",)
    assert not (await ask(client, **{**TO_WEB, "to": "10.96.0.3"})).notes
    assert not (await ask(client, **TO_WEB)).notes


async def test_a_node_without_tunnel_or_configuration(node: FakeNode, client: AsyncHnsClient) -> None:
    frame = probe("10.244.2.9", "10.244.1.5").hex()
    (key, config) = next(iter(node.content["sw_config"].items()))
    node.content["sw_config"] = {key: replace(config, tunnel_ifindex=0)}
    with pytest.raises(HcnError, match="no device for the tunnel"):
        await ask(client, arrival="tunnel", frame=frame)
    node.content["sw_config"] = {}
    with pytest.raises(HcnError, match="no configuration yet"):
        await ask(client, arrival="uplink", frame=frame)


async def test_a_kernel_that_cannot_be_read(
    node: FakeNode, client: AsyncHnsClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(names: Any = ()) -> Any:
        raise Unavailable("the kernel", "no")

    monkeypatch.setattr(node, "tables", fail)
    with pytest.raises(HcnError, match="the kernel is unavailable"):
        await ask(client, **TO_WEB)
