"""``samewire hns``: the objects of HNS, in the manner of hnsdiag."""

from __future__ import annotations

from typing import Any, Final

import click

from samewire.cli.options import KindOf, json_option
from samewire.cli.output import as_json, table
from samewire.counted import counted
from samewire.errors import Conflict, NotFound

_KINDS: Final = ("networks", "endpoints", "namespaces", "loadbalancers", "routes")
_KINDS_ARE: Final = f"KIND is {', '.join(_KINDS)}."
_SINGULAR: Final = {kind: kind.removesuffix("s") for kind in _KINDS}

Json = dict[str, Any]


@click.group()
def hns() -> None:
    """HNS objects: list, get, delete. As hnsdiag does it; objects are found by ID or by name.

    KIND is networks, endpoints, namespaces, loadbalancers or routes, in the plural or the singular.
    """


@hns.command("list", epilog=_KINDS_ARE)
@click.argument("kind", metavar="[KIND]", type=KindOf(*_KINDS, "all"), default="all")
@click.option("-d", "--detail", is_flag=True, help="Whole objects instead of one line each.")
@json_option
@click.pass_obj
def list_(socket: str, kind: str, detail: bool, as_document: bool) -> None:
    """List the objects of KIND, or all."""
    found = {one: _objects(socket, one) for one in (_KINDS if kind == "all" else (kind,))}
    if as_document:
        click.echo(as_json(found if kind == "all" else found[kind]))
        return
    for one, objects in found.items():
        click.echo(f"{one} ({len(objects)})")
        if detail:
            click.echo("\n".join(as_json(value) for value in objects))
        elif objects:
            click.echo(_indented(table(["ID", "NAME", "WHAT"], [_line(one, value) for value in objects])))


@hns.command("get", epilog=_KINDS_ARE)
@click.argument("kind", metavar="KIND", type=KindOf(*_KINDS))
@click.argument("name")
@click.pass_obj
def get(socket: str, kind: str, name: str) -> None:
    """Print one object whole, as JSON."""
    click.echo(as_json(_find(socket, kind, name)))


@hns.command("delete", epilog=_KINDS_ARE)
@click.argument("kind", metavar="KIND", type=KindOf(*_KINDS))
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@json_option
@click.pass_obj
def delete(socket: str, kind: str, names: tuple[str, ...], as_document: bool) -> None:
    """Delete objects. All names are looked up before the first one is deleted."""
    from samewire.hcn.client import HnsClient
    from samewire.hcn.schema import Kind

    ids = list(dict.fromkeys(str(_find(socket, kind, name)["ID"]) for name in names))
    client = HnsClient(socket)
    for one in ids:
        client.delete(Kind(kind), one)
        if not as_document:
            click.echo(f"{_SINGULAR[kind]} {one} deleted")
    if as_document:
        click.echo(as_json({"deleted": ids}))


def _objects(socket: str, kind: str) -> list[Json]:
    from samewire.hcn.client import HnsClient
    from samewire.hcn.schema import Kind

    return HnsClient(socket).list(Kind(kind))


def _find(socket: str, kind: str, name: str) -> Json:
    """The object of that ID or name. Raises NotFound, Conflict (the name is not unique)."""
    wanted = name.strip("{}").lower()
    objects = _objects(socket, kind)
    for field in ("ID", "Name"):
        found = [value for value in objects if str(value.get(field, "")).lower() == wanted]
        if len(found) > 1:
            raise Conflict(f"{len(found)} {kind} are called {name}: {', '.join(v['ID'] for v in found)}")
        if found:
            return found[0]
    raise NotFound(_SINGULAR[kind], name)


def _line(kind: str, value: Json) -> tuple[str, str, str]:
    return value["ID"], str(value.get("Name") or ""), _WHAT[kind](value)


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


def _network(value: Json) -> str:
    subnets = [
        subnet.get("IpAddressPrefix", "")
        for ipam in value.get("Ipams") or ()
        for subnet in ipam.get("Subnets") or ()
    ]
    return " ".join([str(value.get("Type", "NAT")), *subnets])


def _endpoint(value: Json) -> str:
    addresses = [entry.get("IpAddress", "") for entry in value.get("IpConfigurations") or ()]
    remote = ["remote"] if int(value.get("Flags", 0)) & 1 else []
    return " ".join([*addresses, str(value.get("MacAddress", "")), *remote])


def _namespace(value: Json) -> str:
    members = [item["Data"].get("Id", "") for item in value.get("Resources") or ()]
    return " ".join([str(value.get("NamespaceId", "")), str(value.get("Type", "")), *members]).strip()


def _load_balancer(value: Json) -> str:
    vips = ",".join(value.get("FrontendVIPs") or ()) or "node ports"
    ports = " ".join(
        f"{mapping.get('Protocol')}:{mapping.get('ExternalPort')}->{mapping.get('InternalPort')}"
        for mapping in value.get("PortMappings") or ()
    )
    backends = len(value.get("HostComputeEndpoints") or ()) + len(value.get("Backends") or ())
    return f"{vips} {ports} ({counted(backends, 'backend')})"


def _route(value: Json) -> str:
    entries = value.get("Routes") or value.get("Setting") or ()
    return " ".join(str(entry.get("DestinationPrefix", "")) for entry in entries)


_WHAT: Final = {
    "networks": _network,
    "endpoints": _endpoint,
    "namespaces": _namespace,
    "loadbalancers": _load_balancer,
    "routes": _route,
}
