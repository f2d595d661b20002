"""Reads what is there. Changes nothing, and loads no kernel module: of iptables' older half only tables that are there
are listed.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from samewire.errors import Invalid, KernelError, Unavailable
from samewire.takeover import links
from samewire.takeover.conflists import ASIDE, is_ours, masquerades, read_conf, read_subnets
from samewire.takeover.iptables import (
    incompatible,
    old_chains,
    old_rules,
    old_sets,
    old_tables,
    own_tables,
    pod_rules,
    shared_tables,
)
from samewire.takeover.model import Bridge, Found, OldConf, OldRules, Places, PodRules, Subnet
from samewire.takeover.system import has, processes, run, run_json

WRITERS: Final = ("flanneld", "kube-proxy")
"""The programs that keep the old network up."""

_ENDINGS: Final = (".conf", ".conflist", ".json")
_LEGACY_TABLES: Final = {"ip": "ip_tables_names", "ip6": "ip6_tables_names"}
_NAMED: Final = "/run/netns"
SYSCTL: Final = "/proc/sys"


def find(places: Places, before: OldConf | None = None) -> Found:
    """Return what is there. ``before``: flannel's configuration as it was, which names the bridge and the leases where
    its file has gone. Raises Invalid (a file that says something else), KernelError, Unavailable.
    """
    confs = _confs(Path(places.conf_dir))
    conf = confs.conf or before
    listing = _listing()
    subnets, mtu = _subnets(Path(places.subnet_file))
    held = leases(conf) if conf else {}
    bridge = links.bridge_of(listing, conf.bridge, subnets, held) if conf else None
    tunnels = links.tunnels(listing)
    tables = run(["nft", "-j", "list", "tables"])
    ipvs = any(link["ifname"] == links.IPVS for link in listing.links)
    return Found(
        subnets=subnets,
        mtu=mtu,
        masquerades=_masquerades(Path(places.subnet_file)),
        bridge=bridge,
        devices=links.devices(listing),
        tunnels=tunnels,
        remotes=links.remotes(listing, tunnels),
        hops=links.hops(listing, subnets),
        nics=links.nics(listing, subnets),
        conf=confs.conf,
        aside=confs.aside,
        in_force=confs.in_force,
        ahead=confs.ahead,
        backend=links.backend(listing, subnets),
        leases=held,
        rules=tuple(_rules(conf.name if conf else "")),
        tables=tuple(old_tables(tables)),
        own_tables=tuple(own_tables(tables)),
        pod_rules=_pod_rules(tables, subnets),
        ipvs=ipvs,
        sets=_sets() if ipvs else (),
        processes=tuple(processes(WRITERS)),
        restore=links.restoring(listing, tunnels, bridge),
        settings=_settings(bridge),
    )


class _Confs(Struct, frozen=True):
    """flannel's first configuration, seen by runtimes or put aside; the paths of all of either sort, and of those of
    others that come before.
    """

    conf: OldConf | None
    aside: tuple[str, ...]
    in_force: tuple[str, ...]
    ahead: tuple[str, ...]


def _confs(directory: Path) -> _Confs:
    found: OldConf | None = None
    aside, in_force, ahead = list[str](), list[str](), list[str]()
    for path in sorted(directory.iterdir()) if directory.is_dir() else ():
        put_aside = path.name.endswith(ASIDE)
        if path.is_dir() or not (put_aside or path.suffix in _ENDINGS):
            continue
        try:
            text = _read(path)
            if is_ours(text):
                continue
            conf = read_conf(str(path).removesuffix(ASIDE), text)
        except (Invalid, Unavailable):
            if found is None:
                raise
            # Runtimes do not come as far.
            continue
        if conf is not None:
            found = found or conf
            (aside if put_aside else in_force).append(str(path))
        elif found is None:
            ahead.append(str(path))
    return _Confs(found, tuple(aside), tuple(in_force), tuple(ahead))


def _subnets(path: Path) -> tuple[tuple[Subnet, ...], int]:
    return read_subnets(_read(path)) if path.exists() else ((), 0)


def _masquerades(path: Path) -> bool:
    return path.exists() and masquerades(_read(path))


def leases(conf: OldConf) -> dict[str, str]:
    """Containers by address, in the directory of host-local. Raises Unavailable."""
    directory = Path(conf.data_dir) / conf.name
    found = {}
    for path in sorted(directory.iterdir()) if directory.is_dir() else ():
        if _is_address(path.name):
            try:
                found[path.name] = _read(path).split("\n")[0].strip()
            except Unavailable:
                # Unless its pod has ended meanwhile.
                if path.exists():
                    raise
    return found


def _is_address(name: str) -> bool:
    """Not the counter's, the lock's, or a copy that somebody has made of one."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _listing() -> links.Listing:
    found = run_json("ip", "-d", "-j", "address")
    names = {item["id"]: item["name"] for item in run_json("ip", "-j", "netns", "list") if "id" in item}
    wanted = {link["link_netnsid"] for link in found if "master" in link and "link_netnsid" in link}
    return links.Listing(
        links=found,
        routes=[*run_json("ip", "-j", "-4", "route"), *run_json("ip", "-j", "-6", "route")],
        neighbours=run_json("ip", "-j", "neigh", "show", "nud", "all"),
        fdb=run_json("bridge", "-j", "fdb", "show"),
        proxies=run_json("ip", "-6", "-j", "neigh", "show", "proxy"),
        inside={
            number: (names[number], shown)
            for number in sorted(wanted)
            if number in names and (shown := _inside(names[number])) is not None
        },
    )


def _inside(name: str) -> list[dict[str, Any]] | None:
    """The addresses in a namespace; None when its pod has ended meanwhile."""
    try:
        return run_json("ip", "-n", name, "-j", "address")
    except KernelError:
        if os.path.exists(f"{_NAMED}/{name}"):
            raise
        return None


def _rules(network: str) -> list[OldRules]:
    found = []
    for family, start in (("ip", "iptables"), ("ip6", "ip6tables")):
        for kind in ("nft", "legacy"):
            tool = f"{start}-{kind}"
            if kind == "legacy" and not _legacy(family):
                continue
            if has(f"{tool}-save"):
                saved = run([f"{tool}-save"])
                found += old_rules(tool, saved, network)
                found += _unread(family, tool, incompatible(saved))
            elif kind == "legacy":
                raise Unavailable(f"{tool}-save", "there are legacy tables, and it is not installed")
            elif _old_chains(family):
                # kube-proxy's and flanneld's images bring their own
                raise Unavailable(f"{tool}-save", "there are chains of theirs, and it is not installed")
    return found


def _unread(family: str, tool: str, tables: list[str]) -> Iterator[OldRules]:
    """What is theirs in tables that the tool does not print."""
    chains = _old_chains(family) if tables else {}
    for table in tables:
        if table in chains:
            yield OldRules(tool=tool, table=table, chains=tuple(chains[table]), rules=(), readable=False)


def _old_chains(family: str) -> dict[str, list[str]]:
    return old_chains(run(["nft", "-j", "list", "chains", family]))


def _legacy(family: str) -> bool:
    """Whether there are legacy tables: to list one that is not there would load it."""
    try:
        return bool(Path(f"/proc/thread-self/net/{_LEGACY_TABLES[family]}").read_text(encoding="ascii"))
    except OSError:
        return False


def _pod_rules(tables: str, subnets: Iterable[Subnet]) -> tuple[PodRules, ...]:
    found = (
        pod_rules(table, run(["nft", "-j", "list", "table", table.family, table.name]), subnets)
        for table in shared_tables(tables)
    )
    return tuple(one for one in found if one.rules)


def _sets() -> tuple[str, ...]:
    return tuple(old_sets(run(["ipset", "list", "-name"]))) if has("ipset") else ()


def _settings(bridge: Bridge | None) -> tuple[tuple[str, str], ...]:
    """The bridge's settings that a takeover changes, as they are."""
    paths = [
        f"net/{family}/{place}/{bridge.name}/{key}"
        for family, place, key in (
            ("ipv4", "conf", "proxy_arp"),
            ("ipv4", "neigh", "proxy_delay"),
            ("ipv6", "conf", "proxy_ndp"),
            ("ipv6", "neigh", "proxy_delay"),
        )
        if bridge is not None
    ]
    return tuple(
        (path, _read(Path(SYSCTL) / path).strip()) for path in paths if os.path.exists(f"{SYSCTL}/{path}")
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Unavailable(str(path), f"cannot be read: {error}") from error
