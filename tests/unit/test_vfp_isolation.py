"""DisableInterComputeCommunication as rules."""

from __future__ import annotations

from samewire.hcn.policies import ACL, AclAction, AclDirection, RemoteSubnetRoute, TierAcl
from samewire.hcn.schema import Endpoint, EndpointFlags, Ipam, Network, NetworkType, RouteEntry, Subnet
from samewire.vfp.acl_names import acl_names
from samewire.vfp.address import parse_interface
from samewire.vfp.compile.acl_rules import LIST, direction_rules
from samewire.vfp.compile.isolation import isolation
from samewire.vfp.compile.plan import plan_network
from samewire.vfp.constants import AclAction as Verdict
from samewire.vfp.model import NodeFacts

FACTS = NodeFacts(
    name="n",
    uplink_ifindex=2,
    uplink_mac=bytes(6),
    uplink_mtu=1500,
    addresses=(parse_interface("192.0.2.7/24"),),
)
FAR = RemoteSubnetRoute(
    destination_prefix="10.2.0.0/16",
    isolation_id=4096,
    provider_address="192.0.2.8",
    distributed_router_mac_address="00-15-5D-00-00-03",
)
NETWORK = Network(
    id="N",
    type=NetworkType.OVERLAY,
    policies=(FAR,),
    ipams=(
        Ipam(
            subnets=(
                Subnet(
                    ip_address_prefix="10.1.0.0/24",
                    routes=(RouteEntry(next_hop="10.1.0.1", destination_prefix="0.0.0.0/0"),),
                ),
            )
        ),
    ),
)
ALONE = Endpoint(
    id="E",
    network_id="N",
    flags=EndpointFlags.DISABLE_INTER_COMPUTE_COMMUNICATION,
    policies=(
        TierAcl(direction=AclDirection.OUT, order=0),
        ACL(action=AclAction.ALLOW, direction=AclDirection.OUT),
    ),
)
OWN = (parse_interface("10.1.0.5/24"),)


def test_only_with_the_flag() -> None:
    plan = plan_network(NETWORK, FACTS)
    assert isolation(Endpoint(id="E", network_id="N"), plan, FACTS, OWN) == ()
    assert len(isolation(ALONE, plan, FACTS, OWN)) == 2


def test_it_is_asked_first_and_leaves_the_rest_open() -> None:
    tiers = isolation(ALONE, plan_network(NETWORK, FACTS), FACTS, OWN)
    rules = direction_rules(AclDirection.OUT, NETWORK.policies, ALONE.policies, tiers)
    assert [rule.action for rule in rules] == [Verdict.PASS, Verdict.BLOCK, Verdict.PASS, Verdict.ALLOW]
    assert rules[0].stage == rules[2].stage < rules[3].stage == LIST
    assert [str(prefix) for prefix in rules[0].destination.prefixes] == [
        "10.1.0.1/32",
        "192.0.2.7/32",
        "10.1.0.5/32",
    ]
    assert [str(prefix) for prefix in rules[1].destination.prefixes] == ["10.1.0.0/24", "10.2.0.0/16"]
    assert rules[2].destination.any
    incoming = direction_rules(AclDirection.IN, NETWORK.policies, ALONE.policies, tiers)
    assert incoming[1].source == rules[1].destination
    names = acl_names(ALONE, NETWORK).policies
    assert {names[rule.number] for rule in (*incoming, *rules[:3])} == {"DisableICC"}
