"""The controller: when it writes, what it leaves alone, and that one bad service stops nobody."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from samewire.errors import SamewireError
from samewire.hcn.loadbalancers import LoadBalancer, LoadBalancerBackend
from samewire.kube.model import (
    Endpoint,
    EndpointPort,
    EndpointSlice,
    Key,
    Node,
    NodeMetadata,
    NodeSpec,
    Service,
    ServiceAnnotations,
    ServicePort,
    SliceLabels,
    Taint,
)
from samewire.proxy import controller
from samewire.proxy.controller import MAX_TRIGGERS, ServiceProxy
from samewire.proxy.ids import OWNER
from tests.support.kube_services import HERE, endpoint, endpoint_slice, service
from tests.support.proxy import FakeSource, FakeWriter
from tests.support.waiting import until

ZONE = "topology.kubernetes.io/zone"


class Rig:
    """A proxy between a source and a writer."""

    def __init__(self) -> None:
        self.source = FakeSource()
        self.writer = FakeWriter()
        self.proxy = ServiceProxy(self.source, self.writer, HERE)

    async def settle(self) -> None:
        """Wait until everything is written."""
        await asyncio.sleep(0)
        await until(lambda: self.proxy.idle)
        for _ in range(5):
            await asyncio.sleep(0)

    def lb(self, vip: str = "10.96.0.10") -> LoadBalancer | None:
        return next((lb for lb in self.writer.objects.values() if lb.frontend_vips == (vip,)), None)

    def backends(self) -> tuple[LoadBalancerBackend, ...]:
        made = self.lb()
        assert made is not None
        return made.backends


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    made = Rig()
    made.proxy.start()
    yield made
    await made.proxy.close()


def left_over(name: str = "shop/old:http") -> LoadBalancer:
    return LoadBalancer(id="OLD", owner=OWNER, service_name=name, frontend_vips=("10.96.0.99",))


async def test_a_service_appears_changes_and_goes(rig: Rig) -> None:
    await rig.source.start()
    rig.source.put(service(), endpoint_slice(endpoint("10.244.2.1")))
    await rig.settle()
    found = rig.lb()
    assert found is not None
    assert [backend.ip_address for backend in found.backends] == ["10.244.2.1"]
    rig.source.put(endpoint_slice(endpoint("10.244.2.1"), endpoint("10.244.2.2")))
    await rig.settle()
    changed = rig.lb()
    assert changed is not None
    assert changed.id == found.id
    assert len(changed.backends) == 2
    rig.source.remove(service())
    await rig.settle()
    assert rig.writer.objects == {}
    assert rig.proxy.figures.statuses == {}


@pytest.mark.parametrize("missing", [0, 1, 2])
async def test_nothing_is_touched_before_every_kind_is_known(rig: Rig, missing: int) -> None:
    rig.writer.objects["OLD"] = left_over()
    rig.source.put(service(), quiet=True)
    kinds = list(rig.source._objects)
    late = kinds.pop(missing)
    rig.source.sync(*kinds)
    for _ in range(20):
        await asyncio.sleep(0)
    assert rig.writer.writes == []
    assert rig.proxy.health.healthy(time.monotonic() + 1000), "an API server that is away is not our fault"
    rig.source.sync(late)
    assert not rig.proxy.health.healthy(time.monotonic() + 1000)
    await rig.settle()
    assert rig.proxy.health.healthy(time.monotonic() + 1000)
    assert rig.lb() is not None
    assert "OLD" not in rig.writer.objects


async def test_a_restart_finds_its_own_and_changes_nothing(rig: Rig) -> None:
    await rig.source.start()
    rig.source.put(service(), endpoint_slice(endpoint("10.244.2.1")))
    await rig.settle()
    again = ServiceProxy(rig.source, rig.writer, HERE)
    again.start()
    rig.writer.writes.clear()
    rig.source.sync()
    await until(lambda: again.idle)
    await again.close()
    assert rig.writer.writes == []
    assert len(rig.writer.objects) == 1


@pytest.mark.parametrize("lacks", ["service", "endpoints"])
@pytest.mark.parametrize(
    ("kind", "unread"),
    [
        ("Service", ("", "")),
        ("Service", ("shop", "web")),
        ("EndpointSlice", ("", "")),
        ("EndpointSlice", ("shop", "any")),
    ],
)
async def test_what_has_not_been_read_since_the_start_is_not_gone(
    rig: Rig, lacks: str, kind: str, unread: Key
) -> None:
    web, pods = service(), endpoint_slice(endpoint("10.244.2.1"))
    await rig.source.start()
    rig.source.put(web, pods)
    await rig.settle()
    before = rig.lb()
    await rig.proxy.close()
    rig.source.remove(web if lacks == "service" else pods)
    rig.source.unread = {kind: (unread,)}
    again = ServiceProxy(rig.source, rig.writer, HERE)
    again.start()
    rig.source.sync()
    other = service("other", ips=("10.96.0.11",))
    rig.source.put(other)
    await until(lambda: rig.lb("10.96.0.11") is not None)
    assert rig.lb() == before
    assert "has been read" in again.figures.status(web.key).error
    rig.source.unread = {}
    await until(lambda: rig.lb() != before)
    made = rig.lb()
    assert (made is not None, made.backends if made is not None else ()) == (lacks == "endpoints", ())
    await again.close()


@pytest.mark.parametrize(
    ("kind", "unread"),
    [("Service", ("shop", "other")), ("EndpointSlice", ("elsewhere", "web")), ("Node", ("", "one"))],
)
async def test_what_has_not_been_read_of_others_keeps_nobody(rig: Rig, kind: str, unread: Key) -> None:
    """Whoever can make one object that nobody can read cannot have other services stay for ever."""
    await rig.source.start()
    rig.source.put(web := service(), endpoint_slice(endpoint("10.244.2.1")))
    await rig.settle()
    await rig.proxy.close()
    rig.source.remove(web)
    rig.source.unread = {kind: (unread,)}
    again = ServiceProxy(rig.source, rig.writer, HERE)
    again.start()
    rig.source.sync()
    await until(lambda: rig.lb() is None)
    await again.close()


async def test_what_others_made_is_left_alone(rig: Rig) -> None:
    rig.writer.objects["THEIRS"] = LoadBalancer(id="THEIRS", owner="somebody", service_name="shop/old")
    rig.writer.objects["NAMELESS"] = LoadBalancer(id="NAMELESS", owner=OWNER)
    await rig.source.start()
    await rig.settle()
    assert set(rig.writer.objects) == {"THEIRS"}


async def test_one_bad_service_stops_nobody_and_is_tried_again(rig: Rig) -> None:
    rig.writer.refuse = lambda value: "no" if value.frontend_vips == ("10.96.0.1",) else ""
    await rig.source.start()
    rig.source.put(service("bad", ips=("10.96.0.1",)), service("good", ips=("10.96.0.2",)), service("web"))
    await rig.settle()
    assert (rig.lb("10.96.0.1"), rig.lb("10.96.0.2") is not None) == (None, True)
    status = rig.proxy.figures.statuses["shop", "bad"]
    assert (status.error, rig.proxy.figures.statuses["shop", "good"].error) == ("no", "")
    await until(lambda: status.attempts >= 2)
    assert rig.lb("10.96.0.10") is not None
    rig.writer.refuse = lambda value: ""
    await until(lambda: rig.lb("10.96.0.1") is not None)
    await rig.settle()
    assert (status.error, status.attempts) == ("", 0)


async def test_a_service_that_we_cannot_make_sense_of_stops_nobody(rig: Rig) -> None:
    await rig.source.start()
    broken = service("bad", ips=("10.96.0.1",), ports=(ServicePort(port=80, protocol="QUIC"),))  # type: ignore[arg-type]
    rig.source.put(broken, service())
    await rig.settle()
    assert rig.lb() is not None
    assert "QUIC" in rig.proxy.figures.statuses["shop", "bad"].error


async def test_a_bug_of_the_writer_ends_nothing(rig: Rig) -> None:
    def refuse(value: LoadBalancer) -> str:
        raise KeyError(value.id)

    rig.writer.refuse = refuse
    await rig.source.start()
    rig.source.put(service())
    await rig.settle()
    assert "KeyError" in rig.proxy.figures.statuses["shop", "web"].error
    rig.writer.refuse = lambda value: ""
    await until(lambda: rig.lb() is not None)


async def test_a_bug_about_one_service_stops_no_other(rig: Rig) -> None:
    def refuse(value: LoadBalancer) -> str:
        if value.frontend_vips == ("10.96.0.1",):
            raise OverflowError("int too big to convert")
        return ""

    rig.writer.refuse = refuse
    rig.source.put(service("bad", ips=("10.96.0.1",)), service("good", ips=("10.96.0.2",)), quiet=True)
    await rig.source.start()
    await rig.settle()
    assert rig.lb("10.96.0.2") is not None
    statuses = rig.proxy.figures.statuses
    assert (statuses["shop", "good"].error, "Overflow" in statuses["shop", "bad"].error) == ("", True)


async def test_what_could_not_be_made_need_not_be_deleted(rig: Rig) -> None:
    rig.writer.refuse = lambda value: "no"
    await rig.source.start()
    rig.source.put(service())
    await rig.settle()
    rig.source.remove(service())
    await rig.settle()
    assert [deletes for _, deletes in rig.writer.writes if deletes] == []
    assert rig.proxy.load_balancer_ids(("shop", "web")) == ()


async def test_the_hns_service_may_be_away(rig: Rig) -> None:
    rig.writer.down = True
    await rig.source.start()
    rig.source.put(service())
    await rig.settle()
    assert rig.writer.objects == {}
    rig.writer.down = False
    await until(lambda: rig.lb() is not None)


async def test_a_failed_delete_is_tried_again(rig: Rig) -> None:
    await rig.source.start()
    rig.source.put(service())
    await rig.settle()
    rig.writer.down = True
    rig.source.remove(service())
    await rig.settle()
    assert rig.lb() is not None
    rig.writer.down = False
    await until(lambda: rig.lb() is None)
    await rig.settle()
    assert rig.proxy.figures.statuses == {}


async def test_of_two_that_claim_an_address_a_start_takes_the_first_by_name(rig: Rig) -> None:
    """Whatever order the source has them in, which a slice of one's own changes: the nodes agree."""

    def refuse(value: LoadBalancer) -> str:
        others = (lb for lb in rig.writer.objects.values() if lb.id != value.id)
        return "taken" if any(set(lb.frontend_vips) & set(value.frontend_vips) for lb in others) else ""

    rig.writer.refuse = refuse
    rig.source.put(service("b"), service("a"), quiet=True)
    rig.source.put(endpoint_slice(endpoint("10.244.2.1"), of="b"), quiet=True)
    rig.source.sync(EndpointSlice, Service, Node)
    await rig.settle()
    made = rig.lb()
    assert made is not None
    assert made.service_name == "shop/a:http"
    assert rig.proxy.figures.statuses["shop", "b"].error == "taken"


async def test_an_address_that_moves_between_services(rig: Rig) -> None:
    def refuse(value: LoadBalancer) -> str:
        others = (lb for lb in rig.writer.objects.values() if lb.id != value.id)
        return "taken" if any(set(lb.frontend_vips) & set(value.frontend_vips) for lb in others) else ""

    rig.writer.refuse = refuse
    await rig.source.start()
    first, second = service("a"), service("b")
    rig.source.put(first)
    await rig.settle()
    rig.source.put(second)  # comes before the first goes
    rig.source.remove(first)
    await until(lambda: (lb := rig.lb()) is not None and lb.service_name == "shop/b:http")


async def test_an_address_that_becomes_free_is_taken_at_once(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(value: LoadBalancer) -> str:
        others = (lb for lb in rig.writer.objects.values() if lb.id != value.id)
        return "taken" if any(set(lb.frontend_vips) & set(value.frontend_vips) for lb in others) else ""

    monkeypatch.setattr("samewire.proxy.controller.FIRST_RETRY_S", 30.0)
    rig.writer.refuse = refuse
    await rig.source.start()
    rig.source.put(service("a"))
    await rig.settle()
    rig.source.put(service("b"))
    await rig.settle()
    assert rig.proxy.figures.statuses["shop", "b"].error == "taken"
    rig.source.remove(service("a"))
    await until(lambda: (lb := rig.lb()) is not None and lb.service_name == "shop/b:http")


async def test_changes_that_never_stop_are_no_illness(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is always something that waits, and nothing waits for long. What failed is tried again meanwhile."""
    monkeypatch.setattr("samewire.proxy.health.TIMEOUT_S", 0.5)
    await rig.source.start()
    rig.source.put(service("web0"))
    await rig.settle()
    rig.writer.refuse = lambda value: "no" if value.frontend_vips == ("10.96.0.1",) else ""
    rig.source.put(service("bad", ips=("10.96.0.1",)))
    write, count, now_s = rig.writer.write, itertools.count(), time.monotonic()
    monkeypatch.setattr(
        time, "monotonic", lambda: now_s
    )  # also the event loop's: the machine's speed says nothing

    async def busy(*what: Any) -> Mapping[str, SamewireError]:
        nonlocal now_s
        now_s += 0.005
        port = ServicePort(port=80, name="http", node_port=30000 + next(count) % 1000)
        rig.source.put(service("web0", type="NodePort", ports=(port,)))
        return await write(*what)

    monkeypatch.setattr(rig.writer, "write", busy)
    rig.source.put(service("web0", ips=("10.96.0.12",)))
    ends_s = now_s + 1.0
    for _ in range(100_000):  # it looks at plain values
        await asyncio.sleep(0)
        assert rig.proxy.health.healthy(now_s)
        if now_s >= ends_s:
            break
    monkeypatch.undo()
    assert now_s >= ends_s
    assert rig.proxy.figures.statuses["shop", "bad"].attempts > 1


async def test_a_service_may_fail_for_ever(rig: Rig) -> None:
    """And is tried again for as long; eight hours of it were once the end of that."""
    await rig.source.start()
    rig.writer.refuse = lambda _: "no"
    rig.source.put(service())
    await until(lambda: rig.proxy.figures.status(("shop", "web")).attempts > 0)
    rig.proxy.figures.status(("shop", "web")).attempts = 5000
    rig.source.put(service(type="NodePort"))
    await until(lambda: rig.proxy.figures.status(("shop", "web")).attempts > 5000)
    assert ("shop", "web") in rig.proxy._retries


async def test_a_service_that_waits_for_ever_does_not_grow(rig: Rig) -> None:
    rig.source.sync(Service, EndpointSlice)  # the nodes may not be listed
    for number in range(1000):
        triggered = (datetime.now(UTC) + timedelta(seconds=5)).isoformat()
        rig.source.put(endpoint_slice(endpoint(f"10.244.2.{number % 250}"), triggered=triggered))
    assert len(rig.proxy._triggers["shop", "web"]) <= MAX_TRIGGERS


async def test_there_is_no_network_yet(rig: Rig) -> None:
    rig.writer.network = None
    await rig.source.start()
    rig.source.put(service())
    for _ in range(20):
        await asyncio.sleep(0)
    assert rig.writer.writes == []
    rig.writer.network = "LATER"
    rig.source.put(service("other", ips=("10.96.0.11",)))
    await rig.settle()
    assert {lb.network_id for lb in rig.writer.objects.values()} == {"LATER"}


async def test_an_edit_that_changes_nothing_writes_nothing(rig: Rig) -> None:
    await rig.source.start()
    piece = endpoint_slice(endpoint("10.244.2.1"))
    rig.source.put(service(), piece)
    await rig.settle()
    rig.writer.writes.clear()
    rig.source.put(endpoint_slice(endpoint("10.244.2.1"), triggered="2026-01-01T00:00:00Z"))
    rig.source.put(service(publish_not_ready_addresses=True))
    await rig.settle()
    assert rig.writer.writes == []


async def test_one_change_touches_one_service(rig: Rig) -> None:
    await rig.source.start()
    for number in range(20):
        rig.source.put(service(f"s{number}", ips=(f"10.96.1.{number}",)))
    await rig.settle()
    rig.writer.writes.clear()
    rig.source.put(endpoint_slice(endpoint("10.244.2.1"), of="s7"))
    await rig.settle()
    assert rig.writer.writes == [(list(rig.proxy.load_balancer_ids(("shop", "s7"))), [])]


async def test_a_deleted_load_balancer_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller, "VERIFY_S", 0.001)
    rig = Rig()
    rig.proxy.start()
    await rig.source.start()
    rig.source.put(service())
    await rig.settle()
    rig.writer.objects.clear()
    await until(lambda: rig.lb() is not None)
    await rig.proxy.close()


async def test_a_change_does_not_wait_until_all_have_been_looked_at(rig: Rig) -> None:
    await rig.source.start()
    for number in range(3 * controller.BATCH):
        rig.source.put(service(f"s{number}", ips=(f"10.97.{number >> 8}.{number & 255}",)))
    await rig.settle()
    rig.writer.writes.clear()
    looking = asyncio.create_task(rig.proxy._verify())
    await asyncio.sleep(0)  # it begins
    rig.source.put(endpoint_slice(endpoint("10.244.2.1"), of="s7"))
    await until(lambda: bool(rig.writer.writes))
    assert not looking.done()
    await looking
    await rig.settle()
    assert len(rig.writer.writes) == 1, "nothing was lost"


async def test_the_node_moves_to_another_zone(rig: Rig) -> None:
    def node(zone: str) -> Node:
        return Node(NodeMetadata(name=HERE, labels={ZONE: zone}))

    await rig.source.start()
    rig.source.put(node("zone-1"), service())
    pieces = (endpoint("10.244.2.1", zones=("zone-1",)), endpoint("10.244.2.2", zones=("zone-2",)))
    rig.source.put(endpoint_slice(*pieces))
    await rig.settle()
    assert [b.ip_address for b in rig.backends()] == ["10.244.2.1"]
    rig.source.put(node("zone-2"))
    await rig.settle()
    assert [(b.ip_address, b.flags) for b in rig.backends()] == [
        ("10.244.2.2", 0),
        ("10.244.2.1", 2),
    ]


async def test_endpoints_that_move_between_slices(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Service of several slices gets one port more: its controller fills them anew, one after the other."""
    more = (EndpointPort(name="http", port=8080), EndpointPort(name="metrics", port=9090))
    one, two, three, four = (endpoint(f"10.244.2.{number}") for number in range(1, 5))

    def pieces(*halves: tuple[Endpoint, ...], **ports: Any) -> list[EndpointSlice]:
        return [endpoint_slice(*half, name=f"web-{number}", **ports) for number, half in enumerate(halves)]

    def drains() -> dict[str, bool]:
        return {backend.ip_address: bool(backend.flags & 2) for backend in rig.backends()}

    await rig.source.start()
    rig.source.put(service(), *pieces((one, two), (three, four)))
    await rig.settle()
    first, second = pieces((four, one), (three,), ports=more)
    rig.source.put(first)
    await rig.settle()
    assert drains() == {one.addresses[0]: False, two.addresses[0]: True} | dict.fromkeys(
        ("10.244.2.3", "10.244.2.4"), False
    )
    rig.source.put(second)
    await rig.settle()
    assert drains() == dict.fromkeys(("10.244.2.1", "10.244.2.3", "10.244.2.4"), False), (
        "two has gone for good"
    )

    monkeypatch.setattr("samewire.proxy.rearranged.PATIENCE_S", 0.01)
    rig.source.put(*pieces((four,)))
    await until(lambda: "10.244.2.1" not in drains())
    assert drains() == dict.fromkeys(("10.244.2.3", "10.244.2.4"), False), "other ports may stay as they are"


async def test_a_node_begins_to_take_part_in_dsr(rig: Rig) -> None:
    await rig.source.start()
    external = service(external_ips=("203.0.113.1",), annotations=ServiceAnnotations(dsr="true"))
    rig.source.put(external, endpoint_slice(endpoint("10.244.2.1", node="other")))
    await rig.settle()

    def provider() -> str:
        found = rig.lb("203.0.113.1")
        assert found is not None
        return found.backends[0].provider_address

    assert provider() == ""
    other = Node(NodeMetadata(name="other", annotations={"samewire.io/dsr-provider-address": "192.0.2.7"}))
    rig.source.put(other)
    await rig.settle()
    assert provider() == "192.0.2.7"
    rig.source.remove(other)
    await rig.settle()
    assert provider() == ""


async def test_a_node_on_its_way_out(rig: Rig) -> None:
    await rig.source.start()
    rig.source.put(
        Node(NodeMetadata(name="other"), NodeSpec(taints=(Taint("ToBeDeletedByClusterAutoscaler"),)))
    )

    def eligible() -> bool:
        return rig.proxy.health.node_eligible

    assert eligible()
    for gone in (
        Node(NodeMetadata(name=HERE), NodeSpec(taints=(Taint("ToBeDeletedByClusterAutoscaler"),))),
        Node(NodeMetadata(name=HERE, deletion_timestamp="2026-01-01T00:00:00Z")),
    ):
        rig.source.put(gone)
        assert not eligible()
        rig.source.put(Node(NodeMetadata(name=HERE)))
        assert eligible()
    rig.source.remove(Node(NodeMetadata(name=HERE)))
    assert not rig.proxy.health.node_eligible


async def test_figures(rig: Rig) -> None:
    await rig.source.start()
    await rig.settle()
    rig.source.put(service())
    just_now = datetime.now(UTC) + timedelta(seconds=0.001)
    rig.source.put(endpoint_slice(endpoint("10.244.2.1"), triggered=just_now.isoformat()))
    rig.source.put(
        endpoint_slice(endpoint("10.244.2.2"), triggered="2020-01-01T00:00:00Z")
    )  # before our time
    await rig.settle()
    figures = rig.proxy.figures
    assert (figures.service_changes, figures.slice_changes, figures.services_pending) == (1, 2, 0)
    assert (figures.programming.count, figures.changes.count) == (1, 1)
    again = ServiceProxy(rig.source, FakeWriter(), HERE)
    again.start()
    rig.source.sync()
    await until(lambda: again.idle)
    await again.close()
    assert (again.figures.changes.count, len(again.figures.statuses)) == (0, 1)
    status = figures.statuses["shop", "web"]
    assert status.changed_s > 0
    assert rig.proxy.health.updated_s is not None


async def test_what_a_headless_service_has_triggered_is_not_kept(rig: Rig) -> None:
    """Nothing is ever written for it: it would wait for ever, and be taken for very late when there is something."""
    rig.source.sync()
    await rig.settle()
    at = datetime.now(UTC) + timedelta(seconds=1)
    headless = SliceLabels(service_name="web", headless="")
    for number in range(3):
        later = (at + timedelta(seconds=number)).isoformat()
        rig.source.put(endpoint_slice(endpoint("10.244.2.1"), triggered=later, labels=headless))
    rig.source.put(service())
    await rig.settle()
    assert rig.proxy.figures.programming.count == 0
    rig.source.put(endpoint_slice(endpoint("10.244.2.1"), name="web-2", triggered=at.isoformat()))
    await rig.settle()
    assert rig.proxy.figures.programming.count == 1


async def test_health_checks(rig: Rig) -> None:
    told: list[int] = []
    rig.proxy.on_checks = lambda: told.append(len(rig.proxy.checks))
    await rig.source.start()
    spec: dict[str, Any] = {
        "type": "LoadBalancer",
        "external_traffic_policy": "Local",
        "health_check_node_port": 31000,
    }
    rig.source.put(service(**spec), endpoint_slice(endpoint("10.244.1.1", node=HERE)))
    await rig.settle()
    assert rig.proxy.checks == {("shop", "web"): (31000, 1)}
    rig.source.put(endpoint_slice(endpoint("10.244.2.1")))
    await rig.settle()
    assert rig.proxy.checks == {("shop", "web"): (31000, 0)}
    assert rig.proxy.figures.without_local["external"] == {("shop", "web")}
    rig.source.remove(service())
    await rig.settle()
    assert rig.proxy.checks == {}
    assert told == [1, 1, 0]
    assert rig.proxy.figures.without_local["external"] == set()


def several(count: int, *addresses: str) -> list[Any]:
    """Services of one endpoint each, and their slices."""
    return [
        item
        for number in range(count)
        for item in (
            service(f"s{number}", ips=(f"10.96.1.{number + 1}",)),
            endpoint_slice(*map(endpoint, addresses), of=f"s{number}", name=f"s{number}-1"),
        )
    ]


async def test_while_a_batch_is_written_the_next_is_compiled(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controller, "BATCH", 2)
    rig.writer.gate = asyncio.Event()
    rig.source.put(*several(5, "10.244.2.1"), quiet=True)
    rig.source.sync()
    await until(lambda: len(rig.proxy._dirty) == 1)  # two are being written, two are compiled
    assert not rig.writer.objects
    rig.source.put(*several(5, "10.244.2.2"))
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(rig.proxy._dirty) == 5
    rig.writer.gate.set()
    await rig.settle()
    assert [lb.backends[0].ip_address for lb in rig.writer.objects.values()] == ["10.244.2.2"] * 5
    assert [len(lb.backends) for lb in rig.writer.objects.values()] == [1] * 5


async def test_what_is_being_written_is_compiled_again_afterwards(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controller, "BATCH", 2)
    changed = endpoint_slice(
        endpoint("10.244.2.1", ready=False, serving=True, terminating=True),
        endpoint("10.244.2.2"),
        of="s0",
        name="s0-1",
    )
    changes, write = [changed], rig.writer.write

    async def change_and_write(
        puts: Sequence[LoadBalancer], deletes: Sequence[str]
    ) -> Mapping[str, SamewireError]:
        if changes:
            rig.source.put(changes.pop())
        return await write(puts, deletes)

    monkeypatch.setattr(rig.writer, "write", change_and_write)
    rig.source.put(*several(3, "10.244.2.1"), quiet=True)
    rig.source.sync()
    await rig.settle()
    found = rig.lb("10.96.1.1")
    assert found is not None
    assert [backend.ip_address for backend in found.backends] == ["10.244.2.2", "10.244.2.1"]


async def test_what_is_compiled_already_is_not_lost_with_a_fault(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controller, "BATCH", 2)
    monkeypatch.setattr(controller, "NETWORK_RETRY_S", 0.0)
    observe, faults = rig.proxy._observe, [ValueError("a fault")]

    def faulty(triggers: Mapping[Any, Any]) -> None:
        if faults:
            raise faults.pop()
        observe(triggers)

    monkeypatch.setattr(rig.proxy, "_observe", faulty)
    rig.source.put(*several(5, "10.244.2.1"), quiet=True)
    rig.source.sync()
    await until(lambda: len(rig.writer.objects) == 5)
    await rig.settle()
    assert not faults


@pytest.mark.parametrize("written", ["10.96.0.77", "fd00:96:0::77"])
async def test_a_cluster_ip_is_nobody_elses_external_ip(rig: Rig, written: str) -> None:
    """Whoever may write a Service may choose its external IPs: not those at which others are reached."""
    vip = "10.96.0.77" if written == "10.96.0.77" else "fd00:96::77"
    own = "fd00:96::10" if ":" in vip else "10.96.0.10"
    free = "2001:db8::77" if ":" in vip else "198.51.100.77"
    chosen = service("a", ips=(own,), external_ips=(vip, free), ingress=(vip,), type="LoadBalancer")
    owner = service("owner", ips=(written,))
    await rig.source.start()
    rig.source.put(chosen)
    await rig.settle()
    assert owners(rig, own, free, vip) == ["shop/a", "shop/a", "shop/a"]
    rig.source.put(owner)
    await rig.settle()
    assert owners(rig, own, free, vip) == ["shop/a", "shop/a", "shop/owner"]
    assert rig.proxy.figures.statuses[chosen.key].error == f"{vip} is the cluster IP of Service shop/owner"
    assert not rig.proxy.figures.statuses[owner.key].error
    rig.source.put(service("owner", ips=("10.96.0.78",)))
    await rig.settle()
    assert owners(rig, own, free, vip) == ["shop/a", "shop/a", "shop/a"]
    assert not rig.proxy.figures.statuses[chosen.key].error
    rig.source.put(owner)
    await rig.settle()
    rig.source.remove(chosen)
    await rig.settle()
    assert owners(rig, own, free, vip) == ["", "", "shop/owner"]
    rig.source.remove(owner)
    await rig.settle()
    assert not rig.proxy.table._cluster_ips
    assert not rig.proxy.table._outside


async def test_an_address_that_cannot_be_had_is_noted_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only another Service could have it: trying again would only count."""
    monkeypatch.setattr(controller, "FIRST_RETRY_S", 0.0)
    figures = rig.proxy.figures
    await rig.source.start()
    rig.source.put(service(external_ips=("127.0.0.9",)))
    await rig.settle()
    status = figures.statuses["shop", "web"]
    assert status.error == "127.0.0.9 is no address of a machine"
    for number in range(1, 4):
        rig.source.put(endpoint_slice(endpoint(f"10.244.2.{number}")))
        await rig.settle()
        await asyncio.sleep(0)
    assert (figures.failures, status.attempts, rig.proxy._retries) == (1, 0, {})
    assert [backend.ip_address for backend in rig.backends()] == ["10.244.2.3"]
    rig.source.put(service())
    await rig.settle()
    assert status.error == ""


def owners(rig: Rig, *vips: str) -> list[str]:
    """The service that each address leads to."""
    return [lb.service_name.partition(":")[0] if (lb := rig.lb(vip)) else "" for vip in vips]
