"""``samewire vfp``: the switch in the manner of vfpctrl, in text and in JSON."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any, Final
from urllib.parse import urlencode

import click

from samewire.cli.options import json_option
from samewire.cli.output import as_json
from samewire.cli.rows import not_counted
from samewire.cli.vfp_text import (
    blocks,
    fate_fields,
    flow_fields,
    layer_fields,
    port_fields,
    rule_fields,
    step_fields,
)
from samewire.cli.vfp_tuple import parse, process
from samewire.errors import Invalid, NotFound
from samewire.vfp.constants import Layer

Json = dict[str, Any]

_PORT: Final = "A port's number or interface, anything that names its endpoint, or uplink, tunnel, host"
_port_option = click.option("--port", required=True, metavar="PORT", help=f"{_PORT}.")


@click.group()
def vfp() -> None:
    """The switch: ports, layers, rules, flows, and what becomes of a tuple. As vfpctrl shows it.

    A tuple is "PROTOCOL SOURCE PORT DESTINATION PORT [DIRECTION [FLAGS]]": protocol tcp, udp, icmp or IP's number;
    direction 1 or out (default), 2 or in, as the port sees it; flag 1: TCP SYN (default), 0: a later packet.
    """


@vfp.command("list-ports")
@json_option
@click.pass_obj
def list_ports(socket: str, as_document: bool) -> None:
    """Every port, with the endpoint behind it."""
    found = _get(socket, "ports")
    _print(found, as_document, (blocks(port_fields(port)) for port in found))


@vfp.command("list-layers")
@_port_option
@json_option
@click.pass_obj
def list_layers(socket: str, port: str, as_document: bool) -> None:
    """The layers of a port, in the order of a walk."""
    layers = _layers(socket, port)["layers"]
    _print(layers, as_document, (blocks(layer_fields(layer)) for layer in layers))


@vfp.command("list-rules")
@click.option("--port", metavar="PORT", default="", help=f"{_PORT}; not needed with --object.")
@click.option("--layer", metavar="LAYER", default="", help="This layer's rules only.")
@click.option("--group", metavar="GROUP", default="", help="This group's rules only.")
@click.option("--object", "name", metavar="ID", default="", help="Rules that an HCN object has made only.")
@json_option
@click.pass_obj
def list_rules(socket: str, port: str, layer: str, group: str, name: str, as_document: bool) -> None:
    """The rules of a port. Their numbers are those that drops, flows and traces name.

    Those of an object without --port: of an endpoint at its own port, of a route that names endpoints at theirs; of
    others at one pod of each network, the uplink, the tunnel and the host.
    """
    if not (port or name):
        raise click.UsageError("--port or --object is needed")
    rules = []
    for one in [port] if port else _ports_of(socket, name):
        found = _layers(socket, one, name)
        there = list(_rules(found, layer, group))
        if (layer or group) and port and not there:
            _check_names(found, layer, group)
        rules += there if port else [{"port": one, **rule} for rule in there]
    if not (rules or port or layer or group):
        raise NotFound("rules of object", name, "--object takes an ID of `samewire hns list`")
    _print(rules, as_document, (blocks(rule_fields(rule)) for rule in rules))


@vfp.command("list-unified-flows")
@_port_option
@json_option
@click.pass_obj
def list_unified_flows(socket: str, port: str, as_document: bool) -> None:
    """The connections of a port that are open now."""
    flows = _get(socket, "flows", endpoint=_endpoint_of(socket, port))
    if not as_document and (hint := not_counted(flows)):
        click.echo(hint, err=True)
    _print(flows, as_document, (blocks(flow_fields(flow)) for flow in flows))


@vfp.command("get-flow-stats", short_help="The counters of the flow table.")
@json_option
@click.pass_obj
def get_flow_stats(socket: str, as_document: bool) -> None:
    """The counters of the flow table: connections there are, made, aged, judged anew."""
    found: Json = _get(socket, "flows", summary="1")
    fields = {name.replace("_", " ").capitalize(): value for name, value in found.items()}
    _print(found, as_document, [blocks(fields)])


@vfp.command("process-tuples")
@_port_option
@click.argument("tuples", nargs=-1, required=True, metavar="TUPLE...")
@json_option
@click.pass_obj
def process_tuples(socket: str, port: str, tuples: tuple[str, ...], as_document: bool) -> None:
    """What becomes of packets, layer by layer. Status 1 when one of them is dropped.

    They run through the very programs that carry packets, on their live tables, and change nothing.
    """
    answers = [_process(socket, port, text) for text in tuples]
    _print(answers, as_document, (blocks(fate_fields(answer)) for answer in answers))
    sys.exit(1 if any(answer["fate"] == "dropped" for answer in answers) else 0)


@vfp.command("match-tuple")
@_port_option
@click.option("--layer", metavar="LAYER", default="", help="What this layer does only.")
@click.argument("tuple_", metavar="TUPLE")
@json_option
@click.pass_obj
def match_tuple(socket: str, port: str, layer: str, tuple_: str, as_document: bool) -> None:
    """Which rule of a layer, or which flow, a packet meets. Status 1 when there is none."""
    if layer and not any(_is_layer(each.name, layer) for each in Layer):
        there = ", ".join(each.name for each in Layer)
        raise click.BadParameter(f"{layer!r} is none of {there}", param_hint="--layer")
    answer = _process(socket, port, tuple_)
    found = [step for step in answer["steps"] if not layer or _is_layer(step["layer"], layer)]
    _print(found, as_document, (blocks(step_fields(step)) for step in found))
    sys.exit(0 if found else 1)


def _get(socket: str, what: str, **query: str) -> Any:
    from samewire.hcn.client import HnsClient

    given = {key: value for key, value in query.items() if value}
    return HnsClient(socket).get_json(f"/v2/switch/{what}{'?' + urlencode(given) if given else ''}")


def _find_port(socket: str, name: str) -> Json:
    """A port by its number, its interface, its kind, or a name of its endpoint. Raises NotFound."""
    ports: list[Json] = _get(socket, "ports")
    for port in ports:
        if name in (str(port["id"]), port["interface"]) or (port["kind"] != "pod" and name == port["kind"]):
            return port
    found: list[Json] = _get(socket, "ports", endpoint=name)
    if not found:
        raise NotFound("port", name)
    return found[0]


def _process(socket: str, port: str, text: str) -> Json:
    """What becomes of a tuple of a port. Raises BadParameter, NotFound, Invalid."""
    from samewire.hcn.client import HnsClient

    wanted = parse(text)
    return process(HnsClient(socket), _find_port(socket, port), wanted)


def _endpoint_of(socket: str, name: str) -> str:
    """What the daemon calls a port in its queries. Raises NotFound, Invalid."""
    port = _find_port(socket, name)
    if not port.get("endpoint"):
        raise Invalid("--port", f"{name} has no endpoint; samewire get flows shows all flows")
    return str(port["endpoint"]["id"])


def _layers(socket: str, name: str, made_by: str = "") -> Json:
    port = _find_port(socket, name)
    query = port["endpoint"]["id"] if port.get("endpoint") else port["kind"]
    found: Json = _get(socket, "layers", endpoint=query, object=made_by)
    return found


def _ports_of(socket: str, made_by: str) -> list[str]:
    """The ports at which the rules of an object may be: its own or those of the endpoints that it names, else one of
    each sort, as they are alike.
    """
    from samewire.hcn.client import HnsClient

    ports: list[Json] = _get(socket, "ports")
    routes: list[Json] = HnsClient(socket).get_json("/v2/routes")
    named = {made_by.upper()}.union(
        *(route.get("HostComputeEndpoints", ()) for route in routes if route["ID"] == made_by.upper())
    )
    own: list[str] = []
    alike: dict[tuple[str, str], str] = {}
    for port in ports:
        endpoint = port.get("endpoint") or {}
        if endpoint.get("id", "") in named:
            own.append(str(port["id"]))
        alike.setdefault((port["kind"], endpoint.get("network", "")), str(port["id"]))
    return own or list(alike.values())


def _rules(port: Json, layer: str, group: str) -> Iterator[Json]:
    for one in port["layers"]:
        if layer and one["name"].lower() != layer.lower():
            continue
        for each in one["groups"]:
            if group and each["name"].lower() != group.lower():
                continue
            for rule in each["rules"]:
                yield {"layer": one["name"], "group": each["name"], **rule}


def _check_names(port: Json, layer: str, group: str) -> None:
    """Raises NotFound for a layer or group that the port has not."""
    layers = {one["name"].lower(): one for one in port["layers"]}
    if layer and layer.lower() not in layers:
        raise NotFound("layer", layer, f"there are {', '.join(one['name'] for one in port['layers'])}")
    groups = [each["name"] for one in port["layers"] for each in one["groups"]]
    if group and group.lower() not in (one.lower() for one in groups):
        raise NotFound("group", group, f"there are {', '.join(groups)}")


def _is_layer(name: str, wanted: str) -> bool:
    """Whether a step's layer (acl_out) is the one named (ACL, ACL_OUT)."""
    return name.lower() == wanted.lower() or name.lower().startswith(f"{wanted.lower()}_")


def _print(document: Any, as_document: bool, blocks: Iterable[str]) -> None:
    click.echo(as_json(document) if as_document else "\n\n".join(blocks))
