"""Modify requests for networks: policies, DNS, subnets and ranges within them, extensions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import msgspec

from samewire.hcn.errors import HcnCode, HcnError
from samewire.hcn.frontends import has_host_port
from samewire.hcn.modify import (
    ExtensionSettings,
    IpSubnetSettings,
    ModifySettingRequest,
    PolicySettings,
    RequestType,
    SubnetSettings,
)
from samewire.hcn.normalise import check_dns, check_ip_subnet, check_subnet, check_subnets
from samewire.hcn.normalise_policies import Scope, check_policies
from samewire.hcn.numbered import numbered
from samewire.hcn.plan.addresses import reserved
from samewire.hcn.plan.context import Context, get_network, modified
from samewire.hcn.plan.networks import check_adapter, check_clashes, stamped, with_gateways
from samewire.hcn.plan.policies import (
    add_policies,
    check_sets,
    put_policies,
    remove_policies,
    without_policies,
)
from samewire.hcn.plan.source_vips import SourceVips
from samewire.hcn.plan.uplink import check_source_mac, check_translation, check_vlans, tag_of, vlans_of
from samewire.hcn.policies import VLAN, HostRoute, SetPolicy, first
from samewire.hcn.policy_lists import GIVEN, OF_OBJECT, identities, placed, set_identity, sets_of
from samewire.hcn.schema import Dns, Ipam, IpSubnet, Kind, Network, Subnet
from samewire.hcn.state import Pending, View
from samewire.hcn.switch import Change
from samewire.hcn.values import guid, prefix

_replace = msgspec.structs.replace

SUBNETS = "$.Settings.Subnets"
VFP_EXTENSION = "E9B59CFA-2BE1-4B21-828F-B6FBDBDDC017"
"""The switch extension that HNS's policies are enforced by; here the switch itself."""


def modify_network(context: Context, network_id: str, *requests: ModifySettingRequest) -> list[Change]:
    """Plan modify requests for a network, as one change. Refresh changes nothing: the switch is always as the
    object says. Raises HcnError.
    """
    before = after = get_network(context.view, network_id)
    for request in requests:
        change = _CHANGES.get(type(request.settings))
        if change is None:
            raise HcnError(HcnCode.REQUEST_UNSUPPORTED, "$.ResourceType: not one of a network")
        if request.request_type is not RequestType.REFRESH:
            after = stamped(change(context, after, request.request_type, request.settings), context.facts)
    _check_vlans(context, before, after, requests)
    check_source_mac(after)
    if tag_of(after, context.facts) != tag_of(before, context.facts):
        check_clashes(context.view, after, context.facts)
        for endpoint in context.view.endpoints_of_network(after.id):
            check_translation(after, endpoint.policies, context.facts, f"endpoint {endpoint.id}: {OF_OBJECT}")
    changes = modified(Kind.NETWORK, before, after)
    if has_host_port(before) and not has_host_port(after):
        changes += _with_sources(_replace(context, view=Pending(context.view, changes)), after)
    return changes


def _with_sources(context: Context, network: Network) -> list[Change]:
    """Plan a source VIP for the load balancers of a network that the node has left. Raises HcnError, Exhausted."""
    sources = SourceVips(context)
    return sources.around(
        [
            change
            for value in context.view.load_balancers_of_network(network.id)
            for change in modified(Kind.LOADBALANCER, value, sources.complete(value))
        ]
    )


def _check_vlans(
    context: Context, before: Network, after: Network, requests: Sequence[ModifySettingRequest]
) -> None:
    """Refuse new VLANs that the network's frames would not carry, in terms of the request where they are its own
    policies. Raises HcnError.
    """
    known = {vlan for _, vlan in vlans_of(before)} if after.vlan == before.vlan else set()
    lists = (one.settings.policies for one in requests if isinstance(one.settings, PolicySettings))
    given = {vlan: where for policies in lists for where, vlan in placed(policies, VLAN, GIVEN)}
    new = ((given.get(vlan, where), vlan) for where, vlan in vlans_of(after) if vlan not in known)
    check_vlans(after, new, context.facts)


def check_extension(extension_id: str, enabled: bool, path: str) -> None:
    """Refuse to switch what is not there, and to switch off what enforces everybody's policies. Raises
    HcnError.
    """
    if guid(extension_id, f"{path}.Id") != VFP_EXTENSION:
        raise HcnError(
            HcnCode.SWITCH_EXTENSION_NOT_FOUND, f"{path}.Id: the only extension here is {VFP_EXTENSION}"
        )
    if not enabled:
        raise HcnError(
            HcnCode.SHARED_SWITCH_MODIFICATION, f"{path}.IsEnabled: all networks need this extension"
        )


def _unsupported(request_type: RequestType) -> HcnError:
    return HcnError(HcnCode.REQUEST_UNSUPPORTED, f"$.RequestType: {request_type.value} is not possible here")


def _policies(context: Context, network: Network, how: RequestType, settings: PolicySettings) -> Network:
    given = settings.policies
    if how is RequestType.RESET:
        policies = without_policies(network.policies)
    elif how is RequestType.REMOVE:
        policies = remove_policies(network.policies, given, Scope.NETWORK)
    else:
        given = check_policies(given, Scope.NETWORK, GIVEN)
        check_adapter(given, context.facts, GIVEN)
        change = add_policies if how is RequestType.ADD else put_policies
        policies = change(network.policies, given, Scope.NETWORK)
    after = _replace(network, policies=policies)
    if how in (RequestType.ADD, RequestType.UPDATE):
        check_sets(after, given, GIVEN)
        if first(after.policies, HostRoute) and not first(network.policies, HostRoute):
            check_clashes(context.view, after, context.facts)
    if how is not RequestType.ADD:
        _refuse_to_lose_sets(context.view, network, after)
    return after


def _refuse_to_lose_sets(view: View, before: Network, after: Network) -> None:
    """Refuse to take away sets that something names. Raises HcnError(ENTITY_HAS_REFERENCES)."""
    policies = numbered(after.policies)
    gone = policies.difference(numbered(before.policies)).of(SetPolicy).gone
    there, named = policies.by(identities), policies.by(sets_of)
    for lost in sorted(cast(SetPolicy, policy).set_id for _, policy in gone):
        if set_identity(lost) not in there and (lost in named or view.is_set_named(before.id, lost)):
            raise HcnError(
                HcnCode.ENTITY_HAS_REFERENCES,
                f"{GIVEN}: the set {lost} is named by an ACL or another set; remove that first",
            )


def _dns(_: Context, network: Network, how: RequestType, settings: Dns) -> Network:
    if how in (RequestType.REMOVE, RequestType.RESET):
        return _replace(network, dns=None)
    return _replace(network, dns=check_dns(settings, "$.Settings"))


def _extension(_: Context, network: Network, how: RequestType, settings: ExtensionSettings) -> Network:
    check_extension(settings.resource_id, settings.is_enabled and how is not RequestType.REMOVE, "$.Settings")
    return network


def _subnets(context: Context, network: Network, how: RequestType, settings: SubnetSettings) -> Network:
    if how is RequestType.RESET:
        raise _unsupported(how)
    after = network
    if how is RequestType.REMOVE:
        for index, subnet in enumerate(settings.subnets):
            after = _without_subnet(context.view, after, subnet, f"{SUBNETS}[{index}]")
    else:
        new = [
            check_subnet(subnet, network.type, f"{SUBNETS}[{index}]")
            for index, subnet in enumerate(settings.subnets)
        ]
        after = (
            _with_subnets(network, new) if how is RequestType.ADD else _updated(context.view, network, new)
        )
        after = with_gateways(after)
        check_clashes(context.view, after, context.facts)
        _refuse_owned(context, network, after)
    check_subnets(after)
    return after


def _with_subnets(network: Network, new: list[Subnet]) -> Network:
    ipam = network.ipams[0] if network.ipams else Ipam()
    return _replace(network, ipams=(_replace(ipam, subnets=(*ipam.subnets, *new)), *network.ipams[1:]))


def _updated(view: View, network: Network, new: list[Subnet]) -> Network:
    """Return a network with these subnets instead of its own. The IDs of prefixes and ranges that stay do, too."""
    known = {subnet.ip_address_prefix: subnet for subnet in network.subnets}
    kept = [_with_ids_of(known.get(subnet.ip_address_prefix), subnet) for subnet in new]
    wanted = {subnet.ip_address_prefix for subnet in new}
    ranges = {item.id for subnet in kept for item in subnet.ip_subnets}
    for subnet in network.subnets:
        if subnet.ip_address_prefix not in wanted:
            _refuse_used(view, network, subnet, SUBNETS)
        for item in subnet.ip_subnets:
            if item.id not in ranges:
                _refuse_used_range(view, network, item, SUBNETS)
    ipam = network.ipams[0] if network.ipams else Ipam()
    return _replace(network, ipams=(_replace(ipam, subnets=tuple(kept)),))


def _with_ids_of(before: Subnet | None, subnet: Subnet) -> Subnet:
    if before is None:
        return subnet
    known = {item.ip_address_prefix: item.id for item in before.ip_subnets}
    ranges = [_replace(item, id=known.get(item.ip_address_prefix, item.id)) for item in subnet.ip_subnets]
    return _replace(subnet, id=before.id, ip_subnets=tuple(ranges))


def _without_subnet(view: View, network: Network, wanted: Subnet, path: str) -> Network:
    """Remove the subnet that has the given ID, or the given prefix. Raises HcnError."""
    found = next((subnet for subnet in network.subnets if _is_meant(subnet, wanted, path)), None)
    if found is None:
        raise HcnError(HcnCode.SUBNET_NOT_FOUND, f"{path}: the network has no such subnet")
    _refuse_used(view, network, found, path)
    ipams = tuple(
        _replace(ipam, subnets=tuple(subnet for subnet in ipam.subnets if subnet != found))
        for ipam in network.ipams
    )
    return _replace(network, ipams=ipams)


def _is_meant(there: Subnet | IpSubnet, wanted: Subnet | IpSubnet, path: str) -> bool:
    """Whether one that is there has the given ID, or without one the given prefix. Raises HcnError."""
    if wanted.id:
        return there.id == guid(wanted.id, f"{path}.ID")
    return there.ip_address_prefix == prefix(wanted.ip_address_prefix, f"{path}.IpAddressPrefix")


def _refuse_owned(context: Context, before: Network, after: Network) -> None:
    """Refuse gateways that are endpoints. Raises HcnError(ENTITY_HAS_REFERENCES)."""
    for address in reserved(after, context.facts) - reserved(before, context.facts):
        owner = context.view.endpoint_by_ip(after.id, address)
        if owner is not None and not owner.is_remote:
            raise HcnError(
                HcnCode.ENTITY_HAS_REFERENCES, f"{SUBNETS}: {address} is the address of endpoint {owner.id}"
            )


def _refuse_used(view: View, network: Network, subnet: Subnet, path: str) -> None:
    for endpoint in view.endpoints_of_network(network.id):
        if any(network.subnet_of(address) == subnet for address in endpoint.addresses):
            raise HcnError(
                HcnCode.ENTITY_HAS_REFERENCES, f"{path}: endpoint {endpoint.id} has an address of the subnet"
            )


def _ip_subnets(context: Context, network: Network, how: RequestType, settings: IpSubnetSettings) -> Network:
    """Add ranges to a subnet, or remove them by ID or prefix."""
    if how not in (RequestType.ADD, RequestType.REMOVE):
        raise _unsupported(how)
    wanted = guid(settings.subnet_id, "$.Settings.SubnetId")
    subnet = next((item for item in network.subnets if item.id == wanted), None)
    if subnet is None:
        raise HcnError(HcnCode.SUBNET_NOT_FOUND, f"$.Settings.SubnetId: the network has no subnet {wanted}")
    ranges = list(subnet.ip_subnets)
    for index, item in enumerate(settings.ip_subnets):
        path = f"$.Settings.IpSubnets[{index}]"
        if how is RequestType.ADD:
            ranges.append(check_ip_subnet(item, subnet.ip_address_prefix, path))
        else:
            ranges.remove(_unused_range(context.view, network, ranges, item, path))
    if len({entry.id for entry in ranges}) != len(ranges):
        raise HcnError(HcnCode.INVALID_IP_SUBNET, "$.Settings.IpSubnets: two ranges have the same ID")
    changed = _replace(subnet, ip_subnets=tuple(ranges))
    ipams = tuple(
        _replace(ipam, subnets=tuple(changed if item is subnet else item for item in ipam.subnets))
        for ipam in network.ipams
    )
    return _replace(network, ipams=ipams)


def _unused_range(
    view: View, network: Network, ranges: list[IpSubnet], wanted: IpSubnet, path: str
) -> IpSubnet:
    """Return the range with the wanted ID or prefix. Raises HcnError."""
    item = next((one for one in ranges if _is_meant(one, wanted, path)), None)
    if item is None:
        raise HcnError(HcnCode.INVALID_IP_SUBNET, f"{path}: the subnet has no such range")
    _refuse_used_range(view, network, item, path)
    return item


def _refuse_used_range(view: View, network: Network, item: IpSubnet, path: str) -> None:
    for endpoint in view.endpoints_of_network(network.id):
        if any(entry.ip_subnet_id == item.id for entry in endpoint.ip_configurations):
            raise HcnError(
                HcnCode.ENTITY_HAS_REFERENCES,
                f"{path}: endpoint {endpoint.id} has an address of the range {item.ip_address_prefix}",
            )


_CHANGES: dict[type, Callable[[Context, Network, RequestType, Any], Network]] = {
    PolicySettings: _policies,
    Dns: _dns,
    ExtensionSettings: _extension,
    SubnetSettings: _subnets,
    IpSubnetSettings: _ip_subnets,
}
