"""CNI CHECK: one attachment against the kernel, the first difference is the answer."""

from __future__ import annotations

import msgspec

from samewire.cni.backend import CheckRequest, check_failed
from samewire.cni.result import Route
from samewire.errors import NotFound
from samewire.hcn.schema import Endpoint
from samewire.kernel.netns import NetNamespace
from samewire.kernel.rtnetlink import Netlink, route_dump
from samewire.node import links
from samewire.node.apply import NodeSwitch
from samewire.node.devices import find_link
from samewire.node.facts import short
from samewire.node.planning import endpoint_owner
from samewire.node.ports import PortState
from samewire.vfp.address import parse_address, parse_interface, parse_prefix
from samewire.vfp.diff import same
from samewire.vfp.model import PortLink


def check_attachment(
    request: CheckRequest, endpoint: Endpoint | None, state: PortState | None, switch: NodeSwitch
) -> None:
    """Raises CniError(CHECK_FAILED), KernelError. Call with the switch's lock held."""
    who = f"container {request.container_id} interface {request.interface_name}"
    if endpoint is None:
        raise check_failed(f"{who}: there is no such attachment")
    if state is None:
        raise check_failed(f"{who}: endpoint {endpoint.id} has no port")
    link = state.link
    if request.host_interface and request.host_interface != link.host_name:
        raise check_failed(f"{who}: the host's end is {link.host_name}, not {request.host_interface}")
    _check_host(who, state, switch)
    _check_tables(who, endpoint, switch)
    try:
        netns = NetNamespace(request.netns_path)
    except NotFound as error:
        raise check_failed(f"{who}: {error}") from error
    with netns:
        for wanted in (link, _as_the_result_says(request, link)):
            wrong = links.inside_differences(wanted, netns)
            if wrong:
                raise check_failed(f"{who}: {wrong[0]}")
        _check_routes(who, request.routes, netns)


def _check_routes(who: str, routes: tuple[Route, ...], netns: NetNamespace) -> None:
    """Each route of the result is there, by whichever interface: an earlier plugin of the chain may have made it.

    In whichever table, too, if the result does not name one: a later plugin (sbr) moves them.
    """
    wanted = [(route, parse_prefix(route.dst)) for route in routes]
    with Netlink(netns.fd) as inside:
        present = {
            (table, found.destination, found.bits, gateway)
            for family in {prefix.family for _, prefix in wanted}
            for found in inside.dump(route_dump(family))
            for table in (found.table, None)
            for gateway in (found.gateway, b"")
        }
    for route, prefix in wanted:
        gateway = short(parse_address(route.gw).packed, prefix.family) if route.gw else b""
        place = route.table or None, short(prefix.packed, prefix.family), prefix.bits, gateway
        if place not in present:
            raise check_failed(f"{who}: route to {route.dst} is missing")


def _check_host(who: str, state: PortState, switch: NodeSwitch) -> None:
    netlink = switch.kernel.netlink
    found = find_link(netlink, state.ifindex)
    if found is None:
        raise check_failed(f"{who}: the host's end {state.link.host_name} is gone")
    wrong = links.host_differences(state.link, found, links.shaped_rates(netlink))
    if wrong:
        raise check_failed(f"{who}: {wrong[0]}")
    if not switch.kernel.hooks.attached(state.ifindex):
        raise check_failed(f"{who}: the switch's program is not on {found.name}")


def _check_tables(who: str, endpoint: Endpoint, switch: NodeSwitch) -> None:
    """Every entry that the endpoint wants is in the kernel as all owners together want it."""
    wanted = switch.wanted.entries
    for table, rows in switch.wanted.held(endpoint_owner(endpoint.id)).everything().items():
        for key in rows:
            value = wanted.tables()[table][key]
            raw = switch.kernel.tables.maps[table].lookup(key.pack())
            if raw is None or not same(type(value).unpack(raw), value):
                raise check_failed(f"{who}: an entry of {table} is {'missing' if raw is None else 'wrong'}")


def _as_the_result_says(request: CheckRequest, link: PortLink) -> PortLink:
    """The link with what the result of ADD claims, which the runtime or a later plugin may have changed."""
    return msgspec.structs.replace(
        link,
        interface_name=request.interface_name,
        mac=bytes.fromhex(request.mac.replace(":", "")) if request.mac else link.mac,
        mtu=request.mtu or link.mtu,
        addresses=tuple(parse_interface(item.cidr) for item in request.addresses),
        routes=(),
    )
