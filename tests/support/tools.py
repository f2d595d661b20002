"""For tests of the tools: a small compiled node, a node without a kernel, and a daemon that answers by rote."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

from samewire.hcn.policies import (
    ACL,
    VSID,
    AclAction,
    AclDirection,
    HostRoute,
    OutBoundNAT,
    PolicyBase,
    PortMapping,
    RemoteSubnetRoute,
)
from samewire.hcn.schema import (
    Endpoint,
    Ipam,
    IpConfiguration,
    Network,
    NetworkType,
    Route,
    RouteEntry,
    Subnet,
)
from samewire.trace.context import EndpointInfo, TraceRun
from samewire.trace.probe import PROTOCOLS, Probe, build
from samewire.vfp.acl_names import AclNames
from samewire.vfp.address import ZERO, parse_address, parse_interface
from samewire.vfp.compile import compile_endpoint, compile_node
from samewire.vfp.constants import Arrival, Fate
from samewire.vfp.model import Entries, NodeFacts, ProxyRule
from samewire.vfp.numbers import MemoryNumbers
from samewire.vfp.ownership import Ownership
from samewire.vfp.record import Record
from samewire.vfp.simulate import Simulator
from samewire.vfp.tables import DropEvent, Flow, TraceOutput, TraceStep
from tests.support.compiled import whole_network

WEB_PORT, CLIENT_PORT, UPLINK, TUNNEL, HOST, HOST_PEER = 42, 43, 2, 5, 6, 7
SERVICE_NAMES = {7: "shop/web:http"}
INTERFACES = {
    WEB_PORT: "sw00000000042",
    CLIENT_PORT: "sw00000000043",
    UPLINK: "eth0",
    TUNNEL: "swvxlan0",
    HOST: "samewire0",
    HOST_PEER: "samewire1",
}
WEB_ID, CLIENT_ID, FAR_ID = (f"1A2B3C4D-0000-4000-8000-00000000000{n}" for n in (1, 2, 3))
NETWORK_ID = "0E57AB1E-0000-4000-8000-000000000001"
NO_STEP = TraceStep(0, 0, 0, 0, 0, 0, 0, 0, ZERO, ZERO)

FACTS = NodeFacts(
    name="node-1",
    uplink_ifindex=UPLINK,
    uplink_mac=bytes.fromhex("02aaaaaaaa01"),
    uplink_mtu=1500,
    addresses=(parse_interface("192.168.1.10/24"), parse_interface("fd00:1::10/64")),
    gateways=(parse_address("192.168.1.1"), parse_address("fd00:1::1")),
    tunnel_ifindex=TUNNEL,
    tunnel_mac=bytes.fromhex("02aaaaaaaa02"),
    host_ifindex=HOST,
    host_mac=bytes.fromhex("02aaaaaaaa03"),
    host_peer_ifindex=HOST_PEER,
    host_peer_mac=bytes.fromhex("02aaaaaaaa04"),
)


def remote_subnet(prefix: str, address: str = "192.168.1.11", vni: int = 4096) -> RemoteSubnetRoute:
    """A pod subnet behind another node."""
    return RemoteSubnetRoute(
        destination_prefix=prefix,
        isolation_id=vni,
        provider_address=address,
        distributed_router_mac_address="02-BB-00-00-00-02",
    )


def _subnet(prefix: str, gateway: str) -> Subnet:
    default = "::/0" if ":" in prefix else "0.0.0.0/0"
    return Subnet(
        ip_address_prefix=prefix,
        policies=(VSID(isolation_id=4096),),
        routes=(RouteEntry(next_hop=gateway, destination_prefix=default),),
    )


NETWORK = Network(
    id=NETWORK_ID,
    name="pods",
    type=NetworkType.OVERLAY,
    policies=(HostRoute(), remote_subnet("10.244.2.0/24"), remote_subnet("fd00:244:2::/64")),
    ipams=(
        Ipam(subnets=(_subnet("10.244.1.0/24", "10.244.1.1"), _subnet("fd00:244:1::/64", "fd00:244:1::1"))),
    ),
)


def _endpoint(number: str, last: int, policies: tuple[PolicyBase, ...]) -> Endpoint:
    return Endpoint(
        id=number,
        mac_address=f"0E-2A-0A-F4-01-0{last}",
        ip_configurations=(
            IpConfiguration(ip_address=f"10.244.1.{last}"),
            IpConfiguration(ip_address=f"fd00:244:1::{last}"),
        ),
        policies=policies,  # type: ignore[arg-type]  # a union of its subclasses
    )


WEB = _endpoint(
    WEB_ID,
    5,
    (
        ACL(action=AclAction.ALLOW, direction=AclDirection.IN, protocols="6", local_ports="80", priority=100),
        PortMapping(protocol=6, internal_port=80, external_port=8080),
    ),
)
CLIENT = _endpoint(CLIENT_ID, 6, (OutBoundNAT(exceptions=("10.244.0.0/16",)),))
INFOS = (
    EndpointInfo(
        id=WEB_ID,
        name="shop/web-0",
        addresses=("10.244.1.5", "fd00:244:1::5"),
        mac="0E-2A-0A-F4-01-05",
        network_id=NETWORK_ID,
        network="pods",
        network_type="Overlay",
        port=WEB_PORT,
        host_interface=INTERFACES[WEB_PORT],
        namespace_id="9A000000-0000-4000-8000-000000000001",
        netns_path="/run/netns/web",
        interface="eth0",
        container_id="c0ffee0123456789",
        state=3,
    ),
    EndpointInfo(
        id=CLIENT_ID,
        name="shop/client",
        addresses=("10.244.1.6", "fd00:244:1::6"),
        mac="0E-2A-0A-F4-01-06",
        network_id=NETWORK_ID,
        network="pods",
        network_type="Overlay",
        port=CLIENT_PORT,
        host_interface=INTERFACES[CLIENT_PORT],
        namespace_id="9A000000-0000-4000-8000-000000000002",
        netns_path="/run/netns/client",
        interface="eth0",
        container_id="deadbeef01234567",
        state=3,
    ),
    EndpointInfo(
        id=FAR_ID,
        name="far",
        addresses=("10.244.2.9",),
        network_id=NETWORK_ID,
        network="pods",
        network_type="Overlay",
        remote=True,
        state=1,
    ),
)


def compiled(
    facts: NodeFacts = FACTS, ports: tuple[int, int] = (WEB_PORT, CLIENT_PORT), network: Network = NETWORK
) -> Entries:
    """The tables of the small node: an overlay network with two pods."""
    numbers, ownership = MemoryNumbers(), Ownership()
    ownership.replace("node", compile_node(facts, numbers).entries)
    ownership.replace("network", whole_network(network, facts, numbers).entries)
    for endpoint, port in zip((WEB, CLIENT), ports, strict=True):
        entries = compile_endpoint(endpoint, network, facts, numbers, port, 7).everything()
        ownership.replace(endpoint.id, entries)
    return ownership.tables()


def output(
    *steps: TraceStep, fate: Fate = Fate.NOWHERE, drop: tuple[int, int] = (0, 0), flow_hit: int = 0
) -> TraceOutput:
    """A record of the traced build."""
    padded = (*steps, *([NO_STEP] * (24 - len(steps))))
    return TraceOutput(len(steps), fate, drop[0], drop[1], flow_hit, padded)


def probe(
    source: str, destination: str, port: int = 80, protocol: str = "tcp", source_port: int = 40000
) -> bytes:
    """A frame with a probe; its MACs are zero."""
    ends = parse_address(source), parse_address(destination)
    return build(
        Probe(
            source_mac=bytes(6),
            destination_mac=bytes(6),
            source=ends[0],
            destination=ends[1],
            protocol=PROTOCOLS[protocol][ends[0].family],
            source_port=source_port,
            destination_port=port,
        )
    )


class FakeNode:
    """A node without a kernel: `samewire.trace.context.TraceContext` on given tables.

    Its traced build is the simulator, which records no steps, unless ``answers`` holds what it is to say.
    """

    node = "node-1"

    def __init__(self, tables: Entries) -> None:
        self.flow_capacity = 100
        self.content = dict(tables)
        self.infos: Sequence[EndpointInfo] = INFOS
        self.answers: list[TraceRun] = []
        self.runs: list[tuple[bytes, Arrival, int, int, int, bytes]] = []
        self.events: asyncio.Queue[DropEvent] = asyncio.Queue()
        self.listeners = 0
        self.proxy_rules: dict[int, tuple[ProxyRule, ...]] = {}

    def endpoints(self) -> Sequence[EndpointInfo]:
        return self.infos

    def name_of_port(self, ifindex: int) -> str:
        return INTERFACES.get(ifindex, "")

    def balancer_owners(self) -> dict[int, str]:
        return {}

    def routes(self, ifindex: int) -> list[Route]:
        return []

    def service_name(self, number: int) -> str:
        return SERVICE_NAMES.get(number, "")

    def rows(self, name: str) -> Mapping[Record, Record]:
        return self.content.get(name, {})

    def acl_names(self, ifindex: int) -> AclNames:
        return AclNames({1: "allow-web"} if ifindex == WEB_PORT else {})

    def proxies(self, ifindex: int) -> tuple[ProxyRule, ...]:
        return self.proxy_rules.get(ifindex, ())

    def tables(self, names: Collection[str] = ()) -> Entries:
        return {name: rows for name, rows in self.content.items() if not names or name in names}

    def run_traced(
        self, frame: bytes, arrival: Arrival, ifindex: int, vni: int, family: int, tunnel_source: bytes
    ) -> TraceRun:
        self.runs.append((frame, arrival, ifindex, vni, family, tunnel_source))
        if self.answers:
            return self.answers.pop(0)
        outcome = Simulator(self.content, 0).receive(frame, arrival, ifindex, vni)
        if outcome.drop is not None:
            _, rule, layer, reason = outcome.drop
            step = TraceStep(layer, 2, reason, 0, rule, 0, 0, 0, ZERO, ZERO)
            return TraceRun(output(step, drop=(layer, reason)), frame)
        step = TraceStep(14, 4, 0, outcome.fate, 0, outcome.target, 0, 0, ZERO, ZERO)
        return TraceRun(output(step, fate=outcome.fate), outcome.frame)

    async def drop_events(self) -> AsyncGenerator[DropEvent, None]:
        self.listeners += 1
        try:
            while True:
                yield await self.events.get()
        finally:
            self.listeners -= 1


Answer = tuple[int, Any] | Callable[[Any], tuple[int, Any]]


class StubDaemon:
    """Answers requests from a table, in a thread. ``answers``: "GET /path?query" -> status and JSON value, or a
    function of the request's body; ``requests`` keeps what was asked.
    """

    def __init__(self, directory: Path) -> None:
        self.socket = str(directory / "daemon.sock")
        self.answers: dict[str, Answer] = {}
        self.requests: list[tuple[str, Any]] = []
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                stub._answer(self, None)

            def do_POST(self) -> None:
                stub._answer(self, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def address_string(self) -> str:
                return "unix"

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingUnixStreamServer(self.socket, Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    def _answer(self, handler: BaseHTTPRequestHandler, body: Any) -> None:
        asked = f"{handler.command} {_sorted_query(handler.path)}"
        self.requests.append((asked, body))
        found = self.answers.get(asked, (404, {"Error": f"no answer to {asked}", "ErrorCode": 0x80070490}))
        status, value = found(body) if callable(found) else found
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _sorted_query(path: str) -> str:
    parts = urlsplit(path)
    query = "&".join(f"{key}={value}" for key, value in sorted(parse_qsl(parts.query)))
    return f"{parts.path}?{query}" if query else parts.path


def flows_of(tables: Entries, frame: bytes, arrival: Arrival, ifindex: int) -> Entries:
    """The tables after the switch has seen a frame: with the flow that it made."""
    simulator = Simulator(tables, 0)
    simulator.receive(frame, arrival, ifindex)
    made: dict[Any, Flow] = dict(simulator.flows)
    return {**tables, "sw_flows": made}
