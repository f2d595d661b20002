"""What every layer does and every drop reason means, in words, and what to do about it.

One text for the command line, the API and the documentation; a test sees that none is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from samewire.vfp.constants import Layer, Reason


class Explanation(Struct, frozen=True):
    """``meaning``: what has happened. ``remedy``: what to look at or to change."""

    meaning: str
    remedy: str


LAYERS: Final[Mapping[Layer, str]] = {
    Layer.PARSE: "reads the headers and finds the port",
    Layer.GUARD: "checks that source MAC, IP and ARP/ND sender are the endpoint's own",
    Layer.FLOW: "looks the connection up among those decided before",
    Layer.LB: "sends a virtual address to one of its backends",
    Layer.PORTMAP: "sends a port of the node to the endpoint that has it",
    Layer.ACL_OUT: "asks the sender's rules",
    Layer.NAT: "gives the sender the node's address for the way out",
    Layer.ROUTE: "decides where the destination is",
    Layer.ENCAP: "wraps the frame in VXLAN for another node",
    Layer.DECAP: "takes a frame out of VXLAN and finds its network",
    Layer.ACL_IN: "asks the receiver's rules",
    Layer.MTU: "compares the length with what the way can carry",
    Layer.QOS: "keeps to the endpoint's bandwidth",
    Layer.L2: "writes the MAC addresses and hands the frame over",
    Layer.FRAGMENT: "gives later fragments the ports of the first one",
    Layer.ICMP: "finds the connection that an ICMP error is about",
}

_SPOOFED: Final = (
    "Inside the pod, compare `ip address` with `samewire get endpoints POD -o wide`. Traffic that a pod forwards for "
    "others (nested containers, a VPN) has foreign sources and needs NAT inside the pod."
)

REASONS: Final[Mapping[Reason, Explanation]] = {
    Reason.NONE: Explanation(
        "The switch took the packet in and sends nothing on: an ARP or neighbour message that needs no "
        "answer.",
        "Nothing is wrong.",
    ),
    Reason.MALFORMED: Explanation(
        "The headers are shorter than they say, or there are more IPv6 extension headers than are looked at.",
        "Capture the frame with `samewire capture POD` and look at who builds it.",
    ),
    Reason.NOT_IP: Explanation(
        "The frame is neither IPv4, IPv6 nor ARP; the switch carries nothing else.",
        "Find the program that sends it (LLDP, STP, VLAN tags inside the pod) or ignore the count.",
    ),
    Reason.SPOOFED_MAC: Explanation("The source MAC address is not the endpoint's own.", _SPOOFED),
    Reason.SPOOFED_IP: Explanation(
        "The source IP address is not the endpoint's own; or, from the tunnel, it belongs to a pod of this "
        "node.",
        _SPOOFED + " From the tunnel: two nodes hold the same pod address; see `samewire doctor`.",
    ),
    Reason.SPOOFED_ARP: Explanation("An ARP or ND message speaks for an address of somebody else.", _SPOOFED),
    Reason.MULTICAST: Explanation(
        "Multicast and broadcast are not carried on this network.",
        "Use unicast discovery (DNS); mDNS, VRRP and DHCP do not work between pods. Router solicitations and MLD "
        "of an IPv6 stack count here too and do no harm.",
    ),
    Reason.BLOCKED: Explanation(
        "An ACL rule says Block, or the endpoint has rules and none of them allows this.",
        "See the rules with `samewire get layers POD`; none named means none matched: add an Allow rule, for the "
        "direction that the layer names. At `guard` it is VXLAN that a pod has made itself: it would speak for any "
        "other.",
    ),
    Reason.NO_ROUTE: Explanation(
        'No route of this network leads to the destination; a pod that begins there is told "network unreachable". '
        "Or it is the broadcast address of the node's link (`blackhole`), to which no NAT or Overlay network leads.",
        "Is the destination's subnet missing? Compare `samewire get layers POD` (ROUTE) with the RemoteSubnetRoute "
        "policies of `samewire get networks -o json`; Internal and Private networks have no way out at all, "
        "and the others none to the world while the node has no default route (`samewire doctor`). From the node "
        "itself: overlay networks need the HostRoute policy.",
    ),
    Reason.NO_ENDPOINT: Explanation(
        "The destination is an address of this network that no endpoint has. At `flow`: a pod answers on a "
        "connection whose port mapping has been removed or changed.",
        "The pod is gone, or was never attached: `samewire get endpoints ADDRESS`. On another node, that node "
        "should have no route for it; on this one, clients hold an old address.",
    ),
    Reason.NO_NEXTHOP: Explanation(
        "The route names a next hop that does not exist.",
        "The tables do not fit together: `samewire diff` shows what is missing, and the daemon repairs it at its "
        "next audit.",
    ),
    Reason.TTL: Explanation(
        "The packet's time to live has ended; the sender is told (time exceeded).",
        "Expected for traceroute. Otherwise look for a routing loop: trace the same destination on the next"
        " node.",
    ),
    Reason.TOO_BIG: Explanation(
        "The packet is longer than the way can carry; the sender is told the MTU (fragmentation needed, packet too "
        "big).",
        "Expected once in a while: path MTU discovery. If connections hang, the sender ignores the answer: is ICMP "
        "filtered inside the pod, or the pod's MTU higher than `samewire get layers POD` says of the route?",
    ),
    Reason.FLOW_TABLE_FULL: Explanation(
        "The flow table is full and nothing could be recycled; only new connections suffer.",
        "`samewire get flows` shows who holds them; raise `flow_entries` in the daemon's configuration.",
    ),
    Reason.NAT_EXHAUSTED: Explanation(
        "No port of the NAT pool is free towards this remote address and port, nor held by what has ended or was "
        "answered some seconds ago.",
        "One pod opens very many connections to one service: `samewire get flows --endpoint POD`. Reuse "
        "connections, widen `nat_ports`, or give the endpoint an OutBoundNAT with a VirtualIP of its own.",
    ),
    Reason.NAT_PROTOCOL: Explanation(
        "The packet would need NAT, and its protocol has no ports or identifier to tell connections apart "
        "by.",
        "Only one endpoint at a time can talk this protocol to that remote address; add the destination to the "
        "OutBoundNAT's Exceptions if it can answer pod addresses.",
    ),
    Reason.FRAGMENT_UNKNOWN: Explanation(
        "A later fragment whose first one has not been seen; without ports there is no verdict for it.",
        "The sender repeats the datagram. Many of these: fragments arrive out of order from upstream, or the first "
        "ones are dropped (look at the other counts); lower the sender's MTU.",
    ),
    Reason.RATE: Explanation(
        "The endpoint sends more than its bandwidth cap.",
        "Expected with a cap. `samewire get layers POD` (QOS) shows it; change the QOS policy or the pod's "
        "bandwidth annotation.",
    ),
    Reason.UNKNOWN_VNI: Explanation(
        "A VXLAN frame with a VNI that no network of this node has.",
        "Compare the VSID (IsolationId) of the network on both nodes: `samewire get networks`.",
    ),
    Reason.UNKNOWN_PORT: Explanation(
        "The device is no port of the switch (any more).",
        "Normal for an instant while a pod is removed. Otherwise `samewire diff`, and is a veth of a "
        "deleted pod left?",
    ),
    Reason.PORT_BLOCKED: Explanation(
        "The port is blocked: nothing passes, in neither direction.",
        "`samewire doctor` lists blocked ports and `samewire diff` says whether that is wanted. Modifying the "
        "endpoint, or making it anew, writes its port again.",
    ),
    Reason.ICMP_UNRELATED: Explanation(
        "An ICMP error about a connection that does not exist here.",
        "The connection has ended or aged out; nothing to do unless it is many (somebody forges errors).",
    ),
    Reason.MARTIAN: Explanation(
        "Source and destination are the same, the destination is a loopback or unspecified address, or the packet "
        "comes from the wrong side of a translated connection: nobody who may sends it, but for a client in the middle "
        "of a connection to a backend whose port it has come to use for the service as well.",
        "The program uses an address that means nothing outside of its own namespace (127.0.0.1, 0.0.0.0, "
        "its own).",
    ),
    Reason.INTERNAL: Explanation(
        "The switch itself failed: a kernel helper returned an error or a program is missing.",
        "Please report it with `samewire doctor --json` and the kernel's version. Restarting the daemon reloads "
        "the programs and keeps all connections.",
    ),
    Reason.NO_BACKEND: Explanation(
        "A service that has no endpoint for this client; where kube-proxy would reject, the client is told "
        "at once.",
        "`samewire get services` shows its endpoints. Are its pods ready, and does the selector match their"
        " labels? With traffic policy Local only this node's pods count.",
    ),
    Reason.SOURCE_RANGE: Explanation(
        "The client is in none of the service's loadBalancerSourceRanges.",
        "Add its address to `loadBalancerSourceRanges`; a router in between that hides clients behind its "
        "own address is what the node sees.",
    ),
    Reason.BACKEND_GONE: Explanation(
        "The connection's backend has been removed from its service; whoever speaks on it is told by a "
        "reset.",
        "Expected in a rollout, for connections that outlive their pod's termination. Let pods finish their"
        " connections before they end (preStop, terminationGracePeriodSeconds).",
    ),
    Reason.NO_SOURCE: Explanation(
        "The service's backend is on another node and could not answer this client; the node has no address"
        " of its own in the backend's network to stand in for it.",
        "Give the load balancer a SourceVIP in the pod network of this node: `samewire get services -o "
        "wide`.",
    ),
    Reason.OTHER_VLAN: Explanation(
        "A frame with the tag of a VLAN that is neither a network's nor a device's of this node.",
        "Expected where the uplink's switch port carries more VLANs than this node needs. Otherwise compare "
        "the network's VLAN policy with that port: `samewire get networks -o wide`.",
    ),
}


def explain(reason: int) -> Explanation:
    """The explanation of a reason's number, also of one that this version does not know."""
    if reason not in Reason._value2member_map_:
        text = f"Reason {reason} is unknown to this version of the tools."
        return Explanation(text, "Use the tools of the daemon's version.")
    return REASONS[Reason(reason)]
