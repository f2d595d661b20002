"""What every source promises, whatever its objects come from."""

from __future__ import annotations

from typing import Any

from samewire.kube.errors import ApiError
from samewire.kube.model import EndpointSlice, Namespace, Service
from samewire.kube.source import Batch, Source
from tests.apiserver.objects import Recorder, endpoint_slice, plain, service, until
from tests.apiserver.worlds import World


async def test_the_first_batch_is_everything(world: World, source: Source) -> None:
    for number in range(7):
        await world.put(service(world.namespace, f"web{number}"))
    told: Recorder[Service] = Recorder()
    source.watch(Service, told)
    assert not source.objects(Service)
    await source.start()
    await source.wait_synced()
    assert told.batches[0].snapshot
    assert {key for (key,) in ((change.key,) for change in told.batches[0].changes)} == {
        (world.namespace, f"web{number}") for number in range(7)
    }
    assert told.cache == dict(source.objects(Service))


async def test_nothing_is_a_snapshot_too(source: Source) -> None:
    told: Recorder[EndpointSlice] = Recorder()
    source.watch(EndpointSlice, told)
    await source.start()
    await source.wait_synced()
    assert [batch.snapshot for batch in told.batches] == [True]
    assert told.cache == {}


async def test_changes_come_with_what_was_before(world: World, source: Source) -> None:
    told: Recorder[Service] = Recorder()
    source.watch(Service, told)
    await source.start()
    await source.wait_synced()
    key = (world.namespace, "web")
    await world.put(service(*key, port=80))
    await until(lambda: key in told.cache)
    await world.put(service(*key, port=81))
    await until(lambda: told.cache[key].spec.ports[0].port == 81)
    await world.delete(service(*key))
    await until(lambda: key not in told.cache)
    first, *_, last = told.changes
    assert (first.old, last.new) == (None, None)
    assert [change.old for change in told.changes[1:]] == [change.new for change in told.changes[:-1]]


async def test_fields_are_read(world: World, source: Source) -> None:
    services: Recorder[Service] = Recorder()
    slices: Recorder[EndpointSlice] = Recorder()
    source.watch(Service, services)
    source.watch(EndpointSlice, slices)
    key = (world.namespace, "web")
    wanted = service(
        *key, type="NodePort", sessionAffinity="ClientIP", externalTrafficPolicy="Local",
        sessionAffinityConfig={"clientIP": {"timeoutSeconds": 77}}, publishNotReadyAddresses=True,
    )  # fmt: skip
    wanted["metadata"]["annotations"] = {"preserve-destination": "true", "other": "x"}
    wanted["metadata"]["labels"]["service.kubernetes.io/service-proxy-name"] = "none-of-yours"
    await world.put(wanted)
    published = endpoint_slice(*key, "192.0.2.1")
    published["endpoints"] = [
        {
            "addresses": ["192.0.2.1"], "nodeName": "node1", "zone": "z1",
            "conditions": {"ready": False, "serving": True, "terminating": True},
            "hints": {"forZones": [{"name": "z1"}]},
        },
        {"addresses": ["192.0.2.2"]},
    ]  # fmt: skip
    await world.put(published)
    await source.start()
    await until(lambda: key in services.cache and slices.cache)
    found = services.cache[key]
    spec = found.spec
    assert (spec.type, spec.session_affinity, spec.external_traffic_policy) == (
        "NodePort",
        "ClientIP",
        "Local",
    )
    assert spec.publish_not_ready_addresses
    assert spec.session_affinity_config is not None
    assert spec.session_affinity_config.client_ip is not None
    assert spec.session_affinity_config.client_ip.timeout_seconds == 77
    assert len(found.cluster_ips) == (1 if spec.cluster_ip else 0)
    assert found.metadata.annotations.preserve_destination == "true"
    assert found.metadata.labels.service_proxy_name == "none-of-yours"
    (published_slice,) = slices.cache.values()
    assert published_slice.service_key == key
    assert (published_slice.address_type, published_slice.ports[0].port) == ("IPv4", 8080)
    going, staying = published_slice.endpoints
    assert (going.addresses, going.node_name, going.zone) == (("192.0.2.1",), "node1", "z1")
    assert (going.ready, going.serving, going.terminating) == (False, True, True)
    assert going.hints is not None
    assert [hint.name for hint in going.hints.for_zones] == ["z1"]
    assert (staying.ready, staying.serving, staying.terminating) == (True, True, False)


async def test_external_addresses_are_read(world: World, source: Source) -> None:
    told: Recorder[Service] = Recorder()
    source.watch(Service, told)
    key = (world.namespace, "web")
    try:
        await world.put(service(*key, externalIPs=["192.0.2.7"]))
    except ApiError as error:
        if error.status == 403 and "external IPs is denied" in error.message:
            return  # the admission plugin DenyServiceExternalIPs: no Service of this cluster has any
        raise
    await source.start()
    await until(lambda: key in told.cache)
    assert told.cache[key].spec.external_ips == ("192.0.2.7",)


async def test_what_no_controller_reads_is_no_change(world: World, source: Source) -> None:
    told: Recorder[Service] = Recorder()
    source.watch(Service, told)
    key, marker = (world.namespace, "web"), (world.namespace, "marker")
    await world.put(service(*key))
    await source.start()
    await source.wait_synced()
    again = service(*key)
    again["metadata"]["annotations"] = {"somebody.example/else": "1"}
    await world.put(again)
    await world.put(service(*marker))
    await until(lambda: marker in told.cache)
    assert {change.key for change in told.changes} == {marker}


async def test_a_late_handler_gets_its_snapshot_at_once(world: World, source: Source) -> None:
    early: Recorder[Service] = Recorder()
    late: Recorder[Service] = Recorder()
    source.watch(Service, early)
    await world.put(service(world.namespace, "web"))
    await source.start()
    await source.wait_synced()
    source.watch(Service, late)
    assert late.cache == early.cache
    assert late.batches[0].snapshot
    await world.put(service(world.namespace, "more"))
    await until(lambda: len(early.cache) == 2)
    assert late.cache == early.cache


async def test_a_burst_arrives_whole(world: World, source: Source) -> None:
    told: Recorder[EndpointSlice] = Recorder()
    source.watch(EndpointSlice, told)
    await source.start()
    await source.wait_synced()
    for number in range(40):
        await world.put(endpoint_slice(world.namespace, f"web{number}", f"192.0.2.{number + 1}"))
    for number in range(0, 40, 2):
        await world.delete(endpoint_slice(world.namespace, f"web{number}"))
    wanted = {(world.namespace, f"web{number}-abc") for number in range(1, 40, 2)}
    await until(lambda: told.cache.keys() == wanted)


async def test_an_object_that_comes_again_is_the_new_one(world: World, source: Source) -> None:
    told: Recorder[EndpointSlice] = Recorder()
    source.watch(EndpointSlice, told)
    await world.put(endpoint_slice(world.namespace, "web", "192.0.2.1"))
    await source.start()
    await source.wait_synced()
    await world.delete(endpoint_slice(world.namespace, "web"))
    await world.put(endpoint_slice(world.namespace, "web", "192.0.2.2"))

    def address() -> str | None:
        found = told.cache.get((world.namespace, "web-abc"))
        return found.endpoints[0].addresses[0] if found else None

    await until(lambda: address() == "192.0.2.2")


async def test_objects_without_a_namespace(world: World, source: Source) -> None:
    told: Recorder[Namespace] = Recorder()
    source.watch(Namespace, told)
    name = f"{world.namespace}-more"
    item = plain("Namespace", name)
    item["metadata"]["labels"] = {"team": "blue"}
    await world.put(item)
    try:
        await source.start()
        await until(lambda: ("", name) in told.cache)
        assert told.cache["", name].metadata.labels["team"] == "blue"
    finally:
        await world.delete(item)
    # A real server marks it first and deletes it when it is empty.
    await until(lambda: ("", name) not in told.cache or told.cache["", name].metadata.deletion_timestamp)


async def test_a_handler_that_fails_stops_nobody(world: World, source: Source) -> None:
    calls = []

    def fails(batch: Batch[Service]) -> None:
        calls.append(batch)
        raise RuntimeError("a fault of the controller")

    told: Recorder[Service] = Recorder()
    source.watch(Service, fails)
    source.watch(Service, told)
    await source.start()
    await source.wait_synced()
    await world.put(service(world.namespace, "web"))
    await until(lambda: told.cache)
    assert len(calls) == len(told.batches)
    assert source.counts()["Service"].handler_failures == len(calls)


async def test_health_tells_what_is_known(world: World, source: Source) -> None:
    told: Recorder[Service] = Recorder()
    source.watch(Service, told)
    (before,) = source.health()
    assert (before.kind, before.synced, before.connected, before.last_contact_s) == (
        "Service",
        False,
        False,
        None,
    )
    await world.put(service(world.namespace, "web"))
    await source.start()
    await until(lambda: source.health()[0].connected)
    (after,) = source.health()
    assert (after.synced, after.objects, after.error) == (True, 1, "")
    assert after.last_contact_s is not None


async def test_no_handler_is_called_after_the_end(world: World) -> None:
    source = world.open()
    told: Recorder[Any] = Recorder()
    source.watch(Service, told)
    await source.start()
    await source.wait_synced()
    await source.close()
    other = world.open()
    seen: Recorder[Service] = Recorder()
    other.watch(Service, seen)
    await other.start()
    await world.put(service(world.namespace, "web"))
    await until(lambda: seen.cache)
    await other.close()
    assert not told.changes
