"""From configuration, IPAM and network to the attachment, the result and the check."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec.structs import replace

from samewire.cni.backend import Address, Attached, AttachRequest, CheckRequest, NetworkInfo
from samewire.cni.conf import decode_attachment, decode_conf
from samewire.cni.environment import decode_environment
from samewire.cni.errors import CniCode, CniError
from samewire.cni.plan import add_result, plan_attach, plan_check
from samewire.cni.result import Dns, Interface, IpConfig, Result, Route
from samewire.hcn.codec import encode_policy
from tests.support.cni import OVERLAY, variables

IPAM = Result((), (IpConfig("10.1.0.5/24", "10.1.0.1"), IpConfig("fd00:1::5/64", "fd00:1::1")))
ENVIRONMENT = decode_environment(variables("ADD", CNI_ARGS="K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web"))


def plan(network: NetworkInfo = OVERLAY, ipam: Result | None = IPAM, **keys: Any) -> AttachRequest:
    conf = decode_conf(
        json.dumps({"cniVersion": "1.1.0", "name": "net", "type": "samewire", **keys}).encode()
    )
    return plan_attach(ENVIRONMENT, conf, decode_attachment(conf, ENVIRONMENT.args), network, ipam)


def policies(found: AttachRequest) -> tuple[dict[str, Any], ...]:
    """The policies as HCN writes them."""
    return tuple(encode_policy(policy) for policy in found.policies)


def nat(**settings: Any) -> dict[str, Any]:
    return {"Type": "OutBoundNAT", "Settings": settings}


def policy(kind: str, **settings: Any) -> dict[str, Any]:
    return {"name": "EndpointPolicy", "value": {"Type": kind, "Settings": settings}}


def test_the_whole_request() -> None:
    found = plan(mtu=1400, runtimeConfig={"mac": "0e:2a:00:00:00:09"})
    assert found == AttachRequest(
        network="net",
        container_id="pod1",
        interface_name="eth0",
        netns_path="/run/netns/pod1",
        addresses=(Address("10.1.0.5", 24, "10.1.0.1"), Address("fd00:1::5", 64, "fd00:1::1")),
        routes=(Route("0.0.0.0/0", "10.1.0.1"), Route("::/0", "fd00:1::1")),
        mac="0e:2a:00:00:00:09",
        mtu=1400,
        policies=(),
        dns=OVERLAY.dns,
        pod_namespace="shop",
        pod_name="web",
    )


@pytest.mark.parametrize(("name", "value"), [("mtu", 1400), ("advmss", 1300), ("table", 100), ("scope", 253)])
def test_what_a_route_cannot_have_is_refused(name: str, value: int) -> None:
    given = replace(IPAM, routes=(replace(Route("10.0.0.0/8"), **{name: value}),))
    with pytest.raises(CniError, match=rf"^ipam: {name} {value} of the route to 10.0.0.0/8 cannot") as caught:
        plan(ipam=given)
    assert caught.value.code == CniCode.UNSUPPORTED_FIELD
    plain = replace(IPAM, routes=(Route("10.0.0.0/8", mtu=0, advmss=0, priority=5, table=254, scope=0),))
    assert plan(ipam=plain).routes[0].priority == 5


def test_an_mtu_that_leaves_no_ipv6_is_refused() -> None:
    with pytest.raises(
        CniError, match=r"^mtu: must be at least 1280 bytes with an IPv6 address, got 1279"
    ) as caught:
        plan(mtu=1279)
    assert caught.value.code == CniCode.INVALID_CONFIG
    assert plan(mtu=1280).mtu == 1280
    assert plan(mtu=1279, ipam=replace(IPAM, ips=IPAM.ips[:1])).mtu == 1279


def test_a_default_route_unless_ipam_has_routes() -> None:
    v4_only = replace(IPAM, routes=(Route("10.0.0.0/8"),))
    assert plan(ipam=v4_only).routes == (Route("10.0.0.0/8"), Route("::/0", "fd00:1::1"))
    assert plan(ipam=v4_only, isDefaultGateway=True).routes == (
        Route("10.0.0.0/8"),
        Route("0.0.0.0/0", "10.1.0.1"),
        Route("::/0", "fd00:1::1"),
    )
    given = replace(IPAM, routes=(Route("0.0.0.0/0"),))
    assert plan(ipam=given, isDefaultGateway=True).routes == (Route("0.0.0.0/0"), Route("::/0", "fd00:1::1"))
    assert plan(isDefaultGateway=False).routes == ()


def test_a_default_route_of_the_chain_stays_the_only_one() -> None:
    previous = {"routes": [{"dst": "0.0.0.0/0", "gw": "192.168.0.1"}]}
    ipam = replace(IPAM, routes=(Route("0.0.0.0/0"), Route("10.0.0.0/8")))
    assert plan(prevResult=previous).routes == (Route("::/0", "fd00:1::1"),)
    assert plan(ipam=ipam, prevResult=previous).routes == (Route("10.0.0.0/8"), Route("::/0", "fd00:1::1"))


def test_an_address_without_a_gateway_gets_that_of_its_subnet() -> None:
    found = plan(ipam=Result((), (IpConfig("10.1.0.5/24"), IpConfig("10.9.0.5/24"))))
    assert [item.gateway for item in found.addresses] == ["10.1.0.1", ""]


@pytest.mark.parametrize("kind", ["Overlay", "NAT", "Internal"])
def test_a_gateway_that_nobody_answers_for(kind: str) -> None:
    ipam = Result((), (IpConfig("10.1.0.5/24", "10.1.0.254"),))
    with pytest.raises(CniError) as caught:
        plan(replace(OVERLAY, type=kind), ipam)
    assert caught.value.code == CniCode.INVALID_CONFIG
    assert "10.1.0.254 of 10.1.0.5/24 is not that of network net, 10.1.0.1" in caught.value.message


@pytest.mark.parametrize("kind", ["L2Bridge", "Transparent"])
def test_other_routers_on_the_lan(kind: str) -> None:
    ipam = Result((), (IpConfig("10.1.0.5/24", "10.1.0.254"),))
    assert plan(replace(OVERLAY, type=kind), ipam).routes == (Route("0.0.0.0/0", "10.1.0.254"),)


def test_without_ipam_the_network_chooses() -> None:
    found = plan(ipam=None)
    assert found.addresses == ()
    assert found.routes == (Route("0.0.0.0/0", "10.1.0.1"), Route("::/0", "fd00:1::1"))


def test_without_ipam_the_runtime_may_choose() -> None:
    found = plan(ipam=None, runtimeConfig={"ips": ["10.1.0.9", "fd00:1::9/80", "10.9.0.9/16"]})
    assert found.addresses == (
        Address("10.1.0.9", 24, "10.1.0.1"),
        Address("fd00:1::9", 80, "fd00:1::1"),
        Address("10.9.0.9", 16),
    )
    with pytest.raises(CniError, match=r"runtimeConfig\.ips: 10\.9\.0\.9 is in no subnet"):
        plan(ipam=None, runtimeConfig={"ips": ["10.9.0.9"]})


def test_dns_by_precedence() -> None:
    ipam = replace(IPAM, dns=Dns(("9.9.9.9",), search=("ipam",)))
    assert plan().dns == OVERLAY.dns
    assert plan(ipam=ipam).dns == ipam.dns
    conf = {"nameservers": ["1.1.1.1"], "search": ["a", "b"], "options": ["ndots:2"]}
    assert plan(ipam=ipam, dns=conf).dns == Dns(("1.1.1.1",), "", ("a", "b"), ("ndots:2",))
    runtime = {"dns": {"servers": ["10.96.0.10"], "searches": ["x.y", "y"], "options": []}}
    assert plan(dns=conf, runtimeConfig=runtime).dns == Dns(("10.96.0.10",), "", ("x.y", "y"), ("ndots:2",))


def test_port_mappings_for_each_family() -> None:
    ports = [
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 53, "containerPort": 5353, "protocol": "udp", "hostIP": "192.168.1.9"},
        {"hostPort": 54, "containerPort": 5353, "protocol": "udp", "hostIP": "::"},
        {"hostPort": 55, "containerPort": 5353, "protocol": "udp", "hostIP": "0.0.0.0"},
    ]
    assert policies(plan(runtimeConfig={"portMappings": ports})) == (
        mapping(6, 80, 8080),
        mapping(6, 80, 8080, v6=True),
        mapping(17, 5353, 53, vip="192.168.1.9"),
        mapping(17, 5353, 54, v6=True),
        mapping(17, 5353, 55),
    )
    only_4 = Result((), IPAM.ips[:1])
    assert policies(plan(ipam=only_4, runtimeConfig={"portMappings": ports[:1]})) == (mapping(6, 80, 8080),)
    assert policies(plan(ipam=None, runtimeConfig={"portMappings": ports[:1]})) == (
        mapping(6, 80, 8080),
        mapping(6, 80, 8080, v6=True),
    )


def mapping(protocol: int, inner: int, outer: int, vip: str = "", v6: bool = False) -> dict[str, Any]:
    settings = {"Protocol": protocol, "InternalPort": inner, "ExternalPort": outer, "Flags": 3 if v6 else 1}
    return {"Type": "PortMapping", "Settings": {**settings, **({"VIP": vip} if vip else {})}}


def test_bandwidth_of_the_runtime_replaces_that_of_the_configuration() -> None:
    own = [policy("QOS", MaximumOutgoingBandwidthInBytes=1)]
    caps = {"bandwidth": {"egressRate": 8000, "egressBurst": 8000}}
    (found,) = policies(plan(policies=own, runtimeConfig=caps))
    assert found["Settings"] == {
        "MaximumOutgoingBandwidthInBytes": 1000,
        "MaximumOutgoingBurstInBytes": 1000,
        "MaximumIncomingBandwidthInBytes": 0,
        "MaximumIncomingBurstInBytes": 0,
    }
    assert policies(plan(policies=own))[0]["Settings"]["MaximumOutgoingBandwidthInBytes"] == 1


def test_masquerade_spares_the_networks_own_prefixes() -> None:
    (found,) = policies(plan(ipMasq=True))
    assert found["Settings"]["Exceptions"] == ["10.1.0.0/24", "fd00:1::/64"]
    (found,) = policies(plan(ipMasq=True, ipMasqNetwork="10.0.0.0/8"))
    assert found["Settings"]["Exceptions"] == ["10.1.0.0/24", "fd00:1::/64", "10.0.0.0/8"]
    (found,) = policies(plan(ipMasqNetwork="10.0.0.0/8"))
    assert found["Settings"]["Exceptions"] == ["10.0.0.0/8"]
    (found,) = policies(plan(replace(OVERLAY, subnets=(), gateways=()), ipMasq=True))
    assert found["Settings"]["Exceptions"] == ["10.1.0.0/24", "fd00:1::/64"]


def test_masquerade_joins_the_policies_that_are_there() -> None:
    """HNS asks one policy after the other: one that does not except the pods would translate their traffic."""
    own = [
        policy("OutBoundNAT", Exceptions=["10.0.0.0/8"]),
        policy("OutBoundNAT", Destinations=["8.8.8.8/32"], VirtualIP="192.168.1.7"),
    ]
    found = policies(plan(ipMasq=True, policies=own))
    exceptions = [item["Settings"].get("Exceptions", []) for item in found]
    assert exceptions == [["10.0.0.0/8", "10.1.0.0/24"], [], ["fd00:1::/64"]]


def test_a_policy_that_cannot_be_with_others() -> None:
    with pytest.raises(CniError) as caught:
        plan(policies=[policy("QOS", MaximumOutgoingBandwidthInBytes=1)] * 2)
    assert caught.value.code == CniCode.INVALID_CONFIG
    assert caught.value.message.startswith("policies[1]")


MADE = Attached(
    "sw1",
    "0e:00:00:00:00:01",
    "0e:2a:0a:01:00:05",
    1450,
    (Address("10.1.0.5", 24, "10.1.0.1"), Address("fd00:1::5", 64)),
    (Route("0.0.0.0/0", "10.1.0.1"),),
)


def test_the_result() -> None:
    assert add_result(plan(), MADE, Result()) == Result(
        (
            Interface("sw1", "0e:00:00:00:00:01", 1450),
            Interface("eth0", "0e:2a:0a:01:00:05", 1450, "/run/netns/pod1"),
        ),
        (IpConfig("10.1.0.5/24", "10.1.0.1", 1), IpConfig("fd00:1::5/64", "", 1)),
        (Route("0.0.0.0/0", "10.1.0.1"),),
        OVERLAY.dns,
    )


def test_the_result_behind_another_plugin() -> None:
    previous = Result(
        (Interface("lo", sandbox="/run/netns/pod1"), Interface("net0", sandbox="/run/netns/pod1")),
        (IpConfig("192.168.0.5/24", "", 1),),
        (Route("0.0.0.0/0", "10.1.0.1"), Route("192.168.0.0/16")),
        Dns(("9.9.9.9",)),
    )
    found = add_result(plan(replace(OVERLAY, dns=Dns())), MADE, previous)
    assert [item.name for item in found.interfaces] == ["lo", "net0", "sw1", "eth0"]
    assert [item.interface for item in found.ips] == [1, 3, 3]
    assert found.routes == (Route("0.0.0.0/0", "10.1.0.1"), Route("192.168.0.0/16"))
    assert found.dns == Dns(("9.9.9.9",))
    assert add_result(plan(), MADE, previous).dns == OVERLAY.dns


def check(previous: Result) -> CheckRequest:
    return plan_check(ENVIRONMENT, decode_conf(b'{"cniVersion":"1.1.0","name":"net"}'), previous)


def test_what_check_compares() -> None:
    other = (Interface("net0", sandbox="/run/netns/pod1"),)
    previous = add_result(plan(), MADE, Result(other, (IpConfig("192.168.0.5/24", "", 0),)))
    assert check(previous) == CheckRequest(
        network="net",
        container_id="pod1",
        interface_name="eth0",
        netns_path="/run/netns/pod1",
        host_interface="sw1",
        mac="0e:2a:0a:01:00:05",
        mtu=1450,
        addresses=MADE.addresses,
        routes=MADE.routes,
    )


def test_check_takes_a_mac_as_others_write_it() -> None:
    inside = Interface("eth0", mac="0E-2A-0A-01-00-05", sandbox="/run/netns/pod1")
    assert check(Result((inside,))).mac == "0e:2a:0a:01:00:05"


def test_check_of_a_result_without_the_interface() -> None:
    previous = add_result(plan(), MADE, Result())
    host_only = replace(
        previous, interfaces=(Interface("eth0"), Interface("net0", sandbox="/run/netns/pod1"))
    )
    elsewhere = replace(previous, interfaces=(Interface("eth0", sandbox="/run/netns/other"),))
    no_mac = replace(previous, interfaces=(Interface("eth0", mac="eth0", sandbox="/run/netns/pod1"),))
    for wrong, message in (
        (Result(), "prevResult has no interface eth0 in a sandbox"),
        (replace(host_only, ips=()), "prevResult has no interface eth0 in a sandbox"),
        (replace(no_mac, ips=()), "prevResult: 'eth0' is not the MAC address of one station"),
        (replace(elsewhere, ips=()), "prevResult has sandbox /run/netns/other, CNI_NETNS is /run/netns/pod1"),
    ):
        with pytest.raises(CniError) as caught:
            check(wrong)
        assert (caught.value.code, caught.value.message) == (CniCode.CHECK_FAILED, message)
