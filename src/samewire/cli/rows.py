"""Which columns each kind of object has, and how their cells are made from its JSON. Pure."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from samewire.errors import Conflict, NotFound
from samewire.vfp.rule_names import rule_in, rule_text

Json = Mapping[str, Any]

_PROTOCOLS: Final = {6: "tcp", 17: "udp", 132: "sctp"}
_STATES: Final = ("uninitialized", "created", "attached", "attached", "detached", "degraded", "destroyed")
_DRAINING: Final = 2  # of the flags of a load balancer's backend


class Column(NamedTuple):
    """A column; ``wide`` ones are shown with ``-o wide`` only."""

    header: str
    cell: Callable[[Json], str]
    wide: bool = False


class View(NamedTuple):
    """The columns of a kind; ``items`` are the rows of a single answer that is no list."""

    columns: tuple[Column, ...]
    items: Callable[[Any], Sequence[Json]] = lambda value: [value]


def pick(what: str, values: list[dict[str, Any]], name: str, *fields: str) -> Any:
    """All of ``values``, or the one whose ID or name (or one of ``fields``) is ``name``.

    Raises NotFound, Conflict.
    """
    if not name:
        return values
    for field in ("ID", "Name", *fields):
        found = [value for value in values if str(value.get(field, "")).lower() == name.lower()]
        if len(found) > 1:
            raise Conflict(f"{len(found)} of them are called {name}: {', '.join(v['ID'] for v in found)}")
        if found:
            return found[0]
    raise NotFound(what, name)


def endpoints_view(infos: Mapping[str, Json]) -> View:
    """Endpoints, with what the switch knows of them (by ID)."""

    def info(field: str) -> Callable[[Json], str]:
        return lambda value: str(infos.get(value["ID"], {}).get(field) or "")

    return View(
        (
            Column("NAME", lambda value: value.get("Name") or value["ID"]),
            Column("ADDRESSES", lambda value: _join(_addresses(value))),
            Column("NETWORK", info("network")),
            Column("STATE", _endpoint_state),
            Column("PORT", info("host_interface")),
            Column("POLICIES", _policies),
            Column("MAC", _field("MacAddress"), wide=True),
            Column("NETNS", info("netns_path"), wide=True),
            Column("INTERFACE", _field("InterfaceName"), wide=True),
            Column("CONTAINER", _field("ContainerId"), wide=True),
            Column("ID", _field("ID"), wide=True),
        )
    )


def namespaces_view(labels: Mapping[str, str]) -> View:
    """Namespaces, with the names of their endpoints (by ID)."""

    def members(value: Json) -> str:
        ids = [item["Data"]["Id"] for item in value.get("Resources", ()) if item["Type"] == "Endpoint"]
        return _join(labels.get(number, number) for number in ids)

    return View(
        (
            Column("ID", _field("ID")),
            Column("NETNS", _field("NetnsPath")),
            Column("ENDPOINTS", members),
            Column("NUMBER", _field("NamespaceId"), wide=True),
            Column("TYPE", _field("Type"), wide=True),
            Column("OWNER", _field("Owner"), wide=True),
        )
    )


def routes_view(networks: Mapping[str, str]) -> View:
    """Routes, with the names of their networks (by ID)."""
    return View(
        (
            Column("ID", _field("ID")),
            Column("NETWORK", lambda value: networks.get(value.get("HostComputeNetwork", ""), "")),
            Column("DESTINATIONS", lambda value: _join(r["DestinationPrefix"] for r in value["Routes"])),
            Column("ENDPOINTS", lambda value: str(len(value.get("HostComputeEndpoints", ())) or "all")),
            Column(
                "NEXT HOPS", lambda value: _join(r.get("NextHop", "") for r in value["Routes"]), wide=True
            ),
            Column("NAME", _field("Name"), wide=True),
        )
    )


def load_balancers_view(networks: Mapping[str, str]) -> View:
    """Load balancers, with the names of their networks (by ID)."""
    return View(
        (
            Column("NAME", lambda value: value.get("ServiceName") or value.get("Name") or value["ID"]),
            Column("VIPS", lambda value: _join(value.get("FrontendVIPs", ())) or "node port"),
            Column("PORTS", lambda value: _join(_mapping(item) for item in value["PortMappings"])),
            Column("BACKENDS", _backend_count),
            Column("NETWORK", lambda value: networks.get(value.get("HostComputeNetwork", ""), "")),
            Column("OWNER", _field("Owner")),
            Column("FLAGS", _field("Flags"), wide=True),
            Column("SOURCE VIP", _field("SourceVIP"), wide=True),
            Column("AFFINITY", _field("AffinityTimeout"), wide=True),
            Column("RANGES", lambda value: _join(value.get("SourceRanges", ())), wide=True),
            Column("ID", _field("ID"), wide=True),
        )
    )


def _mapping(item: Json) -> str:
    protocol = _PROTOCOLS.get(item["Protocol"], str(item["Protocol"]))
    internal = item.get("InternalPort", 0)
    return f"{item['ExternalPort']}{f'>{internal}' if internal else ''}/{protocol}"


def _backend_count(value: Json) -> str:
    draining = len(value.get("DrainingEndpoints", ()))
    draining += sum(bool(one.get("Flags", 0) & _DRAINING) for one in value.get("Backends", ()))
    active = len(value.get("HostComputeEndpoints", ())) + len(value.get("Backends", ())) - draining
    return f"{active}, {draining} draining" if draining else str(active)


def drop_line(event: Json, wide: bool) -> str:
    """One dropped packet on a line, with the local time."""
    from samewire.trace.model import TupleView
    from samewire.trace.summary import ends_text

    ago_s = (time.clock_gettime_ns(time.CLOCK_MONOTONIC) - event["time_ns"]) / 1e9
    at = time.strftime("%H:%M:%S", time.localtime(time.time() - ago_s))
    drop = event["drop"]
    who = drop["endpoint"] or drop["interface"] or f"port {drop['port']}"
    rule = f" rule {rule_in(drop['layer'], drop['rule'])}" if drop["rule"] else ""
    line = f"{at}  {who}  {drop['layer']}: {drop['reason']}{rule}  {ends_text(TupleView(**event['ends']))}"
    return f"{line}  {drop['explanation']}" if wide else line


def _field(name: str) -> Callable[[Json], str]:
    return lambda value: str(value.get(name, "") or "")


def _join(texts: Iterable[str]) -> str:
    return ",".join(text for text in texts if text)


def _addresses(value: Json) -> list[str]:
    return [item.get("IpAddress", "") for item in value.get("IpConfigurations", ())]


def _endpoint_state(value: Json) -> str:
    if value.get("Flags", 0) & 1:
        return "remote"
    state = value.get("State", 0)
    return _STATES[state] if 0 <= state < len(_STATES) else str(state)


def _policies(value: Json) -> str:
    types = [policy["Type"] for policy in value.get("Policies", ())]
    counts = {name: types.count(name) for name in types}
    return _join(f"{name}×{count}" if count > 1 else name for name, count in counts.items())


def _subnets(network: Json) -> list[Json]:
    return [subnet for ipam in network.get("Ipams", ()) for subnet in ipam.get("Subnets", ())]


def _isolation(network: Json, kind: str) -> str:
    numbers = {
        policy["Settings"]["IsolationId"]
        for value in (network, *_subnets(network))
        for policy in value.get("Policies", ())
        if policy["Type"] == kind
    }
    return _join(map(str, sorted(numbers)))


def _remote_subnets(network: Json) -> str:
    return _join(
        f"{policy['Settings']['DestinationPrefix']}@{policy['Settings']['ProviderAddress']}"
        for policy in network.get("Policies", ())
        if policy["Type"] == "RemoteSubnetRoute"
    )


def _gateways(network: Json) -> str:
    return _join(
        route.get("NextHop", "")
        for subnet in _subnets(network)
        for route in subnet.get("Routes", ())
        if route.get("DestinationPrefix") in ("0.0.0.0/0", "::/0")
    )


NETWORKS: Final = View(
    (
        Column("NAME", _field("Name")),
        Column("TYPE", _field("Type")),
        Column("SUBNETS", lambda value: _join(s.get("IpAddressPrefix", "") for s in _subnets(value))),
        Column("VNI", lambda value: _isolation(value, "VSID")),
        Column("VLAN", lambda value: _isolation(value, "VLAN"), wide=True),
        Column("GATEWAYS", _gateways, wide=True),
        Column("REMOTE SUBNETS", _remote_subnets, wide=True),
        Column("POLICIES", _policies, wide=True),
        Column("ID", _field("ID"), wide=True),
    )
)


def _end(address: str, port: int) -> str:
    if not port:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _source(ends: Json) -> str:
    return _end(ends["source"], ends["source_port"])


def _destination(ends: Json) -> str:
    return _end(ends["destination"], ends["destination_port"])


def _sent(flow: Json, what: str) -> str:
    """What both ends have sent: initiator / target."""
    counts = [flow[end].get(what) for end in ("initiator", "target")]
    return "-" if counts == [None, None] else "/".join("-" if n is None else str(n) for n in counts)


def not_counted(flows: list[Json]) -> str:
    """How to have flows counted, where they are not; else ""."""
    if not flows or any(
        flow[end].get("packets") is not None for flow in flows for end in ("initiator", "target")
    ):
        return ""
    return "packets and bytes are not counted: set flow_counters = true in the daemon's configuration, and restart it"


def _translated(flow: Json) -> str:
    after = flow["translated"]
    return f"{_source(after)} > {_destination(after)}" if after else ""


PORTS: Final = View(
    (
        Column("PORT", lambda port: str(port["id"])),
        Column("INTERFACE", _field("interface")),
        Column("KIND", _field("kind")),
        Column("ENDPOINT", lambda port: (port["endpoint"] or {}).get("name", "")),
        Column("ADDRESSES", lambda port: _join(port["addresses"])),
        Column("FLAGS", lambda port: _join(port["flags"])),
        Column("SCOPE", lambda port: str(port["scope"]), wide=True),
        Column("GENERATION", lambda port: str(port["generation"]), wide=True),
        Column("MAC", _field("mac"), wide=True),
        Column("ENDPOINT ID", lambda port: (port["endpoint"] or {}).get("id", ""), wide=True),
    )
)


def _rules(port: Json) -> list[Json]:
    """A port's rules, one row each; layers and groups without rules keep their place."""
    rows: list[Json] = []
    for layer in port["layers"]:
        groups: list[Json] = layer["groups"] or [{}]
        for group in groups:
            rules: list[Json] = group.get("rules") or [{}]
            rows += [
                {
                    "layer": layer["name"],
                    "group": group.get("name", ""),
                    "matcher": group.get("matcher", ""),
                    "rule": rule,
                }
                for rule in rules
            ]
    return rows


def _rule(name: str) -> Callable[[Json], str]:
    return lambda row: str(row["rule"].get(name, "") or "")


def _judged(row: Json) -> str:
    """0 is a count, too."""
    count = row["rule"].get("judged")
    return "" if count is None else str(count)


LAYERS: Final = View(
    (
        Column("LAYER", _field("layer")),
        Column("GROUP", _field("group")),
        Column("RULE", lambda row: _rule("name")(row) or _rule("id")(row)),
        Column("CONDITIONS", lambda row: ", ".join(row["rule"].get("conditions", ()))),
        Column("ACTION", _rule("action")),
        Column("JUDGED", _judged),
        Column("OBJECT", _rule("object"), wide=True),
        Column("POLICY", _rule("policy"), wide=True),
        Column("MATCHER", _field("matcher"), wide=True),
        Column("PRIORITY", _rule("priority"), wide=True),
    ),
    _rules,
)

FLOWS: Final = View(
    (
        Column("PROTOCOL", lambda flow: flow["ends"]["protocol"]),
        Column("SOURCE", lambda flow: _source(flow["ends"])),
        Column("DESTINATION", lambda flow: _destination(flow["ends"])),
        Column("TRANSLATED", _translated),
        Column("FROM", lambda flow: flow["initiator"]["name"]),
        Column("TO", lambda flow: flow["target"]["name"]),
        Column("STATE", _field("state")),
        Column("IDLE", lambda flow: f"{flow['idle_s']:.0f}s"),
        Column("PACKETS", lambda flow: _sent(flow, "packets"), wide=True),
        Column("BYTES", lambda flow: _sent(flow, "bytes"), wide=True),
        Column("RULES", lambda flow: "/".join(map(rule_text, flow["rules"])), wide=True),
        Column("SCOPE", lambda flow: str(flow["scope"]), wide=True),
        Column("ARRIVAL", _field("arrival"), wide=True),
        Column("ENTRIES", lambda flow: str(flow["entries"]), wide=True),
    )
)

DROPS: Final = View(
    (
        Column("PACKETS", lambda drop: str(drop["packets"])),
        Column("PORT", lambda drop: drop["interface"] or str(drop["port"])),
        Column("ENDPOINT", _field("endpoint")),
        Column("LAYER", _field("layer")),
        Column("REASON", _field("reason")),
        Column("RULE", lambda drop: rule_in(drop["layer"], drop["rule"])),
        Column("ARRIVAL", _field("arrival")),
        Column("EXPLANATION", _field("explanation"), wide=True),
    )
)
