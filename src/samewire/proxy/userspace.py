"""User mode: the switch sends virtual addresses to a relay process on the node, and that to the backends.

A `Writer` before another one. What the controller wants stays as it is; what is written has one backend, the relay's
listener for that load balancer. Where clients from outside get other backends than those inside (traffic policy
Local), there are two listeners. SCTP is left to the switch: the relay knows streams and datagrams only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import structlog
from msgspec.structs import replace

from samewire.errors import SamewireError, Unavailable
from samewire.hcn.loadbalancers import BackendFlags, DistributionType, LoadBalancer, LoadBalancerBackend
from samewire.hcn.loadbalancers import LoadBalancerFlags as Flags
from samewire.proxy.batches import Writer
from samewire.proxy.relay import Relay, RelayBackend, RelayService

log = structlog.get_logger(__name__)

_PROTOCOLS: Final = {6: "tcp", 17: "udp"}
_LOCAL: Final = int(BackendFlags.LOCAL)
_LOCAL_ONLY: Final = int(BackendFlags.LOCAL_POLICY_ONLY)
_DRAINING: Final = int(BackendFlags.DRAINING)
_KEEP_DIRECT: Final = int(Flags.KEEP_DIRECT_CONNECTIONS)
_DIRECT: Final = int(Flags.ENABLE_DIRECT_SERVER_RETURN) | _KEEP_DIRECT
_LOCAL_SUFFIX: Final = "/local"
_NOWHERE: Final[tuple[str | None, str | None]] = (None, None)
MAX_RELAY_AFFINITY_S: Final = 86400


class RelayWriter:
    """Implements `samewire.proxy.controller.Writer`. ``addresses``: the node's addresses, main ones first."""

    def __init__(self, inner: Writer, relay: Relay, addresses: Callable[[], Sequence[str]]) -> None:
        self.on_lost: Callable[[], None] = lambda: None
        """Called when the relay has ended and everything has to be written again."""
        self._inner = inner
        self._relay = relay
        relay.on_lost = self._forget
        self._addresses = addresses
        self._wanted: dict[str, LoadBalancer] = {}
        self._carrying: Mapping[str, Sequence[tuple[str, int]]] = {}
        self._listening = _NOWHERE
        self._swept = False

    async def recall(self) -> None:
        """Learn what the relay of an earlier life carries. Before the first `get`. Raises Unavailable."""
        self._carrying = await self._relay.users()

    def network_id(self) -> str | None:
        """As the writer behind."""
        return self._inner.network_id()

    def node_port_addresses(self) -> tuple[str, ...] | None:
        """As the writer behind."""
        return self._inner.node_port_addresses()

    def get(self, lb_id: str) -> LoadBalancer | None:
        """A load balancer as the controller wanted it; of an earlier life, as it is in the switch, but nobody's: if
        that was in kernel mode, it may be what is wanted, and the relay has still to hear of it. What it carries there
        are backends: those that drain keep their connections.
        """
        found = self._inner.get(lb_id)
        if found is None or lb_id in self._wanted or not _is_relayed(found):
            return None if found is None else self._wanted.get(lb_id, found)
        carrying = {*self._carrying.get(lb_id, ()), *self._carrying.get(lb_id + _LOCAL_SUFFIX, ())}
        left = [LoadBalancerBackend(ip_address=address, port=port) for address, port in sorted(carrying)]
        return replace(found, owner="", backends=(*found.backends, *left))

    def owned(self) -> Iterable[LoadBalancer]:
        """As the writer behind."""
        return self._inner.owned()

    async def write(
        self, puts: Sequence[LoadBalancer], deletes: Sequence[str]
    ) -> Mapping[str, SamewireError]:
        """Tell the relay, then the switch; a load balancer that the relay refuses is not written."""
        failed: dict[str, SamewireError] = {}
        wanted = self._wanted  # when the relay ends meanwhile, what is noted here is void
        await self._sweep()
        await self._end(deletes)
        await self._listen([less for lb in puts if (less := _survivors(wanted.get(lb.id), lb))], failed)
        ports = await self._listen(puts, failed)
        relayed = [
            _relayed(lb, ports, self._addresses(), self._inner.get(lb.id))
            for lb in puts
            if lb.id not in failed
        ]
        were = {lb.id: self._inner.get(lb.id) for lb in puts if not lb.external_traffic_policy_local}
        failed |= await self._inner.write(relayed, deletes)
        unused: list[str] = []
        for lb in puts:
            if lb.id in failed:
                continue
            before = were.get(lb.id)
            if before is not None and before.external_traffic_policy_local:
                unused.append(lb.id + _LOCAL_SUFFIX)
            wanted[lb.id] = lb
        for lb_id in deletes:
            if lb_id not in failed:
                unused += [lb_id, lb_id + _LOCAL_SUFFIX]
        await self._relay.delete(unused)
        return failed

    def look_again(self) -> None:
        """The node's addresses may be others now: then all listeners are made anew."""
        if self._listening not in (_NOWHERE, _listen_addresses(self._addresses())):
            self._carrying = {
                lb_id: [(one.ip_address, one.port) for one in lb.backends]
                for lb_id, lb in self._wanted.items()
            }
            self._wanted = {}
            self.on_lost()

    def _forget(self) -> None:
        """The next relay listens at other ports: nothing that is in the switch is right any more."""
        log.warning("the relay has ended; starting another one")
        self._wanted = {}
        self._carrying = {}
        self.on_lost()

    async def close(self) -> None:
        """Hang up; the relay goes on."""
        await self._relay.close()

    async def _sweep(self) -> None:
        """Once: the relay of an earlier life forgets what the switch no longer sends it."""
        if self._swept:
            return
        known = {lb.id for lb in self._inner.owned()}
        found = await self._relay.list()
        await self._relay.delete([one for one in found if one.removesuffix(_LOCAL_SUFFIX) not in known])
        self._swept = True

    async def _end(self, ids: Sequence[str]) -> None:
        """End the connections of load balancers that are about to go, while the switch still brings their clients the
        relay's resets. Their listeners stay until the switch sends nothing there.
        """
        going = [found for lb_id in ids if (found := self.get(lb_id)) is not None]
        for lb_id in ids:
            self._wanted.pop(lb_id, None)  # should one not go, it is told to the relay anew
        await self._listen([replace(lb, backends=()) for lb in going], {})

    async def _listen(
        self, puts: Sequence[LoadBalancer], failed: dict[str, SamewireError]
    ) -> Mapping[str, int]:
        """The relay's ports by its services' ids; notes load balancers that have none."""
        services: list[RelayService] = []
        self._listening = _listen_addresses(self._addresses())
        for lb in puts:
            if not _is_relayed(lb):
                continue
            listen = _listen_address(lb, self._addresses())
            if listen is None:
                family = "IPv6" if lb.is_ipv6 else "IPv4"
                failed[lb.id] = Unavailable("relay", f"the node has no {family} address to listen on")
                continue
            services += _services_of(lb, listen)
        ports: dict[str, int] = {}
        for name, answer in (await self._relay.put(services)).items():
            if isinstance(answer, int):
                ports[name] = answer
            else:
                failed[name.removesuffix(_LOCAL_SUFFIX)] = answer
        return ports


def _survivors(before: LoadBalancer | None, lb: LoadBalancer) -> LoadBalancer | None:
    """A load balancer without the addresses that others have now; None when there are none of these.

    The relay knows a backend by its address: told so first, it ends what the one before had.
    """
    if before is None:
        return None
    was = {(one.ip_address, one.port): one.target_id for one in before.backends if one.target_id}
    same = tuple(one for one in lb.backends if was.get((one.ip_address, one.port)) in (None, one.target_id))
    return replace(lb, backends=same) if len(same) < len(lb.backends) else None


def _is_relayed(lb: LoadBalancer) -> bool:
    return lb.port_mappings[0].protocol in _PROTOCOLS


def _listen_address(lb: LoadBalancer, addresses: Iterable[str]) -> str | None:
    return next((one for one in addresses if (":" in one) == lb.is_ipv6), None)


def _listen_addresses(addresses: Sequence[str]) -> tuple[str | None, str | None]:
    """Where services of each family listen."""
    four, six = (next((one for one in addresses if (":" in one) == v6), None) for v6 in (False, True))
    return four, six


def _services_of(lb: LoadBalancer, listen: str) -> list[RelayService]:
    """The listener for clients inside, and the one for those outside where that is another. Those inside go on with
    what only the others are led to by now: it drains.
    """
    everybody = [
        replace(one, flags=one.flags | _DRAINING) if one.flags & _LOCAL_ONLY else one for one in lb.backends
    ]
    found = [_service(lb, lb.id, listen, everybody)]
    if lb.external_traffic_policy_local:
        here = [one for one in lb.backends if one.flags & _LOCAL]
        found.append(_service(lb, lb.id + _LOCAL_SUFFIX, listen, here))
    return found


def _service(
    lb: LoadBalancer, name: str, listen: str, backends: Iterable[LoadBalancerBackend]
) -> RelayService:
    mapping = lb.port_mappings[0]
    sticky = mapping.distribution_type is not DistributionType.NONE
    return RelayService(
        name,
        _PROTOCOLS[mapping.protocol],
        listen,
        tuple(
            RelayBackend(one.ip_address, one.port or mapping.internal_port, bool(one.flags & _DRAINING))
            for one in backends
        ),
        min(lb.affinity_timeout, MAX_RELAY_AFFINITY_S) if sticky else 0,
    )


def _relayed(
    lb: LoadBalancer, ports: Mapping[str, int], addresses: Sequence[str], before: LoadBalancer | None
) -> LoadBalancer:
    """The load balancer as the switch gets it, which is ``before`` there. Without a backend that takes connections the
    refusal is the switch's; a listener drains while one behind it does.
    """
    listen = _listen_address(lb, addresses)
    if not _is_relayed(lb) or listen is None:
        return lb
    local_policy = lb.external_traffic_policy_local
    backends = []
    everybody = _state(one for one in lb.backends if not one.flags & _LOCAL_ONLY)
    if everybody is not None:
        flags = everybody | (0 if local_policy else _LOCAL)
        backends.append(LoadBalancerBackend(ip_address=listen, port=ports[lb.id], flags=flags))
    here = _state(one for one in lb.backends if one.flags & _LOCAL) if local_policy else None
    if here is not None:
        port, flags = ports[lb.id + _LOCAL_SUFFIX], here | _LOCAL | _LOCAL_ONLY
        backends.append(LoadBalancerBackend(ip_address=listen, port=port, flags=flags))
    mapping = replace(
        lb.port_mappings[0],
        internal_port=backends[0].port if backends else 0,
        distribution_type=DistributionType.NONE,
    )
    return replace(
        lb,
        backends=(*backends, *_left(before, lb)),
        port_mappings=(mapping,),
        flags=lb.flags & ~_DIRECT | (_KEEP_DIRECT if before is not None and before.flags & _DIRECT else 0),
        affinity_timeout=0,
    )


def _left(before: LoadBalancer | None, lb: LoadBalancer) -> Iterable[LoadBalancerBackend]:
    """What connections from an earlier life in kernel mode lead to: it drains for as long as it is a backend."""
    wanted = {(one.ip_address, one.port, one.target_id) for one in lb.backends}
    for one in before.backends if before is not None else ():
        if (one.ip_address, one.port, one.target_id) in wanted:
            yield replace(one, flags=one.flags & _LOCAL | _DRAINING)


def _state(backends: Iterable[LoadBalancerBackend]) -> int | None:
    """What the switch is told of a listener with these backends: a flag, or none. None: nobody needs it."""
    return min((one.flags & _DRAINING for one in backends), default=None)
