"""The tuples of ``samewire vfp``: from their text to the packet that the daemon traces."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from samewire.errors import Invalid

if TYPE_CHECKING:
    from samewire.hcn.client import HnsClient

_PROTOCOLS: Final = {"1": "icmp", "58": "icmp", "6": "tcp", "17": "udp", "132": "sctp"}
_SYN: Final = 1
_NO_DEVICE: Final = "02-00-00-00-00-02"  # the daemon says that there is none

Json = dict[str, Any]


class VfpTuple(NamedTuple):
    """A packet's ends; ``inbound``: it comes to the port, instead of from it; ``syn``: a TCP packet is a first one."""

    protocol: str
    source: str
    source_port: int
    destination: str
    destination_port: int
    inbound: bool
    syn: bool


def parse(text: str) -> VfpTuple:
    """A tuple as vfpctrl takes it. Raises BadParameter."""
    words = text.replace(",", " ").split()
    if not 5 <= len(words) <= 7:
        raise _wrong(f"{text!r}: want PROTOCOL SOURCE PORT DESTINATION PORT [DIRECTION [FLAGS]]")
    protocol = _PROTOCOLS.get(words[0], words[0].lower())
    if protocol not in _PROTOCOLS.values():
        raise _wrong(f"{words[0]!r} is none of tcp, udp, sctp, icmp, 1, 6, 17, 58, 132")
    direction = (words[5] if len(words) > 5 else "out").lower()
    if direction not in ("1", "2", "out", "in"):
        raise _wrong(f"direction {direction!r}: want 1 or out, 2 or in")
    flags = words[6] if len(words) > 6 else str(_SYN)
    if not flags.isdecimal():
        raise _wrong(f"flags {flags!r}: want 1 for a SYN, 0 for a later packet")
    ports = [_number(words[2]), _number(words[4])]
    source, destination = _addresses(words[1], words[3])
    return VfpTuple(
        protocol, source, ports[0], destination, ports[1], direction in ("2", "in"), bool(int(flags) & _SYN)
    )


def _addresses(*texts: str) -> tuple[str, ...]:
    """Addresses as the daemon writes them: who has FD00::05 is found as fd00::5."""
    try:
        found = [ipaddress.ip_address(text) for text in texts]
    except ValueError as error:
        raise _wrong(str(error)) from None
    if len({address.version for address in found}) > 1:
        raise _wrong(f"source {texts[0]} and destination {texts[1]} are not of one IP version")
    return tuple(map(str, found))


def _wrong(message: str) -> click.BadParameter:
    return click.BadParameter(message, param_hint="TUPLE")


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise _wrong(f"port {text!r}: want 0 to 65535")
    return int(text)


def process(client: HnsClient, own: Json, wanted: VfpTuple) -> Json:
    """The daemon's trace of a tuple that leaves or reaches a port of ``/v2/switch/ports``. Raises HcnError, Invalid."""
    sender = _owner(client, own, wanted.source) if wanted.inbound else own
    is_pod = sender is not None and sender.get("endpoint")
    body = (
        _from_pod(sender, wanted) if sender is not None and is_pod else _from_elsewhere(client, own, wanted)
    )
    answer: Json = client.post_json("/v2/switch/trace", body)
    return answer


def _owner(client: HnsClient, own: Json, address: str) -> Json | None:
    """The pod port that has an address, or None. Of tenants with the same addresses it is the port's own."""
    found = [port for port in client.get_json("/v2/switch/ports") if address in port["addresses"]]
    if own.get("endpoint"):
        found = [port for port in found if port["scope"] == own["scope"]]
    return found[0] if found else None


def _from_pod(sender: Json, wanted: VfpTuple) -> Json:
    if wanted.source not in sender["addresses"] and not wanted.inbound:
        owns = ", ".join(sender["addresses"])
        raise Invalid("tuple", f"source {wanted.source} is not the port's own ({owns})")
    body: Json = {"from": sender["endpoint"]["id"], "to": wanted.destination, "protocol": wanted.protocol}
    body["source_port"] = wanted.source_port
    if wanted.protocol != "icmp":
        body["port"] = wanted.destination_port
    return body


def _from_elsewhere(client: HnsClient, own: Json, wanted: VfpTuple) -> Json:
    """A frame of somebody who has no port here: it comes by the tunnel, from the node itself, or on the uplink."""
    way = _way(client, own, wanted)
    (config,) = (row["value"] for row in _rows(client, "sw_config"))
    mac = config[{"uplink": "uplink_mac", "tunnel": "tunnel_mac", "host": "host_peer_mac"}[way["arrival"]]]
    if way["arrival"] == "uplink" and (own.get("endpoint") or {}).get("network_type") == "Transparent":
        mac = own["mac"]
    return {**way, "frame": _frame(wanted, mac).hex()}


def _frame(wanted: VfpTuple, destination_mac: str) -> bytes:
    from samewire.trace.probe import ACK, PROTOCOLS, SYN, Probe, build
    from samewire.vfp.address import parse_address, parse_mac

    source = parse_address(wanted.source, "tuple source")
    return build(
        Probe(
            source_mac=bytes.fromhex("020000000001"),
            destination_mac=parse_mac(destination_mac or _NO_DEVICE),
            source=source,
            destination=parse_address(wanted.destination, "tuple destination"),
            protocol=PROTOCOLS[wanted.protocol][source.family],
            source_port=wanted.source_port,
            destination_port=wanted.destination_port,
            tcp_flags=SYN if wanted.syn else ACK,
        )
    )


def _way(client: HnsClient, own: Json, wanted: VfpTuple) -> Json:
    """How what a source sends to a port gets to this node: the way that an answer to it would take back."""
    if own["kind"] in ("uplink", "host"):
        return {"arrival": own["kind"]}
    hops = {row["key"]["value"]: row["value"] for row in _rows(client, "sw_nexthops")}
    found = _towards(client, own, wanted)
    hop = hops.get(found["nexthop"])
    if hop is not None and hop["kind"] == "tunnel":
        return {"arrival": "tunnel", "vni": hop["vni"], "tunnel_source": hop["address"]}
    if own["kind"] == "tunnel":
        raise Invalid(
            "tuple", f"source {wanted.source} is behind no other node of a network that has the destination"
        )
    if found.get("kind") == "host":
        return {"arrival": "host"}
    return {"arrival": "uplink", "vlan": own["vlan"]} if own["vlan"] else {"arrival": "uplink"}


def _towards(client: HnsClient, own: Json, wanted: VfpTuple) -> Json:
    """What the switch has for the source's address in the port's network: a remote endpoint, else a route.

    The tunnel's network is the one that has both ends.
    """
    routes, endpoints = _rows(client, "sw_routes"), _rows(client, "sw_endpoints")
    scopes = [own["scope"]] if own.get("endpoint") else sorted({row["key"]["scope"] for row in routes})
    for scope in scopes:
        here = _longest(routes, scope, wanted.destination).get("kind") == "local"
        for row in endpoints:
            if (row["key"]["scope"], row["key"]["address"]) == (scope, wanted.source) and (
                here or len(scopes) == 1
            ):
                return dict(row["value"])
        found = _longest(routes, scope, wanted.source)
        if len(scopes) == 1 or (here and found.get("kind") == "tunnel"):
            return found
    return {"nexthop": 0}


def _longest(routes: list[Json], scope: int, address: str) -> Json:
    """The longest route of a network that has an address."""
    one = ipaddress.ip_address(address)
    best: Json = {"nexthop": 0, "bits": -1}
    for row in routes:
        key, value = row["key"], row["value"]
        if (key["scope"], key["family"]) != (scope, one.version) or value["bits"] <= best["bits"]:
            continue
        first = key["address"] or ("0.0.0.0" if one.version == 4 else "::")
        if one in ipaddress.ip_network(f"{first}/{value['bits']}"):
            best = value
    return best


def _rows(client: HnsClient, table: str) -> list[Json]:
    found: list[Json] = client.get_json(f"/v2/switch/tables?name={table}")[table]
    return found
