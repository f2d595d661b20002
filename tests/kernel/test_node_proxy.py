"""L4WFPPROXY and L4Proxy through the service, with real connections of real pods."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack
from ipaddress import ip_address
from typing import Any

import pytest
import pytest_asyncio

from samewire.errors import KernelError
from samewire.hcn.schema import Kind
from samewire.kernel import faults, nftables
from samewire.kernel.netns import NetNamespace
from samewire.node.config import NodeConfig
from samewire.node.node import Node
from samewire.node.uninstall import uninstall
from tests.support.node import NODE_IP, SHORT_S, STALL_S, NodeNet, path_of
from tests.support.node_pods import A, B, World

pytestmark = [pytest.mark.root, pytest.mark.asyncio]

PROXY_USER = 1337
OUTBOUND, INBOUND, SERVER = 15001, 15006, 8080
UNREACHABLE = pytest.raises(OSError, match=r"timed out|unreachable")


def sidecar(**settings: Any) -> dict[str, Any]:
    return {"Type": "L4WFPPROXY", "Settings": {"UserSID": f"S-1-22-1-{PROXY_USER}", **settings}}


def at(address: str, port: int) -> str:
    return f"{ip_address(address)}:{port}"


@pytest_asyncio.fixture
async def world(net: NodeNet, config: NodeConfig) -> AsyncIterator[World]:
    node = await Node.start(config, lambda _: None)
    with ExitStack() as stack:
        made = World(node, net, stack)
        await made.start()
        yield made
    await made.node.close()


@pytest.mark.parametrize("family", [4, 6])
async def test_a_sidecar_gets_what_the_pod_opens(world: World, family: int) -> None:
    """All but what its own account opens, and what the exceptions and the filter leave alone."""
    world.listen(world.a, "proxy", OUTBOUND)
    for port in (SERVER, 9090, 9091):
        world.listen(world.b, "server", port)
    target = B[family]
    assert world.ask(world.a, target, SERVER).startswith("server")
    await world.policies(
        "Add", sidecar(OutboundProxyPort=str(OUTBOUND), OutboundExceptions={"PortExceptions": ["9090-9091"]})
    )
    assert world.ask(world.a, target, SERVER) == f"proxy {at(target, SERVER)} {A[family]}"
    assert world.ask(world.a, target, SERVER, PROXY_USER) == f"server - {A[family]}"
    assert world.ask(world.a, target, 9091) == f"server - {A[family]}"
    alone = {"IpAddressExceptions": [target]}
    await world.policies("Update", sidecar(OutboundProxyPort=str(OUTBOUND), OutboundExceptions=alone))
    assert world.ask(world.a, target, SERVER).startswith("server")
    await world.policies(
        "Update", sidecar(OutboundProxyPort=str(OUTBOUND), FilterTuple={"RemotePorts": "9091"})
    )
    assert world.ask(world.a, target, SERVER).startswith("server")
    assert world.ask(world.a, target, 9091) == f"proxy {at(target, 9091)} {A[family]}"


@pytest.mark.parametrize("family", [4, 6])
async def test_a_sidecar_gets_what_arrives(world: World, family: int) -> None:
    world.listen(world.a, "proxy", INBOUND)
    world.listen(world.a, "application", SERVER)
    world.listen(world.a, "application", 9090)
    await world.policies(
        "Add",
        sidecar(
            InboundProxyPort=str(INBOUND),
            InboundExceptions={"PortExceptions": ["9090"], "IpAddressExceptions": ["10.50.0.99"]},
        ),
    )
    assert world.ask(world.b, A[family], SERVER) == f"proxy {at(A[family], SERVER)} {B[family]}"
    assert world.ask(world.b, A[family], 9090).startswith("application")
    # From the pod itself nothing arrives: that is how the proxy reaches the application.
    assert world.ask(world.a, "::1" if family == 6 else "127.0.0.1", SERVER).startswith("application")


async def test_a_proxy_elsewhere(world: World) -> None:
    """TCP or UDP to some destinations goes to a proxy in another pod, for one endpoint or all of a network."""
    world.listen(world.b, "server", SERVER)
    world.listen(world.b, "proxy", 3128)
    world.listen(world.b, "dns", 5353, socket.SOCK_DGRAM)
    await world.policies(
        "Add",
        {
            "Type": "L4Proxy",
            "Settings": {
                "IP": "192.0.2.0/24",
                "Port": "443",
                "Protocol": 6,
                "Destination": f"{B[4]}:3128",
                "ExceptionList": ["192.0.2.7"],
            },
        },
        {"Type": "L4Proxy", "Settings": {"Port": "53", "Protocol": 17, "Destination": f"{B[4]}:5353"}},
    )
    assert world.ask(world.a, "192.0.2.9", 443).startswith("proxy")
    with UNREACHABLE:
        world.ask(world.a, "192.0.2.7", 443, wait_s=SHORT_S)
    with UNREACHABLE:
        world.ask(world.a, "192.0.2.9", 80, wait_s=SHORT_S)
    assert world.ask(world.a, B[4], SERVER).startswith("server")
    assert world.ask_datagram(world.a, "192.0.2.53", 53) == "dns"
    await world.policies("Update")
    with UNREACHABLE:
        world.ask(world.a, "192.0.2.9", 443, wait_s=SHORT_S)
    every = {"Type": "L4Proxy", "Settings": {"Port": str(SERVER), "Destination": f"{B[4]}:3128"}}
    await world.policies("Add", every, kind=Kind.NETWORK)
    assert world.ask(world.a, "192.0.2.9", SERVER).startswith("proxy")
    # The endpoint that has the proxy is no client of it.
    assert world.tables(world.b) == []
    await world.policies("Remove", every, kind=Kind.NETWORK)
    with UNREACHABLE:
        world.ask(world.a, "192.0.2.9", SERVER, wait_s=SHORT_S)


async def test_a_proxy_that_sees_the_node(world: World) -> None:
    """OutboundNAT: the pod's address is translated on the way to the proxy, and nowhere else."""
    world.listen(world.b, "proxy", 3128)
    world.listen(world.b, "server", SERVER)
    hidden = {"Port": "443", "Destination": f"{B[4]}:3128", "OutboundNAT": True, "Exceptions": [B[4]]}
    await world.policies("Add", {"Type": "L4Proxy", "Settings": hidden})
    assert world.ask(world.a, "192.0.2.9", 443) == f"proxy - {NODE_IP}"
    await world.policies("Update", {"Type": "L4Proxy", "Settings": {**hidden, "OutboundNAT": False}})
    assert world.ask(world.a, "192.0.2.9", 443) == f"proxy - {A[4]}"


async def test_old_connections_go_on(world: World) -> None:
    """Those from before the policy stay with the server, those of before its removal with the proxy."""
    with NetNamespace(path_of(world.b)) as space:
        server = space.run(lambda: socket.create_server((B[4], SERVER)))
    with NetNamespace(path_of(world.a)) as space:
        proxy = space.run(lambda: socket.create_server(("0.0.0.0", OUTBOUND)))
    for listener in (server, proxy):
        listener.settimeout(STALL_S)
        world.stack.callback(listener.close)

    def pair(listener: socket.socket) -> tuple[socket.socket, socket.socket]:
        client = world.open(world.a, B[4], SERVER)
        far = listener.accept()[0]
        world.stack.callback(far.close)
        return client, far

    def alive(ends: tuple[socket.socket, socket.socket]) -> bool:
        for one, two in (ends, ends[::-1]):
            two.settimeout(STALL_S)
            one.sendall(b"x")
            if two.recv(1) != b"x":
                return False
        return True

    direct = pair(server)
    await world.policies("Add", sidecar(OutboundProxyPort=str(OUTBOUND)))
    assert alive(direct)
    proxied = pair(proxy)
    assert alive(proxied)
    await world.policies("Update")
    assert alive(proxied)
    assert alive(direct)
    assert alive(pair(server))
    await world.policies("Add", sidecar(OutboundProxyPort=str(OUTBOUND)))
    assert alive(proxied)


async def test_the_audit_and_a_new_daemon_set_it_right(world: World, config: NodeConfig) -> None:
    world.listen(world.a, "proxy", OUTBOUND)
    world.listen(world.b, "server", SERVER)
    await world.policies("Add", sidecar(OutboundProxyPort=str(OUTBOUND)))
    for script in (
        "flush ruleset",
        f"flush chain inet {world.tables(world.a)[0].split()[-1]} outbound",
    ):
        with NetNamespace(path_of(world.a)) as space:
            nftables.change(space, script, "break it")
        found = await world.node.auditor.compare()
        assert [(item.kind, item.subject) for item in found] == [("pod", world.endpoint)]
        assert world.ask(world.a, B[4], SERVER).startswith("server")
        await world.node.auditor.audit()
        assert await world.node.auditor.compare() == []
        assert world.ask(world.a, B[4], SERVER).startswith("proxy")
    # Rules that were written just before a daemon died, and of which the store knows nothing.
    table = world.tables(world.b)
    assert table == []
    state = world.node.switch.ports.get(world.other)
    assert state is not None
    with NetNamespace(path_of(world.b)) as space:
        nftables.change(
            space,
            f"add table inet {state.link.host_name}\n"
            f"add chain inet {state.link.host_name} outbound {{ type nat hook output priority -100; }}\n"
            f'add rule inet {state.link.host_name} outbound tcp dport 1 redirect to :2 comment "policy 1"',
            "half a change",
        )
    await world.node.close()
    assert world.ask(world.a, B[4], SERVER).startswith("proxy")
    world.node = await Node.start(config, lambda _: None)
    await world.node.auditor.audit()
    with NetNamespace(path_of(world.b)) as space:
        assert nftables.rules(space, state.link.host_name) == [("outbound", "keeps connections tracked")]
    assert world.ask(world.a, B[4], SERVER).startswith("proxy")


async def test_nothing_stays_behind(world: World, config: NodeConfig) -> None:
    """Neither after the endpoint has left the namespace, nor of a change that failed."""
    await world.policies("Add", sidecar(OutboundProxyPort=str(OUTBOUND)))
    assert len(world.tables(world.a)) == 1
    await world.member("Remove", world.endpoint)
    assert world.tables(world.a) == []

    def fail(operation: str) -> None:
        if operation.startswith("hand connections"):
            raise KernelError(operation, 5)

    faults.inject = fail
    try:
        with pytest.raises(KernelError):
            await world.member("Add", world.endpoint)
    finally:
        faults.inject = None
    assert world.tables(world.a) == []
    await world.member("Add", world.endpoint)
    assert len(world.tables(world.a)) == 1
    await world.node.close()
    uninstall(config)
    assert world.tables(world.a) == []
    world.node = await Node.start(config, lambda _: None)
