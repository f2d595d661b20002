"""A minimal CNI runtime: executes plugins in a node's namespace as containerd does (spec 1.1)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from samewire.errors import SamewireError, Unavailable
from samewire.lab.addressing import bare, family_of
from samewire.lab.commands import CommandFailed, clean_environment, in_netns
from samewire.lab.podspec import DnsConfig
from samewire.lab.schedule import Pod
from samewire.lab.stack import Attached

#: Where Debian's containernetworking-plugins live.
DEBIAN_PLUGINS = Path("/usr/lib/cni")
_INTERFACE = "eth0"


class CniFailed(SamewireError):
    """A plugin that refused; the message is the plugin's own."""


class Runtime(Struct, frozen=True):
    """Runs configuration lists in a node's namespace. ``path`` is CNI_PATH; ``env`` is added to CNI's."""

    node_netns: str
    path: tuple[Path, ...]
    env: dict[str, str] = {}

    async def add(
        self, conflist: Mapping[str, Any], pod: Pod, netns_file: str, args: Mapping[str, Any]
    ) -> Attached:
        """ADD through all plugins; on failure DEL, as the spec asks of a runtime, and raise CniFailed.

        ``args`` are the runtimeConfig values; each plugin gets those whose capability it declares.
        """
        result: dict[str, Any] | None = None
        try:
            for plugin in conflist["plugins"]:
                conf = _merge(conflist, plugin, args, result)
                result = json.loads(await self._execute("ADD", plugin["type"], conf, pod, netns_file))
        except (SamewireError, ValueError) as error:
            message = f"CNI ADD of {pod.key}: {error}"
            try:
                await self.delete(conflist, pod, netns_file, args)
            except CniFailed as undo:
                message += f"; then {undo}"
            raise CniFailed(message) from error
        return _attached(result or {})

    async def delete(
        self, conflist: Mapping[str, Any], pod: Pod, netns_file: str, args: Mapping[str, Any]
    ) -> None:
        """DEL through all plugins in reverse; a plugin's refusal does not keep the others from theirs.

        Raises CniFailed.
        """
        failures = []
        for plugin in reversed(conflist["plugins"]):
            try:
                await self._execute(
                    "DEL", plugin["type"], _merge(conflist, plugin, args, None), pod, netns_file
                )
            except SamewireError as error:
                failures.append(str(error))
        if failures:
            raise CniFailed(f"CNI DEL of {pod.key}: {'; '.join(failures)}")

    async def _execute(self, verb: str, kind: str, conf: Mapping[str, Any], pod: Pod, netns_file: str) -> str:
        env = clean_environment(
            CNI_COMMAND=verb,
            CNI_CONTAINERID=container_id(pod),
            CNI_NETNS=netns_file,
            CNI_IFNAME=_INTERFACE,
            CNI_ARGS=f"IgnoreUnknown=1;K8S_POD_NAMESPACE={pod.namespace};K8S_POD_NAME={pod.name}",
            CNI_PATH=":".join(str(directory) for directory in self.path),
            **self.env,
        )
        executable = next((path / kind for path in self.path if (path / kind).exists()), None)
        if executable is None:
            raise Unavailable(f"CNI plugin {kind}", f"not found in {env['CNI_PATH']}")
        try:
            return await in_netns(self.node_netns, str(executable), stdin=json.dumps(conf), env=env)
        except CommandFailed as error:
            raise CniFailed(f"{kind}: {_plugin_message(error.output)}") from error


def container_id(pod: Pod) -> str:
    """The CNI container id of a pod's sandbox."""
    return f"lab-{pod.slug}"


def host_local(ranges: Sequence[Mapping[str, str]], data_dir: Path) -> dict[str, Any]:
    """An ``ipam`` section with one range a family and a default route for each."""
    families = {family_of(item["subnet"]) for item in ranges}
    routes = [{"dst": "0.0.0.0/0" if family == 4 else "::/0"} for family in sorted(families)]
    return {
        "type": "host-local",
        "ranges": [[dict(item)] for item in ranges],
        "routes": routes,
        "dataDir": str(data_dir),
    }


def port_mappings(pod: Pod) -> list[dict[str, Any]]:
    """The portMappings capability argument of a pod."""
    return [
        {
            "hostPort": port.host_port,
            "containerPort": port.container_port,
            "protocol": port.protocol.lower(),
            "hostIP": port.host_ip,
        }
        for container in pod.template.containers
        for port in container.ports
        if port.host_port
    ]


def dns_argument(dns: DnsConfig) -> dict[str, list[str]]:
    """The dns capability argument."""
    return {"servers": list(dns.servers), "searches": list(dns.searches), "options": list(dns.options)}


def dns_section(dns: DnsConfig) -> dict[str, list[str]]:
    """The ``dns`` section of a configuration, for plugins that pass it into their result."""
    return {"nameservers": list(dns.servers), "search": list(dns.searches), "options": list(dns.options)}


def _merge(
    conflist: Mapping[str, Any],
    plugin: Mapping[str, Any],
    args: Mapping[str, Any],
    previous: Mapping[str, Any] | None,
) -> dict[str, Any]:
    conf = {"cniVersion": conflist["cniVersion"], "name": conflist["name"], **plugin}
    declared = plugin.get("capabilities", {})
    runtime = {name: value for name, value in args.items() if declared.get(name)}
    if runtime:
        conf["runtimeConfig"] = runtime
    if previous is not None:
        conf["prevResult"] = previous
    return conf


def _attached(result: Mapping[str, Any]) -> Attached:
    addresses = [bare(item["address"]) for item in result.get("ips", [])]
    dns = result.get("dns") or {}
    return Attached(
        tuple(sorted(addresses, key=family_of)),
        DnsConfig(
            tuple(dns.get("nameservers") or ()),
            tuple(dns.get("search") or ()),
            tuple(dns.get("options") or ()),
        ),
    )


def _plugin_message(output: str) -> str:
    """The message of a CNI error object, or the raw output of a plugin that died otherwise."""
    try:
        error = msgspec.json.decode(output)
        return " ".join(str(error[key]) for key in ("msg", "details") if error.get(key))
    except (msgspec.DecodeError, AttributeError):
        return output.strip()
