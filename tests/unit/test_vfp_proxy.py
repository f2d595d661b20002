"""L4WFPPROXY and L4Proxy policies as rules of a pod's own stack."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from samewire.hcn.policies import L4WFPPROXY, FilterTuple, L4Proxy, ProxyExceptions
from samewire.hcn.policies_proxy import user_of_sid
from samewire.node.proxies import rule_text
from samewire.vfp.address import parse_address, parse_interface, parse_prefix
from samewire.vfp.compile.proxy import compile_proxies, proxies_translated
from samewire.vfp.model import ProxyRule

OWN = (parse_interface("10.0.0.5/24"), parse_interface("fd00::5/64"))


def test_a_sidecar_has_a_rule_a_direction_and_family() -> None:
    policy = L4WFPPROXY(inbound_proxy_port="1", outbound_proxy_port="2", user_sid="S-1-22-1-1337")
    rules = compile_proxies((), (policy,), OWN)
    assert [(r.outbound, r.family, r.port, r.user) for r in rules] == [
        (False, 4, 1, None), (False, 6, 1, None), (True, 4, 2, 1337), (True, 6, 2, 1337),
    ]  # fmt: skip
    assert compile_proxies((), (policy,), OWN[:1]) == tuple(r for r in rules if r.family == 4)


def test_lists_are_merged_and_those_of_the_other_family_leave_none() -> None:
    policy = L4WFPPROXY(
        outbound_proxy_port="2",
        filter_tuple=FilterTuple(remote_addresses="10.1.0.0/16,10.0.0.0/8", remote_ports="80-90,85-100,7"),
        outbound_exceptions=ProxyExceptions(
            ip_address_exceptions=("10.9.9.9", "fd00::/8"), port_exceptions=("81",)
        ),
    )
    (rule,) = compile_proxies((), (policy,), OWN)
    assert rule == ProxyRule(
        name="policy 1",
        outbound=True,
        family=4,
        protocol=6,
        port=2,
        remote=(parse_prefix("10.0.0.0/8"),),
        remote_ports=((7, 7), (80, 100)),
        except_remote=(parse_prefix("10.9.9.9/32"),),
        except_ports=((81, 81),),
    )


@pytest.mark.parametrize(
    "exceptions",
    [
        ProxyExceptions(ip_address_exceptions=("0.0.0.0/0", "::/0")),
        ProxyExceptions(port_exceptions=("0-65535",)),
    ],
)
def test_all_is_left_alone(exceptions: ProxyExceptions) -> None:
    policy = L4WFPPROXY(outbound_proxy_port="2", outbound_exceptions=exceptions)
    assert compile_proxies((), (policy,), OWN) == ()


def test_the_order_is_by_priority_then_endpoint_then_network() -> None:
    late, early = (
        L4WFPPROXY(outbound_proxy_port=port, filter_tuple=FilterTuple(priority=priority))
        for port, priority in (("1", 20), ("2", 10))
    )
    elsewhere = L4Proxy(destination="10.0.0.9:3")
    rules = compile_proxies((elsewhere,), (elsewhere, late, early), OWN[:1])
    assert [rule.name for rule in rules] == ["policy 3", "policy 2", "policy 1", "network policy 1"]
    assert rules[2].target == parse_address("10.0.0.9")


def test_the_endpoint_with_the_proxy_is_left_alone() -> None:
    policy = L4Proxy(destination="[fd00::5]:3", outbound_nat=True)
    assert compile_proxies((policy,), (), OWN) == ()
    assert compile_proxies((policy,), (), OWN[:1]) == ()
    assert proxies_translated((policy,), ()) == ("fd00::5",)


def test_as_nft_reads_it() -> None:
    rule = ProxyRule(
        name="policy 1",
        outbound=True,
        family=6,
        protocol=17,
        port=53,
        target=parse_address("fd00::9"),
        remote=(parse_prefix("fd00::/8"),),
        remote_ports=((53, 53), (5000, 5010)),
    )
    assert rule_text(rule, "eth0") == (
        'oifname "eth0" meta nfproto ipv6 meta l4proto udp ip6 daddr { fd00::/8 } udp dport { 53, 5000-5010 } '
        "dnat ip6 to [fd00::9]:53"
    )
    inbound = replace(rule, outbound=False, protocol=6, target=None, except_ports=((22, 22),))
    assert rule_text(inbound, "eth0") == (
        'iifname "eth0" meta nfproto ipv6 tcp flags & (fin|syn|rst|ack) == syn ip6 saddr { fd00::/8 } '
        "tcp sport { 53, 5000-5010 } tcp dport != { 22 } redirect to :53"
    )


@pytest.mark.parametrize(
    ("sid", "user"),
    [
        ("S-1-22-1-1337", 1337),
        ("1337", 1337),
        ("S-1-5-18", 0),
        ("S-1-5-32-556", 556),
        ("4294967294", 2**32 - 2),
    ],
)
def test_the_account_of_a_sid(sid: str, user: int) -> None:
    assert user_of_sid(sid) == user


@pytest.mark.parametrize(
    "sid", ["envoy", "S-1-22-1-", "-5", "S-1-5-4294967295", "S-1-5-99999999999", "T-1-5"]
)
def test_what_names_no_account(sid: str) -> None:
    with pytest.raises(ValueError, match="SID"):
        user_of_sid(sid)
