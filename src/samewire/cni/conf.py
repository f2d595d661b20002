"""The network configuration of a CNI call (stdin), for CNI 0.1.0 to 1.1.0. Pure.

Decoding has two steps, so that DEL and GC work with as little as they need: `decode_conf` for the keys of
every verb, `decode_attachment` for what only ADD uses. docs/guides/cni.md lists the keys.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NoReturn

import msgspec
from msgspec import Struct

from samewire.cni.dialects.names import ALIASES, FLANNEL, Dialect
from samewire.cni.dialects.read import read_dialect
from samewire.cni.environment import CniArgs, is_identifier
from samewire.cni.errors import CniCode, CniError
from samewire.cni.fields import Fields, address, cidr, mac, prefix_list, shape
from samewire.cni.policies import HostPort, decode_bandwidth, decode_host_ports, decode_policies
from samewire.cni.result import (
    IMPLIED_VERSION,
    SUPPORTED_VERSIONS,
    Dns,
    Result,
    decode_dns,
    decode_result,
    encode_result,
)
from samewire.hcn.policies import QOS, Policy

MAX_MTU = 2**16 - 1
REMEMBERED, REMEMBERED_BYTES = 64, 1 << 14
"""How many configurations are remembered, and up to which length: the pods of a node mostly have the same one."""

ATTACHMENT_KEYS = ("cni.dev/valid-attachments", "cni.dev/attachments")
"""Where GC's list stands: as CNI 1.1 has it, and as an early text of it had."""


class NetConf(Struct, frozen=True, eq=False):
    """The keys of every verb; ``value`` is the whole configuration, never changed. ``ipam_type`` "" = no IPAM.

    One of another plugin has been put into Samewire's keys, with what else that plugin does in ``dialect``. One of
    flannel's is as it was, and stands for another: `samewire.cni.dialects.flannel.delegate`.
    """

    cni_version: str
    name: str
    ipam_type: str
    value: dict[str, Any]
    dialect: Dialect | None = None
    flannel: bool = False

    @property
    def fields(self) -> Fields:
        """The whole configuration, for reading."""
        return Fields(self.value)


class RuntimeDns(Struct, frozen=True):
    """The dns capability: each list that is not empty replaces that of the configuration."""

    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    def over(self, dns: Dns) -> Dns:
        """Return settings with these lists in place of theirs."""
        return Dns(
            self.servers or dns.nameservers,
            dns.domain,
            self.searches or dns.search,
            self.options or dns.options,
        )


class Attachment(Struct, frozen=True):
    """What ADD uses of a configuration, its runtimeConfig, ``args.cni`` and CNI_ARGS.

    ``ips`` are the addresses asked for, with or without prefix length. ``default_gateway`` None = not said.
    """

    policies: tuple[Policy, ...]
    qos: QOS | None
    host_ports: tuple[HostPort, ...]
    dns: Dns
    runtime_dns: RuntimeDns
    ips: tuple[str, ...]
    mac: str
    mtu: int
    masquerade: bool
    masquerade_except: tuple[str, ...]
    default_gateway: bool | None
    network: dict[str, Any] | None
    previous: Result


def decode_conf(data: bytes, plugin: str = "") -> NetConf:
    """Return the keys of every verb. ``plugin`` is the name that the plugin was called by, "" = its own.

    Raises CniError: DECODING_FAILURE for what is not a JSON object, INCOMPATIBLE_VERSION, INVALID_CONFIG.
    """
    return _remembered(data, plugin) if len(data) <= REMEMBERED_BYTES else _decode(data, plugin)


def _decode(data: bytes, plugin: str) -> NetConf:
    return decode_value(_decode_json(data), plugin)


def decode_value(value: dict[str, Any], plugin: str = "") -> NetConf:
    """Return the keys of every verb of a decoded configuration; raises as `decode_conf` does."""
    fields = Fields(value)
    if plugin not in ALIASES:
        plugin = fields.text("type")
    version = fields.text("cniVersion") or IMPLIED_VERSION
    if version not in SUPPORTED_VERSIONS:
        supported = ", ".join(SUPPORTED_VERSIONS)
        raise CniError(
            CniCode.INCOMPATIBLE_VERSION,
            "incompatible CNI versions",
            f"config is {version[:64]!r}, plugin supports {supported}",
        )
    name = fields.required_text("name")
    if not is_identifier(name):
        fields.fail("name", f"{name[:64]!r}: expected letters, digits, and _ . - behind the first")
    if plugin == FLANNEL:
        return NetConf(version, name, "", fields.value, flannel=True)
    dialect = None
    if plugin in ALIASES:
        translated, dialect = read_dialect(plugin, fields)
        fields = Fields(translated)
    ipam = fields.child("ipam")
    kind = ipam.required_text("type") if ipam else ""
    if "/" in kind or kind in (".", ".."):
        ipam.fail("type", f"{kind[:64]!r} is not the name of a plugin")
    return NetConf(version, name, kind, fields.value, dialect)


_remembered = lru_cache(maxsize=REMEMBERED)(_decode)


def decode_attachment(conf: NetConf, args: CniArgs) -> Attachment:
    """Return what ADD uses. Raises CniError(INVALID_CONFIG)."""
    return _attachment(conf, msgspec.structs.replace(args, pod_namespace="", pod_name=""))


@lru_cache(maxsize=REMEMBERED)
def _attachment(conf: NetConf, args: CniArgs) -> Attachment:
    fields = conf.fields
    runtime, cni_args = fields.child("runtimeConfig"), fields.child("args").child("cni")
    dns, runtime_dns = fields.child("dns"), runtime.child("dns")
    dns.parsed_texts("nameservers", address)
    spared = fields.parsed("ipMasqNetwork", prefix_list, "")
    return Attachment(
        policies=decode_policies(fields),
        qos=decode_bandwidth(runtime),
        host_ports=decode_host_ports(runtime),
        dns=decode_dns(dns),
        runtime_dns=RuntimeDns(
            runtime_dns.parsed_texts("servers", address),
            runtime_dns.texts("searches"),
            runtime_dns.texts("options"),
        ),
        ips=requested_ips(conf, args),
        mac=runtime.parsed("mac", mac, "") or cni_args.parsed("mac", mac, "") or args.mac,
        mtu=fields.number("mtu", MAX_MTU),
        masquerade=fields.flag("ipMasq"),
        masquerade_except=tuple(spared.split(",")) if spared else (),
        default_gateway=fields.optional_flag("isDefaultGateway"),
        network=fields.child("network").value or None,
        previous=decode_previous(conf) or Result(),
    )


def decode_previous(conf: NetConf) -> Result | None:
    """Return the ``prevResult`` of a configuration, None without one. Raises CniError(INVALID_CONFIG)."""
    value = conf.fields.get("prevResult")
    return None if value is None else decode_result(value, conf.cni_version, "prevResult")


def decode_valid_attachments(conf: NetConf) -> frozenset[tuple[str, str]]:
    """Return the (container id, interface name) pairs that GC must leave. Raises CniError(INVALID_CONFIG).

    A configuration without the list is an error: it would remove everything. A null is a list without entries:
    libcni writes it so where a runtime has no pods left.
    """
    fields = conf.fields
    given = [key for key in ATTACHMENT_KEYS if fields.given(key)]
    if not given:
        fields.fail(ATTACHMENT_KEYS[0], "is required for GC")
    key = next((key for key in given if fields.get(key) is not None), given[0])
    return frozenset(
        (item.required_text("containerID"), item.required_text("ifname")) for item in fields.objects(key)
    )


def as_version(conf: NetConf, version: str) -> NetConf:
    """Return the configuration as a runtime would write it for another version of CNI.

    Raises CniError where its prevResult has no form in that version.
    """
    value = {key: item for key, item in conf.value.items() if key.lower() not in ("cniversion", "prevresult")}
    previous = decode_previous(conf)
    if previous is not None:
        value["prevResult"] = encode_result(previous, version)
    return NetConf(version, conf.name, conf.ipam_type, {"cniVersion": version, **value}, conf.dialect)


def requested_ips(conf: NetConf, args: CniArgs) -> tuple[str, ...]:
    """Return the addresses asked for by CNI_ARGS, ``args.cni`` and runtimeConfig, each as it was written.

    Raises CniError(INVALID_CONFIG).
    """
    return _requested_ips(conf, args.ip)


@lru_cache(maxsize=REMEMBERED)
def _requested_ips(conf: NetConf, asked: str) -> tuple[str, ...]:
    fields = conf.fields
    lists = (fields.child("args").child("cni"), fields.child("runtimeConfig"))
    first = asked.split(",") if asked else []
    return tuple(dict.fromkeys([*first, *(ip for item in lists for ip in item.parsed_texts("ips", _ip))]))


def _ip(text: str) -> str:
    return cidr(text) if "/" in text else address(text)


def _decode_json(data: bytes) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        _undecodable(str(error))
    except UnicodeDecodeError as error:
        _undecodable(f"not UTF-8 at byte {error.start}")
    if not isinstance(value, dict):
        _undecodable(f"expected an object, got {shape(value)}")
    return value


def _undecodable(details: str) -> NoReturn:
    raise CniError(CniCode.DECODING_FAILURE, "the network configuration on stdin is not JSON", details)
