"""HCN policies that hand connections to a proxy in user space."""

from __future__ import annotations

from typing import Final

from samewire.hcn.base import U16, U32, Wire
from samewire.hcn.policy_base import PolicyBase

_LOCAL_SYSTEM: Final = "S-1-5-18"
_MAX_USER: Final = 2**32 - 2  # 2**32 - 1 is "no user"


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
    """Which connections an L4WFPPROXY policy is about; lists as in ACLs, "" = any (of protocols: TCP)."""

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
    What the account ``user_sid`` opens is left alone (see `user_of_sid`).
    """

    inbound_proxy_port: str = ""
    outbound_proxy_port: str = ""
    filter_tuple: FilterTuple | None = None
    user_sid: str = ""
    inbound_exceptions: ProxyExceptions | None = None
    outbound_exceptions: ProxyExceptions | None = None


def user_of_sid(sid: str) -> int:
    """Return the user id that a SID stands for, as the pod sees it. Raises ValueError.

    A plain number is itself. ``S-1-22-1-<id>`` is how Samba names Unix users; LocalSystem is root; of other SIDs the
    last number, so that those which configurations for Windows carry (``S-1-5-32-556``) name somebody, too.
    """
    last = sid.rpartition("-")[2]
    digits = last.isascii() and last.isdigit() and len(last) <= len(str(_MAX_USER))
    if not digits or int(last) > _MAX_USER or not (sid == last or sid.upper().startswith("S-1-")):
        raise ValueError(f"{sid[:64]!r} is neither a SID nor a user id")
    return 0 if sid.upper() == _LOCAL_SYSTEM else int(last)


def proxy_destination(policy: L4Proxy) -> tuple[str, int]:
    """Return address and port of a checked policy's proxy."""
    address, _, port = policy.destination.rpartition(":")
    return address.removeprefix("[").removesuffix("]"), int(port)
