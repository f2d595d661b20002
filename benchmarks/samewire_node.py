"""A Samewire node of the benchmarks: the daemon in a node's namespace, its HTTP API, its CNI client.

All that the benchmarks know of Samewire's interfaces is in this module.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import samewire
from benchmarks import native, netns
from benchmarks.errors import BenchError
from benchmarks.peers import CNI_BIN, pod_address

CNI_CLIENT = Path(samewire.__file__).parent / "_build" / "samewire-cni"
CNI_VERSION = "1.1.0"
HEALTH_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 10.0
REQUEST_TIMEOUT_S = 20.0
POLL_S = 0.02
LOG_TAIL = 600
VNI = 4096

Json = dict[str, Any]


def outbound_nat(*exceptions: str) -> Json:
    """OutBoundNAT with these destination prefixes left as they are."""
    return {"Type": "OutBoundNAT", "Settings": {"Exceptions": list(exceptions)}}


def stateful_acl(direction: str, remote: str, priority: int = 1000) -> Json:
    """One ACL that lets TCP, UDP and ICMP between the endpoint and ``remote`` pass (In or Out)."""
    settings = {"Protocols": "1,6,17", "Action": "Allow", "Direction": direction, "RemoteAddresses": remote}
    return {"Type": "ACL", "Settings": {**settings, "RuleType": "Switch", "Priority": priority}}


def network(name: str, kind: str, subnet: str, gateway: str, *, vni: int | None = None) -> Json:
    """An HCN v2 network of one subnet with a default route."""
    policies = [] if vni is None else [{"Type": "VSID", "Settings": {"IsolationId": vni}}]
    routes = [{"NextHop": gateway, "DestinationPrefix": "0.0.0.0/0"}]
    prefix = {"IpAddressPrefix": subnet, "Routes": routes, "Policies": policies}
    ipams = [{"Type": "Static", "Subnets": [prefix]}]
    return {"SchemaVersion": {"Major": 2, "Minor": 0}, "Name": name, "Type": kind, "Ipams": ipams}


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=REQUEST_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class SamewireNode:
    """``samewire daemon`` in one node namespace.

    The daemon gets a mount namespace of its own (receiving, not sending mounts), so that the bpf file system
    it mounts is gone with it however it ends.
    """

    def __init__(self, tmp: Path, name: str, node: str, uplink: str) -> None:
        self.node = node
        self.tmp = tmp / name
        self._addresses = tmp / netns.ADDRESSES / name
        self._run_dir = self.tmp / "run"
        self._log = self.tmp / "daemon.log"
        self._config = self.tmp / "config.json"
        self._process: subprocess.Popen[bytes] | None = None
        self._run_dir.mkdir(parents=True)
        (self.tmp / "state").mkdir()
        config = {
            "name": name,
            "uplink": uplink,
            "run_dir": str(self._run_dir),
            "state_dir": str(self.tmp / "state"),
        }
        self._config.write_text(json.dumps(config))
        self.plugin = CNI_CLIENT
        self.env = {
            "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
            "CNI_PATH": str(CNI_BIN),
            "SAMEWIRE_CNI_SOCKET": str(self._run_dir / "cni.sock"),
        }

    def configure(self, **settings: object) -> None:
        """Change the daemon's configuration; it counts from the next start on."""
        self._config.write_text(json.dumps({**json.loads(self._config.read_text()), **settings}))

    # --- the daemon -------------------------------------------------------------------------------

    def start(self, wait: bool = True) -> None:
        """Start the daemon and wait until it is healthy. Raises ``BenchError`` with the end of its log."""
        executable = Path(sys.executable).parent / "samewire"
        for needed in (executable, CNI_CLIENT):
            if not needed.exists():
                raise BenchError(f"{needed.name} is not built; `make setup` does it")
        isolate = ["unshare", "--mount", "--propagation", "slave"]
        command = [
            *isolate,
            *netns.enter(self.node),
            str(executable),
            "daemon",
            "--config",
            str(self._config),
        ]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        if wait:
            self._await_health(self._process)

    def _await_health(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + HEALTH_TIMEOUT_S
        while not self._healthy():
            if process.poll() is not None:
                raise BenchError(f"samewire daemon ended with status {process.returncode}: {self._tail()}")
            if time.monotonic() >= deadline:
                raise BenchError(
                    f"samewire daemon is not healthy after {HEALTH_TIMEOUT_S:.0f} s: {self._tail()}"
                )
            time.sleep(POLL_S)

    def stop(self) -> None:
        """End the daemon, kindly at first. May be called again, and before ``start``."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _healthy(self) -> bool:
        try:
            self.request("GET", "/v2/health")
        except (OSError, BenchError):
            return False
        return True

    def _tail(self) -> str:
        return self._log.read_text(errors="replace").strip()[-LOG_TAIL:]

    # --- the API ----------------------------------------------------------------------------------

    def request(
        self, method: str, path: str, body: Json | None = None, headers: Mapping[str, str] | None = None
    ) -> Any:
        """One HTTP request; returns the decoded answer.

        Raises:
            BenchError: the daemon answered with an error (its text is in the message).
            OSError: there was no answer.
        """
        connection = _UnixConnection(self._run_dir / "samewire.sock")
        try:
            text = None if body is None else json.dumps(body)
            connection.request(method, path, text, {"Content-Type": "application/json", **(headers or {})})
            response = connection.getresponse()
            answer = response.read()
        finally:
            connection.close()
        if response.status >= 400:
            raise BenchError(f"{method} {path}: {response.status}: {answer.decode(errors='replace')}")
        return json.loads(answer) if answer else None

    def create_network(self, wanted: Json) -> Json:
        """Create an HCN network; returns it as the service completed it (ID, DrMacAddress, ...)."""
        created: Json = self.request("POST", "/v2/networks", wanted)
        found: Json = self.request("GET", f"/v2/networks/{created['ID']}")
        return found

    def add_remote_subnet(self, network_id: str, prefix: str, provider: str, dr_mac: str) -> None:
        """Tell an overlay network that a pod subnet lives behind another node."""
        settings = {"DestinationPrefix": prefix, "IsolationId": VNI, "ProviderAddress": provider}
        settings["DistributedRouterMacAddress"] = dr_mac
        policy = {"Policies": [{"Type": "RemoteSubnetRoute", "Settings": settings}]}
        request = {"ResourceType": "Policy", "RequestType": "Add", "Settings": policy}
        self.request("POST", f"/v2/networks/{network_id}", request)

    def set_endpoint_policies(self, endpoint_id: str, policies: Sequence[Json]) -> None:
        """Replace all policies of an endpoint."""
        request = {
            "ResourceType": "Policy",
            "RequestType": "Update",
            "Settings": {"Policies": list(policies)},
        }
        self.request("POST", f"/v2/endpoints/{endpoint_id}", request)

    def endpoint_of(self, pod_ip: str) -> Json:
        """The endpoint with that address. Raises ``BenchError`` if there is none."""
        for endpoint in self.request("GET", "/v2/endpoints"):
            if any(config["IpAddress"] == pod_ip for config in endpoint.get("IpConfigurations", [])):
                found: Json = endpoint
                return found
        raise BenchError(f"no endpoint has the address {pod_ip}")

    def flow_inserts(self) -> int:
        """How many flows the switch has inserted since it was loaded."""
        return int(self.request("GET", "/v2/switch/flows?summary=1")["flow_inserts"])

    # --- CNI --------------------------------------------------------------------------------------

    def write_conf(
        self,
        network_name: str,
        ranges: Json,
        policies: Sequence[Json],
    ) -> Path:
        """A CNI configuration file for one network; ``ranges`` is one range as host-local has it."""
        ipam = {"type": "host-local", "ranges": [[ranges]], "routes": [{"dst": "0.0.0.0/0"}]}
        conf = {
            "cniVersion": CNI_VERSION,
            "name": network_name,
            "type": "samewire-cni",
            "ipam": {**ipam, "dataDir": str(self._addresses)},
            "policies": [{"name": "EndpointPolicy", "value": policy} for policy in policies],
        }
        path = self.tmp / f"{network_name}.conf"
        path.write_text(json.dumps(conf))
        return path

    def add(self, pod: str, conf: Path, mac: str = "") -> str:
        """Attach a pod through the CNI client, with a MAC if named; returns its address. Raises ``BenchError``."""
        if mac:
            asked = {**json.loads(conf.read_text()), "runtimeConfig": {"mac": mac}}
            conf = conf.with_suffix(".mac.conf")
            conf.write_text(json.dumps(asked))
        native.execute_cni("ADD", self.plugin, conf, {pod: pod}, self.node, self.tmp, self.env)
        return pod_address(pod)

    # --- what it costs ----------------------------------------------------------------------------

    def cpu_s(self) -> float:
        """CPU time of the daemon and its ended children since its start (proc_pid_stat(5))."""
        fields = self._proc("stat").rpartition(")")[2].split()
        return sum(int(ticks) for ticks in fields[11:15]) / os.sysconf("SC_CLK_TCK")

    def precise_cpu_s(self) -> float:
        """CPU time of the daemon's threads that live, in nanoseconds' steps (sched-stats in the kernel's docs)."""
        if self._process is None:
            raise BenchError("the daemon does not run")
        threads = Path(f"/proc/{self._process.pid}/task").glob("*/schedstat")
        return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9

    def resident_mb(self) -> float:
        """Resident memory of the daemon, in 10^6 bytes."""
        [line] = [line for line in self._proc("status").splitlines() if line.startswith("VmRSS:")]
        return int(line.split()[1]) * 1024 / 1e6

    def _proc(self, file: str) -> str:
        if self._process is None:
            raise BenchError("the daemon does not run")
        return Path(f"/proc/{self._process.pid}/{file}").read_text()
