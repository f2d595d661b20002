"""HNS objects that the lab creates on samewire nodes (pure)."""

from __future__ import annotations

from typing import Any

from samewire.errors import Unavailable
from samewire.lab.addressing import family_of, on_underlay
from samewire.lab.cluster import Network, NetworkType
from samewire.lab.plan import NodePlan, Plan, gateway
from samewire.lab.stack import Vtep


def network_object(plan: Plan, node: NodePlan, network: Network, uplink: str) -> dict[str, Any]:
    """The HostComputeNetwork of one network on one node, in the v2 shape."""
    policies: list[dict[str, Any]] = [
        {"Type": "NetAdapterName", "Settings": {"NetworkAdapterName": uplink}},
    ]
    if network.type is NetworkType.OVERLAY:
        policies.append({"Type": "VxlanPort", "Settings": {"Port": network.vxlan_port}})
        if network.host_route:
            policies.append({"Type": "HostRoute", "Settings": {}})
    return {
        "SchemaVersion": {"Major": 2, "Minor": 0},
        "Name": network.name,
        "Type": network.type.value,
        "Ipams": [
            {"Type": "Static", "Subnets": [_subnet(plan, node, network, prefix) for prefix in node.pod_cidrs]}
        ],
        "Policies": policies,
    }


def remote_subnet_routes(network: Network, vteps: list[Vtep]) -> list[dict[str, Any]]:
    """The RemoteSubnetRoute policies that make other nodes' pods reachable."""
    return [
        {
            "Type": "RemoteSubnetRoute",
            "Settings": {
                "DestinationPrefix": prefix,
                "IsolationId": network.vni,
                "ProviderAddress": vtep.provider_address,
                "DistributedRouterMacAddress": vtep.mac.upper().replace(":", "-"),
            },
        }
        for vtep in vteps
        for prefix in vtep.pod_cidrs
    ]


def dr_mac(network: dict[str, Any]) -> str:
    """The DrMacAddress that HNS published on a network, in colon form. Raises Unavailable."""
    for policy in network.get("Policies") or ():
        if policy["Type"] == "DrMacAddress":
            return str(policy["Settings"]["Address"]).lower().replace("-", ":")
    raise Unavailable(f"network {network.get('Name')}", "HNS published no DrMacAddress policy")


def _subnet(plan: Plan, node: NodePlan, network: Network, prefix: str) -> dict[str, Any]:
    under = on_underlay(plan.cluster, prefix)
    default = "0.0.0.0/0" if family_of(prefix) == 4 else "::/0"
    routes = [{"NextHop": gateway(plan.cluster, node, prefix), "DestinationPrefix": default}]
    policies = []
    if network.type is NetworkType.OVERLAY:
        policies.append({"Type": "VSID", "Settings": {"IsolationId": network.vni}})
    elif under is None:
        routes += _host_gw_routes(plan, node, family_of(prefix))
    return {"IpAddressPrefix": str(under or prefix), "Routes": routes, "Policies": policies}


def _host_gw_routes(plan: Plan, node: NodePlan, family: int) -> list[dict[str, str]]:
    routes = []
    for other in plan.nodes:
        via, prefix = other.address(family), other.pod_cidr(family)
        if other.name != node.name and via and prefix:
            routes.append({"NextHop": via, "DestinationPrefix": prefix})
    return routes
