"""An API server that fails in every way we know: nothing is lost, nothing is invented, nothing is asked for twice."""

from __future__ import annotations

import socket
from typing import Any

import msgspec
import pytest

from samewire.kube import client
from samewire.kube.access import Access
from samewire.kube.api_source import ApiSource
from samewire.kube.auth import FixedCredential
from samewire.kube.backoff import Backoff
from samewire.kube.client import KubeClient
from samewire.kube.model import EndpointSlice, Pod, Service
from samewire.kube.reflector import Selector, Timing
from tests.apiserver.conftest import Opener
from tests.apiserver.fake_server import KINDS, FakeServer, Fault
from tests.apiserver.objects import KIND_OF, Recorder, endpoint_slice, plain, service, until
from tests.apiserver.worlds import HASTY, PATIENT

QUICKLY_STALLED = msgspec.structs.replace(HASTY, silence_s=0.2)
SOON_SILENT = msgspec.structs.replace(HASTY, silence_s=1.0)
"""But not so soon that an answer comes too late when the machine stands still for a moment."""


def put_services(server: FakeServer, count: int) -> None:
    for number in range(count):
        server.store.put("services", service("a", f"web{number}"))


async def started(
    server: FakeServer, open_api: Opener, **options: Any
) -> tuple[Recorder[Service], ApiSource]:
    """A source that watches Services, and what it told."""
    source = open_api(**options)
    told: Recorder[Service] = Recorder()
    source.watch(Service, told)
    await source.start()
    await source.wait_synced()
    await until(lambda: server.watching("services"))
    return told, source


def names(told: Recorder[Service]) -> set[str]:
    return {name for _, name in told.cache}


@pytest.mark.parametrize("how", ["close", "abort", "half_close", "truncate"])
async def test_a_watch_that_breaks_is_taken_up_where_it_was(
    server: FakeServer, open_api: Opener, how: str
) -> None:
    put_services(server, 2)
    told, _ = await started(server, open_api)
    server.store.put("services", service("a", "seen"))
    await until(lambda: "seen" in names(told))
    server.disturb(how)
    server.store.put("services", service("a", "meanwhile"))
    server.store.delete("services", ("a", "web0"))
    await until(lambda: names(told) == {"web1", "seen", "meanwhile"})
    assert len(server.requests("list", "services")) == 1
    assert {change.key[1] for change in told.changes} == {"seen", "meanwhile", "web0"}


async def test_a_silent_server_is_left(server: FakeServer, open_api: Opener) -> None:
    told, source = await started(server, open_api, timing=SOON_SILENT)
    server.store.put("services", service("a", "seen"))
    await until(lambda: "seen" in names(told))
    server.disturb("silence")
    server.store.put("services", service("a", "web"))
    await until(lambda: "web" in names(told))
    assert source.counts()["Service"].stalled >= 1
    first, looked, *_ = server.requests("list", "services")
    assert (first.query["limit"], looked.query["limit"]) == ("3", "1"), "what it had was taken up, not listed"
    assert not source.counts()["Service"].failures


async def test_a_silent_server_that_does_not_answer_is_lost(server: FakeServer, open_api: Opener) -> None:
    _, source = await started(server, open_api, timing=QUICKLY_STALLED)
    server.plan(Fault("list", "services", status=503))
    server.disturb("silence")
    await until(lambda: source.counts()["Service"].failures)
    await until(lambda: source.health()[0].connected)


async def test_a_quiet_kind_is_no_fault(server: FakeServer, open_api: Opener) -> None:
    put_services(server, 5)
    told, source = await started(server, open_api, timing=SOON_SILENT)
    await until(lambda: source.counts()["Service"].stalled >= 2)
    assert not told.changes
    assert source.health()[0].connected
    assert source.counts()["Service"].lists == 1
    assert not source.counts()["Service"].failures


async def test_a_watch_that_gets_no_answer_is_asked_for_again(server: FakeServer, open_api: Opener) -> None:
    server.plan(Fault("watch", hang=True))
    told, source = await started(server, open_api, timing=QUICKLY_STALLED)
    server.store.put("services", service("a", "web"))
    await until(lambda: "web" in names(told))
    assert source.counts()["Service"].stalled >= 1


async def test_bookmarks_move_the_place_to_resume_from(server: FakeServer, open_api: Opener) -> None:
    put_services(server, 1)
    told, source = await started(server, open_api)
    server.store.put("pods", plain("Pod", "elsewhere", "a"))
    server.bookmark()
    await until(lambda: source.counts()["Service"].bookmarks)
    server.store.forget_history()
    server.disturb("close")
    server.store.put("services", service("a", "later"))
    await until(lambda: "later" in names(told))
    assert len(server.requests("list", "services")) == 1


@pytest.mark.parametrize("resource", ["services", "endpointslices", "pods", "nodes", "namespaces"])
async def test_bookmarks_of_every_kind_are_understood(
    server: FakeServer, open_api: Opener, resource: str
) -> None:
    source = open_api()
    source.watch(KIND_OF[KINDS[resource]], Recorder())
    await source.start()
    await until(lambda: server.watching(resource))
    server.bookmark()
    await until(lambda: source.counts()[KINDS[resource]].bookmarks == 1)
    assert source.counts()[KINDS[resource]].malformed == 0


async def test_a_forgotten_version_gives_the_differences(server: FakeServer, open_api: Opener) -> None:
    put_services(server, 5)
    told, source = await started(server, open_api)
    server.drop("services")
    server.store.delete("services", ("a", "web0"))
    server.store.put("services", service("a", "web1", port=81))
    server.store.put("services", service("a", "new"))
    server.store.forget_history()
    await until(lambda: names(told) == {"web1", "web2", "web3", "web4", "new"})
    assert source.counts()["Service"].expired >= 1
    assert [(change.key[1], change.new is None) for change in told.changes] == [
        ("web0", True), ("new", False), ("web1", False),
    ]  # fmt: skip
    assert len(told.batches) == 2, "the differences come at once"


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long reflectors would wait after failures; they do not."""
    asked: list[float] = []

    class Impatient(Backoff):
        def next_s(self, asked_s: float | None = None) -> float:
            asked.append(super().next_s(asked_s))
            return 0.0

    monkeypatch.setattr("samewire.kube.reflector.Backoff", Impatient)
    return asked


async def test_a_version_forgotten_while_the_server_was_away_is_listed_soon(
    server: FakeServer, open_api: Opener, waits: list[float]
) -> None:
    told, _ = await started(server, open_api, timing=PATIENT)
    server.plan(*[Fault("watch", "services", status=503)] * 8)
    server.drop("services")
    server.store.put("services", service("a", "new"))
    server.store.forget_history()
    await until(lambda: names(told) == {"new"})
    assert waits[7] > 10 * PATIENT.backoff_first_s
    assert waits[-1] <= PATIENT.backoff_first_s


async def test_lists_that_are_always_forgotten_come_more_and_more_seldom(
    server: FakeServer, open_api: Opener, waits: list[float]
) -> None:
    server.plan(*[Fault("watch", "services", status=410)] * 8)
    await started(server, open_api, timing=PATIENT)
    assert len(server.requests("list", "services")) == 9
    assert waits[0] <= PATIENT.backoff_first_s
    assert waits[7] > 10 * PATIENT.backoff_first_s


async def test_an_expired_event_in_mid_watch(server: FakeServer, open_api: Opener) -> None:
    put_services(server, 3)
    told, source = await started(server, open_api)
    server.disturb("expire")
    await until(lambda: len(server.requests("list", "services")) >= 2 and server.watching("services"))
    assert source.counts()["Service"].expired == 1
    assert not told.changes


@pytest.mark.parametrize("status", [{}, {"message": "etcd has compacted", "reason": "?"}, {"code": 200}])
async def test_errors_without_a_code_are_listed_around(
    server: FakeServer, open_api: Opener, status: dict[str, Any]
) -> None:
    """Each waited for longer than the one before; the version they are about may be what is wrong."""
    put_services(server, 3)
    told, source = await started(server, open_api)
    line = msgspec.json.encode({"type": "ERROR", "object": {"kind": "Status", **status}}) + b"\n"
    listed = len(server.requests("list", "services"))

    async def refuse(time: int) -> None:
        assert len(server.requests("list", "services")) == listed
        server.send_line("services", line)
        await until(lambda: len(server.requests("watch", "services")) == 1 + time)
        assert source.counts()["Service"].failures == time

    for time in (1, 2, 3):
        await refuse(time)
    assert len(server.requests("list", "services")) == 2 * listed
    server.store.put("services", service("a", "after"))
    await until(lambda: "after" in names(told))


async def test_an_expired_page_starts_the_list_again(server: FakeServer, open_api: Opener) -> None:
    put_services(server, 8)
    server.plan(Fault("list", at_page=2, status=410))
    told, _ = await started(server, open_api)
    assert len(told.cache) == 8
    asked = [bool(item.query.get("continue")) for item in server.requests("list", "services")]
    assert asked == [False, True, False, True, True]


async def test_pages_that_always_expire_are_given_up(server: FakeServer, open_api: Opener) -> None:
    put_services(server, 8)
    server.plan(*[Fault("list", at_page=2, status=410)] * 2)
    told, _ = await started(server, open_api)
    assert len(told.cache) == 8
    assert "limit" not in server.requests("list", "services")[-1].query


async def test_a_list_that_fails_half_way_deletes_nothing(server: FakeServer, open_api: Opener) -> None:
    put_services(server, 8)
    told, _ = await started(server, open_api)
    server.plan(
        Fault("list", at_page=2, status=500),
        Fault("list", at_page=2, truncate=True),
        Fault("list", at_page=2, status=503),
    )
    server.disturb("expire")
    await until(lambda: len(server.requests("list", "services")) >= 3 + 2 * 3 + 3)
    await until(lambda: server.watching("services"))
    assert not told.changes
    assert len(told.cache) == 8


@pytest.mark.parametrize(
    "body",
    [
        b'{"kind":"PodList","metadata":{"resourceVersion":"9"},"items":[{"metadata":{"name":"a","namespace":"b"}}]}',
        b'{"kind":"Service","metadata":{"name":"a","namespace":"b","resourceVersion":"9"},"spec":{}}',
        b'{"metadata":{"resourceVersion":"9"}}',
    ],
)
async def test_an_answer_that_is_another_s_deletes_nothing(
    server: FakeServer, open_api: Opener, body: bytes
) -> None:
    """As of a cache on the way that has mixed something up."""
    told, source = await started(server, open_api)
    known = names(told)
    server.plan(Fault("list", "services", body=body))
    server.store.forget_history()
    server.disturb("expire")
    server.store.put("services", service("a", "late"))
    await until(lambda: names(told) == known | {"late"})
    assert {change.key[1] for change in told.changes} == {"late"}
    assert source.counts()["Service"].malformed == 1


async def test_pages_that_are_too_large_are_asked_for_in_smaller_ones(
    server: FakeServer, open_api: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few hundred objects as large as a server takes them are more than we read at once."""
    monkeypatch.setattr(client, "_ANSWER_BYTES", 1 << 20)
    put_services(server, 3)
    for number in range(30):
        large = service("a", f"large{number}")
        large["metadata"]["annotations"] = {"text": "x" * 200_000}
        server.store.put("services", large)
    told, source = await started(server, open_api, timing=Timing(page_size=20, backoff_first_s=0.01))
    assert len(told.cache) == 33
    assert source.counts()["Service"].failures == 0
    assert [seen.query["limit"] for seen in server.requests("list", "services")][:3] == ["20", "2", "2"]


async def test_an_object_that_is_too_large_is_said_so(
    server: FakeServer, open_api: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_ANSWER_BYTES", 1 << 10)
    large = service("a", "large")
    large["metadata"]["annotations"] = {"text": "x" * 2000}
    server.store.put("services", large)
    source = open_api()
    source.watch(Service, Recorder())
    await source.start()
    await until(lambda: "the answer is larger than" in source.health()[0].error)


async def test_a_busy_server_is_asked_for_the_same_page_again(server: FakeServer, open_api: Opener) -> None:
    put_services(server, 4)
    server.plan(Fault("list", at_page=2, status=429, headers=(("Retry-After", "0"),)))
    _, source = await started(server, open_api)
    tokens = [item.query.get("continue") for item in server.requests("list", "services")]
    assert tokens[0] is None
    assert tokens[1] is not None
    assert tokens[1] == tokens[2]
    assert source.counts()["Service"].throttled == 1


@pytest.mark.parametrize("verb", ["list", "watch"])
@pytest.mark.parametrize(
    ("asked", "date", "least_s"),
    [
        ("7", "", 7.0),
        ("Fri, 15 Jan 2027 08:00:40 GMT", "Fri, 15 Jan 2027 08:00:00 GMT", 40.0),  # by its own clock
        ("Fri, 15 Jan 2027 08:00:00 GMT", "Fri, 15 Jan 2027 08:00:01 GMT", 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", "", 60.0),  # a bound of ours
        ("soon", "", None),
    ],
)
async def test_who_asks_for_patience_gets_it(
    server: FakeServer,
    open_api: Opener,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    asked: str,
    date: str,
    least_s: float | None,
) -> None:
    """Retry-After as seconds, or as a date, which HTTP allows, too."""
    waits: list[tuple[float | None, float]] = []
    next_s = Backoff.next_s

    def noted(backoff: Backoff, asked_s: float | None = None) -> float:
        waits.append((asked_s, next_s(backoff, asked_s)))
        return 0.0

    monkeypatch.setattr(Backoff, "next_s", noted)
    headers = (("Retry-After", asked), *([("Date", date)] if date else []))
    server.plan(Fault(verb, "services", status=429, headers=headers))
    await started(server, open_api)
    ((said_s, waited_s),) = waits
    assert (said_s is None) == (least_s is None)
    assert (least_s or 0.0) <= waited_s <= (least_s or 0.05) * 1.25


async def test_a_server_that_refuses_watches_is_not_listed_again(
    server: FakeServer, open_api: Opener
) -> None:
    server.plan(*[Fault("watch", status=status) for status in (503, 502, 429, 503, 503, 403)])
    told, source = await started(server, open_api)
    server.store.put("services", service("a", "web"))
    await until(lambda: "web" in names(told))
    assert len(server.requests("list", "services")) == 1
    assert source.counts()["Service"].failures == 6


@pytest.mark.parametrize(
    ("status", "advice"), [(403, "grant list and watch"), (404, "discovery.k8s.io/v1 needs")]
)
async def test_who_may_list_but_not_watch_lists_again(
    server: FakeServer, open_api: Opener, status: int, advice: str
) -> None:
    server.plan(*[Fault("watch", status=status) for _ in range(1000)])
    source = open_api()
    told: Recorder[Service] = Recorder()
    source.watch(Service, told)
    await source.start()
    await source.wait_synced()
    server.store.put("services", service("a", "web"))
    await until(lambda: "web" in names(told))

    def said() -> str:
        (health,) = (one for one in source.health() if one.kind == "Service")
        assert not health.connected
        return health.error

    await until(lambda: advice in said() and "/api/v1/services" in said())


async def test_watches_that_end_at_once_are_failures(server: FakeServer, open_api: Opener) -> None:
    server.plan(*[Fault("watch", truncate=True)] * 4)
    told, source = await started(server, open_api)
    server.store.put("services", service("a", "web"))
    await until(lambda: "web" in names(told))
    assert source.counts()["Service"].failures == 4, "so that they are waited for, longer and longer"


@pytest.mark.parametrize("refuses", [True, False])
async def test_a_restored_backup_is_listed(server: FakeServer, open_api: Opener, refuses: bool) -> None:
    server.refuses_future = refuses
    put_services(server, 5)
    told, _ = await started(server, open_api, timing=HASTY if refuses else QUICKLY_STALLED)
    server.store.version = 50
    server.store.history.clear()
    server.disturb("close")
    server.store.delete("services", ("a", "web0"))
    server.store.put("services", service("a", "new"))
    await until(lambda: names(told) == {"web1", "web2", "web3", "web4", "new"})


async def test_an_unreadable_line_is_asked_for_again(server: FakeServer, open_api: Opener) -> None:
    put_services(server, 1)
    told, source = await started(server, open_api)
    server.disturb("garbage")
    server.store.put("services", service("a", "after"))
    await until(lambda: "after" in names(told))
    assert len(server.requests("list", "services")) == 1
    assert source.counts()["Service"].malformed == 1


async def test_a_line_that_stays_unreadable_is_listed_around(server: FakeServer, open_api: Opener) -> None:
    told, source = await started(server, open_api)
    server.disturb("garbage")
    await until(lambda: len(server.requests("watch", "services")) == 2)
    assert source.counts()["Service"].malformed == 1
    server.disturb("garbage")
    await until(lambda: len(server.requests("list", "services")) == 2)
    server.store.put("services", service("a", "web"))
    await until(lambda: "web" in names(told))


async def test_an_object_that_cannot_be_read_stays_as_it_was(server: FakeServer, open_api: Opener) -> None:
    put_services(server, 2)
    told, source = await started(server, open_api)
    broken = service("a", "web0")
    broken["spec"]["ports"] = "none"
    server.store.put("services", broken)
    server.store.put("services", service("a", "after"))
    await until(lambda: "after" in names(told))
    assert source.counts()["Service"].malformed == 1
    before = told.cache["a", "web0"]
    server.disturb("expire")
    await until(lambda: source.counts()["Service"].malformed == 2)
    await until(lambda: server.watching("services"))
    assert told.cache["a", "web0"] == before
    server.store.delete("services", ("a", "web0"))
    await until(lambda: "web0" not in names(told))


@pytest.mark.parametrize("policy", ["internalTrafficPolicy", "externalTrafficPolicy", "sessionAffinity"])
async def test_a_policy_of_a_newer_version_is_the_default(
    server: FakeServer, open_api: Opener, policy: str
) -> None:
    """As kube-proxy has it. A Service that is not read would be reached by nobody."""
    newer: dict[str, Any] = {policy: "Nearest"}
    server.store.put("services", service("a", "listed", **newer))
    told, source = await started(server, open_api)
    server.store.put("services", service("a", "watched", **newer))
    await until(lambda: len(told.cache) == 2)
    usual = msgspec.convert(service("a", "usual"), Service).spec
    assert [found.spec for found in told.cache.values()] == [usual, usual]
    assert source.counts()["Service"].malformed == 0


async def test_an_unreadable_object_keeps_nobody_from_the_snapshot(
    server: FakeServer, open_api: Opener
) -> None:
    put_services(server, 4)
    broken = service("a", "broken")
    broken["metadata"]["labels"] = ["no mapping"]
    server.store.put("services", broken)
    told, source = await started(server, open_api)
    assert len(told.cache) == 4
    assert source.counts()["Service"].malformed == 1
    assert source.health()[0].unread
    server.store.put("services", service("a", "broken"))
    await until(lambda: len(told.cache) == 5)
    assert not source.health()[0].unread


async def test_an_unreachable_server_changes_nothing(server: FakeServer) -> None:
    put_services(server, 3)
    other = FakeServer()
    other.store = server.store
    async with other.serve():
        port = int(other.url.rpartition(":")[2])
        source = ApiSource(KubeClient(Access(other.url, FixedCredential())), None, HASTY)
        told: Recorder[Service] = Recorder()
        source.watch(Service, told)
        await source.start()
        await source.wait_synced()
    await until(lambda: not source.health()[0].connected)
    failures = source.counts()["Service"].failures
    await until(lambda: source.counts()["Service"].failures > failures + 2)
    health = source.health()[0]
    assert (health.synced, health.objects) == (True, 3)
    assert "127.0.0.1" in health.error
    assert not told.changes
    again = FakeServer()
    again.store.objects, again.store.version = server.store.objects, server.store.version
    again.store.delete("services", ("a", "web0"))
    async with again.serve(port=port):
        await until(lambda: names(told) == {"web1", "web2"})
        await source.close()


async def test_a_server_that_is_not_there_yet_is_waited_for(server: FakeServer, open_api: Opener) -> None:
    server.plan(*[Fault("list", status=503)] * 3, Fault("list", truncate=True))
    put_services(server, 2)
    told, _ = await started(server, open_api)
    assert len(told.cache) == 2


async def test_kinds_fail_on_their_own(server: FakeServer, open_api: Opener) -> None:
    server.plan(*[Fault("list", "endpointslices", status=403)] * 50)
    source = open_api()
    services: Recorder[Service] = Recorder()
    source.watch(Service, services)
    slices: Recorder[EndpointSlice] = Recorder()
    source.watch(EndpointSlice, slices)
    await source.start()
    put_services(server, 1)
    await until(lambda: services.cache)
    await until(lambda: source.health()[0].connected)
    await until(lambda: "403" in source.health()[1].error)


async def test_what_leaves_the_selection_is_gone(server: FakeServer, open_api: Opener) -> None:
    source = open_api(selectors={Pod: Selector(fields="spec.nodeName=node1")})
    told: Recorder[Pod] = Recorder()
    source.watch(Pod, told)
    server.store.put("pods", plain("Pod", "mine", "a", spec={"nodeName": "node1"}))
    server.store.put("pods", plain("Pod", "other", "a", spec={"nodeName": "node2"}))
    await source.start()
    await source.wait_synced()
    await until(lambda: server.watching("pods"))
    assert told.cache.keys() == {("a", "mine")}
    server.store.put("pods", plain("Pod", "mine", "a", spec={"nodeName": "node2"}))
    server.store.put("pods", plain("Pod", "other", "a", spec={"nodeName": "node1"}))
    await until(lambda: told.cache.keys() == {("a", "other")})


async def test_a_line_of_many_chunks(server: FakeServer, open_api: Opener) -> None:
    source = open_api()
    told: Recorder[EndpointSlice] = Recorder()
    source.watch(EndpointSlice, told)
    await source.start()
    await until(lambda: server.watching("endpointslices"))
    addresses = [f"10.{a}.{b}.{c}" for a in range(10) for b in range(40) for c in range(100)]
    server.store.put("endpointslices", endpoint_slice("a", "big", *addresses))
    await until(lambda: told.cache)
    assert len(told.cache["a", "big-abc"].endpoints) == len(addresses)


async def test_the_kernel_watches_over_a_quiet_connection(server: FakeServer) -> None:
    client = KubeClient(Access(server.url, FixedCredential()))
    params = {"watch": "1", "resourceVersion": str(server.store.version)}
    async with client.stream("/api/v1/services", params, silence_timeout_s=5.0) as stream:
        connection = stream._response.connection
        assert connection is not None
        assert connection.transport is not None
        found = connection.transport.get_extra_info("socket")
        assert found.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert found.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000
    await client.close()
