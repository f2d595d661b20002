"""What there is on a node to take over, and the steps of doing so. Values only."""

from __future__ import annotations

from typing import TypeAlias

from msgspec import Struct


class Tunnel(Struct, frozen=True, kw_only=True):
    """A VXLAN device of flannel's. ``addresses`` with prefix length; ``port``: UDP."""

    name: str
    vni: int
    port: int
    up: bool
    addresses: tuple[str, ...] = ()


class Remote(Struct, frozen=True, order=True):
    """The pods of another node: their prefix, that node's address on the underlay, its VXLAN device's MAC."""

    prefix: str
    provider: str
    mac: str


class Guest(Struct, frozen=True, order=True):
    """A running pod of the old network: a port of the bridge.

    ``netns`` is the name of its network namespace, "" where it has none; ``container`` who leases its address.
    """

    port: str
    addresses: tuple[str, ...] = ()
    netns: str = ""
    container: str = ""

    def __str__(self) -> str:
        who = self.container or self.netns or "of an unknown namespace"
        return f"{self.port} ({' '.join((*self.addresses, who))})"


class Bridge(Struct, frozen=True, kw_only=True):
    """The old pods' bridge. ``gateways``: its addresses in the pods' subnets, with prefix length.

    ``routes`` to single pods that a takeover has made; ``proxied``: the IPv6 addresses that it answers for.
    """

    name: str
    gateways: tuple[str, ...]
    guests: tuple[Guest, ...] = ()
    routes: tuple[str, ...] = ()
    proxied: tuple[str, ...] = ()


class Subnet(Struct, frozen=True):
    """This node's pods of one family: their prefix, and that of all pods of the cluster."""

    prefix: str
    cluster: str

    @property
    def family(self) -> int:
        """4 or 6."""
        return 6 if ":" in self.prefix else 4


class Hop(Struct, frozen=True, order=True):
    """Another node's pods, by way of its own address: flannel's backend host-gw."""

    prefix: str
    via: str


class OldConf(Struct, frozen=True, kw_only=True):
    """A CNI configuration of flannel's. ``delegate``: the plugin that makes its pods' interfaces; ``mtu``: 0 for what
    flanneld says; ``others``: plugins that Samewire does not stand in for, which are run behind its own; ``text``: what
    the file says.
    """

    path: str
    name: str
    bridge: str
    data_dir: str
    version: str
    delegate: str = "bridge"
    mtu: int = 0
    dns: dict[str, object] = {}
    others: tuple[dict[str, object], ...] = ()
    text: str = ""


class OldRules(Struct, frozen=True, kw_only=True):
    """kube-proxy's and flannel's part of one iptables table.

    ``tool``: the prefix of the commands (``iptables-nft``). ``rules`` are theirs in chains of others, as iptables-save
    writes them; ``blockers`` are rules of others that use their chains. ``readable``: false where the tool does not
    print the table, because of rules in it that nft wrote.
    """

    tool: str
    table: str
    chains: tuple[str, ...]
    rules: tuple[str, ...]
    blockers: tuple[str, ...] = ()
    readable: bool = True


class OldTable(Struct, frozen=True, order=True):
    """A table of nftables that is kube-proxy's or flannel's own."""

    family: str
    name: str


class PodRules(Struct, frozen=True, order=True):
    """Rules of old pods in a table of nftables that a CNI plugin shares among networks: "CHAIN handle N"."""

    family: str
    table: str
    rules: tuple[str, ...]


class Found(Struct, frozen=True, kw_only=True):
    """What is there. ``leases``: containers by address, in the old network's directory. ``aside``: configurations that
    were put aside. ``processes`` that would write it all again: "NAME (process N)".
    """

    subnets: tuple[Subnet, ...] = ()
    mtu: int = 0
    masquerades: bool = False
    """Whether pods leave the cluster by the node's addresses, which flanneld's rules see to."""
    bridge: Bridge | None = None
    devices: tuple[str, ...] = ()
    """All bridges, and flannel's tunnels, by name."""
    tunnels: tuple[Tunnel, ...] = ()
    remotes: tuple[Remote, ...] = ()
    hops: tuple[Hop, ...] = ()
    nics: tuple[str, ...] = ()
    """By which flannel reaches other nodes."""
    conf: OldConf | None = None
    aside: tuple[str, ...] = ()
    in_force: tuple[str, ...] = ()
    """flannel's configurations that a runtime can see."""
    ahead: tuple[str, ...] = ()
    """Configurations of others that runtimes prefer to flannel's."""
    backend: str = ""
    """What else than VXLAN alone or host-gw alone carries packets between nodes."""
    leases: dict[str, str] = {}
    rules: tuple[OldRules, ...] = ()
    tables: tuple[OldTable, ...] = ()
    own_tables: tuple[OldTable, ...] = ()
    """Those in which a takeover masquerades for old pods."""
    pod_rules: tuple[PodRules, ...] = ()
    ipvs: bool = False
    """Whether the device of kube-proxy's ipvs mode is there."""
    sets: tuple[str, ...] = ()
    """The ipsets of that mode."""
    processes: tuple[str, ...] = ()
    restore: tuple[str, ...] = ()
    """Lines for ``ip -batch`` that put back what a takeover changes of the old network."""
    settings: tuple[tuple[str, str], ...] = ()
    """Kernel settings of the bridge as they are, by path below /proc/sys."""

    @property
    def is_routed(self) -> bool:
        """Whether flannel's backend is host-gw: routes, and no device."""
        return bool(self.hops) and not self.tunnels


class Places(Struct, frozen=True, kw_only=True):
    """Where things are on this node."""

    conf_dir: str = "/etc/cni/net.d"
    bin_dir: str = "/opt/cni/bin"
    subnet_file: str = "/run/flannel/subnet.env"
    journal: str = "/var/lib/samewire/takeover.json"


class Node(Struct, frozen=True, kw_only=True):
    """What has to be known of Samewire here.

    ``balances``: whether it does kube-proxy's work; ``serves_itself``: for the node's own processes, too.
    ``reads``: whether it has a source of the cluster's objects. ``network``: whose pods and other nodes it looks after
    ("" = no other nodes). ``pods``: the addresses of its endpoints in the network.
    ``client``: the CNI client of this installation. ``running``: false once Samewire has been uninstalled.
    """

    vxlan_port: int
    balances: bool
    reads: bool
    network: str
    config: str
    pods: tuple[str, ...] = ()
    uplink: str = ""
    client: str = ""
    running: bool = True
    serves_itself: bool = True


class Command(Struct, frozen=True, tag="command"):
    """A command, with what it reads from stdin."""

    title: str
    argv: tuple[str, ...]
    stdin: str = ""


class Write(Struct, frozen=True, tag="write"):
    """A file to be replaced as a whole."""

    title: str
    path: str
    text: str


class Copy(Struct, frozen=True, tag="copy"):
    """An executable to be put in place."""

    title: str
    source: str
    path: str


class Rename(Struct, frozen=True, tag="rename"):
    """A file's new name."""

    title: str
    path: str
    new: str


class Remove(Struct, frozen=True, tag="remove"):
    """A file to be removed."""

    title: str
    path: str


class Setting(Struct, frozen=True, tag="setting"):
    """A kernel setting; the path is relative to /proc/sys, its parts divided by slashes."""

    title: str
    path: str
    value: str


class MakeNetwork(Struct, frozen=True, tag="network"):
    """The HNS network as it should be; made, or its policies changed, but not those of the types in ``leave``."""

    title: str
    value: dict[str, object]
    leave: tuple[str, ...] = ()


class DropNetwork(Struct, frozen=True, tag="no-network"):
    """The HNS network of a name to be removed."""

    title: str
    name: str


class AwaitServices(Struct, frozen=True, tag="services"):
    """Until the switch has the services."""

    title: str


Step: TypeAlias = (
    Command | Write | Copy | Rename | Remove | Setting | MakeNetwork | DropNetwork | AwaitServices
)


class Journal(Struct, frozen=True, kw_only=True):
    """What the way back needs, written before the first step. ``removed``: there is no way back any more.

    ``places``: those of the takeover.
    """

    found: Found
    places: Places = Places()
    removed: bool = False
