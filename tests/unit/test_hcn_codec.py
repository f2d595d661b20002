"""What JSON the codec takes for an object, what it refuses and how it says so, and the one spelling it
writes.
"""

from __future__ import annotations

from typing import Any

import pytest

from samewire.hcn.codec import decode_modify, decode_object, decode_policy, encode, encode_policy
from samewire.hcn.errors import HcnCode, HcnError
from samewire.hcn.modify import (
    ContainerSettings,
    EndpointSettings,
    PolicySettings,
    RequestType,
    SubnetSettings,
)
from samewire.hcn.policies import (
    ACL,
    KNOWN_POLICIES,
    QOS,
    AclAction,
    AclDirection,
    AclRuleType,
    HostRoute,
    OtherPolicy,
    OutBoundNAT,
    PortMapping,
    RemoteSubnetRoute,
    SDNRoute,
)
from samewire.hcn.query import render
from samewire.hcn.schema import Dns, Kind, Network, NetworkFlags, NetworkType, ResourceType, Route, SdnRoute
from samewire.hcn.state import State

FLANNEL_NETWORK = {
    "Type": "Overlay",
    "Name": "flannel.4096",
    "Policies": [{"Type": "NetAdapterName", "Settings": {"NetworkAdapterName": "eth0"}}],
    "Ipams": [
        {
            "Type": "Static",
            "Subnets": [
                {
                    "IpAddressPrefix": "10.244.2.0/24",
                    "Policies": [{"Type": "VSID", "Settings": {"IsolationId": 4096}}],
                    "Routes": [{"NextHop": "10.244.2.1", "DestinationPrefix": "0.0.0.0/0", "Metric": 0}],
                    "Flags": 0,
                }
            ],
        }
    ],
    "Flags": 8,
    "SchemaVersion": {"Major": 2, "Minor": 0},
}


def network(**fields: Any) -> Network:
    value = decode_object(Kind.NETWORK, fields)
    assert isinstance(value, Network)
    return value


def refused(kind: Kind, value: Any) -> HcnError:
    with pytest.raises(HcnError) as caught:
        decode_object(kind, value)
    return caught.value


def change_case(value: Any, upper: bool) -> Any:
    if isinstance(value, dict):
        return {
            (key.upper() if upper else key.lower()): change_case(item, upper) for key, item in value.items()
        }
    return [change_case(item, upper) for item in value] if isinstance(value, list) else value


def test_a_network_of_flannel_comes_back_as_it_was_sent() -> None:
    assert encode(decode_object(Kind.NETWORK, FLANNEL_NETWORK)) == FLANNEL_NETWORK


@pytest.mark.parametrize("upper", [True, False])
def test_keys_are_accepted_in_any_case_and_written_in_one(upper: bool) -> None:
    assert encode(decode_object(Kind.NETWORK, change_case(FLANNEL_NETWORK, upper))) == FLANNEL_NETWORK


@pytest.mark.parametrize("name", ["l2bridge", "L2BRIDGE", "L2Bridge"])
def test_network_types_are_canonical_on_output(name: str) -> None:
    assert encode(network(Type=name))["Type"] == "L2Bridge"


@pytest.mark.parametrize(
    ("number", "wanted"), [(0, "NAT"), ("3", "L2Bridge"), (5, "Overlay"), (7, "Internal")]
)
def test_network_types_may_be_numbers_of_the_schema(number: Any, wanted: str) -> None:
    assert network(Type=number).type.value == wanted


def test_a_network_without_type_is_nat() -> None:
    assert network().type is NetworkType.NAT


@pytest.mark.parametrize("name", ["Mirrored", "Layered", "", 99, True])
def test_unknown_network_types_have_their_own_code(name: Any) -> None:
    error = refused(Kind.NETWORK, {"Type": name})
    assert error.code is HcnCode.INVALID_NETWORK_TYPE
    assert error.message.startswith("$.Type: expected one of NAT, Transparent, L2Bridge")


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        (8, 8),
        ("8", 8),
        (8.0, 8),
        ("EnableNonPersistent", 8),
        ("enablenonpersistent, EnableDnsProxy", 9),
        ("None", 0),
    ],
)
def test_flags_are_numbers_or_names(flags: Any, wanted: int) -> None:
    assert network(Flags=flags).flags == wanted
    assert network(Flags=8).flags & NetworkFlags.ENABLE_NON_PERSISTENT


@pytest.mark.parametrize("flags", [-1, 2**32, "EnableMagic", 1.5, True, [], "+8", "８"])
def test_other_flags_are_refused(flags: Any) -> None:
    assert refused(Kind.NETWORK, {"Flags": flags}).message.startswith("$.Flags: expected flags")


def test_null_means_not_given() -> None:
    assert network(Name=None, Policies=None, Ipams=None, Dns=None) == Network()


def test_unknown_fields_come_back_on_every_level() -> None:
    sent = {
        "Type": "NAT",
        "Zeta": {"b": [1, None], "a": 1.5},
        "Alpha": "x",
        "Policies": [
            {"Type": "HostRoute", "Settings": {"New": True}, "Beside": 1},
            {"Type": "VSwitchExtension", "Settings": {"ExtensionID": "E", "Enable": True}, "Note": "n"},
            {"Type": "Mystery", "Settings": None},
        ],
        "Ipams": [{"Type": "Static", "Extra": 18446744073709551615}],
        "Flags": 0,
        "SchemaVersion": {"Major": 2, "Minor": 2, "Patch": 1},
    }
    assert encode(decode_object(Kind.NETWORK, sent)) == sent


def test_the_order_of_unknown_fields_makes_no_difference() -> None:
    assert network(A=1, B={"x": 1, "y": 2}) == network(B={"y": 2, "x": 1}, A=1)


def test_what_only_the_service_writes_is_ignored_on_input() -> None:
    sent = {
        "Name": "n",
        "State": 3,
        "health": {"x": 1},
        "Version": 5,
        "AdditionalParams": {},
        "Telemetry": None,
    }
    assert decode_object(Kind.ENDPOINT, sent) == decode_object(Kind.ENDPOINT, {"Name": "n"})


@pytest.mark.parametrize(
    ("kind", "sent", "path"),
    [
        (Kind.NETWORK, [], "$: expected an object, got an array"),
        (Kind.NETWORK, {"Ipams": {}}, "$.Ipams: expected an array, got an object"),
        (Kind.NETWORK, {"Ipams": [7]}, "$.Ipams[0]: expected an object, got a number"),
        (Kind.NETWORK, {"Ipams": [None]}, "$.Ipams[0]: expected an object, got null"),
        (Kind.NETWORK, {"Policies": "x"}, "$.Policies: expected an array of policies, got text"),
        (Kind.NETWORK, {"Dns": {"Search": ["a", {}]}}, "$.Dns.Search[1]: expected text, got an object"),
        (Kind.NETWORK, {"Name": True}, "$.Name: expected text, got a boolean"),
        (
            Kind.ENDPOINT,
            {"IpConfigurations": [{"PrefixLength": 300}]},
            "$.IpConfigurations[0].PrefixLength: expected",
        ),
        (
            Kind.ENDPOINT,
            {"IpConfigurations": [{"PrefixLength": "x"}]},
            "$.IpConfigurations[0].PrefixLength: expected",
        ),
        (Kind.NAMESPACE, {"Resources": [{"Type": "Endpoint"}]}, "$.Resources[0].Data: is required"),
        (
            Kind.NAMESPACE,
            {"Resources": [{"Type": "Pod", "Data": {"Id": "x"}}]},
            "$.Resources[0].Type: expected one",
        ),
        (Kind.ROUTE, {"Routes": [{"NextHop": "10.0.0.1"}]}, "$.Routes[0].DestinationPrefix: is required"),
        (
            Kind.ROUTE,
            {"Routes": [{"DestinationPrefix": "::/0", "NeedEncap": "perhaps"}]},
            "$.Routes[0].NeedEncap: expected true or false",
        ),
        (Kind.NETWORK, {"Name": "a", "NAME": "b"}, "$.Name: given twice"),
        (Kind.ROUTE, {"Setting": [], "Routes": [{"DestinationPrefix": "::/0"}]}, "$.Routes: given twice"),
    ],
)
def test_errors_name_the_field(kind: Kind, sent: Any, path: str) -> None:
    error = refused(kind, sent)
    assert error.code is HcnCode.INVALID_JSON
    assert error.message.startswith(path)


@pytest.mark.parametrize(
    ("sent", "code", "says"),
    [
        ({"Settings": {}}, HcnCode.INVALID_POLICY, "$.Policies[0].Type: expected the name"),
        ({"Type": 5}, HcnCode.INVALID_POLICY, "$.Policies[0].Type: expected the name"),
        (
            {"Type": "ACL", "Settings": {"Action": "Allow"}},
            HcnCode.INVALID_POLICY,
            "Settings.Direction: is required",
        ),
        ({"Type": "VSID", "VSID": "five"}, HcnCode.INVALID_POLICY, "Settings.IsolationId: expected a whole"),
        (
            {"Type": "ACL", "Settings": {"Action": "Drop"}},
            HcnCode.INVALID_POLICY,
            "Settings.Action: expected one of",
        ),
        ({"Type": "QOS", "Settings": {}, "Data": {}}, HcnCode.INVALID_JSON, "given twice (also as 'Data')"),
        ({"Type": "QOS", "type": "ACL"}, HcnCode.INVALID_JSON, "two keys differ only in case"),
    ],
)
def test_faulty_policies(sent: Any, code: HcnCode, says: str) -> None:
    error = refused(Kind.ENDPOINT, {"Policies": [sent]})
    assert error.code is code
    assert says in error.message
    assert "$.Policies[0]" in error.message


@pytest.mark.parametrize("name", ["SDNRoute", "SDNROUTE", "sdnroute"])
def test_policy_types_are_accepted_in_any_case(name: str) -> None:
    policy = decode_policy(
        {"Type": name, "Settings": {"DestinationPrefix": "10.0.0.0/8", "NeedEncap": "true"}}
    )
    assert policy == SDNRoute(destination_prefix="10.0.0.0/8", need_encap=True)
    assert encode_policy(policy)["Type"] == "SDNRoute"


@pytest.mark.parametrize(
    ("sent", "wanted"),
    [
        (
            {"Type": "OutBoundNAT", "Settings": {"ExceptionList": ["10.0.0.0/8"], "MaxPortPoolUsage": "100"}},
            OutBoundNAT(exceptions=("10.0.0.0/8",), max_port_pool_usage=100),
        ),
        (
            {"Type": "outboundnat", "Data": {"virtualip": "10.0.0.9", "Flags": "IPv6"}},
            OutBoundNAT(virtual_ip="10.0.0.9", flags=2),
        ),
        (
            {
                "Type": "PortMapping",
                "Settings": {"Protocol": "TCP", "InternalPort": "80", "ExternalPort": 8080},
            },
            PortMapping(protocol=6, internal_port=80, external_port=8080),
        ),
        (
            {
                "Type": "ACL",
                "Settings": {
                    "Protocols": 6,
                    "Action": "block",
                    "Direction": "IN",
                    "LocalPorts": [80, "443"],
                    "RuleType": 0,
                    "Priority": "100",
                },
            },
            ACL(
                protocols="6",
                action=AclAction.BLOCK,
                direction=AclDirection.IN,
                local_ports="80,443",
                rule_type=AclRuleType.HOST,
                priority=100,
            ),
        ),
        (
            {"Type": "QOS", "Settings": {"MaximumOutgoingBandwidthInBytes": "1000000"}},
            QOS(maximum_outgoing_bandwidth_in_bytes=1_000_000),
        ),
        ({"Type": "HostRoute"}, HostRoute()),
        (
            {"Type": "Mystery", "Settings": {"b": 1, "a": 2}},
            OtherPolicy(type_name="Mystery", settings_json='{"a":2,"b":1}'),
        ),
    ],
)
def test_policies_in_the_spellings_of_the_field(sent: Any, wanted: object) -> None:
    assert decode_policy(sent) == wanted


def test_an_empty_policy_clears() -> None:
    for none in ({}, {"Type": ""}):  # PowerShell's and Go's
        assert decode_object(Kind.ENDPOINT, {"Policies": [none]}) == decode_object(Kind.ENDPOINT, {})
    with pytest.raises(HcnError, match="needs a Type"):
        decode_policy({})


def test_every_policy_is_written_as_type_and_settings() -> None:
    route = RemoteSubnetRoute(
        destination_prefix="10.244.3.0/24",
        isolation_id=4096,
        provider_address="192.168.1.3",
        distributed_router_mac_address="00-15-5D-00-00-03",
    )
    assert encode_policy(route) == {
        "Type": "RemoteSubnetRoute",
        "Settings": {
            "DestinationPrefix": "10.244.3.0/24",
            "IsolationId": 4096,
            "ProviderAddress": "192.168.1.3",
            "DistributedRouterMacAddress": "00-15-5D-00-00-03",
        },
    }
    assert decode_policy(encode_policy(route)) == route


def test_the_policies_that_hcn_knows_are_known() -> None:
    assert set(KNOWN_POLICIES) == {
        *("outboundnat", "portmapping", "acl", "sdnroute", "qos", "provideraddress", "encapoverhead"),
        *(
            "interfaceparameters",
            "vsid",
            "vlan",
            "remotesubnetroute",
            "hostroute",
            "drmacaddress",
            "vxlanport",
        ),
        *("netadaptername", "sourcemacaddress", "neighbordiscovery", "portname"),
        *("tieracl", "networkacl", "setpolicy", "l4proxy", "l4wfpproxy"),
        *("automaticdns", "interfaceconstraint", "iov", "vswitchextension", "layerconstraint"),
        *("l2driver", "encryption"),
    }


def test_divergent_names_of_routes_and_dns() -> None:
    route = decode_object(Kind.ROUTE, {"Setting": [{"DestinationPrefix": "10.96.0.0/12"}]})
    assert isinstance(route, Route)
    assert route.routes[0].destination_prefix == "10.96.0.0/12"
    assert decode_object(Kind.ROUTE, {**encode(route), "Setting": encode(route)["Routes"]}) == route
    assert network(Dns={"Suffix": "cluster.local"}).dns == Dns(domain="cluster.local")


def test_hcsshim_finds_a_routes_entries() -> None:
    """It deletes the route that it has read and creates it again, to change the endpoints of one."""
    made = Route(id="X", routes=(SdnRoute(destination_prefix="10.96.0.0/12"),))
    shown = render(State(), made)
    assert shown["Setting"] == shown["Routes"]
    assert decode_object(Kind.ROUTE, shown) == made


def test_references_have_the_names_of_hcn() -> None:
    sent = {"ID": "X", "HostComputeNetwork": "N", "InterfaceName": "eth0", "ContainerId": "c", "Flags": 1}
    assert encode(decode_object(Kind.ENDPOINT, sent)) == {**sent, "SchemaVersion": {"Major": 2, "Minor": 0}}
    sent = {"id": "X", "NetnsPath": "/run/netns/x", "Resources": [{"type": "container", "data": {"id": "c"}}]}
    body = encode(decode_object(Kind.NAMESPACE, sent))
    assert body["Resources"] == [{"Type": "Container", "Data": {"Id": "c"}}]
    assert body["NetnsPath"] == "/run/netns/x"


@pytest.mark.parametrize(
    ("kind", "resource", "settings", "wanted"),
    [
        (
            Kind.NETWORK,
            "Policy",
            {"Policies": [{"Type": "HostRoute"}]},
            PolicySettings(policies=(HostRoute(),)),
        ),
        (Kind.NETWORK, "dns", {"Domain": "x"}, Dns(domain="x")),
        (Kind.NETWORK, "Subnet", {}, SubnetSettings()),
        (Kind.ENDPOINT, "POLICY", None, PolicySettings()),
        (Kind.NAMESPACE, "Endpoint", {"EndpointId": "E"}, EndpointSettings(endpoint_id="E")),
        (Kind.NAMESPACE, "Container", {"ContainerId": "C"}, ContainerSettings(container_id="C")),
    ],
)
def test_modify_requests(kind: Kind, resource: str, settings: Any, wanted: object) -> None:
    request = decode_modify(kind, {"resourcetype": resource, "RequestType": "add", "Settings": settings})
    assert request.request_type is RequestType.ADD
    assert request.settings == wanted


@pytest.mark.parametrize(
    ("kind", "sent", "code"),
    [
        (Kind.NETWORK, {"ResourceType": "Firewall", "RequestType": "Add"}, HcnCode.REQUEST_UNSUPPORTED),
        (Kind.ENDPOINT, {"ResourceType": "DNS", "RequestType": "Add"}, HcnCode.REQUEST_UNSUPPORTED),
        (Kind.ENDPOINT, {"RequestType": "Add"}, HcnCode.REQUEST_UNSUPPORTED),
        (Kind.ENDPOINT, {"ResourceType": {"a": ["b" * 9999]}}, HcnCode.REQUEST_UNSUPPORTED),
        (Kind.ROUTE, {"ResourceType": "Policy", "RequestType": "Add"}, HcnCode.REQUEST_UNSUPPORTED),
        (Kind.ENDPOINT, {"ResourceType": "Policy", "RequestType": "Explode"}, HcnCode.REQUEST_UNSUPPORTED),
        (Kind.ENDPOINT, {"ResourceType": "Policy"}, HcnCode.INVALID_JSON),
        (Kind.NAMESPACE, {"ResourceType": "Endpoint", "RequestType": "Add"}, HcnCode.INVALID_JSON),
        (Kind.NAMESPACE, "x", HcnCode.INVALID_JSON),
    ],
)
def test_faulty_modify_requests(kind: Kind, sent: Any, code: HcnCode) -> None:
    with pytest.raises(HcnError) as caught:
        decode_modify(kind, sent)
    assert caught.value.code is code
    assert len(caught.value.message) < 300


def test_resource_types_are_spelled_as_in_hcn() -> None:
    assert {item.value for item in ResourceType} == {"Container", "Endpoint"}
