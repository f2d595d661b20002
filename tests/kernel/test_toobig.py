"""What routers say of tunnel packets that are too long: it is heard, and what the kernel learns of it is read."""

from __future__ import annotations

import socket
from functools import partial

import pytest

from samewire.kernel.toobig import TooBigSocket
from samewire.node.facts import read_path_mtus
from samewire.vfp.address import parse_address
from tests.support.netlab import Lab, poll
from tests.support.traffic import family_of, too_long
from tests.support.worlds import FAR, FAR_MTU, ROUTER, Underlay

pytestmark = [pytest.mark.root]

TUNNEL, OTHER = 4789, 4790
HEADERS = {4: 28, 6: 48}
IP_MTU_DISCOVER = {4: (socket.IPPROTO_IP, 10), 6: (socket.IPPROTO_IPV6, 23)}
DO = 2


@pytest.mark.parametrize("family", [4, 6])
def test_a_smaller_link_beyond(family: int) -> None:
    """Only of the tunnel's port; what is learned is everybody's."""
    with Lab() as lab:
        underlay = Underlay(lab)
        node, size = underlay.out, FAR_MTU - HEADERS[family] + 1
        node.ip("route", "add", "default", "via", ROUTER[family])
        with node.run(lambda: TooBigSocket(TUNNEL)) as hearing:
            for port in (OTHER, TUNNEL):
                with node.socket(family_of(FAR[family]), socket.SOCK_DGRAM) as opened:
                    opened.setsockopt(*IP_MTU_DISCOVER[family], DO)
                    opened.connect((FAR[family], port))
                    opened.send(bytes(size))
                    poll("the kernel has learned", partial(too_long, opened, size))
                assert hearing.receive() == (port == TUNNEL)
                assert read_path_mtus(node.netlink) == {parse_address(FAR[family]): FAR_MTU}
                node.ip(f"-{family}", "route", "flush", "cache")
                assert read_path_mtus(node.netlink) == {}
