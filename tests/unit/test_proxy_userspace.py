"""User mode: what the relay is told, what the switch gets, and what the controller sees."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from samewire.hcn.loadbalancers import (
    BackendFlags,
    DistributionType,
    LoadBalancer,
    LoadBalancerBackend,
    LoadBalancerFlags,
    LoadBalancerPortMapping,
)
from samewire.kube.model import EndpointPort
from samewire.proxy.controller import ServiceProxy
from samewire.proxy.ids import OWNER
from samewire.proxy.relay import Relay
from samewire.proxy.userspace import RelayWriter
from tests.support.kube_services import HERE, endpoint, endpoint_slice, service
from tests.support.proxy import FakeSource, FakeWriter, pid_behind
from tests.support.relayed import hang_up, until

LOCAL, LOCAL_ONLY, DRAINING = (
    int(BackendFlags.LOCAL),
    int(BackendFlags.LOCAL_POLICY_ONLY),
    int(BackendFlags.DRAINING),
)
ID = "00000000-0000-0000-0000-00000000000A"


@pytest.fixture
async def relay(tmp_path: Path) -> AsyncIterator[Relay]:
    one = Relay(tmp_path / "relay.sock")
    yield one
    await one.stop()


def load_balancer(*backends: tuple[str, int], protocol: int = 6, local: bool = False) -> LoadBalancer:
    return LoadBalancer(
        id=ID,
        owner=OWNER,
        frontend_vips=("10.96.0.1",),
        port_mappings=(
            LoadBalancerPortMapping(
                protocol=protocol,
                internal_port=80,
                external_port=8080,
                distribution_type=DistributionType.SOURCE_IP,
            ),
        ),
        flags=int(LoadBalancerFlags.ENABLE_DIRECT_SERVER_RETURN),
        backends=tuple(LoadBalancerBackend(ip_address=ip, port=81, flags=flags) for ip, flags in backends),
        affinity_timeout=600,
        external_traffic_policy_local=local,
    )


async def test_the_switch_gets_the_relay_and_the_controller_sees_what_it_wanted(relay: Relay) -> None:
    inner = FakeWriter()
    writer = RelayWriter(inner, relay, lambda: ["127.0.0.1", "::1"])
    wanted = load_balancer(("10.244.0.2", LOCAL), ("10.244.1.2", 0))
    assert await writer.write([wanted], []) == {}
    (backend,) = inner.objects[ID].backends
    assert (backend.ip_address, backend.port) == ("127.0.0.1", (await relay.list())[ID].port)
    assert inner.objects[ID].port_mappings[0].distribution_type is DistributionType.NONE
    assert not inner.objects[ID].flags
    assert writer.get(ID) == wanted
    assert await writer.write([], [ID]) == {}
    assert writer.get(ID) is None
    assert await relay.list() == {}


async def test_connections_by_dsr_stay_known(relay: Relay) -> None:
    """Those of a time in kernel mode: through user mode, and after it."""
    inner = FakeWriter()
    wanted = load_balancer(("10.244.0.2", LOCAL), ("10.244.1.2", 0))
    inner.objects[ID] = wanted
    keep = int(LoadBalancerFlags.KEEP_DIRECT_CONNECTIONS)
    for value in (wanted, replace(wanted, flags=keep), replace(wanted, flags=0)):
        writer = RelayWriter(inner, relay, lambda: ["127.0.0.1"])
        assert await writer.write([value], []) == {}
        assert inner.objects[ID].flags == keep
        assert inner.objects[ID].backends[1:] == tuple(
            replace(one, flags=one.flags | DRAINING) for one in wanted.backends
        )


async def test_clients_from_outside_have_a_listener_of_their_own_under_the_policy_local(relay: Relay) -> None:
    inner = FakeWriter()
    writer = RelayWriter(inner, relay, lambda: ["127.0.0.1"])
    local = load_balancer(
        ("10.244.0.2", LOCAL), ("10.244.1.2", 0), ("10.244.0.3", LOCAL | LOCAL_ONLY), local=True
    )
    assert await writer.write([local], []) == {}
    listeners = await relay.list()
    assert set(listeners) == {ID, f"{ID}/local"}
    inside, outside = inner.objects[ID].backends
    assert (inside.flags, inside.port) == (0, listeners[ID].port)
    assert (outside.flags, outside.port) == (LOCAL | LOCAL_ONLY, listeners[f"{ID}/local"].port)
    # whose daemon knows the policy from before
    for one in writer, RelayWriter(inner, relay, lambda: ["127.0.0.1"]):
        await writer.write([local], [])
        await one.write([replace(local, external_traffic_policy_local=False)], [])
        assert set(await relay.list()) == {ID}


async def test_another_pod_at_an_address_gets_nothing_of_the_first(relay: Relay) -> None:
    """Within one change: connections to the pod before end, those to others go on."""
    writer = RelayWriter(FakeWriter(), relay, lambda: ["127.0.0.1"])
    with socket.create_server(("127.0.0.1", 0)) as pod:
        here = LoadBalancerBackend(ip_address="127.0.0.1", port=pod.getsockname()[1], target_id="one")
        wanted = replace(load_balancer(), backends=(here,), affinity_timeout=0)
        await writer.write([wanted], [])
        with socket.create_connection(("127.0.0.1", (await relay.list())[ID].port)) as client:
            client.settimeout(20)
            far = pod.accept()[0]
            far.settimeout(20)
            await writer.write([replace(wanted, name="edited")], [])
            client.sendall(b"still")
            assert far.recv(10) == b"still"
            await writer.write([replace(wanted, backends=(replace(here, target_id="two"),))], [])
            with far, contextlib.suppress(ConnectionResetError):
                assert far.recv(10) == b"", "the first pod's connection has ended"
        with socket.create_connection(("127.0.0.1", (await relay.list())[ID].port)):
            pod.settimeout(20)
            pod.accept()[0].close()


async def test_without_an_active_backend_the_switch_refuses(relay: Relay) -> None:
    inner = FakeWriter()
    writer = RelayWriter(inner, relay, lambda: ["127.0.0.1"])
    await writer.write([load_balancer()], [])
    assert inner.objects[ID].backends == ()


@pytest.mark.parametrize(
    ("backends", "flags"),
    [
        ([LOCAL, 0], [0, LOCAL | LOCAL_ONLY]),
        ([LOCAL | DRAINING, 0], [0, LOCAL | LOCAL_ONLY | DRAINING]),
        ([LOCAL | LOCAL_ONLY, DRAINING], [DRAINING, LOCAL | LOCAL_ONLY]),
        ([LOCAL | DRAINING, DRAINING], [DRAINING, LOCAL | LOCAL_ONLY | DRAINING]),
        ([0], [0]),
        ([LOCAL | LOCAL_ONLY], [LOCAL | LOCAL_ONLY]),
    ],
)
async def test_a_listener_drains_as_long_as_what_is_behind_it(
    relay: Relay, backends: list[int], flags: list[int]
) -> None:
    """The switch would end the connections of a backend that it no longer has."""
    inner = FakeWriter()
    writer = RelayWriter(inner, relay, lambda: ["127.0.0.1"])
    found = [(f"10.244.0.{number}", one) for number, one in enumerate(backends)]
    await writer.write([load_balancer(*found, local=True)], [])
    assert [one.flags for one in inner.objects[ID].backends] == flags
    await writer.write([load_balancer(("10.244.0.2", LOCAL | DRAINING))], [])
    assert [one.flags for one in inner.objects[ID].backends] == [LOCAL | DRAINING]


async def test_sctp_stays_with_the_switch(relay: Relay) -> None:
    inner = FakeWriter()
    writer = RelayWriter(inner, relay, lambda: ["127.0.0.1"])
    wanted = load_balancer(("10.244.0.2", LOCAL), protocol=132)
    await writer.write([wanted], [])
    assert inner.objects[ID] == wanted
    assert await relay.list() == {}


async def test_a_family_that_the_node_lacks_is_an_error_of_that_service_alone(relay: Relay) -> None:
    inner = FakeWriter()
    writer = RelayWriter(inner, relay, lambda: ["127.0.0.1"])
    six = replace(load_balancer(("fd00::2", LOCAL)), id=ID[:-1] + "B", frontend_vips=("fd00:96::1",))
    failed = await writer.write([six, load_balancer(("10.244.0.2", LOCAL))], [])
    assert set(failed) == {six.id}
    assert "IPv6" in str(failed[six.id])
    assert set(inner.objects) == {ID}


async def test_the_relay_of_an_earlier_life_forgets_what_nobody_wants(relay: Relay, tmp_path: Path) -> None:
    inner = FakeWriter()
    writer = RelayWriter(inner, relay, lambda: ["127.0.0.1"])
    await writer.write([load_balancer(("10.244.0.2", LOCAL))], [])
    port = (await relay.list())[ID].port
    other = replace(load_balancer(("10.244.0.2", LOCAL)), id=ID[:-1] + "B")
    await writer.write([other], [])
    del inner.objects[other.id]  # deleted while no daemon was there
    again = RelayWriter(inner, Relay(tmp_path / "relay.sock"), lambda: ["127.0.0.1"])
    await again.write([load_balancer(("10.244.0.3", LOCAL))], [])
    assert {name: counts.port for name, counts in (await relay.list()).items()} == {ID: port}
    await again.close()


@pytest.mark.parametrize("how", ["a restart", "the node has another address"])
async def test_who_drains_is_known_through(
    relay: Relay, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection to an endpoint that is not ready any more goes on, until the endpoint is gone."""
    # The one address that is sure to be here is no endpoint's.
    monkeypatch.setattr("samewire.proxy.members.is_of_one_machine", lambda address: True)
    source, inner, addresses = FakeSource(), FakeWriter(), ["127.0.0.1"]
    source.put(service("web"), quiet=True)
    with socket.create_server(("127.0.0.1", 0)) as pod, contextlib.ExitStack() as stack:

        def say(ready: bool | None) -> None:
            ends = [endpoint("127.0.0.1", ready=ready)] if ready is not None else []
            ports = (EndpointPort(name="http", port=pod.getsockname()[1]),)
            source.put(endpoint_slice(*ends, ports=ports))

        async def live(one: Relay) -> tuple[ServiceProxy, RelayWriter]:
            writer = RelayWriter(inner, one, lambda: addresses)
            await writer.recall()
            proxy = ServiceProxy(source, writer, HERE)
            writer.on_lost = proxy.write_again
            proxy.start()
            await source.start()
            await until(lambda: _true(proxy.idle))
            return proxy, writer

        say(True)
        proxy, writer = await live(relay)
        (listening,) = (await relay.list()).values()
        client = stack.enter_context(socket.create_connection(("127.0.0.1", listening.port)))
        far = stack.enter_context(pod.accept()[0])
        say(False)
        await until(lambda: _true(proxy.idle))
        again = Relay(tmp_path / "relay.sock")
        if how == "a restart":
            await proxy.close()
            await relay.close()
            proxy, _ = await live(again)
        else:
            addresses.append("::1")
            writer.look_again()
            assert not proxy.idle
            await until(lambda: _true(proxy.idle))
        for one in (client, far):
            one.settimeout(20)
        client.sendall(b"still")
        assert far.recv(10) == b"still"
        say(None)
        await until(lambda: _true(proxy.idle))
        with contextlib.suppress(ConnectionResetError):
            assert far.recv(10) == b"", "it ends with its endpoint"
        await proxy.close()
        await again.close()


async def test_a_relay_of_an_earlier_release_carries_nothing_that_is_known(tmp_path: Path) -> None:
    """It answers that it does not know the question. Where there is none, none is started to be asked."""
    path = tmp_path / "relay.sock"
    assert await Relay(path).users() == {}
    assert not path.exists()

    gone = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"error - want put, del, list, stats or quit\n")
        await reader.read()
        await hang_up(writer)
        gone.set()

    async with await asyncio.start_unix_server(answer, path):
        one = Relay(path)
        assert await one.users() == {}
        await one.close()
        await gone.wait()


async def test_listeners_follow_the_nodes_address(relay: Relay) -> None:
    inner, addresses = FakeWriter(), ["127.0.0.1"]
    writer = RelayWriter(inner, relay, lambda: addresses)
    calls: list[None] = []
    writer.on_lost = lambda: calls.append(None)
    wanted = load_balancer(("10.244.0.2", LOCAL))
    await writer.write([wanted], [])
    writer.look_again()
    assert (calls, writer.get(ID)) == ([], wanted)
    addresses[0] = "127.0.0.2"
    writer.look_again()
    assert len(calls) == 1
    assert writer.get(ID) != wanted, "it is to be written again"
    await writer.write([wanted], [])
    (backend,) = inner.objects[ID].backends
    assert backend.ip_address == "127.0.0.2"
    with socket.create_connection((backend.ip_address, backend.port), timeout=20):
        pass
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", backend.port)):
        pass


async def test_a_relay_that_is_killed_is_replaced_and_told_everything(relay: Relay, tmp_path: Path) -> None:
    """The next one listens at other ports: the switch must not send anybody to the old ones."""
    source, inner = FakeSource(), FakeWriter()
    writer = RelayWriter(inner, relay, lambda: ["127.0.0.1"])
    proxy = ServiceProxy(source, writer, HERE)
    writer.on_lost = proxy.write_again
    proxy.start()
    for number in range(3):
        name = f"web{number}"
        source.put(service(name, ips=(f"10.96.0.{number + 1}",)), quiet=True)
        source.put(endpoint_slice(endpoint("10.244.0.2"), of=name, name=name), quiet=True)
    await source.start()

    async def written() -> bool:
        known = {lb_id: counts.port for lb_id, counts in (await relay.list()).items()}
        return len(known) == 3 and known == {
            lb.id: lb.backends[0].port for lb in inner.objects.values() if lb.backends
        }

    try:
        await until(written)
        ports = {lb.backends[0].port for lb in inner.objects.values()}
        os.kill(pid_behind(tmp_path / "relay.sock"), signal.SIGKILL)
        await until(lambda: _true(not ports & {lb.backends[0].port for lb in inner.objects.values()}))
        await until(written)
    finally:
        await proxy.close()


@pytest.mark.parametrize("how", ["the relay ends", "the node has another address"])
async def test_what_was_on_its_way_when_the_listeners_went_is_written_again(
    relay: Relay, tmp_path: Path, how: str
) -> None:
    inner, addresses, lost = FakeWriter(), ["127.0.0.1"], asyncio.Event()
    writer = RelayWriter(inner, relay, lambda: addresses)
    writer.on_lost = lost.set
    wanted = load_balancer(("10.244.0.2", LOCAL))
    inner.gate = asyncio.Event()
    writing = asyncio.create_task(writer.write([wanted], []))
    await until(lambda: _listens(relay))
    if how == "the relay ends":
        os.kill(pid_behind(tmp_path / "relay.sock"), signal.SIGKILL)
    else:
        addresses[0] = "127.0.0.2"
        writer.look_again()
    async with asyncio.timeout(20):
        await lost.wait()
    inner.gate.set()
    await writing
    assert writer.get(ID) != wanted


async def _listens(relay: Relay) -> bool:
    return ID in await relay.list()


async def _true(so: bool) -> bool:
    return so
