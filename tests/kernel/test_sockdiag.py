"""Connected UDP sockets seen and ended by sock_diag."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_address

import pytest

from samewire.kernel.sockdiag import SocketDiagnosis
from tests.support.node import NodeNet, node_net

pytestmark = [pytest.mark.root]

SO_COOKIE = 57


@pytest.fixture
def net() -> Iterator[NodeNet]:
    with node_net() as made:
        yield made


@pytest.mark.parametrize(
    ("family", "address", "peer"),
    [
        (socket.AF_INET, "127.0.0.1", "127.0.0.1"),
        (socket.AF_INET6, "::1", "::1"),
        (socket.AF_INET6, "::ffff:127.0.0.1", "127.0.0.1"),
    ],
)
def test_a_connected_socket_is_found_and_ended(net: NodeNet, family: int, address: str, peer: str) -> None:
    with ExitStack() as stack:
        stack.enter_context(net.inside())
        first, other, loose = (
            stack.enter_context(socket.socket(family, socket.SOCK_DGRAM)) for _ in range(3)
        )
        first.connect((address, 4000))
        other.connect((address, 4001))
        loose.bind((address, 0))
        with SocketDiagnosis() as diagnosis:
            found = {item.port: item for item in diagnosis.connected_udp()}
            assert set(found) == {4000, 4001}
            assert diagnosis.connected_udp(4000) == [found[4000]]
            assert diagnosis.connected_udp(4002) == []
            mine = found[4000]
            assert mine.peer == ip_address(peer).packed
            assert mine.cookie == int.from_bytes(first.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), "little")
            assert diagnosis.end(mine)
            assert not diagnosis.end(mine), "it is not there any more"
            assert {item.port for item in diagnosis.connected_udp()} == {4001}
        with pytest.raises(ConnectionAbortedError):
            first.recv(10)
        first.connect((address, 4002))
        assert first.getpeername()[1] == 4002
        assert other.getpeername()[1] == 4001
