"""MAC addresses for endpoints that did not bring one."""

from __future__ import annotations

from collections.abc import Iterator

from samewire.errors import Exhausted
from samewire.hcn.errors import HcnCode, HcnError
from samewire.hcn.policy_base import parse_ip
from samewire.hcn.schema import Endpoint, Network, NetworkType
from samewire.hcn.state import View

OVERLAY_PREFIX = "0E-2A"
REMOTE_PREFIX = "02-11"
VENDOR_PREFIX = "00-15-5D"
MAX_PROBES = 2**16


def choose_mac(view: View, network: Network, endpoint: Endpoint) -> str:
    """Return the MAC address of a new endpoint, which already has its addresses.

    Overlay: 0E-2A and the IPv4 address, remote: 02-11 and the IPv4 address, as Windows and kube-proxy have
    it; else the first free one of the network's MacPool; else 00-15-5D and three bytes of the id. Raises
    HcnError, Exhausted.
    """
    if endpoint.mac_address:
        if not endpoint.is_remote and _taken(view, network, endpoint.mac_address):
            raise HcnError(
                HcnCode.OBJECT_ALREADY_EXISTS, f"$.MacAddress: {endpoint.mac_address} is another endpoint's"
            )
        return endpoint.mac_address
    for candidate in _candidates(network, endpoint):
        if endpoint.is_remote or not _taken(view, network, candidate):
            return candidate
    raise Exhausted(f"MAC addresses of network {network.name or network.id}", "none is left")


def _taken(view: View, network: Network, mac: str) -> bool:
    """True if a local endpoint has it; remote ones may share the MAC of their node."""
    return any(not other.is_remote for other in view.endpoints_of_mac(network.id, mac))


def _candidates(network: Network, endpoint: Endpoint) -> Iterator[str]:
    ipv4 = next((address for address in endpoint.addresses if ":" not in address), None)
    if ipv4 and (endpoint.is_remote or network.type is NetworkType.OVERLAY):
        prefix = REMOTE_PREFIX if endpoint.is_remote else OVERLAY_PREFIX
        yield f"{prefix}-{_dashed(int(parse_ip(ipv4)), 4)}"
    elif network.mac_pool and network.mac_pool.ranges:
        for entry in network.mac_pool.ranges:
            low, high = _number(entry.start_mac_address), _number(entry.end_mac_address)
            yield from (_dashed(number, 6) for number in range(low, min(high, low + MAX_PROBES) + 1))
        return
    seed = int(endpoint.id.replace("-", "")[-6:], 16)
    for offset in range(MAX_PROBES):
        yield f"{VENDOR_PREFIX}-{_dashed((seed + offset) % 2**24, 3)}"


def _number(mac: str) -> int:
    return int(mac.replace("-", ""), 16)


def _dashed(number: int, length: int) -> str:
    return number.to_bytes(length, "big").hex("-").upper()
