"""podman on a test node, with CNI networks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.e2e.runtimes import image
from tests.e2e.runtimes.node import Node
from tests.e2e.runtimes.plugins import NETWORK, Plugin

# The limits are those that a root without CAP_SYS_RESOURCE can set; podman's own need more.
CONFIG = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
[network]
network_backend = "cni"
cni_plugin_dirs = [{bin_dir}]
network_config_dir = {conf_dir}
default_network = {network}
"""

STORAGE = """
[storage]
driver = "overlay"
graphroot = "/run/containers-storage"
runroot = "/run/containers"
"""


class Podman:
    """podman with its storage on the node's private RAM disk."""

    def __init__(self, node: Node, plugin: Plugin) -> None:
        self.node = node
        self.plugin = plugin
        config = node.directory / "containers.conf"
        config.write_text(
            CONFIG.format(
                bin_dir=json.dumps(str(plugin.bin_dir)),
                conf_dir=json.dumps(str(plugin.conf_dir)),
                network=json.dumps(NETWORK),
            )
        )
        storage = node.directory / "storage.conf"
        storage.write_text(STORAGE)
        self._environment = {
            **plugin.environment,
            "CONTAINERS_CONF": str(config),
            "CONTAINERS_STORAGE_CONF": str(storage),
        }
        archive = node.directory / "image.tar"
        image.write(archive)
        self("load", "--input", str(archive))

    def __call__(self, *arguments: str) -> str:
        """Standard output of a podman command that must succeed."""
        return self.node.run("podman", *arguments, env=self._environment).stdout.strip()

    @contextmanager
    def container(self, name: str, *command: str, publish: str = "") -> Iterator[str]:
        """A running container's name; it is removed at the end."""
        options = ["--publish", publish] if publish else []
        self("run", "--detach", "--name", name, "--network", NETWORK, "--cgroup-parent", f"/{self.node.cgroup}",
             *options, image.NAME, *command)  # fmt: skip
        try:
            yield name
        finally:
            self("rm", "--force", "--time", "0", name)

    def execute(self, name: str, *command: str) -> str:
        """Standard output of a command in a container."""
        return self("exec", name, *command)

    def address(self, name: str) -> str:
        """The address that podman reports."""
        (found,) = json.loads(self("inspect", name))
        network: dict[str, Any] = found["NetworkSettings"]["Networks"][NETWORK]
        return str(network["IPAddress"])
