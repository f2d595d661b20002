"""The proxy behind an API server that breaks, forgets and goes away: load balancers follow, and never by a guess."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from samewire.proxy.controller import ServiceProxy
from samewire.proxy.ids import service_key
from tests.apiserver.conftest import Opener
from tests.apiserver.fake_server import FakeServer, Fault
from tests.apiserver.fake_store import Json
from tests.apiserver.objects import endpoint_slice, service, until
from tests.support.proxy import FakeWriter


class Rig:
    """A proxy between a fake server and a writer that keeps load balancers."""

    def __init__(self, server: FakeServer, open_api: Opener) -> None:
        self.server = server
        self.open_api = open_api
        self.writer = FakeWriter("")
        self.proxy: ServiceProxy | None = None

    async def start(self) -> None:
        """Start a proxy with a source of its own."""
        source = self.open_api()
        self.proxy = ServiceProxy(source, self.writer, "node-a")
        self.proxy.start()
        await source.start()

    async def stop(self) -> None:
        """Stop the proxy."""
        if self.proxy is not None:
            await self.proxy.close()

    def put(self, number: int, *addresses: str) -> None:
        """A service with its endpoints."""
        self.server.store.put("services", web(number))
        self.server.store.put("endpointslices", endpoint_slice("a", f"web{number}", *addresses))

    def backends(self) -> dict[str, set[str]]:
        """By name of the service: its backends that get connections."""
        return {
            (service_key(lb.service_name) or ("", ""))[1]: {
                b.ip_address for b in lb.backends if not b.flags & 2
            }
            for lb in self.writer.objects.values()
        }


def web(number: int) -> Json:
    return service(
        "a", f"web{number}", clusterIP=f"10.96.0.{number + 1}", clusterIPs=[f"10.96.0.{number + 1}"]
    )


@pytest.fixture
async def rig(server: FakeServer, open_api: Opener) -> AsyncIterator[Rig]:
    made = Rig(server, open_api)
    yield made
    await made.stop()


async def test_services_are_followed(rig: Rig) -> None:
    for number in range(7):
        rig.put(number, f"10.244.0.{number + 1}")
    await rig.start()
    await until(lambda: len(rig.backends()) == 7)
    rig.put(3, "10.244.0.4", "10.244.1.4")
    await until(lambda: rig.backends()["web3"] == {"10.244.0.4", "10.244.1.4"})
    rig.server.store.delete("services", ("a", "web5"))
    await until(lambda: "web5" not in rig.backends())
    assert len(rig.backends()) == 6


@pytest.mark.parametrize("how", ["close", "abort", "expire", "garbage"])
async def test_what_happens_while_the_watch_is_broken(rig: Rig, how: str) -> None:
    for number in range(5):
        rig.put(number, f"10.244.0.{number + 1}")
    await rig.start()
    await until(lambda: len(rig.backends()) == 5)
    untouched = dict(rig.writer.objects)
    rig.writer.writes.clear()
    if how == "expire":
        rig.server.store.forget_history()
    rig.server.disturb(how)
    rig.server.store.delete("services", ("a", "web0"))
    rig.server.store.delete("endpointslices", ("a", "web0-abc"))
    rig.put(1, "10.244.9.9")
    await until(lambda: "web0" not in rig.backends() and rig.backends()["web1"] == {"10.244.9.9"})
    touched = {lb_id for puts, deletes in rig.writer.writes for lb_id in (*puts, *deletes)}
    same = [lb for lb_id, lb in untouched.items() if lb_id not in touched]
    assert {lb.service_name for lb in same} == {"a/web2:http", "a/web3:http", "a/web4:http"}


async def test_a_server_that_is_away_changes_nothing(rig: Rig) -> None:
    rig.put(0, "10.244.0.1")
    await rig.start()
    await until(lambda: len(rig.backends()) == 1)
    await rig.stop()
    before = dict(rig.writer.objects)
    rig.writer.writes.clear()
    rig.server.store.delete("services", ("a", "web0"))
    rig.server.plan(*[Fault("list", "services", status=503)] * 4)
    await rig.start()  # a daemon that comes up while Services cannot be listed
    await until(lambda: len(rig.server.requests("list", "services")) >= 4)
    assert rig.writer.objects == before
    assert rig.writer.writes == []
    await until(lambda: rig.writer.objects == {})
