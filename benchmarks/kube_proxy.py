"""A peer: a node of the ``bridge`` plugin whose cluster IPs are kube-proxy's, in nftables mode.

The rules are written down here from what kube-proxy 1.36 does (pkg/proxy/nftables): every base chain that it hooks
in, in its order, what each of them jumps to, and per service and endpoint the same rules. Those of the filter hooks
see each packet of a connection, those of nat its first one only. Fewer of them would make the peer faster than it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks import netns
from benchmarks.native import Endpoints
from benchmarks.peers import CLUSTER, BridgeMasqPods

MEASURED_PORTS = range(5001, 5402)  # those of benchmarks.datapath, and of what runs beside it
_MARK = "0x4000"  # --iptables-masquerade-bit 14

_PART = 1500  # chains
_BY_ADDRESS = "type ipv4_addr . inet_proto . inet_service : verdict"

_MASQUERADE = f"""
chain mark-for-masquerade {{ meta mark set meta mark | {_MARK}; }}
chain masquerading {{
    meta mark & {_MARK} == 0 return
    meta mark set meta mark ^ {_MARK}
    masquerade fully-random
}}
"""

_BASE = """
chain reject-chain { reject; }
chain cluster-ips-check { ip daddr @cluster-ips reject; }
chain service-endpoints-check { ip daddr . meta l4proto . th dport vmap @no-endpoint-services; }
chain nodeport-endpoints-check { ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports; }
chain firewall-check { ip daddr . meta l4proto . th dport vmap @firewall-ips; }
chain services {
    ip daddr . meta l4proto . th dport vmap @service-ips
    ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
}
chain filter-prerouting { type filter hook prerouting priority -110; ct state new jump firewall-check; }
chain filter-input {
    type filter hook input priority -110;
    ct state new jump nodeport-endpoints-check
    ct state new jump service-endpoints-check
}
chain filter-forward {
    type filter hook forward priority -110;
    ct state new jump service-endpoints-check
    ct state new jump cluster-ips-check
}
chain filter-output {
    type filter hook output priority -110;
    ct state new jump service-endpoints-check
    ct state new jump firewall-check
}
chain filter-output-post-dnat { type filter hook output priority -90; ct state new jump cluster-ips-check; }
chain nat-prerouting { type nat hook prerouting priority -100; jump services; }
chain nat-output { type nat hook output priority -100; jump services; }
chain nat-postrouting { type nat hook postrouting priority 100; jump masquerading; }
"""

_EMPTY_MAPS = f"""
map no-endpoint-services {{ {_BY_ADDRESS}; }}
map no-endpoint-nodeports {{ type inet_proto . inet_service : verdict; }}
map firewall-ips {{ {_BY_ADDRESS}; }}
map service-nodeports {{ type inet_proto . inet_service : verdict; }}
"""


class KubeProxyRules(BridgeMasqPods):
    """The client calls a cluster IP beside 10,000 services of two endpoints each."""

    name = "kube-proxy's nftables rules, 10,000 services"
    label = "nft-proxy"
    vip = "10.99.0.1"

    def setup(self) -> Endpoints:
        ends = super().setup()
        node = ends.client.rpartition("-")[0] + "-node"
        for part in kube_proxy_table(self.vip, ends.address):
            netns.run([*netns.enter(node), "nft", "-f", "-"], stdin=part)
        return Endpoints(ends.client, ends.server, self.vip, ends.address)


def kube_proxy_table(vip: str, backend: str, services: int = 10_000) -> list[str]:
    """The table in nft's language: services of one TCP port, and last ``vip``, all measured ports of which lead to
    ``backend``. In parts, to be read in turn: one of 10,000 services takes the kernel a minute."""
    others = [f"10.100.{n // 256}.{n % 256}" for n in range(services - 1)]
    chains: list[str] = []
    for n, address in enumerate(others):
        pods = [f"10.244.{n // 120 % 250}.{2 * (n % 120) + half + 10}" for half in (0, 1)]
        chains += _service(f"service-{n}", address, "tcp", "80", [(pod, f"{pod}:8080") for pod in pods])
    entries = [f"{address} . tcp . 80 : goto service-{n}" for n, address in enumerate(others)]
    for protocol in ("tcp", "udp"):
        ports = f"{{ {MEASURED_PORTS[0]}-{MEASURED_PORTS[-1]} }}"
        chains += _service(f"probe-{protocol}", vip, protocol, ports, [(backend, backend)])
        entries += [f"{vip} . {protocol} . {port} : goto probe-{protocol}" for port in MEASURED_PORTS]
    sets = [
        f"set cluster-ips {{ type ipv4_addr; elements = {{ {', '.join([*others, vip])} }}; }}",
        "set nodeport-ips { type ipv4_addr; elements = { 192.168.77.11 }; }",
        f"map service-ips {{ {_BY_ADDRESS}; elements = {{ {', '.join(entries)} }}; }}",
    ]
    parts = [[_MASQUERADE], *_batches(chains, _PART), [*sets, _EMPTY_MAPS, _BASE]]
    return ["\n".join(["table ip kube-proxy {", *part, "}"]) for part in parts]


def _service(name: str, vip: str, protocol: str, port: str, endpoints: list[tuple[str, str]]) -> list[str]:
    """The chains of a service's endpoints (address, where it is translated to), and its own behind them."""
    ends = [
        f"chain {name}-{n} {{ ip saddr {address} jump mark-for-masquerade; meta l4proto {protocol} dnat to {target}; }}"
        for n, (address, target) in enumerate(endpoints)
    ]
    choice = ", ".join(f"{n} : goto {name}-{n}" for n in range(len(endpoints)))
    from_outside = f"ip daddr {vip} {protocol} dport {port} ip saddr != {CLUSTER} jump mark-for-masquerade"
    return [
        *ends,
        f"chain {name} {{ {from_outside}; numgen random mod {len(endpoints)} vmap {{ {choice} }}; }}",
    ]


def _batches(items: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (items[start : start + size] for start in range(0, len(items), size))
