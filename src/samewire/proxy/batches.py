"""What the controller writes at a time, and to whom."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

import structlog

from samewire.errors import SamewireError
from samewire.hcn.loadbalancers import LoadBalancer
from samewire.kube.model import Key
from samewire.proxy.compile import Compiled

log = structlog.get_logger(__name__)


class Writer(Protocol):
    """The HNS service, as far as the proxy needs it. Ids are upper-case GUIDs."""

    def network_id(self) -> str | None:
        """The network of the load balancers; None while there is none."""
        ...

    def node_port_addresses(self) -> tuple[str, ...] | None:
        """The addresses at which node ports are reached; None = all."""
        ...

    def get(self, lb_id: str) -> LoadBalancer | None:
        """A load balancer as it is now."""
        ...

    def owned(self) -> Iterable[LoadBalancer]:
        """All load balancers that this proxy made, in this life or an earlier one."""
        ...

    async def write(
        self, puts: Sequence[LoadBalancer], deletes: Sequence[str]
    ) -> Mapping[str, SamewireError]:
        """Delete, then create or replace; every object by itself. Returns what failed, by id."""
        ...


class Writing(NamedTuple):
    """Services on their way: since when each of them is dirty, the times of what triggered that, what they compiled to,
    and what has to be written.
    """

    began_s: float
    keys: dict[Key, float]
    triggers: dict[Key, list[float]]
    compiled: dict[Key, Compiled]
    puts: list[LoadBalancer]
    deletes: list[str]


async def write(writer: Writer, batch: Writing) -> Mapping[str, SamewireError]:
    """Write a batch. Returns what failed, by id: all of it where it was refused as a whole."""
    puts, deletes = batch.puts, batch.deletes
    if not puts and not deletes:
        return {}
    try:
        return await writer.write(puts, deletes)
    except SamewireError as error:
        failure = error
    except Exception:  # a bug must not end the proxy: others of its services can be written
        log.exception("load balancers cannot be written; trying them one by one")
        return await _write_singly(writer, puts, deletes)
    return dict.fromkeys([*(value.id for value in puts), *deletes], failure)


async def _write_singly(
    writer: Writer, puts: Sequence[LoadBalancer], deletes: Sequence[str]
) -> Mapping[str, SamewireError]:
    """Find out which load balancer it is that cannot be written."""
    failed: dict[str, SamewireError] = {}
    steps = [(lb_id, (), (lb_id,)) for lb_id in deletes] + [(value.id, (value,), ()) for value in puts]
    for lb_id, put, delete in steps:
        try:
            failed |= await writer.write(put, delete)
        except SamewireError as error:
            failed[lb_id] = error
        except Exception as error:  # the cause is in the log
            failed[lb_id] = SamewireError(f"{type(error).__name__}: {error}")
    return failed
