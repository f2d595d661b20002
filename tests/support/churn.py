"""A node under churn: services with backends near and far, and clients that hold connections."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from tests.support.api_node import TWINS, ApiNode, api_node, far
from tests.support.cgroups import own_cgroup
from tests.support.crowd import Crowd, Crowds, crowds, endpoint, who
from tests.support.node import PREFIX, Json

MANY: Final = 1000
PODS: Final = 3
FAR: Final = [far(number) for number in range(20)]
ENDED: Final = frozenset({"ECONNRESET", "EPIPE"})
"""What a TCP socket is told whose backend has gone."""


class Churn:
    """The node with a few pods behind its services, and clients: in a pod, on the node, outside.

    All of it has both families: who opens connections to the IPv4 address of a service or of the node gets half of
    them to the IPv6 one.
    """

    def __init__(self, world: ApiNode, group: Path, stack: ExitStack) -> None:
        self.world = world
        self.api = world.api
        self.near = [world.pod(f"near{number}", server=f"near{number}")[1] for number in range(PODS)]
        self.client = world.pod("client")[0]
        self.pod: Crowds = stack.enter_context(crowds(self.client, twins=TWINS))
        self.host: Crowds = stack.enter_context(crowds(world.net.node, group, TWINS))
        self.outside: Crowds = stack.enter_context(crowds(world.net.router, twins=TWINS))

    def publish(self, *addresses: str, **spec: Any) -> None:
        """The service with these backends, those that are pods of the node as such."""
        self.world.service(**spec)
        self.backends(*addresses)

    def backends(self, *addresses: str) -> None:
        """Change its backends, in one event each family, and wait until that is so."""
        self.world.endpoints("all", *(self.endpoint(address) for address in addresses))
        self.world.wait_for(*addresses)

    def endpoint(self, address: str, *, going: bool = False) -> Json:
        """An endpoint of a slice."""
        return endpoint(address, node="node" if address in self.near else "far", going=going)


def follow(senders: Crowd, last: list[str], *alive: str) -> list[str]:
    """Senders of datagrams ask again: those whose backend is alive stay with it, the others get one that is."""
    now = senders.ask()
    for before, after in zip(last, now, strict=True):
        assert who(after) in alive
        assert before == after or who(before) not in alive
    return now


@contextmanager
def churning(directory: Path) -> Iterator[Churn]:
    """The node and its clients; gone afterwards."""
    with ExitStack() as stack:
        group = stack.enter_context(own_cgroup(f"{PREFIX}-churn"))
        world = stack.enter_context(api_node(directory, group))
        yield Churn(world, group, stack)
