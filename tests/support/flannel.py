"""Nodes as flannel and kube-proxy leave them: their devices, routes, rules and files, and pods by the real plugins."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec

from samewire.kernel.netns import NetNamespace
from tests.support.node import (
    NODE_IP,
    NODE_IP6,
    ROUTER_IP,
    ROUTER_IP6,
    Json,
    NodeNet,
    in_namespace,
    ip,
    ip_json,
    path_of,
)

NETWORK, NETWORK6 = "10.244.0.0/16", "fd00:244::/48"
PORT, VNI, MTU = 8472, 1, 1450
NAME = "cbr0"
DEVICES = ("flannel.1", "flannel-v6.1")
FAR_ADDRESSES, FAR_ROUTER = ("192.168.78.2", "fd78::2"), ("192.168.78.1", "fd78::1")
VIP, NODE_PORT = "10.96.0.10", 30080
PLUGINS = "/usr/lib/cni"
ADMIN_RULES = (
    '-A INPUT -p tcp -m tcp --dport 2222 -m comment --comment "admin: ssh" -j ACCEPT',
    "-A ADMIN -s 192.0.2.0/24 -j DROP",
)


class FlannelNode(msgspec.Struct):
    """One node: its namespace, its addresses (IPv4, IPv6), its number n of 10.244.n.0/24, and where its files are."""

    name: str
    addresses: tuple[str, str]
    number: int
    directory: Path
    macs: tuple[str, ...] = ()
    routed: bool = False  # backend host-gw: routes, and no device

    @property
    def subnets(self) -> tuple[str, str]:
        """The prefixes of its pods."""
        return f"10.244.{self.number}.0/24", f"fd00:244:0:{self.number}::/64"

    @property
    def bases(self) -> tuple[str, str]:
        """The addresses of flannel's devices."""
        return f"10.244.{self.number}.0", f"fd00:244:0:{self.number}::"

    def up(self) -> None:
        """Forwarding and flannel's devices, one a family."""
        in_namespace(self.name, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        if self.routed:
            return
        for device, address, base in zip(DEVICES, self.addresses, self.bases, strict=True):
            ip(
                *("link", "add", device, "mtu", str(MTU), "type", "vxlan", "id", str(VNI), "local"),
                *(address, "dstport", str(PORT), "nolearning"),
                netns_name=self.name,
            )
            own = (f"{base}/128", "nodad") if ":" in base else (f"{base}/32",)
            ip("addr", "add", own[0], "dev", device, *own[1:], netns_name=self.name)
            ip("link", "set", device, "up", netns_name=self.name)
        shown = (ip_json("link", "show", device, netns_name=self.name) for device in DEVICES)
        self.macs = tuple(links[0]["address"] for links in shown)

    def knows(self, other: FlannelNode) -> None:
        """Neighbour, forwarding entry and route for another node's pods, as flannel's vxlan backend makes them; or the
        route alone.
        """
        if self.routed:
            for address, prefix in zip(other.addresses, other.subnets, strict=True):
                ip("route", "replace", prefix, "via", address, netns_name=self.name)
            return
        for device, address, base, prefix, mac in zip(
            DEVICES, other.addresses, other.bases, other.subnets, other.macs, strict=True
        ):
            fdb = ("fdb", "append", mac, "dev", device, "dst", address)
            subprocess.run(["bridge", "-n", self.name, *fdb], check=True)
            ip(
                "neigh",
                "replace",
                base,
                "lladdr",
                mac,
                "dev",
                device,
                "nud",
                "permanent",
                netns_name=self.name,
            )
            ip("route", "replace", prefix, "via", base, "dev", device, "onlink", netns_name=self.name)

    def conf(self) -> Json:
        """What flannel's plugin makes of its configuration for ``bridge``."""
        return {
            "cniVersion": "0.3.1",
            "name": NAME,
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "isDefaultGateway": True,
            "hairpinMode": True,
            "ipMasq": False,
            "mtu": MTU,
            "ipam": {
                "type": "host-local",
                "dataDir": str(self.leases),
                "ranges": [[{"subnet": prefix}] for prefix in self.subnets],
                "routes": [{"dst": NETWORK}],
            },
        }

    @property
    def leases(self) -> Path:
        """host-local's directory."""
        return self.directory / "leases"

    def add(self, pod: str, container: str) -> tuple[str, str]:
        """ADD of the old plugin; the pod's addresses."""
        result = json.loads(self._call("ADD", pod, container, self.conf()))
        first, second = sorted((one["address"].partition("/")[0] for one in result["ips"]), key=len)
        return first, second

    def delete(self, pod: str, container: str) -> None:
        """DEL of the old plugin."""
        self._call("DEL", pod, container, self.conf())

    def _call(self, verb: str, pod: str, container: str, conf: Json) -> str:
        env = {
            "PATH": os.environ["PATH"],
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": path_of(pod),
            "CNI_IFNAME": "eth0",
            "CNI_PATH": PLUGINS,
        }
        done = subprocess.run(
            ["nsenter", f"--net={path_of(self.name)}", f"{PLUGINS}/{conf['type']}"],
            input=json.dumps(conf),
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def files(self) -> None:
        """flanneld's file and CNI configuration, with the admin's own beside it."""
        (self.directory / "net.d").mkdir()
        delegate = {"hairpinMode": True, "isDefaultGateway": True}
        conf = {"type": "flannel", "ipam": {"dataDir": str(self.leases)}, "delegate": delegate}
        portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
        conflist = {"name": NAME, "cniVersion": "0.3.1", "plugins": [conf, portmap]}
        (self.directory / "net.d" / "10-flannel.conflist").write_text(json.dumps(conflist))
        (self.directory / "net.d" / "99-loopback.conf").write_text('{"type": "loopback", "name": "lo"}')
        gateways = f"10.244.{self.number}.1/24", f"fd00:244:0:{self.number}::1/64"
        (self.directory / "subnet.env").write_text(
            f"FLANNEL_NETWORK={NETWORK}\nFLANNEL_SUBNET={gateways[0]}\nFLANNEL_IPV6_NETWORK={NETWORK6}\n"
            f"FLANNEL_IPV6_SUBNET={gateways[1]}\nFLANNEL_MTU={MTU}\nFLANNEL_IPMASQ=true\n"
        )

    def rules(self, backends: tuple[str, ...], kind: str = "nft") -> None:
        """kube-proxy's and flanneld's rules, and the administrator's; ``kind``: iptables' "nft" or "legacy", or
        "nftables" where both use that instead.
        """
        if kind == "nftables":
            in_namespace(self.name, "iptables-nft-restore", str(self._write("v4.rules", _ADMIN)))
            tables = nftables_mode(self, backends) + _ADMIN_NFT + _PORTMAP_NFT.format(backend=backends[0])
        else:
            rules = self._write("v4.rules", _rules(self, backends))
            in_namespace(self.name, f"iptables-{kind}-restore", "--noflush", str(rules))
            tables = _ADMIN_NFT
        in_namespace(self.name, "nft", "-f", str(self._write("tables.nft", tables)))

    def saved(self, kind: str = "nft") -> str:
        """The rules as they are."""
        return in_namespace(self.name, f"iptables-{kind}-save").stdout

    def _write(self, name: str, text: str) -> Path:
        path = self.directory / name
        path.write_text(text)
        return path


def _rules(node: FlannelNode, backends: tuple[str, ...]) -> str:
    """In the order and spelling of kube-proxy's iptables mode (v1.28) and of flanneld (v0.24)."""
    seps = [f"KUBE-SEP-{'ABCDEFGHIJKLMNO'}{letter}" for letter in "PQRSTUVW"[: len(backends)]]
    service = 'comment --comment "default/web:http cluster IP"'
    lines = [
        "*nat",
        *(
            f":{name} - [0:0]"
            for name in (
                *(
                    "KUBE-SERVICES",
                    "KUBE-NODEPORTS",
                    "KUBE-POSTROUTING",
                    "KUBE-MARK-MASQ",
                    "KUBE-PROXY-CANARY",
                ),
                *(
                    "KUBE-KUBELET-CANARY",
                    "KUBE-SVC-ABCDEFGHIJKLMNOP",
                    "KUBE-EXT-ABCDEFGHIJKLMNOP",
                    "FLANNEL-POSTRTG",
                ),
                *seps,
            )
        ),
        '-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
        '-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
        '-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING',
        '-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG',
        f"-A KUBE-SERVICES -d {VIP}/32 -p tcp -m {service} -m tcp --dport 80 -j KUBE-SVC-ABCDEFGHIJKLMNOP",
        '-A KUBE-SERVICES -m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this '
        'chain" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS',
        f"-A KUBE-NODEPORTS -p tcp -m tcp --dport {NODE_PORT} -j KUBE-EXT-ABCDEFGHIJKLMNOP",
        "-A KUBE-EXT-ABCDEFGHIJKLMNOP -j KUBE-MARK-MASQ",
        "-A KUBE-EXT-ABCDEFGHIJKLMNOP -j KUBE-SVC-ABCDEFGHIJKLMNOP",
        f"-A KUBE-SVC-ABCDEFGHIJKLMNOP ! -s {NETWORK} -d {VIP}/32 -p tcp -m tcp --dport 80 -j KUBE-MARK-MASQ",
        *(
            f"-A KUBE-SVC-ABCDEFGHIJKLMNOP -m statistic --mode random --probability {1 / (len(seps) - i)} -j {sep}"
            for i, sep in enumerate(seps[:-1])
        ),
        f"-A KUBE-SVC-ABCDEFGHIJKLMNOP -j {seps[-1]}",
        *(
            line
            for sep, backend in zip(seps, backends, strict=True)
            for line in (
                f"-A {sep} -s {backend}/32 -j KUBE-MARK-MASQ",
                f"-A {sep} -p tcp -m tcp -j DNAT --to-destination {backend}:8080",
            )
        ),
        "-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000",
        "-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN",
        "-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0",
        "-A KUBE-POSTROUTING -j MASQUERADE --random-fully",
        f"-A FLANNEL-POSTRTG -s {node.subnets[0]} -d {NETWORK} -j RETURN",
        f"-A FLANNEL-POSTRTG -s {NETWORK} -d {node.subnets[0]} -j RETURN",
        f"-A FLANNEL-POSTRTG ! -s {NETWORK} -d {node.subnets[0]} -j RETURN",
        f"-A FLANNEL-POSTRTG -s {NETWORK} ! -d 224.0.0.0/4 -j MASQUERADE --random-fully",
        f"-A FLANNEL-POSTRTG ! -s {NETWORK} -d {NETWORK} -j MASQUERADE --random-fully",
        "COMMIT",
        "*filter",
        *(
            f":{name} - [0:0]"
            for name in ("KUBE-FORWARD", "KUBE-FIREWALL", "KUBE-EXTERNAL-SERVICES", "FLANNEL-FWD", "ADMIN")
        ),
        '-A INPUT -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES',
        "-A INPUT -j KUBE-FIREWALL",
        ADMIN_RULES[0],
        "-A INPUT -j ADMIN",
        '-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD',
        '-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD',
        "-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP",
        "-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT",
        "-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -j DROP",
        f"-A FLANNEL-FWD -s {NETWORK} -j ACCEPT",
        f"-A FLANNEL-FWD -d {NETWORK} -j ACCEPT",
        ADMIN_RULES[1],
        "COMMIT",
    ]
    return "\n".join(lines) + "\n"


_ADMIN = f"""*filter
:ADMIN - [0:0]
:KUBE-FIREWALL - [0:0]
-A INPUT -j KUBE-FIREWALL
{ADMIN_RULES[0]}
-A INPUT -j ADMIN
-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -j DROP
{ADMIN_RULES[1]}
COMMIT
"""

_ADMIN_NFT = """
table inet admin {
    chain input {
        type filter hook input priority 10; policy accept;
        tcp dport 2323 drop
    }
}
table ip6 admin {
    map kube-proxy { type ipv6_addr : verdict; }
}
"""


_PORTMAP_NFT = """
table ip cni_hostport {{
    chain hostports {{
        tcp dport 18080 dnat to {backend}:8080 comment "old-1"
        tcp dport 18081 dnat to 10.88.0.2:8080 comment "other"
    }}
}}
"""


def nftables_mode(node: FlannelNode, backends: tuple[str, ...]) -> str:
    """The tables of kube-proxy's nftables mode (v1.31) and of flanneld with EnableNFTables (v0.26), in their shape."""
    numbers = range(len(backends))
    chains = [
        f"""    chain endpoint-{n} {{
        ip saddr {backend} jump mark-for-masquerade
        meta l4proto tcp dnat to {backend}:8080
    }}"""
        for n, backend in enumerate(backends)
    ]
    ends = ", ".join(f"{n} : goto endpoint-{n}" for n in numbers)
    return "\n".join(
        [
            _KUBE_PROXY_NFT.format(
                node=node.addresses[0],
                vip=VIP,
                node_port=NODE_PORT,
                network=NETWORK,
                chains="\n".join(chains),
                count=len(backends),
                ends=ends,
            ),
            _KUBE_PROXY_NFT6,
            _FLANNEL_NFT.format(ip="ip", n=4, network=NETWORK, own=node.subnets[0], multicast="224.0.0.0/4"),
            _FLANNEL_NFT.format(ip="ip6", n=6, network=NETWORK6, own=node.subnets[1], multicast="ff00::/8"),
        ]
    )


_KUBE_PROXY_NFT = """
table ip kube-proxy {{
    comment "rules for kube-proxy"
    set cluster-ips {{ type ipv4_addr; elements = {{ {vip} }}; }}
    set nodeport-ips {{ type ipv4_addr; elements = {{ {node} }}; }}
    map no-endpoint-services {{ type ipv4_addr . inet_proto . inet_service : verdict; }}
    chain mark-for-masquerade {{
        meta mark set meta mark | 0x00004000
    }}
    chain masquerading {{
        meta mark & 0x00004000 == 0x00000000 return
        meta mark set meta mark ^ 0x00004000
        masquerade fully-random
    }}
{chains}
    chain service-ULMVA6XW-default-web-tcp-http {{
        ip daddr {vip} tcp dport 80 ip saddr != {network} jump mark-for-masquerade
        numgen random mod {count} vmap {{ {ends} }}
    }}
    chain external-ULMVA6XW-default-web-tcp-http {{
        jump mark-for-masquerade
        goto service-ULMVA6XW-default-web-tcp-http
    }}
    map service-ips {{
        type ipv4_addr . inet_proto . inet_service : verdict
        elements = {{ {vip} . tcp . 80 : goto service-ULMVA6XW-default-web-tcp-http }}
    }}
    map service-nodeports {{
        type inet_proto . inet_service : verdict
        elements = {{ tcp . {node_port} : goto external-ULMVA6XW-default-web-tcp-http }}
    }}
    chain services {{
        ip daddr . meta l4proto . th dport vmap @service-ips
        ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
    }}
    chain service-endpoints-check {{
        ip daddr . meta l4proto . th dport vmap @no-endpoint-services
    }}
    chain filter-forward {{
        type filter hook forward priority -110; policy accept;
        ct state new jump service-endpoints-check
    }}
    chain nat-prerouting {{
        type nat hook prerouting priority dstnat; policy accept;
        jump services
    }}
    chain nat-output {{
        type nat hook output priority -100; policy accept;
        jump services
    }}
    chain nat-postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        jump masquerading
    }}
}}
"""

_KUBE_PROXY_NFT6 = """
table ip6 kube-proxy {
    comment "rules for kube-proxy"
    map service-ips { type ipv6_addr . inet_proto . inet_service : verdict; }
    chain services {
        ip6 daddr . meta l4proto . th dport vmap @service-ips
    }
    chain nat-prerouting {
        type nat hook prerouting priority dstnat; policy accept;
        jump services
    }
}
"""

_FLANNEL_NFT = """
table {ip} flannel-ipv{n} {{
    comment "rules for flannel-ipv{n}"
    chain forward {{
        type filter hook forward priority filter; policy accept;
        {ip} saddr {network} accept
        {ip} daddr {network} accept
    }}
    chain postrtg {{
        type nat hook postrouting priority srcnat; policy accept;
        meta mark 0x00004000 return
        {ip} saddr {own} {ip} daddr {network} return
        {ip} saddr {network} {ip} daddr {own} return
        {ip} saddr {network} {ip} daddr != {multicast} masquerade fully-random
    }}
}}
"""


class Echo:
    """A TCP echo server and any number of clients in namespaces; closed at the end of the stack."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def serve(self, namespace: str, port: int = 8080) -> None:
        """Answer each connection with the server's name and then with what comes, in both families."""
        listener = self._in(
            namespace, lambda: socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
        )
        self._stack.callback(listener.close)
        thread = threading.Thread(target=self._accept, args=(listener, namespace), daemon=True)
        thread.start()
        self._stack.callback(listener.shutdown, socket.SHUT_RDWR)

    def connect(self, namespace: str, address: str, port: int = 8080) -> tuple[socket.socket, str]:
        """An open connection, and who answers. Raises OSError."""
        connection = self._in(namespace, lambda: _connect(address, port))
        self._stack.callback(connection.close)
        return connection, connection.recv(200).decode()

    def asks(self, namespace: str, address: str, port: int = 8080) -> str:
        """Who answers there; "" for nobody."""
        try:
            connection, who = self.connect(namespace, address, port)
        except OSError:
            return ""
        connection.close()
        return who

    def _in(self, namespace: str, function: Callable[[], Any]) -> Any:
        with NetNamespace(path_of(namespace)) as netns:
            return netns.run(function)

    @staticmethod
    def _accept(listener: socket.socket, name: str) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=_echo, args=(connection, name), daemon=True).start()


def _echo(connection: socket.socket, name: str) -> None:
    with connection:
        try:
            connection.sendall(name.encode())
            while data := connection.recv(65536):
                connection.sendall(data)
        except OSError:
            return


def _connect(address: str, port: int) -> socket.socket:
    connection = socket.create_connection((address, port), timeout=15)
    connection.settimeout(15)
    return connection


def is_alive(connection: socket.socket, payload: bytes = b"still there") -> bool:
    """Whether an echo comes back."""
    try:
        connection.sendall(payload)
        got = b""
        while len(got) < len(payload):
            piece = connection.recv(65536)
            if not piece:
                return False
            got += piece
    except OSError:
        return False
    return got == payload


def two_flannel_nodes(
    net: NodeNet, directory: Path, *, routed: bool = False
) -> tuple[FlannelNode, FlannelNode]:
    """The node of ``net`` and one behind its router; ``routed``: and the router itself, on the same link."""
    far = (net.router, (ROUTER_IP, ROUTER_IP6)) if routed else (_far_node(net), FAR_ADDRESSES)
    nodes = []
    for number, (name, addresses) in enumerate(((net.node, (NODE_IP, NODE_IP6)), far), start=1):
        (directory / f"flannel{number}").mkdir()
        made = FlannelNode(name, addresses, number, directory / f"flannel{number}", routed=routed)
        nodes.append(made)
    for node in nodes:
        node.up()
    near, other = nodes
    near.knows(other)
    other.knows(near)
    return near, other


def _far_node(net: NodeNet) -> str:
    name, router = net.namespace("f"), net.router
    ip("link", "add", "eth0", "netns", name, "type", "veth", "peer", "eth1", "netns", router)
    for where, device, addresses in ((name, "eth0", FAR_ADDRESSES), (router, "eth1", FAR_ROUTER)):
        ip("address", "add", f"{addresses[0]}/24", "dev", device, netns_name=where)
        ip("address", "add", f"{addresses[1]}/64", "dev", device, "nodad", netns_name=where)
        ip("link", "set", device, "up", netns_name=where)
    ip("link", "set", "lo", "up", netns_name=name)
    for gateway in FAR_ROUTER:
        ip("route", "add", "default", "via", gateway, netns_name=name)
    in_namespace(router, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
    return name
