"""The CNI plugins under test: Debian's ``bridge`` as the control, and Samewire's client with its daemon.

Both get the same job: pods in 10.88.0.0/24 of which only 10.88.0.10 to .12 may be used, host ports, and traffic to the
outside under the node's address.
"""

from __future__ import annotations

import json
import shutil
import sys
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import samewire
from samewire.errors import SamewireError
from samewire.hcn.client import HnsClient
from samewire.hcn.schema import Kind
from tests.e2e.runtimes.node import Node

NETWORK = "podnet"
SUBNET = "10.88.0.0/24"
GATEWAY = "10.88.0.1"
POOL = ("10.88.0.10", "10.88.0.11", "10.88.0.12")
DEBIAN_PLUGINS = Path("/usr/lib/cni")
CLIENT = "samewire-cni"
BUILT = Path(samewire.__file__).parent / "_build"


class Plugin(ABC):
    """A plugin installed on a node: ``bin_dir``, ``conf_dir`` and ``environment`` are for the runtime."""

    cni_version = "1.0.0"

    def __init__(self, node: Node) -> None:
        self.node = node
        self.environment: dict[str, str] = {}
        self.bin_dir = node.directory / "cni-bin"
        self.conf_dir = node.directory / "cni-conf"
        for directory in (self.bin_dir, self.conf_dir):
            directory.mkdir()
        self.start()
        conflist = {"cniVersion": self.cni_version, "name": NETWORK, "plugins": self.plugins()}
        (self.conf_dir / f"10-{NETWORK}.conflist").write_text(json.dumps(conflist))

    @abstractmethod
    def start(self) -> None:
        """Put the programs into ``bin_dir`` and start what they need."""

    @abstractmethod
    def plugins(self) -> list[dict[str, Any]]:
        """The chain of plugins of the conflist."""

    @abstractmethod
    def addresses_in_use(self) -> set[str]:
        """The addresses that the plugin believes pods have."""

    def host_local(self) -> dict[str, Any]:
        """The IPAM part, the same for both."""
        pool = {"subnet": SUBNET, "rangeStart": POOL[0], "rangeEnd": POOL[-1], "gateway": GATEWAY}
        return {"type": "host-local", "dataDir": str(self._leases), "ranges": [[pool]],
                "routes": [{"dst": "0.0.0.0/0"}]}  # fmt: skip

    @property
    def _leases(self) -> Path:
        return self.node.directory / "ipam"


class Bridge(Plugin):
    """Debian's ``bridge``, ``host-local`` and ``portmap``: shows that the test itself is right."""

    def start(self) -> None:
        for program in ("bridge", "host-local", "portmap", "loopback"):
            shutil.copy(DEBIAN_PLUGINS / program, self.bin_dir)

    def plugins(self) -> list[dict[str, Any]]:
        bridge = {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "ipMasq": True,
            "ipam": self.host_local(),
        }
        return [bridge, {"type": "portmap", "capabilities": {"portMappings": True}}]

    def addresses_in_use(self) -> set[str]:
        leases = self._leases / NETWORK
        return {path.name for path in leases.iterdir() if path.name in POOL} if leases.is_dir() else set()


class Samewire(Plugin):
    """The client, a daemon on the node, and one network."""

    network_type = "Overlay"

    def start(self) -> None:
        shutil.copy(BUILT / CLIENT, self.bin_dir / CLIENT)
        shutil.copy(DEBIAN_PLUGINS / "loopback", self.bin_dir)  # the runtimes' own, for "lo"
        run_dir = self.run_dir
        state_dir = self.node.directory / "sw-state"
        for directory in (run_dir, state_dir):
            directory.mkdir()
        config = self.node.directory / "daemon.json"
        values = {
            "name": "node",
            "uplink": "eth0",
            "run_dir": str(run_dir),
            "state_dir": str(state_dir),
            "host_cgroup": str(self.node.host_cgroup),
        }
        config.write_text(json.dumps(values))
        self._hns = HnsClient(run_dir / "samewire.sock")
        self.environment["SAMEWIRE_CNI_SOCKET"] = str(run_dir / "cni.sock")
        program = "from samewire.cli.main import main; main()"
        daemon = self.node.start("daemon", sys.executable, "-c", program, "daemon", "--config", str(config))
        daemon.wait_for(self._is_healthy, "the daemon is healthy")
        self._hns.create(Kind.NETWORK, self._network())

    @property
    def run_dir(self) -> Path:
        """The daemon's, where the test can reach it."""
        return self.node.directory / "sw"

    def _is_healthy(self) -> bool:
        try:
            self._hns.get_json("/v2/health")
        except SamewireError:
            return False
        return True

    def _network(self) -> dict[str, Any]:
        subnet: dict[str, Any] = {
            "IpAddressPrefix": SUBNET,
            "Routes": [{"DestinationPrefix": "0.0.0.0/0", "NextHop": GATEWAY}],
        }
        network: dict[str, Any] = {
            "Name": NETWORK,
            "Type": self.network_type,
            "Ipams": [{"Subnets": [subnet]}],
        }
        if self.network_type == "Overlay":
            subnet["Policies"] = [{"Type": "VSID", "Settings": {"IsolationId": 4096}}]
            network["Policies"] = [{"Type": "HostRoute"}]
        return network

    def plugins(self) -> list[dict[str, Any]]:
        nat = {"Type": "OutBoundNAT", "Settings": {"Exceptions": [SUBNET]}}
        policies = [{"name": "EndpointPolicy", "value": nat}]
        return [{"type": CLIENT, "capabilities": {"portMappings": True, "dns": True}, "ipam": self.host_local(),
                 "policies": policies}]  # fmt: skip

    def addresses_in_use(self) -> set[str]:
        return {
            address["IpAddress"]
            for endpoint in self._hns.list(Kind.ENDPOINT)
            for address in endpoint["IpConfigurations"]
        }


class SamewireNat(Samewire):
    """The same on a NAT network, with the CNI socket at its default place.

    podman gives its clean-up process (which calls DEL when a container has ended by itself or was killed) an empty
    environment, so a socket named there is found by ADD only.
    """

    network_type = "NAT"

    def start(self) -> None:
        super().start()
        self.environment.clear()
        self.node.run("ln", "-s", str(self.run_dir), "/run/samewire")


class SamewireNamed(Samewire):
    """On an overlay network, with the CNI socket named in the configuration, which every process of podman reads."""

    def start(self) -> None:
        super().start()
        self.environment.clear()

    def plugins(self) -> list[dict[str, Any]]:
        return [{**plugin, "samewireSocket": str(self.run_dir / "cni.sock")} for plugin in super().plugins()]
