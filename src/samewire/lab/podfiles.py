"""resolv.conf and hosts of a pod, as the kubelet writes them (pure)."""

from __future__ import annotations

from collections.abc import Sequence

from samewire.lab.cluster import NODE_DNS, Dns
from samewire.lab.podspec import DnsConfig
from samewire.lab.schedule import Pod

_HOSTS_HEADER = """\
# Kubernetes-managed hosts file.
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::0\tip6-localnet
fe00::0\tip6-mcastprefix
fe00::1\tip6-allnodes
fe00::2\tip6-allrouters
"""


def pod_dns(pod: Pod, cluster: Dns, node_address: str, node_resolv_conf: str) -> DnsConfig:
    """What the pod's resolv.conf is to hold, by its dnsPolicy and dnsConfig.

    ``node_resolv_conf`` is the text that dnsPolicy Default inherits.
    """
    template = pod.template
    policy = template.dns_policy
    if policy == "ClusterFirst" and template.host_network:
        policy = "Default"
    if policy == "None":
        base = DnsConfig()
    elif policy == "Default":
        base = parse_resolv_conf(node_resolv_conf)
    else:
        domain = cluster.domain
        suffixes = (f"{pod.namespace}.svc.{domain}", f"svc.{domain}", domain) if domain else ()
        servers = tuple(node_address if server == NODE_DNS else server for server in cluster.servers)
        base = DnsConfig(servers, (*suffixes, *cluster.search), tuple(cluster.options))
    return DnsConfig(
        tuple(dict.fromkeys((*base.servers, *template.dns.servers))),
        tuple(dict.fromkeys((*base.searches, *template.dns.searches))),
        _merged_options(base.options, template.dns.options),
    )


def parse_resolv_conf(text: str) -> DnsConfig:
    """The name servers, the last search list and all options of a resolv.conf."""
    servers: list[str] = []
    searches: list[str] = []
    options: list[str] = []
    for line in text.splitlines():
        match line.split():
            case ["nameserver", address, *_]:
                servers.append(address)
            case ["search" | "domain", *suffixes]:
                searches = suffixes
            case ["options", *words]:
                options += words
    return DnsConfig(tuple(servers), tuple(searches), tuple(options))


def render_resolv_conf(dns: DnsConfig) -> str:
    """The file's text."""
    lines = [f"search {' '.join(dns.searches)}"] if dns.searches else []
    lines += [f"nameserver {server}" for server in dns.servers]
    lines += [f"options {' '.join(dns.options)}"] if dns.options else []
    return "".join(f"{line}\n" for line in lines)


def render_hosts(pod: Pod, hostname: str, addresses: Sequence[str], domain: str) -> str:
    """The file's text: the pod's own names on each of its addresses, then its hostAliases."""
    names = hostname
    if pod.template.subdomain:
        names = f"{hostname}.{pod.template.subdomain}.{pod.namespace}.svc.{domain}\t{hostname}"
    lines = [f"{address}\t{names}\n" for address in addresses]
    lines += ["\t".join((address, *aliases)) + "\n" for address, aliases in pod.template.host_aliases]
    return _HOSTS_HEADER + "".join(lines)


def _merged_options(base: Sequence[str], extra: Sequence[str]) -> tuple[str, ...]:
    """``extra`` wins over options of the same name (``ndots:2`` over ``ndots:5``)."""
    merged = {option.partition(":")[0]: option for option in (*base, *extra)}
    return tuple(merged.values())
