"""The node's own resolver settings, for networks with the AutomaticDNS policy."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Final

from samewire.hcn.schema import Dns

RESOLV_CONF: Final = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))
"""The second has the servers behind a stub on a loopback address, which a pod cannot reach."""


def node_dns(paths: tuple[Path, ...] = RESOLV_CONF) -> Dns:
    """Return the settings of the first file with a server that pods can reach, else none."""
    for path in paths:
        try:
            found = parse_resolv_conf(path.read_text(encoding="utf-8", errors="replace"))
        except OSError:
            continue
        if found.server_list:
            return found
    return Dns()


def parse_resolv_conf(text: str) -> Dns:
    """Return the settings of a resolv.conf, without servers on the node's loopback (resolv.conf(5))."""
    servers: list[str] = []
    search: tuple[str, ...] = ()
    domain = ""
    for line in text.splitlines():
        word, *rest = line.split("#")[0].split(";")[0].split() or [""]
        if word == "nameserver" and rest and _reachable(rest[0]):
            servers.append(rest[0])
        elif word == "search":
            search = tuple(rest)
        elif word == "domain" and rest:
            domain = rest[0]
    return Dns(server_list=tuple(servers), domain=domain, search=search)


def _reachable(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_unspecified or "%" in text)
