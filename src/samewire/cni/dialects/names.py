"""The plugins whose configurations Samewire takes, and what distinguishes them."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

FLANNEL: Final = "flannel"
OWN: Final = ("samewire-cni", "samewire")
WIN_BRIDGE: Final = "win-bridge"
WIN_OVERLAY: Final = "win-overlay"
SDN_BRIDGE: Final = "sdnbridge"
SDN_OVERLAY: Final = "sdnoverlay"
AZURE: Final = "azure-vnet"

NETWORK_TYPES: Final = {
    WIN_BRIDGE: ("L2Bridge", "L2Tunnel"),
    WIN_OVERLAY: ("Overlay",),
    SDN_BRIDGE: ("L2Bridge", "L2Tunnel"),
    SDN_OVERLAY: ("Overlay",),
    AZURE: ("L2Bridge", "L2Tunnel", "Transparent"),
}
"""The plugins by name, each with the types of networks it attaches to, the first being the one it would make."""

ALIASES: Final = (*NETWORK_TYPES, FLANNEL)
"""The names under which the client may be installed beside its own."""


class Dialect(Struct, frozen=True):
    """What a plugin does beside what Samewire's own configuration can say.

    ``second_gateway``: the default route goes through the third address of the subnet (its number 2), where l2bridge
    nodes of Windows have their own endpoint. ``gateways``: next hops of the default routes that the configuration
    names. ``spared``: a prefix that gets an OutBoundNAT policy of its own, ``spare_own`` the same for the network's
    subnets. ``accept_host_ports``: an ACL lets clients in to each container port that is mapped. ``qualify_search``:
    the pod's Kubernetes namespace stands before the first search domain.
    """

    plugin: str
    second_gateway: bool = False
    gateways: tuple[str, ...] = ()
    spared: str = ""
    spare_own: bool = False
    loopback_dsr: bool = False
    provider_address: bool = False
    mac_prefix: str = ""
    accept_host_ports: bool = False
    qualify_search: bool = False
    creates_network: bool = False
    adapter: str = ""

    @property
    def network_types(self) -> tuple[str, ...]:
        """The types of networks that the plugin attaches to."""
        return NETWORK_TYPES[self.plugin]

    def endpoint_name(self, container_id: str, interface_name: str, network: str) -> str:
        """Return the name of an endpoint, as the plugin gives it."""
        if self.plugin == AZURE:
            return f"{container_id[:8]}-{interface_name}"
        return f"{container_id}_{network}"
