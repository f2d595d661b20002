"""flannel's plugin: it makes no interface, but a configuration for another plugin, from what flanneld wrote down.

As on Windows: the delegate is win-bridge when none is named, and ``ipMasq`` is what flanneld says, not its inverse.
Addresses are IPv4's, but Samewire's own plugin as delegate, and the SDN plugins with ``enableDualStack``, get both.
The configuration that ADD used is kept by container id, so that DEL does not depend on flanneld's file.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import msgspec

from samewire.cni.conf import ATTACHMENT_KEYS, NetConf, decode_value
from samewire.cni.dialects.names import NETWORK_TYPES, OWN, SDN_BRIDGE, SDN_OVERLAY, WIN_BRIDGE
from samewire.cni.environment import Environment, Verb
from samewire.cni.errors import CniCode, CniError
from samewire.cni.fields import Fields, prefix
from samewire.errors import KernelError, Unavailable

SUBNET_FILE: Final = "/run/flannel/subnet.env"
DATA_DIR: Final = "/var/lib/cni/flannel"
DEFAULT_VERSION: Final = "0.2.0"
CALL_KEYS: Final = ("runtimeConfig", "prevResult", "capabilities", *ATTACHMENT_KEYS, "args")
"""Keys of the call, which the delegate gets as they came."""


class Delegation(msgspec.Struct, frozen=True):
    """The delegate's configuration; ``kept`` is the file to remove when DEL is done."""

    conf: NetConf
    kept: Path


def delegate(conf: NetConf, environment: Environment) -> Delegation:
    """Return the configuration of a call's delegate; ADD keeps it in a file.

    Raises CniError for a fault in the configuration, or code 11 (50 for STATUS) while flanneld has written nothing,
    and KernelError when the file cannot be written.
    """
    data_dir = Path(conf.fields.text("dataDir") or DATA_DIR)
    kept = data_dir / (environment.container_id or "none")
    if environment.verb in (Verb.DEL, Verb.CHECK):
        value = _load(kept)
        if value is None and environment.verb is Verb.CHECK:
            raise CniError(CniCode.CHECK_FAILED, f"flannel: ADD has left nothing in {kept}")
        if value is None:
            value = {"name": conf.name, "type": _delegate_type(conf.fields), "cniVersion": conf.cni_version}
        return Delegation(decode_value({**value, **_of_call(conf)}), kept)
    try:
        value = delegate_value(conf, _read(Path(conf.fields.text("subnetFile") or SUBNET_FILE)))
    except Unavailable as error:
        code = CniCode.NOT_AVAILABLE if environment.verb is Verb.STATUS else CniCode.TRY_AGAIN
        raise CniError(
            code, "flannel's subnet file cannot be used; is flanneld running?", str(error)
        ) from error
    decoded = decode_value({**value, **_of_call(conf)})
    if environment.verb is Verb.ADD:
        _keep(kept, value)
    return Delegation(decoded, kept)


def delegate_value(conf: NetConf, subnet_file: str) -> dict[str, Any]:
    """Return the configuration for the delegate, given the text of flanneld's file.

    Raises CniError(INVALID_CONFIG), Unavailable when the file lacks something.
    """
    env = parse_env(subnet_file)
    fields = conf.fields.child("delegate")
    if fields.get("name") is not None:
        fields.fail("name", "must not be there: it is that of the network")
    kind = _delegate_type(conf.fields)
    value = {key: item for key, item in fields.value.items() if key.lower() not in ("ipam", "type")}
    present = {key.lower() for key in value}
    if "ipmasq" not in present:
        value["ipMasq"] = env.get("FLANNEL_IPMASQ", "").lower() == "true"
    (network, subnet), *more = _ranges(env, both=_takes_both_families(kind, fields))
    value["ipMasqNetwork"] = ",".join((network, *(item for item, _ in more)))
    version = conf.fields.text("cniVersion") or fields.text("cniVersion") or DEFAULT_VERSION
    ipam = {
        key: item for key, item in fields.child("ipam").value.items() if key.lower() not in ("type", "subnet")
    }
    ipam.update(type="host-local", subnet=subnet)
    if more:
        ipam["ranges"] = [[{"subnet": item}] for _, item in more]
    value.update(name=conf.name, type=kind, cniVersion=version, ipam=ipam)
    return value


def _takes_both_families(kind: str, delegate: Fields) -> bool:
    """Whether pods get IPv6 addresses too: flannel on Windows gives none, so its plugins have to say so."""
    flags = delegate.child("optionalFlags")
    return kind in OWN or (kind in (SDN_BRIDGE, SDN_OVERLAY) and flags.flag("enableDualStack"))


def _ranges(env: dict[str, str], both: bool) -> list[tuple[str, str]]:
    """Return the cluster's prefix and the node's, of each family. Raises Unavailable."""
    names = [("FLANNEL_NETWORK", "FLANNEL_SUBNET"), ("FLANNEL_IPV6_NETWORK", "FLANNEL_IPV6_SUBNET")]
    if not (both and env.get("FLANNEL_IPV6_SUBNET")):
        names = names[:1]
    elif not env.get("FLANNEL_SUBNET"):
        names = names[1:]
    return [(_prefix_of(env, network), _prefix_of(env, subnet)) for network, subnet in names]


def parse_env(text: str) -> dict[str, str]:
    """Return the variables of a file of KEY=VALUE lines; others are passed over."""
    found = {}
    for line in text.splitlines():
        name, equals, value = line.strip().partition("=")
        if equals and not name.startswith("#"):
            found[name.strip()] = value.strip().strip("\"'")
    return found


def forget(kept: Path) -> None:
    """Remove what ADD kept. Raises KernelError."""
    try:
        kept.unlink(missing_ok=True)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # an id that ADD refuses
            return
        raise KernelError(f"remove {kept}", error.errno or 0, error.strerror or "") from error


def forget_others(conf: NetConf, containers: Iterable[str]) -> None:
    """Remove what ADD kept for this network's containers but these (GC)."""
    valid = set(containers)
    data_dir = Path(conf.fields.text("dataDir") or DATA_DIR)
    with contextlib.suppress(FileNotFoundError):
        for kept in list(data_dir.iterdir()):
            if kept.name not in valid and (_load(kept) or {}).get("name") == conf.name:
                forget(kept)


def _delegate_type(fields: Fields) -> str:
    child = fields.child("delegate")
    kind = child.text("type") or WIN_BRIDGE
    if kind not in NETWORK_TYPES and kind not in OWN:
        known = ", ".join((*NETWORK_TYPES, *OWN))
        child.fail("type", f"{kind[:64]!r} is not built in; known: {known}")
    return kind


def _of_call(conf: NetConf) -> dict[str, Any]:
    return {key: conf.fields.get(key) for key in CALL_KEYS if conf.fields.given(key)}


def _prefix_of(env: dict[str, str], name: str) -> str:
    try:
        return prefix(env.get(name, "").partition(",")[0])
    except ValueError as error:
        raise Unavailable(name, str(error)) from error


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Unavailable(str(path), str(error)) from error


def _load(kept: Path) -> dict[str, Any] | None:
    try:
        value = msgspec.json.decode(kept.read_bytes())
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None
    return value if isinstance(value, dict) else None


def _keep(kept: Path, value: dict[str, Any]) -> None:
    new = kept.with_name(f".{kept.name[:200]}.new")  # a whole id may be as long as a name can be
    try:
        kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new.write_bytes(msgspec.json.encode(value))
        os.replace(new, kept)
    except OSError as error:
        raise KernelError(f"write {kept}", error.errno or 0, error.strerror or "") from error
