"""From what is there to the steps: of a takeover, of its way back, and of the removal of what it replaced. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import msgspec

from samewire.counted import counted
from samewire.errors import Conflict, NotFound
from samewire.takeover.checks import check_removal
from samewire.takeover.conflists import ASIDE, NAME, conflist, ranges
from samewire.takeover.iptables import masquerading, removal
from samewire.takeover.links import IPVS, PROTOCOL
from samewire.takeover.model import (
    AwaitServices,
    Bridge,
    Command,
    Copy,
    DropNetwork,
    Found,
    Journal,
    MakeNetwork,
    Node,
    OldRules,
    OldTable,
    Places,
    Remove,
    Rename,
    Setting,
    Step,
    Subnet,
    Write,
)

TUNNEL: Final = "swvxlan0"
_CLIENT: Final = "samewire-cni"


def takeover(found: Found, journal: Journal, node: Node, places: Places) -> tuple[list[Step], list[Step]]:
    """The steps of a takeover: those that bring new pods to Samewire, and then, with what is found after those, the
    rest. Raises nothing that `check_takeover` has let pass.
    """
    old = spared(found, journal, node)
    early = [*_client(node, places), *_conflists(found, old, places)]
    late = [*_old_pods(found, old), *_handover(found), _network(found, journal, node)]
    return early, [*late, AwaitServices("services are balanced by Samewire")] if node.balances else late


def undo(found: Found, journal: Journal | None, node: Node, places: Places) -> list[Step]:
    """The steps back. Raises NotFound when nothing was taken over, Conflict when there is no way back (now)."""
    if journal is None:
        raise NotFound("takeover in", places.journal)
    if journal.removed:
        raise Conflict(
            "what was there has been removed: deploy flannel and kube-proxy again, they bring theirs"
        )
    if node.pods:
        raise Conflict(
            f"pods of Samewire would lose their network: {', '.join(node.pods)}; drain the node first"
        )
    before = journal.found
    assert before.conf is not None
    steps: list[Step] = [
        Rename(f"put {Path(path).name} back", path, path.removesuffix(ASIDE)) for path in found.aside
    ]
    conf = before.conf
    if conf.text and conf.path not in found.in_force and conf.path + ASIDE not in found.aside:
        steps.append(Write(f"write {Path(conf.path).name} again", conf.path, conf.text))
    steps.append(Remove("remove Samewire's CNI configuration", f"{places.conf_dir}/{NAME}"))
    if node.running:
        steps.append(DropNetwork(f"remove the HNS network {before.conf.name}", before.conf.name))
    steps += network_back(before, found.devices, running=node.running)
    if before.bridge is not None and before.bridge.name in found.devices:
        steps += _bridge_as_it_was(found, before.bridge, before)
    return steps + _without(found.own_tables)


def network_back(before: Found, devices: Iterable[str], *, running: bool = True) -> list[Step]:
    """flannel's tunnel and the bridge's routes as they were, as far as these devices are there: a reboot takes them
    away, and flannel brings them again. ``running``: Samewire's tunnel is there.
    """
    present = set(devices)
    routes = [line for line in before.restore if present.intersection(line.split())]
    names = [tunnel.name for tunnel in before.tunnels if tunnel.name in present]
    if names:
        own = [f"link set {TUNNEL} down"] if running else []
        up = [f"link set {name} up" for name in names]
        return [_batch(f"give the UDP port back to {', '.join(names)}", [*own, *up, *routes])]
    return [_batch("give the bridge its routes back", routes)] if routes else []


def remove(found: Found, journal: Journal | None, node: Node, places: Places) -> list[Step]:
    """The steps that remove what was replaced. Raises NotFound before a takeover, Conflict while it is in use."""
    if journal is None:
        raise NotFound("takeover in", places.journal, "run `samewire takeover` first")
    check_removal(found, node)
    before = journal.found
    full = _with_before(found, before)
    steps: list[Step] = []
    if not journal.removed:
        text = conflist(full, ())
        steps.append(Write("give new pods the whole subnet", f"{places.conf_dir}/{NAME}", text))
        steps.append(_network(full, journal, node))
    devices = [*([found.bridge.name] if found.bridge else []), *(tunnel.name for tunnel in found.tunnels)]
    steps += [Command(f"remove {name}", ("ip", "link", "delete", name)) for name in devices]
    steps += [
        Command(
            f"remove {counted(len(rules.chains), 'chain')} and {counted(len(rules.rules), 'rule')} "
            f"from {rules.tool} {rules.table}",
            (f"{rules.tool}-restore", "--noflush", "-w"),
            removal(rules),
        )
        for rules in _going(full)
    ]
    tables = [one for one in found.tables if not (full.is_routed and one.name.startswith("flannel"))]
    steps += _without([*tables, *found.own_tables])
    steps += [
        Command(
            f"remove {counted(len(one.rules), 'rule')} of old pods from table {one.family} {one.table}",
            ("nft", "-f", "-"),
            "".join(f"delete rule {one.family} {one.table} {rule}\n" for rule in one.rules),
        )
        for one in found.pod_rules
    ]
    # Rules hold the sets, and the device says that there may be some: it goes last.
    steps += [Command(f"remove ipset {name}", ("ipset", "destroy", name)) for name in found.sets]
    steps += [Command(f"remove {IPVS}", ("ip", "link", "delete", IPVS))] if found.ipvs else []
    steps += [Remove(f"remove {Path(path).name}", path) for path in (*found.aside, *found.in_force)]
    if found.subnets and not full.is_routed:
        steps.append(Remove("remove flanneld's file", places.subnet_file))
    return steps


def _without(tables: Iterable[OldTable]) -> list[Step]:
    return [
        Command(f"remove table {one.family} {one.name}", ("nft", "delete", "table", one.family, one.name))
        for one in tables
    ]


def _going(found: Found) -> list[OldRules]:
    """The rules to be removed: flanneld's own stay where it goes on."""
    if not found.is_routed:
        return list(found.rules)
    kept = [
        msgspec.structs.replace(
            rules,
            chains=tuple(chain for chain in rules.chains if not chain.startswith("FLANNEL")),
            rules=tuple(text for text in rules.rules if "FLANNEL" not in text and "flanneld" not in text),
        )
        for rules in found.rules
    ]
    return [rules for rules in kept if rules.chains or rules.rules]


def spared(found: Found, journal: Journal, node: Node) -> tuple[str, ...]:
    """The addresses of the old pods; of a pod whose namespace has no name they may be any that was leased then."""
    guests = found.bridge.guests if found.bridge else ()
    known = {address for guest in guests for address in guest.addresses}
    if any(not guest.addresses for guest in guests):
        known.update(found.leases.keys() & journal.found.leases.keys())
    return tuple(sorted(known - set(node.pods), key=lambda text: (":" in text, ipaddress.ip_address(text))))


def network_object(found: Found, spared: Iterable[str], port: int) -> dict[str, Any]:
    """The HNS network in flannel's place."""
    assert found.conf is not None
    policies = _hop_policies(found) if found.is_routed else _tunnel_policies(found, port)
    policies += [
        {"Type": "SDNRoute", "Settings": {"DestinationPrefix": _host(address), "NeedEncap": True}}
        for address in spared
    ]
    return {
        "SchemaVersion": {"Major": 2, "Minor": 0},
        "Name": found.conf.name,
        "Type": "L2Bridge" if found.is_routed else "Overlay",
        "Ipams": [{"Type": "Static", "Subnets": [_subnet(subnet, found) for subnet in found.subnets]}],
        "Policies": policies,
    }


def _tunnel_policies(found: Found, port: int) -> list[dict[str, Any]]:
    remotes = [
        {
            "Type": "RemoteSubnetRoute",
            "Settings": {
                "DestinationPrefix": remote.prefix,
                "IsolationId": found.tunnels[0].vni,
                "ProviderAddress": remote.provider,
                "DistributedRouterMacAddress": remote.mac.upper().replace(":", "-"),
            },
        }
        for remote in found.remotes
    ]
    return [
        {"Type": "HostRoute", "Settings": {}},
        {"Type": "VxlanPort", "Settings": {"Port": port}},
        *remotes,
    ]


def _hop_policies(found: Found) -> list[dict[str, Any]]:
    return [
        {"Type": "SDNRoute", "Settings": {"DestinationPrefix": hop.prefix, "NextHop": hop.via}}
        for hop in found.hops
    ]


def journal_of(found: Found, journal: Journal | None) -> Journal:
    """What to write down before the first step. As long as flannel's tunnel is up (with host-gw: as long as the bridge
    has the whole subnet), what is found now counts; but the settings are those of before the first run.
    """
    if journal is None or journal.removed:
        return Journal(found=found)
    if found.is_routed and found.bridge is not None and found.bridge.routes:
        return Journal(found=msgspec.structs.replace(journal.found, hops=found.hops))
    if not found.is_routed and not any(tunnel.up for tunnel in found.tunnels):
        return journal
    return Journal(found=msgspec.structs.replace(found, settings=journal.found.settings or found.settings))


def _client(node: Node, places: Places) -> list[Step]:
    target = f"{places.bin_dir}/{_CLIENT}"
    return [Copy(f"install {target}", node.client, target)] if node.client else []


def _conflists(found: Found, spared: Iterable[str], places: Places) -> list[Step]:
    conf = found.conf
    assert conf is not None
    steps: list[Step] = [
        Write(
            f"new pods of network {conf.name} go to Samewire",
            f"{places.conf_dir}/{NAME}",
            conflist(found, spared),
        )
    ]
    if conf.path + ASIDE not in found.aside:
        steps.append(Rename(f"put {Path(conf.path).name} aside", conf.path, conf.path + ASIDE))
    return steps


def _old_pods(found: Found, spared: tuple[str, ...]) -> list[Step]:
    """The node's way to each old pod by itself; the bridge answers old pods for the new ones."""
    bridge = found.bridge
    if bridge is None:
        return []
    steps: list[Step] = []
    for subnet in found.subnets:
        own = [address for address in spared if (6 if ":" in address else 4) == subnet.family]
        steps.append(_routes(bridge, subnet, own))
        if own and found.masquerades:
            title = (
                f"{counted(len(own), 'old pod')} of {subnet.prefix} can do without flanneld's masquerading"
            )
            steps.append(Command(title, ("nft", "-f", "-"), masquerading(subnet, own)))
        if subnet.family == 4:
            steps += _answering(bridge, "ipv4", "proxy_arp")
            continue
        steps += _answering(bridge, "ipv6", "proxy_ndp")
        window = [
            ipaddress.IPv6Address(number).compressed
            for span in ranges(subnet, own, window=True)
            for number in _numbers(span)
        ]
        lines = [f"neigh replace proxy {address} dev {bridge.name}" for address in window]
        steps.append(_batch(f"{bridge.name} answers old pods for {len(lines)} IPv6 addresses", lines, 6))
    return steps


def _routes(bridge: Bridge, subnet: Subnet, own: list[str]) -> Command:
    gateway = next((g.partition("/")[0] for g in bridge.gateways if (":" in g) == (":" in subnet.prefix)), "")
    source = f" src {gateway}" if gateway and subnet.family == 4 else ""
    device = bridge.name
    lines = [f"route replace {_host(a)} dev {device} proto {PROTOCOL}{source}" for a in own]
    gone = [text for text in bridge.routes if text not in own and (":" in text) == (subnet.family == 6)]
    lines += [f"route delete {_host(text)} dev {device} proto {PROTOCOL}" for text in gone]
    lines.append(f"route flush exact {subnet.prefix} dev {device} proto kernel")
    return _batch(
        f"{device} holds {counted(len(own), 'old pod')} of {subnet.prefix}, and no longer all of it",
        lines,
        subnet.family,
    )


def _answering(bridge: Bridge, family: str, key: str) -> list[Step]:
    return [
        Setting(
            f"{bridge.name} answers at once ({family})", f"net/{family}/neigh/{bridge.name}/proxy_delay", "0"
        ),
        Setting(
            f"{bridge.name} answers old pods for new ones ({key})",
            f"net/{family}/conf/{bridge.name}/{key}",
            "1",
        ),
    ]


def _handover(found: Found) -> list[Step]:
    """In one batch: the port is nobody's for less than a millisecond. flannel's addresses go to the bridge, for the
    node's connections that have them.
    """
    up = [tunnel for tunnel in found.tunnels if tunnel.up]
    if not up:
        return []
    lines = []
    if found.bridge is not None:
        lines = [
            f"address replace {address} dev {found.bridge.name}{' nodad' if ':' in address else ''}"
            for tunnel in up
            for address in tunnel.addresses
        ]
    lines += [f"link set {tunnel.name} down" for tunnel in up]
    lines.append(f"link set {TUNNEL} up")
    names = ", ".join(tunnel.name for tunnel in up)
    return [_batch(f"hand UDP port {up[0].port} over from {names} to {TUNNEL}", lines)]


def _network(found: Found, journal: Journal, node: Node) -> MakeNetwork:
    full, old = _with_before(found, journal.found), spared(found, journal, node)
    value = network_object(full, old, node.vxlan_port)
    subnets = counted(len(full.remotes or full.hops), "subnet")
    what = f"{subnets} of other nodes, {counted(len(old), 'address', 'addresses')} of old pods"
    kind = "routed" if full.is_routed else f"VNI {full.tunnels[0].vni}"
    # Once flannel's tunnel is down it learns nothing more: what the network has is at least as new.
    leave = () if any(tunnel.up for tunnel in found.tunnels) else ("RemoteSubnetRoute",)
    return MakeNetwork(f"HNS network {value['Name']}: {kind}, {what}", value, leave)


def _bridge_as_it_was(found: Found, bridge: Bridge, before: Found) -> list[Step]:
    steps: list[Step] = []
    for family in (4, 6):
        six = family == 6
        lines = [
            f"address flush dev {bridge.name} to {address}"
            for tunnel in before.tunnels
            for address in tunnel.addresses
            if (":" in address) == six
        ]
        lines += [f"route flush dev {bridge.name} proto {PROTOCOL}"]
        proxied = found.bridge.proxied if six and found.bridge else ()
        lines += [f"neigh delete proxy {address} dev {bridge.name}" for address in proxied]
        steps.append(_batch(f"{bridge.name} holds all IPv{family} pods again", lines, family))
    steps += [Setting(f"{path.rpartition('/')[2]} as it was", path, value) for path, value in before.settings]
    return steps


def _with_before(found: Found, before: Found) -> Found:
    """What is there now, and what only was there before the takeover."""
    return msgspec.structs.replace(
        found,
        subnets=found.subnets or before.subnets,
        mtu=found.mtu or before.mtu,
        tunnels=found.tunnels or before.tunnels,
        remotes=found.remotes or before.remotes,
        hops=found.hops or before.hops,
        conf=found.conf or before.conf,
    )


def _subnet(subnet: Subnet, found: Found) -> dict[str, Any]:
    gateway = ipaddress.ip_network(subnet.prefix)[1]
    default = "::/0" if subnet.family == 6 else "0.0.0.0/0"
    return {
        "IpAddressPrefix": subnet.prefix,
        "Routes": [{"NextHop": str(gateway), "DestinationPrefix": default}],
        "Policies": [
            {"Type": "VSID", "Settings": {"IsolationId": tunnel.vni}} for tunnel in found.tunnels[:1]
        ],
    }


def _numbers(span: dict[str, str]) -> range:
    return range(
        int(ipaddress.ip_address(span["rangeStart"])), int(ipaddress.ip_address(span["rangeEnd"])) + 1
    )


def _batch(title: str, lines: Iterable[str], family: int = 0) -> Command:
    option = (f"-{family}",) if family else ()
    return Command(title, ("ip", *option, "-batch", "-"), "".join(f"{line}\n" for line in lines))


def _host(address: str) -> str:
    return f"{address}/{128 if ':' in address else 32}"
