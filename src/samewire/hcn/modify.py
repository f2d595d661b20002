"""Requests that modify an HCN v2 object: what is done, and the settings of each ``ResourceType``."""

from __future__ import annotations

import enum

from samewire.hcn.base import Wire
from samewire.hcn.loadbalancers import LoadBalancer, LoadBalancerSettings
from samewire.hcn.policies import Policy
from samewire.hcn.schema import Dns, IpSubnet, Subnet


class RequestType(enum.StrEnum):
    """What a modify request does."""

    ADD = "Add"
    REMOVE = "Remove"
    UPDATE = "Update"
    REFRESH = "Refresh"
    RESET = "Reset"


class PolicySettings(Wire, frozen=True, kw_only=True):
    """Settings of a modify request for ``ResourceType`` Policy."""

    policies: tuple[Policy, ...] = ()


class SubnetSettings(Wire, frozen=True, kw_only=True):
    """Settings of a modify request for ``ResourceType`` Subnet."""

    subnets: tuple[Subnet, ...] = ()


class IpSubnetSettings(Wire, frozen=True, kw_only=True):
    """Settings of a modify request for ``ResourceType`` IPSubnet."""

    subnet_id: str
    ip_subnets: tuple[IpSubnet, ...] = ()


class ExtensionSettings(Wire, frozen=True, kw_only=True):
    """Settings of a modify request for ``ResourceType`` Extension."""

    resource_id: str
    is_enabled: bool = False


class PortSettings(Wire, frozen=True, kw_only=True):
    """Settings of an endpoint's modify request for ``ResourceType`` Port: a virtual machine's port."""

    port_id: str = ""
    virtual_nic_name: str = ""
    virtual_machine_id: str = ""


class EndpointSettings(Wire, frozen=True, kw_only=True):
    """Settings of a namespace's modify request for ``ResourceType`` Endpoint."""

    endpoint_id: str


class ContainerSettings(Wire, frozen=True, kw_only=True):
    """Settings of a namespace's modify request for ``ResourceType`` Container."""

    container_id: str


ModifySettings = (
    PolicySettings
    | SubnetSettings
    | IpSubnetSettings
    | ExtensionSettings
    | PortSettings
    | EndpointSettings
    | ContainerSettings
    | Dns
    | LoadBalancerSettings
    | LoadBalancer
)


class ModifySettingRequest(Wire, frozen=True, kw_only=True):
    """A change to one aspect of an object; the type of ``settings`` says which."""

    request_type: RequestType
    settings: ModifySettings
