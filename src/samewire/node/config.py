"""The daemon's configuration: one JSON or TOML file, read once at start."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args, get_type_hints

import msgspec

from samewire.errors import Invalid

Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
LOOPBACKS: Final = ("127.0.0.1", "::1")

_LINK_NAME_BYTES: Final = 15
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")
_LISTEN = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:]*):([0-9]{1,5})")
_UNKNOWN_KEY = re.compile(r"unknown field `([^`]+)`")
_FAULT = re.compile(r"(?P<message>.*?)(?: - at `\$\.?(?P<path>.*)`)?", re.DOTALL)


class NodeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Configuration of one node. Only ``name`` has no default.

    ``uplink``: the node's NIC; empty = the interface of the default route. ``vxlan_port``: UDP. ``nat_ports``:
    the SNAT pool, inclusive. ``flow_entries``: size of the flow table. ``flow_counters``: count each flow's packets
    and bytes. ``host_cgroup``: cgroup-v2 directory whose processes reach services and host ports; empty = no hooks.
    ``metrics_listen``: "host:port" for Prometheus; empty = only on the unix socket. ``audit_interval_s``: time between
    comparisons with the kernel. ``allowed_uids``: who, besides root, may use the HTTP and the CNI socket.
    ``hns_listen``: "host:port" of the loopback for programs without unix sockets; empty = none. ``acl_unmatched``:
    what becomes of connections in a direction for which an endpoint has ACL rules, when none matches (HNS does not
    say).

    Services: at most one of ``kubeconfig`` (with ``kube_context``), ``in_cluster`` and ``manifests`` (a directory)
    says where they come from; none = no services. ``node_name``: this node's name there, "" = ``name``.
    ``service_cidrs``: for cluster IPs of manifests. ``proxy_mode``: who balances them: the switch, a relay process, or
    nobody here. ``proxy_network``: only for the pods of this network, "" = all. ``node_port_addresses``: prefixes or
    "primary", none = all. ``node_port_range``: inclusive. ``healthz_listen``: "host:port", empty = not served.
    ``dsr``: direct server return for services that do not say.
    """

    name: str
    uplink: str = ""
    run_dir: Path = Path("/run/samewire")
    state_dir: Path = Path("/var/lib/samewire")
    vxlan_port: Port = 4789
    nat_ports: tuple[Port, Port] = (49152, 65535)
    flow_entries: Annotated[int, msgspec.Meta(ge=1024, le=8_388_608)] = 131072
    flow_counters: bool = False
    host_cgroup: str = ""
    metrics_listen: str = ""
    audit_interval_s: Annotated[float, msgspec.Meta(ge=1, le=86400)] = 60.0
    allowed_uids: tuple[int, ...] = ()
    hns_listen: str = ""
    acl_unmatched: Literal["block", "allow"] = "block"
    kubeconfig: str = ""
    kube_context: str = ""
    in_cluster: bool = False
    manifests: str = ""
    node_name: str = ""
    service_cidrs: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] = ("10.96.0.0/12",)
    proxy_mode: Literal["kernel", "userspace", "off"] = "kernel"
    proxy_network: str = ""
    node_port_addresses: tuple[str, ...] = ()
    node_port_range: tuple[Port, Port] = (30000, 32767)
    healthz_listen: str = ":10256"
    dsr: bool = False

    @property
    def has_source(self) -> bool:
        """Whether Kubernetes objects come from somewhere."""
        return bool(self.kubeconfig or self.in_cluster or self.manifests)

    @property
    def balances(self) -> bool:
        """Whether this node balances services."""
        return self.has_source and self.proxy_mode != "off"

    @property
    def follows(self) -> bool:
        """Whether Kubernetes objects are read: for services, or for the other nodes of ``proxy_network``."""
        return self.balances or (self.has_source and bool(self.proxy_network))

    @property
    def kubernetes_name(self) -> str:
        """This node's name in Kubernetes, where names are lower case, as kubelet makes those of hosts."""
        return (self.node_name or self.name).lower()

    @property
    def hns_address(self) -> tuple[str, int] | None:
        """Host and port of the HNS listener for programs without unix sockets, or None. Raises Invalid."""
        found = _address(self.hns_listen)
        if found is not None and found[0] not in LOOPBACKS:
            raise Invalid("hns_listen", f"{found[0]!r} is not loopback: use {' or '.join(LOOPBACKS)}")
        return found

    @property
    def hns_token_file(self) -> Path:
        """What a client of the HNS listener has to send."""
        return self.run_dir / "hns.token"

    @property
    def relay_socket(self) -> Path:
        """Where the user-mode relay is told what to do."""
        return self.run_dir / "relay.sock"

    @property
    def http_socket(self) -> Path:
        """Where the HTTP API listens."""
        return self.run_dir / "samewire.sock"

    @property
    def cni_socket(self) -> Path:
        """Where the CNI client connects."""
        return self.run_dir / "cni.sock"

    @property
    def database(self) -> Path:
        """The file of the desired objects."""
        return self.state_dir / "samewire.db"

    @property
    def bpf_dir(self) -> Path:
        """Mount point of the daemon's own bpffs."""
        return self.run_dir / "bpf"

    @property
    def flow_slots(self) -> int:
        """Entries of sw_flow_slots: the power of two from twice the flows."""
        return 1 << (2 * self.flow_entries - 1).bit_length()

    @property
    def map_sizes(self) -> dict[str, int]:
        """Entries of the switch's maps where they depend on the configuration."""
        counts = 2 * self.flow_slots if self.flow_counters else 1
        return {"sw_flows": self.flow_entries, "sw_flow_slots": self.flow_slots, "sw_flow_counts": counts}

    @property
    def switch_constants(self) -> dict[str, int]:
        """What the switch's programs are told before they are loaded."""
        return {"sw_counted_slots": self.flow_slots if self.flow_counters else 0}

    @property
    def metrics_address(self) -> tuple[str, int] | None:
        """Host and port to serve metrics on, or None."""
        return _address(self.metrics_listen)

    @property
    def healthz_address(self) -> tuple[str, int] | None:
        """Host ("" = all addresses) and port of /healthz, or None."""
        return _address(self.healthz_listen)


def _address(listen: str) -> tuple[str, int] | None:
    if not listen:
        return None
    host, _, port = listen.rpartition(":")
    return host.strip("[]"), int(port)


def load_config(path: Path, overrides: Mapping[str, Any] | None = None) -> NodeConfig:
    """Read a configuration file; ``overrides`` (from the command line) win. Raises ``Invalid``, naming the file and
    the key.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(str(path), f"cannot be read: {error}") from error
    values = _decoded(path, text)
    if overrides and isinstance(values, dict):
        values = {**values, **overrides}
    try:
        return make_config(values)
    except Invalid as error:
        raise Invalid(f"{path}: {error.path}", error.message) from None


def _decoded(path: Path, text: str) -> Any:
    try:
        if text.lstrip().startswith("{"):
            return msgspec.json.decode(text)
        import tomllib  # a node whose file is JSON starts without it

        return tomllib.loads(text)
    except ValueError as error:  # of either decoder
        raise Invalid(str(path), f"is neither JSON nor TOML: {error}") from error


def make_config(values: Any) -> NodeConfig:
    """The configuration in a mapping. Raises ``Invalid``, naming the key."""
    try:
        config = msgspec.convert(values, NodeConfig, dec_hook=_path)
    except msgspec.ValidationError as error:
        found = _FAULT.fullmatch(str(error))
        assert found is not None
        key = found["path"] or ""
        raise Invalid(key or "configuration", f"{found['message']}{_hint(key, found['message'])}") from None
    _check(config)
    return config


def _hint(key: str, message: str) -> str:
    """What was probably meant, or what there is to choose from."""
    import difflib  # not for starts that go well

    if unknown := _UNKNOWN_KEY.search(message):
        close = difflib.get_close_matches(unknown[1], NodeConfig.__struct_fields__, n=1)
        return f"; did you mean `{close[0]}`?" if close else ""
    choices = get_args(get_type_hints(NodeConfig).get(key)) if "enum value" in message else ()
    return f"; there are {', '.join(choices)}" if choices else ""


def require_host_cgroup(config: NodeConfig) -> None:
    """Raises Invalid when ``host_cgroup`` is no cgroup-v2 directory of this machine."""
    if config.host_cgroup and not Path(config.host_cgroup, "cgroup.controllers").exists():
        fault = f"{config.host_cgroup} is no cgroup-v2 directory; `findmnt -t cgroup2` shows where they are"
        raise Invalid("host_cgroup", fault)


def _path(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise TypeError(f"Expected `str`, got `{type(value).__name__}`")


def _check(config: NodeConfig) -> None:
    if not _NAME.fullmatch(config.name):
        raise Invalid("name", f"{config.name!r} is no host name")
    if len(config.uplink.encode()) > _LINK_NAME_BYTES:
        raise Invalid("uplink", f"an interface name has at most {_LINK_NAME_BYTES} bytes")
    for key in ("run_dir", "state_dir"):
        if not getattr(config, key).is_absolute():
            raise Invalid(key, "must be an absolute path")
    if config.host_cgroup and not config.host_cgroup.startswith("/"):
        raise Invalid("host_cgroup", "must be an absolute path")
    low, high = config.nat_ports
    if low >= high:
        raise Invalid("nat_ports", f"{low}-{high} is no range; give the lowest and the highest port")
    if low <= config.vxlan_port <= high:
        raise Invalid("nat_ports", f"holds the VXLAN port {config.vxlan_port}")
    for key in ("metrics_listen", "healthz_listen", "hns_listen"):
        text = getattr(config, key)
        found = _LISTEN.fullmatch(text)
        if text and (found is None or not 1 <= int(found[2]) <= 65535):
            raise Invalid(key, f"{text!r} is not host:port")
    _ = config.hns_address
    _check_services(config)


def _check_services(config: NodeConfig) -> None:
    sources = [key for key in ("kubeconfig", "in_cluster", "manifests") if getattr(config, key)]
    if len(sources) > 1:
        raise Invalid(sources[1], f"objects come from {sources[0]} already; give one of them")
    if config.node_name and not _NAME.fullmatch(config.node_name):
        raise Invalid("node_name", f"{config.node_name!r} is no name of a node")
    low, high = config.node_port_range
    if low > high:
        raise Invalid("node_port_range", f"{low}-{high} is no range; give the lowest and the highest port")
    if config.balances and low <= config.nat_ports[1] and config.nat_ports[0] <= high:
        raise Invalid("node_port_range", f"{low}-{high} and the SNAT ports must not overlap (nat_ports)")
    if config.balances and low <= config.vxlan_port <= high:
        raise Invalid("node_port_range", f"holds the VXLAN port {config.vxlan_port}")
    prefixes = [text for text in config.node_port_addresses if text != "primary"]
    _check_prefixes("node_port_addresses", prefixes, ', or "primary"')
    _check_prefixes("service_cidrs", config.service_cidrs)


def _check_prefixes(key: str, texts: Iterable[str], others: str = "") -> None:
    try:
        for text in texts:
            ipaddress.ip_network(text)
    except ValueError as error:
        raise Invalid(key, f"{error}; give prefixes{others}") from None
