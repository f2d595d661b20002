"""Random histories with random faults: the reflector knows what the server has; nothing is lost or invented."""

from __future__ import annotations

import asyncio
from typing import Literal

from hypothesis import given, settings
from hypothesis import strategies as st

from samewire.kube.access import Access
from samewire.kube.api_source import ApiSource
from samewire.kube.auth import FixedCredential
from samewire.kube.client import KubeClient
from samewire.kube.model import Service
from tests.apiserver.fake_server import FakeServer, Fault
from tests.apiserver.objects import Recorder, service, until
from tests.apiserver.worlds import HASTY

Step = (
    tuple[Literal["put"], int, int]
    | tuple[Literal["delete"], int]
    | tuple[Literal["watch", "list", "do"], str]
)

puts = st.tuples(st.just("put"), st.integers(0, 7), st.integers(1, 4))
deletions = st.tuples(st.just("delete"), st.integers(0, 7))
watch_faults = st.tuples(
    st.just("watch"), st.sampled_from(["close", "abort", "half_close", "truncate", "garbage", "expire"])
)
list_faults = st.tuples(
    st.just("list"), st.sampled_from(["410", "429", "500", "truncate", "watch-503", "watch-ends"])
)
doings = st.tuples(st.just("do"), st.sampled_from(["bookmark", "forget", "drop", "pause", "wait"]))
histories = st.lists(st.one_of(puts, puts, deletions, watch_faults, list_faults, doings), max_size=30)

FAULTS = {
    "410": Fault("list", at_page=2, status=410),
    "429": Fault("list", status=429, headers=(("Retry-After", "0"),)),
    "500": Fault("list", at_page=2, status=500),
    "truncate": Fault("list", truncate=True),
    "watch-503": Fault("watch", status=503),
    "watch-ends": Fault("watch", truncate=True),
}


def known(objects: dict[tuple[str, str], Service]) -> dict[str, int]:
    """Names and ports."""
    return {name: item.spec.ports[0].port for (_, name), item in objects.items()}


def there(server: FakeServer) -> dict[str, int]:
    """The same of the server."""
    found = server.store.objects.get("services", {})
    return {name: item["spec"]["ports"][0]["port"] for (_, name), item in found.items()}


async def take(server: FakeServer, told: Recorder[Service], step: Step) -> None:
    """One step of a history."""
    match step:
        case ("put", number, port):
            server.store.put("services", service("a", f"web{number}", port=port))
        case ("delete", number):
            if ("a", f"web{number}") in server.store.objects.get("services", {}):
                server.store.delete("services", ("a", f"web{number}"))
        case ("watch", command):
            server.disturb(command)
        case ("list", fault):
            server.plan(FAULTS[fault])
        case ("do", "bookmark"):
            server.bookmark()
        case ("do", "forget"):
            server.store.forget_history()
        case ("do", "drop"):
            server.drop("services")
        case ("do", "pause"):
            for _ in range(20):
                await asyncio.sleep(0)
        case _:
            await until(lambda: known(told.cache) == there(server), "to catch up")


async def live_through(history: list[Step]) -> None:
    """Live through a history; the recorder checks each batch, this the end."""
    async with FakeServer().serve() as server:
        source = ApiSource(KubeClient(Access(server.url, FixedCredential())), timing=HASTY)
        told: Recorder[Service] = Recorder()
        source.watch(Service, told)
        await source.start()
        try:
            for step in history:
                await take(server, told, step)
            await until(lambda: known(told.cache) == there(server) and told.batches, "to end up equal")
            await until(lambda: source.health()[0].connected, "to be connected again")
            server.store.put("services", service("a", "last"))
            await until(lambda: known(told.cache) == there(server), "to follow on")
            assert told.cache == dict(source.objects(Service))
            assert source.counts()["Service"].handler_failures == 0
        finally:
            await source.close()


@given(histories)
@settings(max_examples=120)
def test_what_is_known_is_what_is_there(history: list[Step]) -> None:
    asyncio.run(live_through(history))
