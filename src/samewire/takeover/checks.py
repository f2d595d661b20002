"""What stands in the way of a takeover, and of removing what it replaced. Pure."""

from __future__ import annotations

from typing import Final

from samewire.counted import counted
from samewire.errors import Conflict, NotFound, Unsupported
from samewire.takeover.model import Found, Journal, Node, OldConf, Places, Tunnel

FLANNELD: Final = "flanneld"
"""With the backend host-gw it goes on: it writes the node's routes to the others, which are needed as before."""
_AGENTS: Final = ("cilium-cni", "calico", "antrea")
"""Plugins that programme the ports of the network that they are chained to."""


def check_takeover(found: Found, journal: Journal | None, node: Node, places: Places) -> None:
    """Refuse what cannot be taken over. Raises NotFound, Unsupported, Conflict."""
    if found.conf is None:
        raise NotFound(
            "CNI configuration of flannel's in", places.conf_dir, "--cni-conf-dir names another place"
        )
    if not found.subnets:
        raise NotFound("FLANNEL_SUBNET in", places.subnet_file, "--subnet-file names another file")
    _check_foreign(found, found.conf)
    tunnels = found.tunnels or (journal.found.tunnels if journal else ())
    if found.backend:
        raise Unsupported(
            f"flannel with {found.backend}", "its backend to be host-gw, or vxlan without DirectRouting"
        )
    if not tunnels and not found.is_routed:
        raise Unsupported(
            "a flannel without a flannel.N device and without routes to other nodes' pods",
            "its backend to be vxlan or host-gw",
        )
    if len({(tunnel.vni, tunnel.port) for tunnel in tunnels}) > 1:
        names = ", ".join(f"{one.name} (VNI {one.vni}, UDP {one.port})" for one in tunnels)
        raise Unsupported(f"flannel devices that differ: {names}", "one VNI and one UDP port")
    if len(found.nics) > 1:
        raise Unsupported(
            f"other nodes behind several NICs ({', '.join(found.nics)})", "one NIC for all of the node's pods"
        )
    wanted = _settings(found, tunnels[0] if tunnels else None, node)
    if wanted:
        raise Conflict(f"set in {node.config}, and restart samewire:\n" + "\n".join(wanted))


def _check_foreign(found: Found, conf: OldConf) -> None:
    if found.ahead:
        raise Conflict(
            f"{', '.join(found.ahead)} come before {conf.path}, and runtimes take the first: flannel's is not what "
            "they use here, or another plugin calls it; remove what is stale, or give it a later name"
        )
    if conf.delegate != "bridge":
        raise Unsupported(
            f"flannel with the plugin {conf.delegate} ({conf.path})", "its delegate to be bridge"
        )
    chained = [str(plugin["type"]) for plugin in conf.others if plugin["type"] in _AGENTS]
    if chained:
        raise Unsupported(
            f"a network policy agent chained to flannel ({', '.join(chained)} in {conf.path})",
            "plugins that do not programme the old network's ports",
        )


def _settings(found: Found, tunnel: Tunnel | None, node: Node) -> list[str]:
    """What the daemon's configuration lacks, as lines to be put there."""
    assert found.conf is not None
    lines = []
    if found.nics and node.uplink not in found.nics:
        lines.append(
            f'uplink = "{found.nics[0]}"  # flannel goes by it to the other nodes; now {node.uplink or "none"}. '
            "New pods will use no other NIC: what they need of the world has to be reached by it"
        )
    if tunnel is not None and tunnel.port != node.vxlan_port:
        lines.append(f"vxlan_port = {tunnel.port}  # {tunnel.name}'s UDP port; now {node.vxlan_port}")
    if _has_proxy(found) and not node.balances:
        lines.append(
            'kubeconfig = "/etc/samewire/kubeconfig"  # or in_cluster = true, and not proxy_mode = "off": '
            "kube-proxy's rules are here, and new pods would have no services"
        )
    if (node.reads or lines) and node.network != found.conf.name:
        lines.append(
            f'proxy_network = "{found.conf.name}"  # flannel\'s CNI network: node ports wait until it is here, '
            "and its other nodes' subnets are read"
        )
    return lines


def _has_proxy(found: Found) -> bool:
    """Whether kube-proxy's rules are here."""
    return any(chain.startswith("KUBE-") for rules in found.rules for chain in rules.chains) or any(
        table.name == "kube-proxy" for table in found.tables
    )


def _check_services(found: Found, node: Node) -> None:
    if _has_proxy(found) and not node.balances:
        raise Conflict(
            "kube-proxy's rules are here, and Samewire balances no services, so new pods would have none: set "
            f'kubeconfig or in_cluster (and not proxy_mode = "off") in {node.config} and restart samewire'
        )


def _check_readable(found: Found) -> None:
    tables = [f"{rules.tool} -t {rules.table}" for rules in found.rules if not rules.readable]
    if tables:
        raise Conflict(
            f"kube-proxy's or flannel's chains cannot be removed from {', '.join(tables)}: the tool cannot read the "
            "table for rules that nft wrote there; give those a table of their own first"
        )


def check_removal(found: Found, node: Node) -> None:
    """Refuse while something needs what would be removed. Raises Conflict."""
    guests = found.bridge.guests if found.bridge else ()
    if guests:
        raise Conflict(
            f"{counted(len(guests), 'pod')} still on {found.bridge.name if found.bridge else ''}: "
            f"{', '.join(map(str, guests))}; re-create them first (drain the node)"
        )
    writers = [one for one in found.processes if not (found.is_routed and one.partition(" ")[0] == FLANNELD)]
    if writers:
        raise Conflict(f"{' and '.join(writers)} would write it again: stop them on this node first")
    blockers = [f"{rules.tool} -t {rules.table} {text}" for rules in found.rules for text in rules.blockers]
    if blockers:
        raise Conflict(f"rules of others use kube-proxy's chains: {'; '.join(blockers)}; change them first")
    _check_readable(found)
    _check_services(found, node)
    if _has_proxy(found) and not node.serves_itself:
        raise Conflict(
            "without kube-proxy's rules the node's own processes would reach no services: set host_cgroup (usually "
            f'"/sys/fs/cgroup") in {node.config} and restart samewire'
        )
