"""containerd on a test node, driven as kubelet drives it: through the CRI."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from tests.e2e.runtimes import image
from tests.e2e.runtimes.cri import Cri
from tests.e2e.runtimes.node import Node
from tests.e2e.runtimes.plugins import Plugin

CRI_PLUGIN = 'plugins."io.containerd.grpc.v1.cri"'
DNS_SERVER = "192.0.2.53"
# The runtime's own files lie on the node's private RAM disk; only the socket is where the test can reach it.
CONFIG = """
version = 2
root = "/run/containerd-root"
state = "/run/containerd-state"
[grpc]
address = {socket}
[{cri}]
sandbox_image = {image}
disable_apparmor = true
restrict_oom_score_adj = true
stream_server_address = "127.0.0.1"
stream_server_port = "0"
[{cri}.containerd]
snapshotter = "overlayfs"
[{cri}.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[{cri}.cni]
bin_dir = {bin_dir}
conf_dir = {conf_dir}
"""


class Pod:
    """A pod sandbox and the containers in it."""

    def __init__(self, cri: Cri, config: dict[str, Any]) -> None:
        self._cri = cri
        self._config = config
        self._attempts = itertools.count()
        self.id: str = cri.call("RunPodSandbox", config=config).pod_sandbox_id

    @property
    def address(self) -> str:
        """The address that the runtime reports."""
        status = self._cri.call("PodSandboxStatus", pod_sandbox_id=self.id).status
        return str(status.network.ip)

    def container(self, name: str, *command: str) -> Container:
        """Create and start a container. A second one of the same name is its restart."""
        metadata = {"name": name, "attempt": next(self._attempts)}
        made = self._cri.call(
            "CreateContainer", pod_sandbox_id=self.id, sandbox_config=self._config,
            config={"metadata": metadata, "image": {"image": image.NAME}, "command": list(command)},
        )  # fmt: skip
        self._cri.call("StartContainer", container_id=made.container_id)
        return Container(self._cri, made.container_id)

    def stop(self) -> None:
        """Kill the containers and take the network down."""
        self._cri.call("StopPodSandbox", pod_sandbox_id=self.id)

    def remove(self) -> None:
        """Stop it if need be, and forget it."""
        self.stop()
        self._cri.call("RemovePodSandbox", pod_sandbox_id=self.id)


class Container:
    """A started container."""

    def __init__(self, cri: Cri, container_id: str) -> None:
        self._cri = cri
        self.id = container_id

    def execute(self, *command: str) -> tuple[int, str]:
        """Run a command in it; exit status and standard output."""
        done = self._cri.call("ExecSync", container_id=self.id, cmd=list(command), timeout=30)
        return done.exit_code, done.stdout.decode().strip()

    def output(self, *command: str) -> str:
        """Standard output of a command that must succeed."""
        done = self._cri.call("ExecSync", container_id=self.id, cmd=list(command), timeout=30)
        assert done.exit_code == 0, f"{command}: {done.exit_code}\n{done.stdout!r}\n{done.stderr!r}"
        return str(done.stdout.decode().strip())

    def kill(self) -> None:
        """Stop it without grace and remove it."""
        self._cri.call("StopContainer", container_id=self.id, timeout=0)
        self._cri.call("RemoveContainer", container_id=self.id)


class Containerd:
    """A running containerd."""

    def __init__(self, node: Node, plugin: Plugin, cri: Cri) -> None:
        self.node = node
        self.plugin = plugin
        self._cri = cri
        self._numbers = itertools.count(1)

    @contextmanager
    def pod(self, *, host_port: int = 0, container_port: int = 0) -> Iterator[Pod]:
        """A pod with a network; it is removed at the end."""
        name = f"pod-{next(self._numbers)}"
        config: dict[str, Any] = {
            "metadata": {"name": name, "uid": name, "namespace": "default"},
            "hostname": name,
            "dns_config": {"servers": [DNS_SERVER], "searches": ["svc.test"]},
            "linux": {"cgroup_parent": f"/{self.node.cgroup}"},
        }
        if host_port:
            config["port_mappings"] = [{"container_port": container_port, "host_port": host_port}]
        pod = Pod(self._cri, config)
        try:
            yield pod
        finally:
            pod.remove()


@contextmanager
def running_containerd(node: Node, plugin: Plugin) -> Iterator[Containerd]:
    """Start containerd on the node, load the image, and wait until it says that the network is ready."""
    socket = node.directory / "containerd.sock"
    config = node.directory / "containerd.toml"
    config.write_text(
        CONFIG.format(
            cri=CRI_PLUGIN, socket=json.dumps(str(socket)), image=json.dumps(image.NAME),
            bin_dir=json.dumps(str(plugin.bin_dir)), conf_dir=json.dumps(str(plugin.conf_dir)),
        )
    )  # fmt: skip
    archive = node.directory / "image.tar"
    image.write(archive)
    daemon = node.start("containerd", "containerd", "--config", str(config), env=plugin.environment)
    with Cri(socket) as cri:

        def ready() -> bool:
            try:
                conditions = cri.call("Status").status.conditions
            except grpc.RpcError:
                return False
            return len(conditions) > 0 and all(condition.status for condition in conditions)

        daemon.wait_for(ready, "the runtime and its network are ready")
        node.run("ctr", "--address", str(socket), "--namespace", "k8s.io", "images", "import", str(archive))
        yield Containerd(node, plugin, cri)
