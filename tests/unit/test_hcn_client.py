"""The typed client: every call over the daemon's socket, and over a library that answers the same."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import pytest

from samewire.errors import Unavailable
from samewire.hcn.client import HcnClient, HnsClient, Transport, _UnixConnection
from samewire.hcn.errors import HcnCode, HcnError
from samewire.hcn.http import HttpServer, make_app
from samewire.hcn.library_client import LibraryClient
from samewire.hcn.loadbalancers import LoadBalancer, LoadBalancerPortMapping
from samewire.hcn.modify import EndpointSettings, PolicySettings, RequestType
from samewire.hcn.notifications import NotificationType
from samewire.hcn.policies_acl import ACL, AclAction, AclDirection
from samewire.hcn.schema import Endpoint, Kind, Namespace, Network, ObjectState, Route, SdnRoute
from samewire.hcn.service import HnsService
from samewire.hcn.store import Store
from samewire.hcn.switch import EndpointStats
from samewire.kernel.computenetwork import ComputeNetwork, LibraryError
from tests.support.hcn import FakeSwitch, overlay

T = TypeVar("T")
KINDS = {"Network": "networks", "Endpoint": "endpoints", "Namespace": "namespaces"} | {
    "SdnRoute": "routes",
    "LoadBalancer": "loadbalancers",
}


class Daemon(threading.Thread):
    """The API on an event loop of its own, because the clients block."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.path = directory / "samewire.sock"
        self.directory = directory
        self.ready, self.loop = threading.Event(), asyncio.new_event_loop()
        self.ending = asyncio.Event()

    def run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        store = Store(self.directory / "hns.db")
        server = HttpServer(make_app(HnsService(store, FakeSwitch()), allowed_uids={os.getuid()}), self.path)
        await server.start()
        self.ready.set()
        await self.ending.wait()
        await server.close()
        store.close()

    def end(self) -> None:
        self.loop.call_soon_threadsafe(self.ending.set)
        self.join()


class Library(ComputeNetwork):
    """A library with the daemon behind it: the exports' arguments, without the ABI."""

    def __init__(self, path: Path) -> None:
        self._daemon = HnsClient(path)

    def enumerate(self, many: str, query: str = "") -> list[str]:
        found: list[str] = refusing(
            lambda: self._daemon.post_json(f"/v2/{KINDS[many[:-1]]}/enumerate", json.loads(query))
        )
        return found

    def create(self, one: str, object_id: str, settings: Any, network: str = "") -> None:
        path = f"/v2/{KINDS[one]}?id={object_id}" + (f"&network={network}" if network else "")
        refusing(lambda: self._daemon.post_json(path, settings))

    def query(self, one: str, object_id: str, query: str = "", what: str = "Properties") -> dict[str, Any]:
        verb = "query" if what == "Properties" else what.lower()
        found: dict[str, Any] = refusing(
            lambda: self._daemon.post_json(f"/v2/{KINDS[one]}/{object_id}/{verb}", json.loads(query))
        )
        return found

    def modify(self, one: str, object_id: str, settings: Any) -> None:
        refusing(lambda: self._daemon.post_json(f"/v2/{KINDS[one]}/{object_id}", settings))

    def delete(self, one: str, object_id: str) -> None:
        refusing(lambda: self._daemon.delete(Kind(KINDS[one]), object_id))

    @contextmanager
    def listening(self, heard: Callable[[int, int, str], None]) -> Iterator[None]:
        with self._daemon.notifications() as events:
            thread = threading.Thread(target=self._pass_on, args=(events, heard))
            thread.start()
            yield
        thread.join()

    def _pass_on(self, events: Iterator[dict[str, Any]], heard: Callable[[int, int, str], None]) -> None:
        for event in events:
            heard(event["Type"], event["Status"], json.dumps(event["Data"]))


def refusing(call: Callable[[], T]) -> T:
    try:
        return call()
    except HcnError as error:
        raise LibraryError("Hcn", int(error.code), error.message) from error


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    thread = Daemon(tmp_path)
    thread.start()
    assert thread.ready.wait(10)
    yield thread
    if thread.is_alive():
        thread.end()


@pytest.fixture(params=["socket", "library"])
def client(daemon: Daemon, request: pytest.FixtureRequest) -> HcnClient:
    transport: Transport = LibraryClient(Library(daemon.path))
    return HcnClient(daemon.path if request.param == "socket" else transport)


@pytest.mark.parametrize("kind", Kind)
def test_what_goes_while_all_are_listed_is_passed_over(daemon: Daemon, kind: Kind) -> None:
    class Behind(Library):
        def enumerate(self, many: str, query: str = "") -> list[str]:
            return [*super().enumerate(many, query), str(uuid4())]

    assert LibraryClient(Behind(daemon.path)).list(kind) == []


def test_all_calls(client: HcnClient) -> None:
    network: Network = client.networks.create(overlay("vxlan0"))
    assert client.networks.get(network.id) == network
    assert client.networks.find("vxlan0") == network
    assert client.networks.find("another") is None
    assert client.networks.enumerate() == [network.id]
    endpoint: Endpoint = client.endpoints.create(Endpoint(network_id=network.id, name="web"))
    assert client.endpoints.addresses(endpoint.id) == endpoint.addresses
    assert client.endpoints.stats(endpoint.id) == EndpointStats(bytes_sent=36)
    assert client.endpoints.list(VirtualNetworkName="vxlan0") == [endpoint]
    acl = ACL(action=AclAction.BLOCK, direction=AclDirection.IN, priority=100)
    changed = client.endpoints.modify(endpoint.id, RequestType.ADD, PolicySettings(policies=(acl,)))
    assert changed.policies == (acl,)
    namespace: Namespace = client.namespaces.create(Namespace())
    assert client.endpoints.state(endpoint.id) is ObjectState.CREATED
    client.namespaces.modify(namespace.id, RequestType.ADD, EndpointSettings(endpoint_id=endpoint.id))
    assert client.endpoints.state(endpoint.id) is ObjectState.ATTACHED_SHARING
    route = client.routes.create(
        Route(endpoint_ids=(endpoint.id,), routes=(SdnRoute(destination_prefix="10.96.0.0/12"),))
    )
    assert route.network_id == network.id
    mapping = LoadBalancerPortMapping(protocol=6, internal_port=80, external_port=80)
    balancer = client.load_balancers.create(
        LoadBalancer(endpoint_ids=(endpoint.id,), frontend_vips=("10.96.0.1",), port_mappings=(mapping,))
    )
    moved = client.load_balancers.replace(
        LoadBalancer(
            id=balancer.id,
            endpoint_ids=(endpoint.id,),
            frontend_vips=("10.96.0.2",),
            port_mappings=(mapping,),
        )
    )
    assert client.load_balancers.list() == [moved]
    client.networks.delete(network.id)
    assert client.endpoints.list() == []
    assert client.load_balancers.list() == []


def test_errors(client: HcnClient) -> None:
    with pytest.raises(HcnError) as refused:
        client.endpoints.create(Endpoint(network_id="0A1B2C3D-0000-0000-0000-00000000000F"))
    assert refused.value.code is HcnCode.NETWORK_NOT_FOUND
    assert "network" in refused.value.message
    with pytest.raises(TypeError, match="EndpointSettings are no settings of networks"):
        client.networks.modify("x", RequestType.ADD, EndpointSettings(endpoint_id="x"))


def test_what_happens_is_told(client: HcnClient, daemon: Daemon) -> None:
    with client.notifications() as events:
        network = client.networks.create(overlay("vxlan0"))
        first, second = next(events), next(events)
        assert (first.type, second.type) == (
            NotificationType.NETWORK_PRE_CREATE,
            NotificationType.NETWORK_CREATE,
        )
        assert second.data["ID"] == network.id
        daemon.end()
        assert [event.type for event in events] == [NotificationType.SERVICE_DISCONNECT]


def test_what_goes_wrong_while_one_listens_is_not_the_daemons_fault(daemon: Daemon) -> None:
    with pytest.raises(BrokenPipeError), HcnClient(daemon.path).notifications():
        raise BrokenPipeError


def test_one_connection_carries_many_calls(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[_UnixConnection] = []
    connect = _UnixConnection.connect

    def noted(self: _UnixConnection) -> None:
        made.append(self)
        connect(self)

    monkeypatch.setattr(_UnixConnection, "connect", noted)
    client = HnsClient(daemon.path)
    for _ in range(5):
        assert client.list(Kind.NETWORK) == []
        with pytest.raises(HcnError):
            client.get(Kind.NETWORK, "00000000-0000-0000-0000-000000000001")
    assert len(made) == 1
    client.close()
    assert client.list(Kind.NETWORK) == []
    assert len(made) == 2


def test_a_daemon_that_was_restarted_is_found_again(tmp_path: Path) -> None:
    client = HcnClient(tmp_path / "samewire.sock")
    for _ in range(2):
        thread = Daemon(tmp_path)
        thread.start()
        try:
            assert thread.ready.wait(10)
            assert client.networks.list() == []
        finally:
            thread.end()


def test_nobody_answers(tmp_path: Path) -> None:
    client = HcnClient(tmp_path / "none")
    with pytest.raises(Unavailable):
        client.networks.list()
    with pytest.raises(Unavailable), client.notifications():
        pass
