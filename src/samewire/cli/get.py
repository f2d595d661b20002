"""``samewire get``: objects of the node, and the switch as it is now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final
from urllib.parse import urlencode

import click

from samewire.cli import rows, service_rows
from samewire.cli.options import KindOf
from samewire.cli.output import as_json, as_yaml, table

_KINDS: Final = (
    *("networks", "endpoints", "namespaces", "routes", "loadbalancers"),
    *("services", "ports", "layers", "flows", "drops"),
)
_OF_AN_ENDPOINT: Final = frozenset({"ports", "layers", "flows", "drops"})

Json = dict[str, Any]


@click.command()
@click.argument("kind", metavar="KIND", type=KindOf(*_KINDS))
@click.argument("name", required=False, default="")
@click.option(
    "-o",
    "--output",
    "form",
    type=click.Choice(["table", "wide", "json", "yaml"]),
    default="table",
    show_default=True,
)
@click.option(
    "--endpoint", metavar="POD", default="", help="Ports, layers, flows or drops of this endpoint only."
)
@click.option("--watch", is_flag=True, help="Drops: every dropped packet from now on, until interrupted.")
@click.pass_obj
def get(socket: str, kind: str, name: str, form: str, endpoint: str, watch: bool) -> None:
    """Show KIND, all of them or the one called NAME.

    \b
    networks, endpoints       HCN objects, as they are wanted
    namespaces, routes        the same
    loadbalancers             the same, made by services or through the API
    services                  of Kubernetes: addresses, backends, last change
    ports, layers             the switch: a port's layers, groups and rules
    flows                     connections that are open now
    drops                     what was dropped, where, by which rule, why

    NAME is an ID or a name; of a service, namespace/name or name. For endpoints, ports, layers, flows and drops it is
    anything that names an endpoint: its ID, namespace/pod, pod, an IP address, the container id, the host interface.
    Ports, layers and drops are also those of `uplink`, `tunnel` and `host`.
    """
    if endpoint and (name or kind not in _OF_AN_ENDPOINT):
        raise click.UsageError(f"--endpoint goes with {', '.join(sorted(_OF_AN_ENDPOINT))}, without NAME")
    if watch and kind != "drops":
        raise click.UsageError("--watch goes with drops")
    wanted = name or endpoint
    if kind == "layers" and not wanted:
        raise click.UsageError("layers of which port? name an endpoint, uplink, tunnel or host")
    if watch:
        _watch(socket, wanted, form)
        return
    found, view = _SOURCES[kind](_Client(socket), wanted)
    if kind == "flows" and form == "wide" and (hint := rows.not_counted(found)):
        click.echo(hint, err=True)
    _show(found, view, form)


class _Client:
    """What the sources ask for; imported late, because help does not need it."""

    def __init__(self, socket: str) -> None:
        from samewire.hcn.client import HnsClient

        self.hns = HnsClient(socket)

    def objects(self, kind: str) -> list[Json]:
        """All HCN objects of a kind."""
        from samewire.hcn.schema import Kind

        return self.hns.list(Kind(kind))

    def switch(self, what: str, endpoint: str = "") -> Any:
        """A view of the switch, of one endpoint where it is named."""
        return self.hns.get_json(_path(what, endpoint=endpoint))


def _path(what: str, **query: str) -> str:
    given = {key: value for key, value in query.items() if value}
    return f"/v2/switch/{what}{'?' + urlencode(given) if given else ''}"


def _networks(client: _Client, name: str) -> tuple[Any, rows.View]:
    return rows.pick("network", client.objects("networks"), name), rows.NETWORKS


def _endpoints(client: _Client, name: str) -> tuple[Any, rows.View]:
    infos = {info["id"]: info for info in client.switch("endpoints", name)}
    found = [value for value in client.objects("endpoints") if value["ID"] in infos]
    return (found[0] if name and found else found), rows.endpoints_view(infos)


def _namespaces(client: _Client, name: str) -> tuple[Any, rows.View]:
    labels = {info["id"]: info.get("name") or info["id"] for info in client.switch("endpoints")}
    found = rows.pick("namespace", client.objects("namespaces"), name, "NetnsPath")
    return found, rows.namespaces_view(labels)


def _routes(client: _Client, name: str) -> tuple[Any, rows.View]:
    networks = {value["ID"]: value.get("Name", "") for value in client.objects("networks")}
    return rows.pick("route", client.objects("routes"), name), rows.routes_view(networks)


def _load_balancers(client: _Client, name: str) -> tuple[Any, rows.View]:
    networks = {value["ID"]: value.get("Name", "") for value in client.objects("networks")}
    found = rows.pick("load balancer", client.objects("loadbalancers"), name, "ServiceName")
    return found, rows.load_balancers_view(networks)


def _services(client: _Client, name: str) -> tuple[Any, rows.View]:
    query = urlencode({"counts": "1", **({"name": name} if name else {})})
    for line in service_rows.not_followed(client.hns.get_json("/v2/health")):
        click.echo(line, err=True)
    return client.hns.get_json(f"/v2/services?{query}"), service_rows.SERVICES


def _ports(client: _Client, name: str) -> tuple[Any, rows.View]:
    return client.switch("ports", name), rows.PORTS


def _layers(client: _Client, name: str) -> tuple[Any, rows.View]:
    return client.switch("layers", name), rows.LAYERS


def _flows(client: _Client, name: str) -> tuple[Any, rows.View]:
    return client.switch("flows", name), rows.FLOWS


def _drops(client: _Client, name: str) -> tuple[Any, rows.View]:
    return client.switch("drops", name), rows.DROPS


_SOURCES: Final[dict[str, Callable[[_Client, str], tuple[Any, rows.View]]]] = {
    "networks": _networks,
    "endpoints": _endpoints,
    "namespaces": _namespaces,
    "routes": _routes,
    "loadbalancers": _load_balancers,
    "services": _services,
    "ports": _ports,
    "layers": _layers,
    "flows": _flows,
    "drops": _drops,
}


def _show(found: Any, view: rows.View, form: str) -> None:
    if form in ("json", "yaml"):
        click.echo(as_json(found) if form == "json" else as_yaml(found))
        return
    items: Sequence[rows.Json] = found if isinstance(found, list) else view.items(found)
    if not items:
        click.echo("none", err=True)
        return
    columns = [column for column in view.columns if form == "wide" or not column.wide]
    cells = ([column.cell(item) for column in columns] for item in items)
    click.echo(table([column.header for column in columns], cells))


def _watch(socket: str, endpoint: str, form: str) -> None:
    from samewire.cli.stream import json_lines

    try:
        for event in json_lines(socket, _path("drops", watch="1", endpoint=endpoint)):
            if form in ("json", "yaml"):
                click.echo(f"---\n{as_yaml(event)}" if form == "yaml" else as_json(event))
            else:
                click.echo(rows.drop_line(event, wide=form == "wide"))
    except KeyboardInterrupt:
        return
