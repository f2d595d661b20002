"""The environment of a CNI call: CNI_COMMAND and its companions, checked (CNI 1.1 section 2)."""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Mapping
from typing import NoReturn

from msgspec import Struct

from samewire.cni.errors import CniCode, CniError
from samewire.cni.fields import address, cidr, mac

MAX_INTERFACE_NAME = 15
MAX_PATH = 4096
MAX_CONTAINER_ID = 255
"""Characters, as of a file's name: flannel's plugin and runtimes name files like it, host-local writes it into some."""
PLUGIN_VARIABLE = "CNI_SAMEWIRE_PLUGIN"
"""Set by the client when it was started by one of the names of `samewire.cni.dialects.names`."""

_IDENTIFIER = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
_NAMESPACE_ID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_IN_INTERFACE = re.compile(r"[^\s/:%\x00-\x1f\x7f]+")  # of a name with % the kernel would make another one
_NO_INTERFACES = frozenset((".", "..", "all", "default"))  # directories of settings

_KNOWN_ARGS = frozenset(
    {
        *("IgnoreUnknown", "IP", "MAC", "GATEWAY"),  # the last for the IPAM plugin static
        *("K8S_POD_NAMESPACE", "K8S_POD_NAME", "K8S_POD_INFRA_CONTAINER_ID", "K8S_POD_UID"),
    }
)


class Verb(enum.StrEnum):
    """The operations of CNI."""

    ADD = "ADD"
    DEL = "DEL"
    CHECK = "CHECK"
    GC = "GC"
    STATUS = "STATUS"
    VERSION = "VERSION"


_OF_A_CONTAINER = frozenset({Verb.ADD, Verb.DEL, Verb.CHECK})


class CniArgs(Struct, frozen=True):
    """What Samewire uses of CNI_ARGS: wanted addresses (with or without prefix length, with commas between), a MAC,
    the pod.
    """

    ip: str = ""
    mac: str = ""
    pod_namespace: str = ""
    pod_name: str = ""


class Environment(Struct, frozen=True):
    """A checked environment; ``variables`` holds all of it as it came, for other plugins."""

    verb: Verb
    container_id: str
    interface_name: str
    netns_path: str
    args: CniArgs
    variables: Mapping[str, str]

    @property
    def key(self) -> tuple[str, str]:
        """What names an attachment within a network."""
        return (self.container_id, self.interface_name)

    @property
    def sandbox_container(self) -> str:
        """The container whose namespace this one shares, "" when CNI_NETNS names no container."""
        head, colon, container_id = self.netns_path.partition(":")
        return container_id if colon and head == "container" else ""

    @property
    def namespace_id(self) -> str:
        """The id of the HCN namespace that CNI_NETNS is, "" when it is a file."""
        return self.netns_path if _NAMESPACE_ID.fullmatch(self.netns_path) else ""

    @property
    def plugin(self) -> str:
        """The name by which the runtime called the client, "" for its own."""
        return self.variables.get(PLUGIN_VARIABLE, "")

    @property
    def path(self) -> tuple[str, ...]:
        """The directories of CNI_PATH, where other plugins are."""
        return tuple(item for item in self.variables.get("CNI_PATH", "").split(":") if item)


def decode_environment(variables: Mapping[str, str]) -> Environment:
    """Return the checked environment. Raises CniError(INVALID_ENVIRONMENT) naming the variables at fault."""
    verb = _verb(variables.get("CNI_COMMAND", ""))
    container_id, interface = variables.get("CNI_CONTAINERID", ""), variables.get("CNI_IFNAME", "")
    netns = variables.get("CNI_NETNS", "")
    if verb in _OF_A_CONTAINER:
        needed = {"CNI_CONTAINERID": container_id, "CNI_IFNAME": interface}
        if verb is not Verb.DEL:
            needed["CNI_NETNS"] = netns
        missing = [name for name, value in needed.items() if not value]
        if missing:
            _fail(f"required env variables [{','.join(missing)}] missing")
        _check_container(container_id, interface, netns)
        if verb is not Verb.DEL and len(container_id) > MAX_CONTAINER_ID:
            _fail(f"CNI_CONTAINERID {container_id[:64]!r}... is longer than {MAX_CONTAINER_ID} characters")
    return Environment(
        verb, container_id, interface, netns, decode_args(variables.get("CNI_ARGS", "")), dict(variables)
    )


def is_identifier(text: str) -> bool:
    """Whether a text can be a container id or a network name: letters, digits, and ``_.-`` behind the first."""
    return _IDENTIFIER.fullmatch(text) is not None


def decode_args(text: str) -> CniArgs:
    """Return what CNI_ARGS ("K=V;K2=V2") says. Keys that nobody knows are errors without IgnoreUnknown."""
    pairs = {}
    for item in text.split(";") if text else ():
        name, equals, value = item.partition("=")
        if not equals or not name:
            _fail(f"CNI_ARGS: {item[:64]!r} is not of the form KEY=VALUE")
        pairs[name] = value
    unknown = [name for name in pairs if name not in _KNOWN_ARGS]
    if unknown and pairs.get("IgnoreUnknown", "").lower() not in ("1", "true"):
        _fail(f"CNI_ARGS: unknown keys {', '.join(unknown)[:256]}; IgnoreUnknown=1 would ignore them")
    return CniArgs(
        _arg(pairs, "IP", _addresses),
        _arg(pairs, "MAC", mac),
        pairs.get("K8S_POD_NAMESPACE", ""),
        pairs.get("K8S_POD_NAME", ""),
    )


def _fail(message: str) -> NoReturn:
    raise CniError(CniCode.INVALID_ENVIRONMENT, message)


def _verb(text: str) -> Verb:
    if not text:
        _fail("required env variables [CNI_COMMAND] missing")
    try:
        return Verb(text)
    except ValueError:
        _fail(f"unknown CNI_COMMAND: {text[:64]}")


def _check_container(container_id: str, interface: str, netns: str) -> None:
    if not is_identifier(container_id):
        _fail(f"CNI_CONTAINERID {container_id[:64]!r}: expected letters, digits, and _ . - behind the first")
    if interface in _NO_INTERFACES or not _IN_INTERFACE.fullmatch(interface):
        _fail(f"CNI_IFNAME {interface[:64]!r} cannot be the name of an interface")
    if len(interface.encode(errors="replace")) > MAX_INTERFACE_NAME:
        _fail(f"CNI_IFNAME {interface[:64]!r} is longer than {MAX_INTERFACE_NAME} bytes")
    if _NAMESPACE_ID.fullmatch(netns):
        return
    if netns.startswith("container:") and is_identifier(netns.removeprefix("container:")):
        return
    if netns and (not netns.startswith("/") or len(netns) >= MAX_PATH or not netns.isprintable()):
        _fail(f"CNI_NETNS {netns[:64]!r}: expected the absolute path of a network namespace's file")


def _addresses(text: str) -> str:
    items = [item.strip() for item in text.split(",")]
    return ",".join(cidr(item) if "/" in item else address(item) for item in items)


def _arg(pairs: Mapping[str, str], name: str, parse: Callable[[str], str]) -> str:
    try:
        return parse(pairs[name]) if pairs.get(name) else ""
    except ValueError as error:
        _fail(f"CNI_ARGS: {name}: {error}")
