"""Random sequences of changes, some of which the switch refuses: memory, file and switch always agree."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from samewire.errors import SamewireError
from samewire.hcn.codec import decode_object, encode
from samewire.hcn.modify import EndpointSettings, ModifySettingRequest, PolicySettings, RequestType
from samewire.hcn.plan.namespaces import NamespaceSpec
from samewire.hcn.policies import HostRoute, OutBoundNAT, PortMapping
from samewire.hcn.schema import Endpoint, EndpointFlags, Kind, Namespace, Network, Object, Route, SdnRoute
from samewire.hcn.service import HnsService
from samewire.hcn.state import State
from samewire.hcn.store import Store
from samewire.hcn.switch import Change
from tests.support.hcn import FakeSwitch, at, bridge, overlay

NETWORKS = (
    overlay(),
    overlay(name="tenant2", vni=5000),
    bridge(prefix="10.1.0.0/29"),
    bridge(name="clash", prefix="10.1.0.0/24"),
    Network(name="nat"),
)
ADDRESSES = ("", "10.244.1.5", "10.244.1.6", "10.1.0.3", "10.1.0.1", "172.16.0.9")
PATHS = ("/run/netns/a", "/run/netns/b")
MAPPINGS = tuple(
    PortMapping(protocol=6, internal_port=80, external_port=8080, vip=vip) for vip in ("", "192.168.1.10")
)
POLICIES = (*MAPPINGS, OutBoundNAT(), OutBoundNAT(exceptions=("10.0.0.0/8",)))
index = st.integers(0, 30)


class Changes(RuleBasedStateMachine):
    """Every rule may be refused; a refusal must leave everything as it was."""

    @initialize()
    def start(self) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.path = Path(self.directory.name) / "hns.db"
        self.runner = asyncio.Runner()
        self.switch = FakeSwitch()
        self.store = Store(self.path)
        self.service = HnsService(self.store, self.switch)

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            self.runner.close()
            self.store.close()
            self.directory.cleanup()

    def attempt(self, work: Coroutine[Any, Any, object]) -> None:
        before = snapshot(self.service.view)
        calls = len(self.switch.calls)
        try:
            self.runner.run(work)
        except SamewireError:
            assert snapshot(self.service.view) == before
        else:
            assert len(self.switch.calls) <= calls + 1

    def pick(self, kind: Kind, number: int) -> str:
        values = self.service.view.all(kind)
        return values[number % len(values)].id if values else "0A1B2C3D-0000-0000-0000-00000000000F"

    @rule(network=st.sampled_from(NETWORKS))
    def create_network(self, network: Network) -> None:
        self.attempt(self.service.create_network(network))

    @rule(
        number=index,
        address=st.sampled_from(ADDRESSES),
        far=st.booleans(),
        policies=st.lists(st.sampled_from(POLICIES), max_size=2),
    )
    def create_endpoint(self, number: int, address: str, far: bool, policies: list[Any]) -> None:
        endpoint = Endpoint(
            network_id=self.pick(Kind.NETWORK, number),
            ip_configurations=at(address),
            flags=int(EndpointFlags.REMOTE_ENDPOINT) * far,
            policies=tuple(policies),
        )
        self.attempt(self.service.create_endpoint(endpoint))

    @rule(
        number=index,
        path=st.sampled_from(PATHS),
        address=st.sampled_from(ADDRESSES),
        name=st.sampled_from(["eth0", "eth1"]),
    )
    def create_attached(self, number: int, path: str, address: str, name: str) -> None:
        network_id, wanted = self.pick(Kind.NETWORK, number), Endpoint(ip_configurations=at(address))
        self.attempt(
            self.service.create_attached_endpoint(network_id, wanted, NamespaceSpec(path, path[-1]), name)
        )

    @rule(path=st.sampled_from(("", *PATHS)))
    def create_namespace(self, path: str) -> None:
        self.attempt(self.service.create_namespace(Namespace(netns_path=path)))

    @rule(number=index, all_of_network=st.booleans(), times=st.integers(1, 2))
    def create_route(self, number: int, all_of_network: bool, times: int) -> None:
        endpoint_ids = () if all_of_network else (self.pick(Kind.ENDPOINT, number),) * times
        network_id = self.pick(Kind.NETWORK, number) if all_of_network else ""
        routes = (SdnRoute(destination_prefix="10.96.0.0/12"),)
        self.attempt(
            self.service.create_route(Route(network_id=network_id, endpoint_ids=endpoint_ids, routes=routes))
        )

    @rule(namespace=index, endpoint=index, how=st.sampled_from([RequestType.ADD, RequestType.REMOVE]))
    def move(self, namespace: int, endpoint: int, how: RequestType) -> None:
        what = EndpointSettings(endpoint_id=self.pick(Kind.ENDPOINT, endpoint))
        request = ModifySettingRequest(request_type=how, settings=what)
        self.attempt(self.service.modify(Kind.NAMESPACE, self.pick(Kind.NAMESPACE, namespace), request))

    @rule(
        number=index,
        how=st.sampled_from(RequestType),
        policies=st.lists(st.sampled_from(POLICIES), max_size=2),
    )
    def modify_endpoint(self, number: int, how: RequestType, policies: list[Any]) -> None:
        request = ModifySettingRequest(request_type=how, settings=PolicySettings(policies=tuple(policies)))
        self.attempt(self.service.modify(Kind.ENDPOINT, self.pick(Kind.ENDPOINT, number), request))

    @rule(number=index, how=st.sampled_from(RequestType))
    def modify_network(self, number: int, how: RequestType) -> None:
        request = ModifySettingRequest(request_type=how, settings=PolicySettings(policies=(HostRoute(),)))
        self.attempt(self.service.modify(Kind.NETWORK, self.pick(Kind.NETWORK, number), request))

    @rule(kind=st.sampled_from(list(Kind)), number=index)
    def delete(self, kind: Kind, number: int) -> None:
        self.attempt(self.service.delete(kind, self.pick(kind, number)))

    @precondition(lambda self: hasattr(self, "switch"))
    @rule()
    def refuse_the_next(self) -> None:
        self.switch.refuse_next()

    @rule()
    def restart(self) -> None:
        before = snapshot(self.service.view)
        self.store.close()
        self.store = Store(self.path)
        self.service = HnsService(self.store, self.switch)
        assert snapshot(self.service.view) == before

    @invariant()
    def switch_and_store_agree(self) -> None:
        if hasattr(self, "switch"):
            assert self.switch.objects == {
                (kind, value.id): value for kind in Kind for value in self.service.view.all(kind)
            }

    @invariant()
    def indexes_agree_with_the_objects(self) -> None:
        if hasattr(self, "switch"):
            rebuilt = State()
            rebuilt.apply(
                Change(kind, value.id, None, value) for kind in Kind for value in self.service.view.all(kind)
            )
            view = self.service.view
            mine = {key: set(view.ids(key)) for key in view._index}
            assert mine == {key: set(rebuilt.ids(key)) for key in rebuilt._index}

    @invariant()
    def what_hns_promises(self) -> None:
        if not hasattr(self, "switch"):
            return
        view = self.service.view
        owners = [(value.network_id, address) for value in view.endpoints() for address in value.addresses]
        assert len(owners) == len(set(owners))
        names = [
            (value.namespace_id, value.interface_name) for value in view.endpoints() if value.namespace_id
        ]
        assert len(names) == len(set(names))
        ports = [p for value in view.endpoints() for p in value.policies if isinstance(p, PortMapping)]
        assert len(ports) <= 1  # the two mappings clash with each other and with themselves
        for endpoint in view.endpoints():
            assert view.network(endpoint.network_id)
            assert not endpoint.namespace_id or view.namespace(endpoint.namespace_id)
            assert not (endpoint.is_remote and endpoint.namespace_id)
        for route in view.routes():
            assert view.network(route.network_id)
            assert all(view.endpoint(endpoint_id) for endpoint_id in route.endpoint_ids)
        for kind in Kind:
            assert all(decode_object(kind, encode(value)) == as_sent(value) for value in view.all(kind))


def as_sent(value: Object) -> Object:
    """Return an object without what the service keeps to itself."""
    return msgspec.structs.replace(value, detached=False) if isinstance(value, Endpoint) else value


def snapshot(view: State) -> list[Object]:
    return [value for kind in Kind for value in view.all(kind)]


Changes.TestCase.settings = settings(max_examples=40, stateful_step_count=40)
TestChanges = Changes.TestCase
