"""The health ports: bodies and statuses of kube-proxy, ports that come and go, ports that are taken."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta

import pytest
from aiohttp import ClientSession

from samewire.kube.model import Key
from samewire.proxy import healthserver
from samewire.proxy.health import TIMEOUT_S, ProxyHealth
from samewire.proxy.healthserver import Check, HealthServer

WEB: Key = ("shop", "web")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


class Rig:
    def __init__(self, session: ClientSession) -> None:
        self.session = session
        self.health = ProxyHealth()
        self.healthz = free_port()
        self.addresses: tuple[str, ...] | None = None
        self.server = HealthServer(self.health, ("127.0.0.1", self.healthz), lambda: self.addresses)

    async def get(self, port: int, path: str = "/") -> tuple[int, str, dict[str, str]]:
        async with self.session.get(f"http://127.0.0.1:{port}{path}") as answer:
            return answer.status, await answer.text(), dict(answer.headers)


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with ClientSession() as session:
        made = Rig(session)
        await made.server.start()
        await until(lambda: made.healthz in made.server.open_ports)
        yield made
        await made.server.close()


async def test_health_checks_are_where_node_ports_are(rig: Rig) -> None:
    port = free_port()
    rig.server.update({WEB: Check(port, 1)})
    await until(lambda: port in rig.server.open_ports)
    found = []
    for rig.addresses in (None, ("192.0.2.1", "2001:db8::1"), ("192.0.2.1", "127.0.0.1"), ()):
        found.append((await rig.get(port))[0])
    assert found == [200, 404, 200, 404]
    assert (await rig.get(rig.healthz, "/livez"))[0] == 200


async def test_a_service_with_and_without_endpoints(rig: Rig) -> None:
    port = free_port()
    rig.server.update({WEB: Check(port, 2)})
    await until(lambda: port in rig.server.open_ports)
    status, body, headers = await rig.get(port)
    assert status == 200
    assert body == (
        '{\n\t"service": {\n\t\t"namespace": "shop",\n\t\t"name": "web"\n\t},\n'
        '\t"localEndpoints": 2,\n\t"serviceProxyHealthy": true\n}'
    )
    assert headers["Content-Type"].startswith("application/json")
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Load-Balancing-Endpoint-Weight"] == "2"
    rig.server.update({WEB: Check(port, 0)})
    status, body, headers = await rig.get(port, "/any/path")
    assert (status, json.loads(body)["localEndpoints"]) == (503, 0)


async def test_a_proxy_that_is_behind_answers_for_nobody(rig: Rig) -> None:
    port = free_port()
    rig.server.update({WEB: Check(port, 2)})
    await until(lambda: port in rig.server.open_ports)
    rig.health.queued(time.monotonic() - TIMEOUT_S)
    status, body, _ = await rig.get(port)
    assert (status, json.loads(body)["serviceProxyHealthy"]) == (503, False)
    assert (await rig.get(rig.healthz, "/livez"))[0] == 503
    rig.health.updated(time.monotonic())
    assert (await rig.get(port))[0] == 200


async def test_ports_move_and_go(rig: Rig) -> None:
    one, two = free_port(), free_port()
    rig.server.update({WEB: Check(one, 1)})
    await until(lambda: one in rig.server.open_ports)
    rig.server.update({WEB: Check(two, 1)})
    await until(lambda: rig.server.open_ports == {two, rig.healthz})
    rig.server.update({})
    await until(lambda: rig.server.open_ports == {rig.healthz})


async def test_two_services_with_one_port(rig: Rig) -> None:
    """An API server allows none, but may tell of the new one first: the port is always one of theirs."""
    port, other = free_port(), ("shop", "zoo")

    async def served() -> tuple[str, int]:
        body = json.loads((await rig.get(port))[1])
        return body["service"]["name"], body["localEndpoints"]

    rig.server.update({other: Check(port, 3), WEB: Check(port, 2)})
    await until(lambda: port in rig.server.open_ports)
    assert await served() == ("web", 2)
    rig.server.update({other: Check(port, 3)})
    assert await served() == ("zoo", 3)
    rig.server.update({other: Check(port, 3), WEB: Check(port, 2)})
    assert await served() == ("web", 2)


async def test_a_port_that_is_taken_is_tried_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(healthserver, "RETRY_S", 0.01)
    other = free_port()
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = int(taken.getsockname()[1])
        rig.server.update({WEB: Check(port, 1), ("shop", "other"): Check(other, 1)})
        await until(lambda: other in rig.server.open_ports)
        assert port not in rig.server.open_ports
    await until(lambda: port in rig.server.open_ports)


async def test_healthz_and_livez(rig: Rig) -> None:
    status, body, _ = await rig.get(rig.healthz, "/healthz")
    found = json.loads(body)
    assert status == 200
    assert list(found) == ["lastUpdated", "currentTime", "nodeEligible", "healthy"]
    assert found["lastUpdated"] == found["currentTime"]
    assert datetime.fromisoformat(found["currentTime"]).utcoffset() == timedelta()
    rig.health.set_node(None)
    status, body, _ = await rig.get(rig.healthz, "/healthz")
    assert (status, json.loads(body)["nodeEligible"], json.loads(body)["healthy"]) == (503, False, True)
    assert json.loads(body)["lastUpdated"] == "0001-01-01T00:00:00Z"
    status, body, _ = await rig.get(rig.healthz, "/livez")
    assert (status, set(json.loads(body))) == (200, {"lastUpdated", "currentTime", "healthy"})
    assert (await rig.get(rig.healthz, "/other"))[0] == 404
    assert rig.server.answers == {("healthz", 200): 1, ("healthz", 503): 1, ("livez", 200): 1}


async def test_healthz_by_family(rig: Rig) -> None:
    """As kube-proxy has it since 1.33; here both families are always programmed together."""
    rig.health.updated(time.monotonic() - 2 * TIMEOUT_S)
    rig.health.queued(time.monotonic() - TIMEOUT_S)
    status, body, _ = await rig.get(rig.healthz, "/livez")
    found = json.loads(body)
    assert (status, found["healthy"]) == (503, False)
    late = {"lastUpdated": found["lastUpdated"], "healthy": False}
    assert found["status"] == {"IPv4": late, "IPv6": late}
    assert found["lastUpdated"] < found["currentTime"]


def test_health_over_time() -> None:
    health = ProxyHealth()
    assert health.healthy(0)
    health.queued(10)
    health.queued(50)  # the oldest counts
    assert health.healthy(10 + TIMEOUT_S - 1)
    assert not health.healthy(10 + TIMEOUT_S)
    health.updated(80)
    assert health.healthy(1000)


async def test_without_healthz() -> None:
    server = HealthServer(ProxyHealth(), None)
    await server.start()
    assert server.open_ports == frozenset()
    await server.close()
