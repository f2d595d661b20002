"""All or nothing: a failing switch or disk leaves everything as it was; reads see committed objects only."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from samewire.errors import KernelError
from samewire.hcn.errors import StoreError
from samewire.hcn.plan.namespaces import NamespaceSpec
from samewire.hcn.schema import Endpoint, Kind, Network
from samewire.hcn.service import HnsService
from samewire.hcn.state import Pending
from samewire.hcn.store import Store
from samewire.hcn.switch import Change
from tests.support.hcn import FakeSwitch, at, bridge, overlay

SPEC = NamespaceSpec("/run/netns/pod1", "c1")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "hns.db")
    yield store
    store.close()


@pytest.fixture
def service(store: Store, switch: FakeSwitch) -> HnsService:
    return HnsService(store, switch)


def snapshot(service: HnsService) -> list[object]:
    return [value for kind in Kind for value in service.view.all(kind)]


async def test_a_refusal_of_the_switch_changes_nothing(service: HnsService, switch: FakeSwitch) -> None:
    network = await service.create_network(overlay())
    made = await service.create_attached_endpoint(network.id, Endpoint(), SPEC, "eth0")
    before, objects = snapshot(service), switch.objects
    for attempt in (
        lambda: service.create_network(bridge()),
        lambda: service.create_attached_endpoint(
            network.id, Endpoint(), NamespaceSpec("/run/netns/p2", "c"), "eth0"
        ),
        lambda: service.delete_attached_endpoint(made.id),
        lambda: service.delete(Kind.NETWORK, network.id),
    ):
        switch.refuse_next()
        with pytest.raises(KernelError):
            await attempt()
        assert snapshot(service) == before
    assert switch.objects == objects
    await service.delete_attached_endpoint(made.id)


async def test_what_cannot_be_written_is_taken_back(
    service: HnsService, switch: FakeSwitch, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = await service.create_network(overlay())
    before, objects = snapshot(service), switch.objects

    def full(changes: Sequence[Change]) -> None:
        raise StoreError(str(store.path), "disk full")

    with monkeypatch.context() as patched:
        patched.setattr(store, "commit", full)
        with pytest.raises(StoreError, match="disk full"):
            await service.create_attached_endpoint(network.id, Endpoint(), SPEC, "eth0")
    assert (snapshot(service), switch.objects) == (before, objects)
    assert [change.after is None for change in switch.calls[-1]] == [True, True]
    assert switch.calls[-1] == [change.inverse() for change in reversed(switch.calls[-2])]
    assert await service.create_attached_endpoint(network.id, Endpoint(), SPEC, "eth0")


async def test_the_first_error_is_reported_when_taking_back_fails_too(
    service: HnsService, switch: FakeSwitch, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(changes: Sequence[Change]) -> None:
        switch.refuse_next()
        raise StoreError(str(store.path), "disk full")

    monkeypatch.setattr(store, "commit", full)
    with pytest.raises(StoreError, match="disk full"):
        await service.create_network(overlay())
    assert snapshot(service) == []


async def test_a_change_is_not_seen_before_it_is_true(service: HnsService, switch: FakeSwitch) -> None:
    switch.gate = asyncio.Event()
    work = asyncio.create_task(service.create_network(overlay()))
    await switch.entered.wait()
    assert snapshot(service) == []
    switch.gate.set()
    assert snapshot(service) != [await work]
    assert service.view.networks() == [await work]


async def test_changes_wait_for_one_another(service: HnsService, switch: FakeSwitch) -> None:
    network = await service.create_network(bridge())
    wanted = [Endpoint(network_id=network.id, ip_configurations=at("10.1.0.5")) for _ in range(8)]
    results = await asyncio.gather(
        *(service.create_endpoint(value) for value in wanted), return_exceptions=True
    )
    assert sum(isinstance(result, Endpoint) for result in results) == 1
    made = await asyncio.gather(
        *(service.create_endpoint(Endpoint(network_id=network.id)) for _ in range(50))
    )
    assert len({value.addresses for value in made}) == 50
    assert len({value.mac_address for value in made}) == 50


async def test_a_caller_that_goes_away_leaves_nothing_half_done(
    service: HnsService, switch: FakeSwitch, store: Store
) -> None:
    switch.gate = asyncio.Event()
    work = asyncio.create_task(service.create_network(overlay()))
    await switch.entered.wait()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    switch.gate.set()
    await service.close()
    assert [network.name for network in service.view.networks()] == ["vxlan0"]
    assert list(switch.objects.values()) == service.view.networks()


async def test_a_failure_nobody_waits_for_is_no_noise(service: HnsService, switch: FakeSwitch) -> None:
    noise: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: noise.append(context))
    switch.gate = asyncio.Event()
    switch.refuse_next()
    work = asyncio.create_task(service.create_network(overlay()))
    await switch.entered.wait()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    switch.gate.set()
    await service.close()
    gc.collect()
    assert noise == []
    assert snapshot(service) == []


async def test_everything_is_there_after_a_restart(
    service: HnsService, store: Store, switch: FakeSwitch
) -> None:
    network = await service.create_network(overlay())
    await service.create_network(bridge())
    made = await service.create_attached_endpoint(network.id, Endpoint(), SPEC, "eth0")
    before = snapshot(service)
    store.close()
    again = Store(store.path)
    try:
        later = HnsService(again, switch)
        assert snapshot(later) == before
        await later.delete_attached_endpoint(made.id)
        namespace = await later.create_attached_endpoint(network.id, Endpoint(), SPEC, "eth0")
        assert later.view.namespace(namespace.namespace_id) is not None
    finally:
        again.close()


def test_a_pending_view_shows_the_objects_as_they_will_be(store: Store) -> None:
    old, new = Network(id="A", name="old"), Network(id="A", name="new")
    kept, gone = (
        Endpoint(id="1", network_id="A"),
        Endpoint(id="2", network_id="A", ip_configurations=at("10.0.0.2")),
    )
    store.commit(
        [
            Change(Kind.NETWORK, "A", None, old),
            Change(Kind.ENDPOINT, "1", None, kept),
            Change(Kind.ENDPOINT, "2", None, gone),
        ]
    )
    added = Endpoint(id="3", network_id="A", ip_configurations=at("10.0.0.2"))
    view = Pending(
        store.state,
        [
            Change(Kind.NETWORK, "A", old, new),
            Change(Kind.ENDPOINT, "2", gone, None),
            Change(Kind.ENDPOINT, "3", None, added),
        ],
    )
    assert view.networks() == [new]
    assert (view.network_by_name("old"), view.network_by_name("new")) == (None, new)
    assert view.endpoints() == view.endpoints_of_network("A") == [kept, added]
    assert view.endpoint_by_ip("A", "10.0.0.2") == added
    assert view.endpoint("2") is None
    assert store.state.endpoints() == [kept, gone]
