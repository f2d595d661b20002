"""What the policies' fields mean: families, lists, canonical forms, and which policy belongs where."""

from __future__ import annotations

from typing import Any

import pytest

from samewire.hcn.errors import HcnCode, HcnError
from samewire.hcn.normalise_policies import Scope, check_policies, check_policy
from samewire.hcn.policies import (
    ACL,
    QOS,
    VLAN,
    VSID,
    AclAction,
    AclDirection,
    DrMacAddress,
    EncapOverhead,
    HostRoute,
    InterfaceParameters,
    NeighborDiscovery,
    NetAdapterName,
    OtherPolicy,
    OutBoundNAT,
    Policy,
    PortMapping,
    PortName,
    ProviderAddress,
    RemoteSubnetRoute,
    SDNRoute,
    SourceMacAddress,
    VxlanPort,
    acl_ports,
    acl_protocols,
    mapping_family,
    nat_families,
)


def acl(**fields: Any) -> ACL:
    return ACL(**{"action": AclAction.ALLOW, "direction": AclDirection.IN, **fields})


def mapping(**fields: Any) -> PortMapping:
    return PortMapping(**{"protocol": 6, "internal_port": 80, "external_port": 8080, **fields})


def remote(**fields: Any) -> RemoteSubnetRoute:
    return RemoteSubnetRoute(
        **{
            "destination_prefix": "10.244.3.0/24",
            "isolation_id": 4096,
            "provider_address": "192.168.1.3",
            "distributed_router_mac_address": "00:15:5d:00:00:0a",
            **fields,
        }
    )


@pytest.mark.parametrize(
    ("policy", "families"),
    [
        (OutBoundNAT(), {4, 6}),
        (OutBoundNAT(flags=2), {6}),
        (OutBoundNAT(virtual_ip="fd00::1"), {6}),
        (OutBoundNAT(virtual_ip="10.0.0.1", exceptions=("fd00::/8",)), {4}),
        (OutBoundNAT(destinations=("10.0.0.0/8",), exceptions=("fd00::/8",)), {4}),
        (OutBoundNAT(exceptions=("10.0.0.0/8",)), {4}),
        (OutBoundNAT(exceptions=("10.0.0.0/8", "fd00::/8")), {4, 6}),
    ],
)
def test_the_families_of_outbound_nat(policy: OutBoundNAT, families: set[int]) -> None:
    assert nat_families(policy) == families


@pytest.mark.parametrize(
    ("policy", "addresses", "family"),
    [
        (mapping(), ["10.0.0.1", "fd00::1"], 4),
        (mapping(), ["fd00::1"], 6),
        (mapping(flags=2), ["10.0.0.1", "fd00::1"], 6),
        (mapping(vip="fd00::9"), ["10.0.0.1"], 6),
        (mapping(vip="10.9.9.9", flags=2), ["fd00::1"], 4),
    ],
)
def test_the_family_of_a_port_mapping(policy: PortMapping, addresses: list[str], family: int) -> None:
    assert mapping_family(policy, addresses) == family


def test_acl_lists() -> None:
    assert acl_protocols("") == acl_protocols("256") == acl_protocols("6,256") == ()
    assert acl_protocols("6, 17") == (6, 17)
    assert acl_ports("80, 8000-8080,") == ((80, 80), (8000, 8080))
    assert acl_ports("8000 - 8080") == ((8000, 8080),)


@pytest.mark.parametrize("text", ["1_0", "+6", "\N{FULLWIDTH DIGIT SIX}", "-1", "6-", "x"])
def test_what_is_no_number_in_an_acls_list(text: str) -> None:
    """Python reads more than what anybody means by a number."""
    for parse in (acl_ports, acl_protocols):
        with pytest.raises(ValueError, match="is no number"):
            parse(text)


@pytest.mark.parametrize(
    ("policy", "scope", "canonical"),
    [
        (
            OutBoundNAT(
                virtual_ip="FD00::0:1", exceptions=("10.1.2.3/8", "", "10.0.0.1"), destinations=("fd00::1",)
            ),
            Scope.ENDPOINT,
            OutBoundNAT(
                virtual_ip="fd00::1", exceptions=("10.0.0.0/8", "10.0.0.1"), destinations=("fd00::1",)
            ),
        ),
        (mapping(vip="0.0.0.0"), Scope.ENDPOINT, mapping()),
        (mapping(vip="::"), Scope.ENDPOINT, mapping(flags=2)),
        (
            acl(remote_addresses="10.1.2.3/8 , FD00::1", local_ports="80"),
            Scope.ENDPOINT,
            acl(remote_addresses="10.0.0.0/8,fd00::1", local_ports="80"),
        ),
        (remote(), Scope.NETWORK, remote(distributed_router_mac_address="00-15-5D-00-00-0A")),
        (DrMacAddress(address="0e2a0a000001"), Scope.NETWORK, DrMacAddress(address="0E-2A-0A-00-00-01")),
        (
            NeighborDiscovery(
                target_ip_prefix="FD00::/64",
                sender_ip_address="FE80::1",
                sender_mac_address="0E-2A-0A-00-00-01",
            ),
            Scope.NETWORK,
            NeighborDiscovery(
                target_ip_prefix="fd00::/64",
                sender_ip_address="fe80::1",
                sender_mac_address="0E-2A-0A-00-00-01",
            ),
        ),
        (
            SDNRoute(destination_prefix="169.254.169.254/24", next_hop="127.10.0.34"),
            Scope.ENDPOINT,
            SDNRoute(destination_prefix="169.254.169.0/24", next_hop="127.10.0.34"),
        ),
        (
            OtherPolicy(type_name="Mystery", settings_json="1"),
            Scope.SUBNET,
            OtherPolicy(type_name="Mystery", settings_json="1"),
        ),
    ],
)
def test_canonical_forms(policy: Policy, scope: Scope, canonical: Policy) -> None:
    assert check_policy(policy, scope, "$") == canonical
    assert check_policy(canonical, scope, "$") == canonical


@pytest.mark.parametrize(
    ("policy", "scope", "code", "field"),
    [
        (OutBoundNAT(virtual_ip="nowhere"), Scope.ENDPOINT, HcnCode.INVALID_IP, "Settings.VirtualIP"),
        (OutBoundNAT(virtual_ip="fe80::1%eth0"), Scope.ENDPOINT, HcnCode.INVALID_IP, "Settings.VirtualIP"),
        (OutBoundNAT(virtual_ip="224.0.0.1"), Scope.ENDPOINT, HcnCode.INVALID_IP, "Settings.VirtualIP"),
        (
            OutBoundNAT(exceptions=("a", "b")),
            Scope.ENDPOINT,
            HcnCode.INVALID_PREFIX,
            "Settings.Exceptions[0]",
        ),
        (
            OutBoundNAT(exceptions=("10.0.0.0/33",)),
            Scope.ENDPOINT,
            HcnCode.INVALID_PREFIX,
            "Settings.Exceptions[0]",
        ),
        (
            OutBoundNAT(virtual_ip="10.0.0.1", destinations=("::/0",)),
            Scope.ENDPOINT,
            HcnCode.INVALID_POLICY,
            "Settings.Destinations[0]",
        ),
        (mapping(internal_port=0), Scope.ENDPOINT, HcnCode.INVALID_INTERNAL_PORT, "Settings.InternalPort"),
        (mapping(protocol=1), Scope.ENDPOINT, HcnCode.MAPPING_NOT_SUPPORTED, "Settings.Protocol"),
        (mapping(vip="x"), Scope.ENDPOINT, HcnCode.INVALID_IP, "Settings.VIP"),
        (acl(protocols="what"), Scope.ENDPOINT, HcnCode.INVALID_POLICY, "Settings.Protocols"),
        (acl(protocols="300"), Scope.ENDPOINT, HcnCode.INVALID_POLICY, "Settings.Protocols"),
        (acl(local_ports="90-80"), Scope.ENDPOINT, HcnCode.INVALID_POLICY, "Settings.LocalPorts"),
        (acl(remote_ports="65536"), Scope.ENDPOINT, HcnCode.INVALID_POLICY, "Settings.RemotePorts"),
        (
            acl(local_addresses="10.0.0.300"),
            Scope.ENDPOINT,
            HcnCode.INVALID_PREFIX,
            "Settings.LocalAddresses",
        ),
        (
            SDNRoute(destination_prefix="10.0.0.0/8", next_hop="fd00::1"),
            Scope.ENDPOINT,
            HcnCode.INVALID_POLICY,
            "Settings.NextHop",
        ),
        (remote(isolation_id=0), Scope.NETWORK, HcnCode.INVALID_POLICY, "Settings.IsolationId"),
        (remote(isolation_id=2**24), Scope.NETWORK, HcnCode.INVALID_POLICY, "Settings.IsolationId"),
        (remote(isolation_id=2**24 - 1), Scope.NETWORK, HcnCode.INVALID_POLICY, "Settings.IsolationId"),
        (remote(provider_address=""), Scope.NETWORK, HcnCode.INVALID_IP, "Settings.ProviderAddress"),
        (
            remote(distributed_router_mac_address="01-00-5E-00-00-01"),
            Scope.NETWORK,
            HcnCode.INVALID_POLICY,
            "Settings.DistributedRouterMacAddress",
        ),
        (VSID(isolation_id=2**24 - 1), Scope.SUBNET, HcnCode.INVALID_POLICY, "Settings.IsolationId"),
        (VSID(isolation_id=2**24), Scope.SUBNET, HcnCode.INVALID_POLICY, "Settings.IsolationId"),
        (VLAN(isolation_id=4095), Scope.SUBNET, HcnCode.INVALID_POLICY, "Settings.IsolationId"),
        (VLAN(isolation_id=0), Scope.ENDPOINT, HcnCode.INVALID_POLICY, "Settings.IsolationId"),
        (InterfaceParameters(mtu=100), Scope.ENDPOINT, HcnCode.INVALID_POLICY, "Settings.Mtu"),
        (VxlanPort(port=0), Scope.NETWORK, HcnCode.INVALID_POLICY, "Settings.Port"),
        (
            SourceMacAddress(source_mac_address="00-00"),
            Scope.NETWORK,
            HcnCode.INVALID_POLICY,
            "Settings.SourceMac",
        ),
        (
            NetAdapterName(network_adapter_name=""),
            Scope.NETWORK,
            HcnCode.ADAPTER_NOT_FOUND,
            "Settings.NetworkAdapterName",
        ),
        (
            NetAdapterName(network_adapter_name="a/b"),
            Scope.NETWORK,
            HcnCode.INVALID_POLICY,
            "Settings.NetworkAdapterName",
        ),
        (PortName(name="a\nb"), Scope.ENDPOINT, HcnCode.INVALID_POLICY, "Settings.Name"),
        (HostRoute(), Scope.ENDPOINT, HcnCode.INVALID_POLICY_TYPE, "Type"),
        (QOS(), Scope.NETWORK, HcnCode.INVALID_POLICY_TYPE, "Type"),
        (EncapOverhead(overhead=50), Scope.NETWORK, HcnCode.INVALID_POLICY_TYPE, "Type"),
        (VSID(isolation_id=4096), Scope.NETWORK, HcnCode.INVALID_POLICY_TYPE, "Type"),
    ],
)
def test_refusals_name_the_field(policy: Policy, scope: Scope, code: HcnCode, field: str) -> None:
    with pytest.raises(HcnError) as caught:
        check_policies((QOS(), policy) if scope is Scope.ENDPOINT else (policy,), scope, "$.Policies")
    index = 1 if scope is Scope.ENDPOINT else 0
    assert caught.value.message.startswith(f"$.Policies[{index}].{field}")
    assert caught.value.code is code


@pytest.mark.parametrize(
    ("policies", "scope"),
    [
        ((QOS(), QOS(maximum_outgoing_bandwidth_in_bytes=1)), Scope.ENDPOINT),
        ((EncapOverhead(overhead=50), EncapOverhead(overhead=60)), Scope.ENDPOINT),
        (
            (ProviderAddress(provider_address="10.0.0.1"), ProviderAddress(provider_address="10.0.0.2")),
            Scope.ENDPOINT,
        ),
        ((VSID(isolation_id=1), VSID(isolation_id=2)), Scope.SUBNET),
        ((HostRoute(), HostRoute()), Scope.NETWORK),
        ((remote(), remote(isolation_id=5000)), Scope.NETWORK),
    ],
)
def test_some_policies_are_there_once(policies: tuple[Policy, ...], scope: Scope) -> None:
    with pytest.raises(HcnError) as caught:
        check_policies(policies, scope, "$.Policies")
    assert caught.value.code is HcnCode.POLICY_ALREADY_EXISTS


def test_others_are_there_as_often_as_needed() -> None:
    policies = (
        acl(),
        acl(),
        OutBoundNAT(),
        OutBoundNAT(),
        OtherPolicy(type_name="Mystery"),
        OtherPolicy(type_name="Mystery"),
    )
    assert check_policies(policies, Scope.ENDPOINT, "$") == policies
    routes = (remote(), remote(destination_prefix="10.244.4.0/24"))
    assert len(check_policies(routes, Scope.NETWORK, "$")) == 2
