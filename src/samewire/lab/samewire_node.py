"""A node with its own Samewire daemon: HNS networks over its socket, pods through the static CNI client."""

from __future__ import annotations

import ipaddress
import json
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import samewire
from samewire.errors import SamewireError, Unavailable
from samewire.hcn.client import AsyncHnsClient
from samewire.hcn.schema import Kind
from samewire.lab.addressing import family_of, on_underlay
from samewire.lab.cluster import Network, NetworkType
from samewire.lab.cni import DEBIAN_PLUGINS, Runtime, dns_argument, host_local, port_mappings
from samewire.lab.commands import ip_batch, netns_path
from samewire.lab.hns import dr_mac, network_object, remote_subnet_routes
from samewire.lab.names import manifests_directory
from samewire.lab.pids import is_running
from samewire.lab.plan import gateway, nat_exceptions, network_named
from samewire.lab.podspec import DnsConfig
from samewire.lab.processes import READY_TIMEOUT_S, Launch, log_tail, poll, start
from samewire.lab.schedule import Pod
from samewire.lab.stack import Attached, NodeContext, Vtep
from samewire.lab.underlay import UPLINK

_CLIENT = "samewire-cni"
_BUILT = Path(samewire.__file__).parent / "_build"
_DAEMON = "samewire.cli.daemon"


class SamewireNode:
    """NodeStack of a node whose network is the Samewire switch."""

    def __init__(self, context: NodeContext) -> None:
        self._context = context
        self._node = context.node
        self._cluster = context.plan.cluster
        self._run_dir = context.directory / "run"
        self.socket = str(self._run_dir / "samewire.sock")
        self._hns = AsyncHnsClient(self.socket)
        self._ids: dict[str, str] = {}
        self._runtime = Runtime(
            context.netns,
            (_BUILT, DEBIAN_PLUGINS),
            {"SAMEWIRE_CNI_SOCKET": str(self._run_dir / "cni.sock")},
        )

    async def prepare(self) -> list[Vtep]:
        """Start the daemon and create every network; returns the DR MACs that HNS published."""
        await self._start_daemon()
        vteps = []
        for network in self._cluster.networks:
            made = await self._hns.create(
                Kind.NETWORK, network_object(self._context.plan, self._node, network, UPLINK)
            )
            self._ids[network.name] = made["ID"]
            mac = dr_mac(made) if network.type is NetworkType.OVERLAY else ""
            address = self._node.addresses[0]
            vteps.append(Vtep(network.name, self._node.name, address, mac, self._node.pod_cidrs))
        return vteps

    async def connect(self, vteps: Sequence[Vtep]) -> None:
        """Overlay: RemoteSubnetRoute policies. L2Bridge: host-gw routes for the node's own traffic."""
        routes: list[str] = []
        for network in self._cluster.networks:
            others = [vtep for vtep in vteps if vtep.network == network.name]
            if network.type is NetworkType.OVERLAY and others:
                policies = {"Policies": remote_subnet_routes(network, others)}
                await self._hns.modify(Kind.NETWORK, self._ids[network.name], "Policy", "Add", policies)
            elif network.type is NetworkType.L2BRIDGE:
                routes += self._host_routes(others)
        await ip_batch(self._context.netns, routes)

    async def add_pod(self, pod: Pod, netns: str, dns: DnsConfig) -> Attached:
        """ADD through the static client, as a container runtime would."""
        arguments = {"portMappings": port_mappings(pod), "dns": dns_argument(dns)}
        return await self._runtime.add(self._conflist(pod.network), pod, netns_path(netns), arguments)

    async def settle(self, services: Mapping[str, bool], lacking: Collection[str]) -> None:
        """Until the daemon has all Services in the switch, with the pods of now. Raises Unavailable, naming those
        that are missing.
        """
        missing = "the daemon does not list its services"

        async def settled() -> bool:
            nonlocal missing
            try:
                found = await self._hns.get_json("/v2/services")
            except SamewireError:
                return False
            known = {f"{one['namespace']}/{one['name']}": one for one in found}
            late = [
                key
                for key, served in services.items()
                if not _is_settled(known.get(key), served, key in lacking)
            ]
            missing = ", ".join(
                f"{key} ({known.get(key, {}).get('error') or 'no backends yet'})" for key in late
            )
            return not late

        try:
            await poll(f"the services of {self._node.name}", settled, READY_TIMEOUT_S)
        except TimeoutError as error:
            what = f"services are not in the switch after {READY_TIMEOUT_S:.0f} s: {missing}"
            raise Unavailable(f"node {self._node.name}", what) from error

    def host_addresses_in_pod_network(self, network: str) -> tuple[str, ...]:
        """The gateway addresses that ``samewire0`` holds; none for a network that the host is no part of."""
        found = network_named(self._cluster, network)
        if found.type is NetworkType.OVERLAY and not found.host_route:
            return ()
        routed = [prefix for prefix in self._node.pod_cidrs if on_underlay(self._cluster, prefix) is None]
        return tuple(gateway(self._cluster, self._node, prefix) for prefix in routed)

    async def _start_daemon(self) -> None:
        for directory in (self._run_dir, self._context.directory / "state"):
            directory.mkdir(parents=True, exist_ok=True)
        config = self._context.directory / "daemon.json"
        config.write_text(json.dumps(self._config(), indent=1) + "\n")
        launch = Launch(
            name="daemon",
            directory=self._context.directory,
            netns=self._context.netns,
            hostname=self._node.name,
            cgroups=(self._context.host_cgroup,),
            command=(sys.executable, "-m", _DAEMON, "--config", str(config)),
            private_mounts=False,
        )
        await start(launch)
        await self._wait_healthy(launch)

    async def _wait_healthy(self, launch: Launch) -> None:
        async def healthy() -> bool:
            if not is_running(launch.directory, launch.name):
                raise Unavailable(f"node {self._node.name}", f"its daemon ended: {log_tail(launch.log_file)}")
            if not Path(self.socket).exists():
                return False
            try:
                await self._hns.get_json("/v2/health")
            except SamewireError:
                return False
            return True

        try:
            await poll(f"the daemon of {self._node.name}", healthy, READY_TIMEOUT_S)
        except TimeoutError as error:
            raise Unavailable(f"node {self._node.name}", f"{error}: {log_tail(launch.log_file)}") from error

    def _config(self) -> dict[str, Any]:
        services: dict[str, Any] = {}
        if self._context.plan.services:
            services = {
                "manifests": str(manifests_directory(self._context.plan.name)),
                "service_cidrs": self._cluster.services.cluster_cidrs,
                "proxy_network": self._cluster.networks[0].name,
                "proxy_mode": self._cluster.services.proxy_mode.value,
            }
        return {
            **services,
            "name": self._node.name,
            "uplink": UPLINK,
            "run_dir": str(self._run_dir),
            "state_dir": str(self._context.directory / "state"),
            "vxlan_port": self._cluster.networks[0].vxlan_port,
            "host_cgroup": str(self._context.cgroup),
            "flow_counters": True,  # a lab is there to be looked at
        }

    def _host_routes(self, vteps: Sequence[Vtep]) -> list[str]:
        lines = []
        for vtep in vteps:
            peer = next(node for node in self._context.plan.nodes if node.name == vtep.node)
            for prefix in vtep.pod_cidrs:
                if on_underlay(self._cluster, prefix) is None:
                    family = family_of(prefix)
                    lines.append(f"route replace {prefix} via {peer.address(family)} dev {UPLINK}")
        return lines

    def _conflist(self, network_name: str) -> dict[str, Any]:
        network = network_named(self._cluster, network_name)
        plugin = {
            "type": _CLIENT,
            "capabilities": {"portMappings": True, "dns": True},
            "ipam": host_local(
                [self._range(prefix) for prefix in self._node.pod_cidrs], self._context.directory / "ipam"
            ),
            "policies": [self._outbound_nat(network)],
        }
        return {"cniVersion": "1.1.0", "name": network.name, "plugins": [plugin]}

    def _outbound_nat(self, network: Network) -> dict[str, Any]:
        settings = {"Exceptions": nat_exceptions(self._cluster, network)}
        return {"name": "EndpointPolicy", "value": {"Type": "OutBoundNAT", "Settings": settings}}

    def _range(self, prefix: str) -> dict[str, str]:
        """A host-local range: the pod prefix, or on the underlay that part of the underlay's subnet."""
        via = gateway(self._cluster, self._node, prefix)
        under = on_underlay(self._cluster, prefix)
        if under is None:
            return {"subnet": prefix, "gateway": via}
        part = ipaddress.ip_network(prefix)
        first, last = part.network_address + 2, part.network_address + part.num_addresses - 2
        return {"subnet": str(under), "rangeStart": str(first), "rangeEnd": str(last), "gateway": via}


def _is_settled(service: Mapping[str, Any] | None, served: bool, lacking: bool) -> bool:
    """Whether the daemon has a Service in the switch; ``served``: with backends; ``lacking``: not all of it, and says
    so.
    """
    if service is None or (service.get("error") and not lacking):
        return False
    return not served or any(address.get("backends") for address in service.get("addresses", ()))
