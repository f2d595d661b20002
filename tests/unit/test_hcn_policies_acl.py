"""Policies that filter and redirect: how they are read, their canonical form, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from samewire.hcn.codec import decode_policy, encode_policy
from samewire.hcn.errors import HcnCode, HcnError
from samewire.hcn.normalise_policies import Scope, check_policies
from samewire.hcn.policies import (
    ACL,
    L4WFPPROXY,
    AclAction,
    AclAddresses,
    AclDirection,
    L4Proxy,
    NetworkACL,
    Policy,
    ProxyExceptions,
    SetPolicy,
    SetType,
    TierAcl,
    TierAclRule,
    acl_addresses,
    parse_prefix,
    sets_named,
)


def canonical(value: Any, scope: Scope = Scope.ENDPOINT) -> Policy:
    return check_policies((decode_policy(value),), scope, "$.Policies")[0]


@pytest.mark.parametrize(
    ("scope", "sent", "wanted"),
    [
        (
            Scope.NETWORK,
            {
                "type": "setpolicy",
                "Settings": {
                    "Id": "azure-npm-1",
                    "Name": "ns",
                    "PolicyType": 0,
                    "Values": "10.0.0.1, 10.1.2.3/8",
                },
            },
            SetPolicy(set_id="azure-npm-1", name="ns", values="10.0.0.1,10.0.0.0/8"),
        ),
        (
            Scope.NETWORK,
            {
                "Type": "SetPolicy",
                "Settings": {"Id": "all", "PolicyType": "nestedipset", "Values": ["a", "b"]},
            },
            SetPolicy(set_id="all", policy_type=SetType.NESTEDIPSET, values="a,b"),
        ),
        (
            Scope.ENDPOINT,
            {
                "Type": "TierAcl",
                "Settings": {
                    "Name": "first",
                    "Direction": "Out",
                    "Order": 100,
                    "TierAclRules": [
                        {
                            "Id": "r",
                            "Protocols": "tcp,17",
                            "TierAclRuleAction": "Pass",
                            "RemotePorts": "80-90",
                        }
                    ],
                },
            },
            TierAcl(
                name="first",
                direction=AclDirection.OUT,
                order=100,
                tier_acl_rules=(
                    TierAclRule(
                        rule_id="r",
                        protocols="6,17",
                        tier_acl_rule_action=AclAction.PASS,
                        remote_ports="80-90",
                    ),
                ),
            ),
        ),
        (
            Scope.NETWORK,
            {
                "Type": "NetworkACL",
                "Settings": {"Action": "Block", "Direction": "In", "RemoteAddresses": "set-1"},
            },
            NetworkACL(action=AclAction.BLOCK, direction=AclDirection.IN, remote_addresses="set-1"),
        ),
        (
            Scope.ENDPOINT,
            {
                "Type": "L4Proxy",
                "Settings": {
                    "IP": "fd00::/8",
                    "Port": 80,
                    "ExceptionList": ["fd00::7"],
                    "Destination": "fd00::1:15001",
                },
            },
            L4Proxy(ip="fd00::/8", port="80", exceptions=("fd00::7",), destination="[fd00::1]:15001"),
        ),
        (
            Scope.ENDPOINT,
            {
                "Type": "L4WfpProxy",
                "Settings": {"OutboundProxyPort": "15001", "InboundExceptions": {"PortExceptions": ["1-9"]}},
            },
            L4WFPPROXY(
                outbound_proxy_port="15001", inbound_exceptions=ProxyExceptions(port_exceptions=("1-9",))
            ),
        ),
        (  # hcsshim 0.8
            Scope.ENDPOINT,
            {"Type": "L4WFPPROXY", "Settings": {"Port": "15001", "UserSID": "S-1-5-18"}},
            L4WFPPROXY(outbound_proxy_port="15001", user_sid="S-1-5-18"),
        ),
    ],
)
def test_what_clients_send(scope: Scope, sent: Any, wanted: Policy) -> None:
    policy = canonical(sent, scope)
    assert policy == wanted
    assert decode_policy(encode_policy(policy)) == policy


def test_an_address_list_may_name_sets() -> None:
    found = acl_addresses("10.0.0.0/8, azure-npm-7,fd00::1")
    assert found.prefixes == (parse_prefix("10.0.0.0/8"), parse_prefix("fd00::1"))
    assert found.sets == ("azure-npm-7",)
    assert acl_addresses(" ,") == AclAddresses()


def test_the_sets_that_a_policy_names() -> None:
    rule = TierAclRule(
        tier_acl_rule_action=AclAction.ALLOW, local_addresses="a,10.0.0.1", remote_addresses="b"
    )
    tier = TierAcl(direction=AclDirection.IN, tier_acl_rules=(rule,))
    acl = ACL(action=AclAction.ALLOW, direction=AclDirection.IN, remote_addresses="c")
    nested = SetPolicy(set_id="x", policy_type=SetType.NESTEDIPSET, values="a,b")
    assert [
        list(sets_named(policy)) for policy in (tier, acl, nested, SetPolicy(set_id="y", values="z"))
    ] == [
        ["a", "b"],
        ["c"],
        ["a", "b"],
        [],
    ]


@pytest.mark.parametrize(
    ("scope", "sent", "field"),
    [
        (Scope.NETWORK, {"Type": "SetPolicy", "Settings": {"Id": "", "Values": ""}}, "Settings.Id"),
        (Scope.NETWORK, {"Type": "SetPolicy", "Settings": {"Id": "10.0.0.1"}}, "Settings.Id"),
        (Scope.NETWORK, {"Type": "SetPolicy", "Settings": {"Id": "a,b"}}, "Settings.Id"),
        (Scope.NETWORK, {"Type": "SetPolicy", "Settings": {"Id": "a", "Values": "b"}}, "Settings.Values"),
        (
            Scope.NETWORK,
            {"Type": "SetPolicy", "Settings": {"Id": "a", "PolicyType": 1, "Values": "10.0.0.1"}},
            "Settings.Values",
        ),
        (
            Scope.ENDPOINT,
            {
                "Type": "ACL",
                "Settings": {"Action": "Allow", "Direction": "In", "LocalAddresses": "10.0.0.256"},
            },
            "Settings.LocalAddresses",
        ),
        (
            Scope.ENDPOINT,
            {
                "Type": "TierAcl",
                "Settings": {
                    "Direction": "In",
                    "TierAclRules": [{"TierAclRuleAction": "Pass", "LocalPorts": "x"}],
                },
            },
            "Settings.TierAclRules[0].LocalPorts",
        ),
        (
            Scope.ENDPOINT,
            {"Type": "L4Proxy", "Settings": {"Destination": "10.0.0.1"}},
            "Settings.Destination",
        ),
        (
            Scope.ENDPOINT,
            {"Type": "L4Proxy", "Settings": {"Destination": "10.0.0.1:0"}},
            "Settings.Destination",
        ),
        (
            Scope.ENDPOINT,
            {"Type": "L4Proxy", "Settings": {"Destination": "fd00::1"}},
            "Settings.Destination: expected address:port",
        ),
        (
            Scope.ENDPOINT,
            {"Type": "L4Proxy", "Settings": {"IP": "fd00::/8", "Destination": "10.0.0.1:80"}},
            "Settings.IP",
        ),
        (Scope.ENDPOINT, {"Type": "L4WFPPROXY"}, "Settings.OutboundProxyPort"),
        (
            Scope.ENDPOINT,
            {"Type": "L4WFPPROXY", "Settings": {"InboundProxyPort": "1", "UserSID": "envoy"}},
            "Settings.UserSID",
        ),
        (
            Scope.ENDPOINT,
            {"Type": "L4WFPPROXY", "Settings": {"InboundProxyPort": "1", "FilterTuple": {"Protocols": "17"}}},
            "Settings.FilterTuple.Protocols",
        ),
        (
            Scope.ENDPOINT,
            {
                "Type": "L4WFPPROXY",
                "Settings": {"InboundProxyPort": "1", "FilterTuple": {"LocalAddresses": "set"}},
            },
            "Settings.FilterTuple.LocalAddresses",
        ),
    ],
)
def test_what_is_refused_and_where(scope: Scope, sent: Any, field: str) -> None:
    with pytest.raises(HcnError) as caught:
        canonical(sent, scope)
    assert caught.value.message.startswith(f"$.Policies[0].{field}")


def test_a_set_is_there_once() -> None:
    with pytest.raises(HcnError) as caught:
        check_policies((SetPolicy(set_id="a"), SetPolicy(set_id="a", values="10.0.0.1")), Scope.NETWORK, "$")
    assert caught.value.code is HcnCode.POLICY_ALREADY_EXISTS
