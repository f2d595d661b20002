"""The veth pair of one endpoint: made straight into the pod's namespace, configured, compared, changed.

The order keeps a pod closed until its policies are in the kernel: `create` leaves both ends down; when the tables
are written and the program is attached, `activate` sets the host end up, then the pod's end with addresses and routes.
The pod's end comes last because the end that is opened second can send at once; the host end is made to.
"""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from samewire.errors import Conflict, KernelError
from samewire.kernel import sysctl
from samewire.kernel.netns import NetNamespace
from samewire.kernel.rtnetlink import (
    Link,
    Netlink,
    Request,
    address_add,
    address_del,
    address_dump,
    codec,
    decode_ends,
    link_del,
    link_get,
    link_set,
    link_settle,
    neighbour_replace,
    own_address,
    own_address_del,
    qdisc_del_root,
    qdisc_dump,
    route_del,
    route_dump,
    route_replace,
    tbf_replace,
    unless_taken,
    veth_add,
)
from samewire.kernel.rtnetlink.routes import TABLE_MAIN
from samewire.node import proxies
from samewire.node.devices import find_link
from samewire.node.facts import short
from samewire.vfp.address import Prefix
from samewire.vfp.compile.link import LEAST_MTU_OF_IPV6
from samewire.vfp.model import LINK_GROUP, LinkRoute, PortLink

_IFLA_AF_SPEC: Final = 26
_AF_INET6: Final = 10
_ADDR_GEN_MODE: Final = 8
_MODE_NONE: Final = 1
_NO_LINK_LOCAL: Final = codec.nested(
    _IFLA_AF_SPEC, codec.nested(_AF_INET6, codec.u8(_ADDR_GEN_MODE, _MODE_NONE))
)
_QUEUE_S: Final = 0.05  # what the shaper's queue holds beyond its bucket
_MOST_QUEUED_BYTES: Final = 2**32 - 1  # the kernel's limit; a rate that says "as good as none" asks for more
_METRICS: Final = {4: 0, 6: 1024}  # of routes that name none
_IPV6_OFF: Final = frozenset({errno.EACCES, errno.EPERM, errno.EOPNOTSUPP})


class Pair(msgspec.Struct, frozen=True):
    """Indexes of the two ends, each in its own namespace."""

    host: int
    peer: int


def create(
    netlink: Netlink, link: PortLink, netns: NetNamespace, is_others: Callable[[int], bool] = lambda _: False
) -> Pair:
    """Make the pair, both ends down. ``is_others``: whether an interface is another endpoint's.

    Raises Conflict when the pod has an interface of that name, or another endpoint the host end's, KernelError.
    """
    request = veth_add(
        link.host_name,
        link.interface_name,
        peer_netns_fd=netns.fd,
        mac=link.host_mac,
        peer_mac=link.mac,
        mtu=link.mtu,
        peer_mtu=link.mtu,
        group=LINK_GROUP,
    )
    try:
        made = netlink.make(request, decode_ends)
    except KernelError as error:
        if error.errno != errno.EEXIST:
            raise
        if not _remove_leftover(netlink, link.host_name, is_others):
            raise Conflict(f"{netns.path} has an interface {link.interface_name} already") from error
        made = netlink.make(request, decode_ends)
    if made is None:
        found = netlink.get(link_get(link.host_name))
        made = found.ifindex, found.peer_ifindex
    return Pair(*made)


def activate(netlink: Netlink, link: PortLink, pair: Pair, netns: NetNamespace, *, new: bool) -> None:
    """Open the port: the program must be attached and the tables hold its policies by now. ``new``: its endpoint has
    had none before.

    Raises KernelError, Unsupported.
    """
    if link.proxies or not new:
        proxies.write(link, netns)
    requests: list[Request] = []
    if link.rate_bytes_per_s:
        requests.append(shaper(pair.host, link.rate_bytes_per_s, link.burst_bytes))
    # In two: what changes beside the state of an interface that is up is announced once more, to all parts of the
    # kernel, some of which then look at each route of the node.
    marked = link_set(pair.host, alias=link.alias)
    # On a smaller interface the kernel has no IPv6, and nothing to set of it.
    if link.mtu >= LEAST_MTU_OF_IPV6:
        marked = _quiet(marked)
    requests += [marked, link_set(pair.host, up=True)]
    netlink.batch(requests)
    with Netlink(netns) as inside:
        inside.request(link_set(pair.peer, up=True))
        # The host end drops what it is to send until the kernel gets to its carrier, which may be long under load: the
        # answer to the pod's first ARP request, for one. So before the pod has an address: who runs in it may wait for
        # that to send.
        netlink.get(link_settle(pair.host))
        configure(inside, link, pair.peer, netns)


def configure(inside: Netlink, link: PortLink, peer: int, netns: NetNamespace) -> None:
    """Give the pod's end all that it should have. Raises KernelError."""
    try:
        _configure(inside, link, peer)
    except KernelError as error:
        if error.errno not in _IPV6_OFF or not any(prefix.family == 6 for prefix in link.addresses):
            raise
        # Container runtimes switch IPv6 off in new namespaces; an endpoint with an IPv6 address wants it.
        setting = ("net", "ipv6", "conf", link.interface_name, "disable_ipv6")
        netns.run(lambda: sysctl.write(setting, 0))
        _configure(inside, link, peer)


def _configure(inside: Netlink, link: PortLink, peer: int) -> None:
    routes = [unless_taken(_route_request(link, route, peer)) for route in link.routes]
    requests = pod_requests(link, peer)
    codes = inside.batch([*requests, *routes])
    for route, taken in zip(link.routes, codes[len(requests) :], strict=True):
        if taken:
            _put_beside(inside, link, route, peer)


def pod_requests(link: PortLink, peer: int) -> list[Request]:
    """What configures the pod's end, in order, but for its routes."""
    requests = [link_set(peer, up=True)]
    if link.outgoing_rate_bytes_per_s:
        requests.append(shaper(peer, link.outgoing_rate_bytes_per_s, link.outgoing_burst_bytes))
    requests += [
        address_add(peer, short(prefix.packed, prefix.family), prefix.bits, family=prefix.family)
        for prefix in link.addresses
    ]
    requests += [own_address(peer, prefix.packed) for prefix in link.addresses if prefix.family == 6]
    requests += [
        neighbour_replace(
            peer, short(item.address.packed, item.address.family), item.mac, family=item.address.family
        )
        for item in link.neighbours
    ]
    return requests


def change(netlink: Netlink, before: PortLink, after: PortLink, ifindex: int, netns: NetNamespace) -> None:
    """Bring an active pair from one state to another. Raises KernelError, NotFound when the pod has renamed its end,
    Unsupported.
    """
    if (before.rate_bytes_per_s, before.burst_bytes) != (after.rate_bytes_per_s, after.burst_bytes):
        if after.rate_bytes_per_s:
            netlink.request(shaper(ifindex, after.rate_bytes_per_s, after.burst_bytes))
        else:
            netlink.request(qdisc_del_root(ifindex).tolerating(errno.ENOENT, errno.EINVAL))
    if before.mtu != after.mtu:
        netlink.request(link_set(ifindex, mtu=after.mtu))
    if before.proxies != after.proxies:
        proxies.write(after, netns)
    if _inside(before) == _inside(after):
        return
    with Netlink(netns) as inside:
        peer = inside.get(link_get(after.interface_name)).ifindex
        inside.request(link_set(peer, mtu=after.mtu, mac=after.mac))
        inside.batch(_removals(before, after, peer))
        configure(inside, after, peer, netns)


def inside_differences(link: PortLink, netns: NetNamespace) -> list[str]:
    """What the pod's end lacks, in words; empty when all is there. More than wanted is the pod's own affair.

    Raises KernelError.
    """
    with Netlink(netns.fd) as inside:
        found = find_link(inside, link.interface_name)
        if found is None:
            return [f"interface {link.interface_name} is gone"]
        wrong = []
        if not found.up:
            wrong.append(f"interface {link.interface_name} is down")
        if found.mac != link.mac:
            wrong.append(f"MAC is {found.mac.hex(':')}, not {link.mac.hex(':')}")
        if found.mtu != link.mtu:
            wrong.append(f"MTU is {found.mtu}, not {link.mtu}")
        rate = shaped_rates(inside).get(found.ifindex, 0) if link.outgoing_rate_bytes_per_s else 0
        if rate != link.outgoing_rate_bytes_per_s:
            wrong.append(
                f"{link.interface_name} is shaped to {rate} bytes/s, not {link.outgoing_rate_bytes_per_s}"
            )
        present = {(a.family, a.address, a.bits) for a in inside.dump(address_dump(found.ifindex))}
        for prefix in link.addresses:
            if (prefix.family, short(prefix.packed, prefix.family), prefix.bits) not in present:
                wrong.append(f"address {prefix} is missing")
        for family in sorted({route.destination.family for route in link.routes}):
            # In whichever table: a later plugin of the chain (sbr) moves them. Others may have very many of them.
            routes = {
                (route.destination, route.bits, route.gateway)
                for route in inside.dump(route_dump(family, oif=found.ifindex))
                if route.oif == found.ifindex
            }
            wrong += [
                f"route to {route.destination} is missing"
                for route in link.routes
                if route.destination.family == family and _route_key(route) not in routes
            ]
    return wrong + proxies.differences(link, netns)


def host_differences(link: PortLink, found: Link, rates: Mapping[int, int]) -> list[str]:
    """What is not right with the host end, in words. ``rates``: `shaped_rates` of the node."""
    wrong = []
    if not found.up:
        wrong.append("host end is down")
    if found.mtu != link.mtu:
        wrong.append(f"host end's MTU is {found.mtu}, not {link.mtu}")
    if found.group != LINK_GROUP or found.alias != link.alias:
        wrong.append("host end has lost its mark")
    rate = rates.get(found.ifindex, 0)
    if rate != link.rate_bytes_per_s:
        wrong.append(f"host end is shaped to {rate} bytes/s, not {link.rate_bytes_per_s}")
    return wrong


def repair_host(netlink: Netlink, link: PortLink, ifindex: int) -> None:
    """Bring the host end of an active pair to what it should be. Raises KernelError."""
    request = (
        shaper(ifindex, link.rate_bytes_per_s, link.burst_bytes)
        if link.rate_bytes_per_s
        else qdisc_del_root(ifindex).tolerating(errno.ENOENT, errno.EINVAL)
    )
    netlink.batch([request, link_set(ifindex, up=True, mtu=link.mtu, group=LINK_GROUP, alias=link.alias)])


def repair_inside(link: PortLink, netns: NetNamespace) -> None:
    """Give the pod's end again what it has lost. Raises KernelError, NotFound."""
    with Netlink(netns.fd) as inside:
        peer = inside.get(link_get(link.interface_name)).ifindex
        inside.request(link_set(peer, mtu=link.mtu, mac=link.mac))
        configure(inside, link, peer, netns)
    proxies.write(link, netns)


def shaper(ifindex: int, rate_bytes_per_s: int, burst_bytes: int) -> Request:
    """A cap on what leaves an interface: towards the pod on the host end, from it on the pod's end."""
    burst_bytes = min(burst_bytes, _MOST_QUEUED_BYTES)
    queue_bytes = min(burst_bytes + round(rate_bytes_per_s * _QUEUE_S), _MOST_QUEUED_BYTES)
    return tbf_replace(ifindex, rate_bytes_per_s, burst_bytes, queue_bytes)


def shaped_rates(netlink: Netlink) -> dict[int, int]:
    """The caps of a namespace's interfaces in bytes/s, by ifindex: the kernel lists all of them, whichever one is asked
    for. Raises KernelError.
    """
    found = netlink.dump(qdisc_dump())
    return {item.ifindex: item.rate_bytes_per_s for item in found if item.root and item.kind == "tbf"}


def _inside(link: PortLink) -> tuple[object, ...]:
    """What `pod_requests` and `_removals` make."""
    cap = link.outgoing_rate_bytes_per_s, link.outgoing_burst_bytes
    return link.mtu, link.mac, link.addresses, link.routes, link.neighbours, cap


def _quiet(request: Request) -> Request:
    """Without an IPv6 address of its own a host end does not announce itself to the pod."""
    return msgspec.structs.replace(request, body=request.body + _NO_LINK_LOCAL)


def _remove_leftover(netlink: Netlink, host_name: str, is_others: Callable[[int], bool]) -> bool:
    """Remove a host end of that name if it is ours; whether it was there. Raises Conflict when an endpoint has it."""
    found = find_link(netlink, host_name)
    if found is None or found.group != LINK_GROUP:
        return False
    if is_others(found.ifindex):
        raise Conflict(
            f"{host_name} is the interface of another endpoint, whose ID begins with the same 11 digits"
        )
    netlink.request(link_del(found.ifindex).tolerating(errno.ENODEV))
    return True


def _removals(before: PortLink, after: PortLink, peer: int) -> list[Request]:
    requests = [
        route_del(
            _destination(route.destination),
            route.destination.bits,
            family=route.destination.family,
            oif=peer,
            metric=route.metric,
        ).tolerating(errno.ESRCH)
        for route in before.routes
        if route not in after.routes
    ]
    gone = [prefix for prefix in before.addresses if prefix not in after.addresses]
    requests += [
        address_del(peer, short(prefix.packed, prefix.family), prefix.bits, family=prefix.family).tolerating(
            errno.EADDRNOTAVAIL
        )
        for prefix in gone
    ]
    requests += [own_address_del(peer, prefix.packed) for prefix in gone if prefix.family == 6]
    if before.outgoing_rate_bytes_per_s and not after.outgoing_rate_bytes_per_s:
        requests.append(qdisc_del_root(peer).tolerating(errno.ENOENT, errno.EINVAL))
    return requests


def _put_beside(inside: Netlink, link: PortLink, route: LinkRoute, peer: int) -> None:
    """Make a route whose place is taken: by itself, by what stands for it wrongly, or by another interface of the pod,
    whose route goes first.
    """
    family = route.destination.family
    destination, bits, gateway = _route_key(route)
    dumped = inside.dump(route_dump(family, TABLE_MAIN))
    rivals = [found for found in dumped if (found.destination, found.bits) == (destination, bits)]
    if any((found.oif, found.gateway) == (peer, gateway) for found in rivals):
        return
    others = {found.metric for found in rivals if found.oif != peer}
    first = route.metric or _METRICS[family]
    metric = next(number for number in itertools.count(first) if number not in others)
    inside.request(_route_request(link, msgspec.structs.replace(route, metric=metric), peer))


def _route_request(link: PortLink, route: LinkRoute, peer: int) -> Request:
    family = route.destination.family
    gateway = route.gateway
    reachable = gateway is None or any(gateway in prefix.network for prefix in link.addresses)
    return route_replace(
        _destination(route.destination),
        route.destination.bits,
        family=family,
        oif=peer,
        gateway=short(gateway.packed, gateway.family) if gateway is not None else None,
        onlink=not reachable,
        metric=route.metric,
    )


def _route_key(route: LinkRoute) -> tuple[bytes, int, bytes]:
    family = route.destination.family
    gateway = short(route.gateway.packed, family) if route.gateway is not None else b""
    return short(route.destination.packed, family), route.destination.bits, gateway


def _destination(prefix: Prefix) -> bytes | None:
    return short(prefix.packed, prefix.family) if prefix.bits else None
