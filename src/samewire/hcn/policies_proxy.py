"""HCN policies that hand connections to a proxy in user space."""

from __future__ import annotations

from samewire.hcn.base import U16, U32, Wire
from samewire.hcn.policy_base import PolicyBase


class L4Proxy(PolicyBase, frozen=True, kw_only=True):
    """Connections to ``ip`` and ``port`` ("" = any) of a protocol go to ``destination``, "address:port".

    Destinations in ``exceptions`` (addresses, prefixes) are left alone. On a network it is for all of its
    endpoints. ``outbound_nat``: the proxy sees the node's address as the source.
    """

    ip: str = ""
    port: str = ""
    protocol: U32 = 6
    exceptions: tuple[str, ...] = ()
    destination: str
    outbound_nat: bool = False


class FilterTuple(Wire, frozen=True, kw_only=True):
    """Which connections an L4WFPPROXY policy is about; lists as in ACLs, "" = any."""

    protocols: str = ""
    local_addresses: str = ""
    remote_addresses: str = ""
    local_ports: str = ""
    remote_ports: str = ""
    priority: U16 = 0


class ProxyExceptions(Wire, frozen=True, kw_only=True):
    """What is not redirected: addresses or prefixes, and ports ("80", "8000-8080")."""

    ip_address_exceptions: tuple[str, ...] = ()
    port_exceptions: tuple[str, ...] = ()


class L4WFPPROXY(PolicyBase, frozen=True, kw_only=True):
    """TCP connections of an endpoint go to a proxy that listens in the pod itself.

    ``inbound_proxy_port``: for what arrives, ``outbound_proxy_port``: for what the pod opens ("" = none).
    What the account ``user_sid`` opens is left alone (here: the digits after the last dash are the user id).
    """

    inbound_proxy_port: str = ""
    outbound_proxy_port: str = ""
    filter_tuple: FilterTuple | None = None
    user_sid: str = ""
    inbound_exceptions: ProxyExceptions | None = None
    outbound_exceptions: ProxyExceptions | None = None
