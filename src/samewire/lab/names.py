"""Where a lab keeps its things: names of namespaces, directories and cgroups (pure)."""

from __future__ import annotations

from pathlib import Path

#: One directory a lab, on a file system that does not outlive a reboot, as namespaces do not either.
LABS = Path("/run/samewire-lab")

#: What every node serves: a stand-in for the kubelet on all its addresses, one for a node-local DNS server on
#: its own ones. Outside hosts serve ``OUTSIDE_PORT``.
KUBELET_PORT, DNS_PORT, OUTSIDE_PORT = 10250, 53, 80
#: The names of those processes: their pid, log and ready files, and a node's sub-cgroup.
HOST_PROCESS, OUTSIDE_PROCESS = "host", "server"


def lab_directory(cluster: str) -> Path:
    """The runtime directory of a lab."""
    return LABS / cluster


def node_directory(cluster: str, node: str) -> Path:
    """Configuration, sockets and logs of a node."""
    return lab_directory(cluster) / node


def manifests_directory(cluster: str) -> Path:
    """What the nodes' daemons read instead of asking an API server."""
    return lab_directory(cluster) / "manifests"


def pod_directory(cluster: str, slug: str) -> Path:
    """resolv.conf, hosts, process ids and logs of a pod."""
    return lab_directory(cluster) / "pods" / slug


def outside_directory(cluster: str, host: str) -> Path:
    """Process id and log of an outside host's server."""
    return lab_directory(cluster) / "outside" / host


def node_netns(cluster: str, node: str) -> str:
    """The network namespace of a node, an outside host, ``switch`` or ``router``."""
    return f"swlab-{cluster}-{node}"


def pod_netns(cluster: str, slug: str) -> str:
    """The network namespace of a pod; the dot keeps it apart from every node's."""
    return f"swlab-{cluster}.{slug}"
