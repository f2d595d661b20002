"""Pod templates: the part of a Kubernetes PodSpec that a lab acts on (pure).

Only fields with a meaning here are kept; everything else in a published manifest is ignored. A field that is
there but malformed raises ValueError, and the manifest reader skips that object with the reason.
"""

from __future__ import annotations

import ipaddress
import math
import re
from typing import Any

from msgspec import Struct

from samewire.lab.hostports import EVERY, Claim, HostPorts

_LABEL = re.compile(r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")
_ENV_NAME = re.compile(r"^[-._a-zA-Z][-._a-zA-Z0-9]*$")
_NUMBER = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)"
_QUANTITY = re.compile(rf"^({_NUMBER})([a-zA-Z]*)$")
_EXPONENT = re.compile(rf"^{_NUMBER}[eE][+-]?[0-9]+$")
_SUFFIXES = {
    "": 1.0,
    "n": 1e-9,
    "u": 1e-6,
    "m": 1e-3,
    **{suffix: 1000.0**power for power, suffix in enumerate(("k", "M", "G", "T", "P", "E"), 1)},
    **{suffix: 1024.0**power for power, suffix in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), 1)},
}

#: Of a node's fields, `matchFields` may ask for its name. No label is called so.
_FIELD = "field:"
NODE_NAME = f"{_FIELD}metadata.name"

GUARANTEED, BURSTABLE, BEST_EFFORT = "Guaranteed", "Burstable", "BestEffort"


class Port(Struct, frozen=True):
    """A containerPort; ``host_port`` 0 means none."""

    container_port: int
    protocol: str = "TCP"
    host_port: int = 0
    host_ip: str = ""
    name: str = ""

    @property
    def claim(self) -> Claim:
        """The host port that it takes, if any."""
        return self.protocol, self.host_port, self.host_ip or EVERY


class Container(Struct, frozen=True):
    """One container; ``resources`` maps ``limits.cpu`` and the like to plain numbers (cores, bytes)."""

    name: str
    image: str = ""
    command: tuple[str, ...] = ()
    ports: tuple[Port, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    resources: dict[str, float] = {}


class Toleration(Struct, frozen=True):
    """A toleration; an empty key with operator Exists tolerates everything."""

    key: str = ""
    operator: str = "Equal"
    value: str = ""
    effect: str = ""


class Requirement(Struct, frozen=True):
    """One expression over node labels, or with the key `NODE_NAME` over the node's name."""

    key: str
    operator: str
    values: tuple[str, ...] = ()


class DnsConfig(Struct, frozen=True):
    """dnsConfig of a pod; options in resolv.conf form (``ndots:2``)."""

    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class PodTemplate(Struct, frozen=True):
    """What every pod of a workload has in common. ``affinity`` is an OR of ANDs over nodes; an empty AND fits none.
    ``setup``: init containers that end before the others begin; nothing runs them here, and they count for the QoS
    class.
    """

    containers: tuple[Container, ...]
    setup: tuple[Container, ...] = ()
    labels: dict[str, str] = {}
    host_network: bool = False
    hostname: str = ""
    subdomain: str = ""
    node_name: str = ""
    node_selector: dict[str, str] = {}
    affinity: tuple[tuple[Requirement, ...], ...] = ()
    tolerations: tuple[Toleration, ...] = ()
    dns_policy: str = "ClusterFirst"
    dns: DnsConfig = DnsConfig()
    host_aliases: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @property
    def qos(self) -> str:
        """The QoS class Kubernetes would give."""
        return qos_class((*self.containers, *self.setup))


def parse_template(template: Any) -> PodTemplate:
    """A pod (or a pod template) object to a :class:`PodTemplate`; ValueError says what is malformed."""
    spec = mapping(mapping(template, "template").get("spec"), "spec")
    initial = sequence(spec.get("initContainers"), "initContainers")
    sidecars = [item for item in initial if mapping(item, "initContainer").get("restartPolicy") == "Always"]
    # A port's name means the first that has it, and who enters a pod its first container: never a sidecar's.
    listed = [*sequence(spec.get("containers"), "containers"), *sidecars]
    if not listed:
        raise ValueError("the pod has no containers")
    metadata = mapping(mapping(template, "template").get("metadata"), "metadata")
    host_network = bool(spec.get("hostNetwork", False))
    containers = tuple(_container(item, host_network) for item in listed)
    setup = tuple(_container(item, host_network) for item in initial if item not in sidecars)
    if len({container.name for container in (*containers, *setup)}) < len(containers) + len(setup):
        raise ValueError("two containers have the same name")
    _check_host_ports(containers)
    return PodTemplate(
        containers=containers,
        setup=setup,
        labels=_strings(metadata.get("labels"), "labels"),
        host_network=host_network,
        hostname=str(spec.get("hostname") or ""),
        subdomain=str(spec.get("subdomain") or ""),
        node_name=str(spec.get("nodeName") or ""),
        node_selector=_strings(spec.get("nodeSelector"), "nodeSelector"),
        affinity=_affinity(spec),
        tolerations=tuple(_toleration(item) for item in sequence(spec.get("tolerations"), "tolerations")),
        dns_policy=str(spec.get("dnsPolicy") or "ClusterFirst"),
        dns=_dns_config(mapping(spec.get("dnsConfig"), "dnsConfig")),
        host_aliases=tuple(_host_alias(item) for item in sequence(spec.get("hostAliases"), "hostAliases")),
    )


def qos_class(containers: tuple[Container, ...]) -> str:
    """Guaranteed, Burstable or BestEffort, by the rules of the Kubernetes documentation."""
    if not any(container.resources for container in containers):
        return BEST_EFFORT
    for container in containers:
        for resource in ("cpu", "memory"):
            limit = container.resources.get(f"limits.{resource}")
            if not limit or container.resources.get(f"requests.{resource}", limit) != limit:
                return BURSTABLE
    return GUARANTEED


def oom_score_adj(qos: str, memory_request_bytes: float, machine_bytes: int) -> int:
    """The value the kubelet would give to a container of this QoS class."""
    if qos == GUARANTEED:
        return -997
    if qos == BEST_EFFORT:
        return 1000
    return min(999, max(3, 1000 - int(1000 * memory_request_bytes / machine_bytes)))


def served_ports(container: Container) -> list[int]:
    """The ports that a stand-in serves, over TCP, HTTP and UDP alike: every declared one but SCTP's."""
    return sorted({port.container_port for port in container.ports if port.protocol != "SCTP"})


def quantity(text: Any) -> float:
    """A Kubernetes quantity (``100m``, ``1.5Gi``, ``1e3``) as a number. Raises ValueError."""
    word = str(text).strip()
    if _EXPONENT.match(word):
        return _finite(word, word)
    matched = _QUANTITY.match(word)
    if matched is None or matched[2] not in _SUFFIXES:
        raise ValueError(f"{word!r} is not a quantity")
    return _finite(word, matched[1], _SUFFIXES[matched[2]])


def _finite(word: str, digits: str, factor: float = 1.0) -> float:
    number = float(digits) * factor
    if not math.isfinite(number):
        raise ValueError(f"{word!r:.64} is not a quantity")
    return number


def mapping(value: Any, what: str) -> dict[str, Any]:
    """``value`` as a mapping, None as an empty one. Raises ValueError."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"{what} is not a mapping")
    return value


def sequence(value: Any, what: str) -> list[Any]:
    """``value`` as a list, None as an empty one. Raises ValueError."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise ValueError(f"{what} is not a list")
    return value


def _strings(value: Any, what: str) -> dict[str, str]:
    return {str(key): "" if item is None else str(item) for key, item in mapping(value, what).items()}


def _container(item: Any, host_network: bool) -> Container:
    fields = mapping(item, "container")
    name = fields.get("name")
    if not isinstance(name, str) or not _LABEL.fullmatch(name):
        raise ValueError(f"{name!r} is not a valid name of a container")
    words = [*sequence(fields.get("command"), "command"), *sequence(fields.get("args"), "args")]
    command = tuple(str(word) for word in words)
    env = tuple(
        (str(entry["name"]), "" if entry["value"] is None else str(entry["value"]))
        for entry in sequence(fields.get("env"), "env")
        if isinstance(entry, dict) and _ENV_NAME.fullmatch(str(entry.get("name") or "")) and "value" in entry
    )
    if any("\0" in text for text in (*command, *(value for _, value in env))):
        raise ValueError(f"container {name} has a zero byte in its command or environment")
    return Container(
        name=name,
        image=str(fields.get("image") or ""),
        command=command,
        ports=tuple(_port(port, host_network) for port in sequence(fields.get("ports"), "ports")),
        env=env,
        resources=_resources(mapping(fields.get("resources"), "resources")),
    )


def _port(item: Any, host_network: bool) -> Port:
    fields = mapping(item, "port")
    number = _port_number("containerPort", fields.get("containerPort"))
    host = _port_number("hostPort", fields["hostPort"]) if fields.get("hostPort") else 0
    protocol = str(fields.get("protocol") or "TCP").upper()
    if protocol not in {"TCP", "UDP", "SCTP"}:
        raise ValueError(f"protocol {protocol!r} is none of TCP, UDP, SCTP")
    # With hostNetwork the container port *is* the node's port; there is nothing to map.
    name, host_ip = str(fields.get("name") or ""), str(fields.get("hostIP") or "")
    if host_ip:
        ipaddress.ip_address(host_ip)
    return Port(number, protocol, 0 if host_network else host, host_ip, name)


def _check_host_ports(containers: tuple[Container, ...]) -> None:
    taken = HostPorts()
    for port in (port for container in containers for port in container.ports if port.host_port):
        if port.claim in taken:
            raise ValueError(f"host port {port.host_port}/{port.protocol} is there twice")
        taken.update([port.claim])


def _port_number(name: str, value: Any) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} {value!r} is not a number") from None
    if not 0 < number < 65536:
        raise ValueError(f"{name} {number} is out of range")
    return number


def _resources(fields: dict[str, Any]) -> dict[str, float]:
    result: dict[str, float] = {}
    for kind in ("limits", "requests"):
        amounts = mapping(fields.get(kind), kind)
        for resource in ("cpu", "memory"):
            if amounts.get(resource) is not None and (amount := quantity(amounts[resource])):
                result[f"{kind}.{resource}"] = amount
    return result


def _toleration(item: Any) -> Toleration:
    fields = _strings(item, "toleration")
    return Toleration(
        fields.get("key", ""),
        fields.get("operator") or "Equal",
        fields.get("value", ""),
        fields.get("effect", ""),
    )


def _affinity(spec: dict[str, Any]) -> tuple[tuple[Requirement, ...], ...]:
    affinity = mapping(mapping(spec.get("affinity"), "affinity").get("nodeAffinity"), "nodeAffinity")
    required = mapping(affinity.get("requiredDuringSchedulingIgnoredDuringExecution"), "node affinity")
    terms = []
    for term in sequence(required.get("nodeSelectorTerms"), "nodeSelectorTerms"):
        expressions = [
            _requirement(mapping(item, kind), prefix)
            for kind, prefix in (("matchExpressions", ""), ("matchFields", _FIELD))
            for item in sequence(mapping(term, "term").get(kind), kind)
        ]
        terms.append(tuple(expressions))
    return tuple(terms)


def _requirement(fields: dict[str, Any], prefix: str) -> Requirement:
    values = tuple(str(value) for value in sequence(fields.get("values"), "values"))
    return Requirement(f"{prefix}{fields.get('key')}", str(fields.get("operator")), values)


def _dns_config(fields: dict[str, Any]) -> DnsConfig:
    options = []
    for item in sequence(fields.get("options"), "dns options"):
        option = mapping(item, "dns option")
        value = option.get("value")
        options.append(str(option.get("name")) if value is None else f"{option.get('name')}:{value}")
    servers = tuple(str(server) for server in sequence(fields.get("nameservers"), "nameservers"))
    for server in servers:
        ipaddress.ip_address(server)
    return DnsConfig(
        servers,
        tuple(str(suffix) for suffix in sequence(fields.get("searches"), "searches")),
        tuple(options),
    )


def _host_alias(item: Any) -> tuple[str, tuple[str, ...]]:
    fields = mapping(item, "hostAlias")
    names = tuple(str(name) for name in sequence(fields.get("hostnames"), "hostnames"))
    return str(fields.get("ip")), names
