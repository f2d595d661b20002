"""Carries out the steps, and keeps the journal."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from samewire.errors import Conflict, NotFound, Unavailable
from samewire.hcn.client import HnsClient
from samewire.hcn.errors import HcnCode, HcnError
from samewire.hcn.schema import Kind
from samewire.kernel import sysctl
from samewire.node.serviceview import NOT_YET
from samewire.takeover.model import (
    AwaitServices,
    Command,
    Copy,
    DropNetwork,
    Journal,
    MakeNetwork,
    Remove,
    Rename,
    Setting,
    Step,
    Write,
)
from samewire.takeover.system import run

T = TypeVar("T")

_TUNNEL_TIMEOUT_S: Final = 15.0
_SERVICES_TIMEOUT_S: Final = 30.0
_POLL_S: Final = 0.02
_KEPT_UP_TO_DATE: Final = ("RemoteSubnetRoute", "SDNRoute")


def load_journal(path: Path) -> Journal | None:
    """Return what a takeover wrote down, None before one. Raises Unavailable."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Journal)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise Unavailable(str(path), f"cannot be read: {error}") from error


def save_journal(path: Path, journal: Journal) -> None:
    """Write it, whole or not at all. Raises Unavailable."""
    _replace(path, msgspec.json.format(msgspec.json.encode(journal)) + b"\n", 0o600)


def forget_journal(path: Path) -> None:
    """Remove it. Raises Unavailable."""
    _file(path, lambda: path.unlink(missing_ok=True))


class Applier:
    """Carries out steps on this node; ``tell`` is called before each."""

    def __init__(self, client: HnsClient, tell: Callable[[Step], None]) -> None:
        self._client = client
        self._tell = tell

    def apply(self, steps: Iterable[Step]) -> None:
        """Carry them out in order; the first that fails ends it. Raises SamewireError."""
        for step in steps:
            self._tell(step)
            self._one(step)

    def _one(self, step: Step) -> None:
        match step:
            case Command():
                run(step.argv, step.stdin)
            case Write():
                _write(Path(step.path), step.text)
            case Copy():
                _copy(Path(step.source), Path(step.path))
            case Rename():
                _rename(Path(step.path), Path(step.new))
            case Remove():
                forget_journal(Path(step.path))
            case Setting():
                sysctl.write(step.path.split("/"), step.value)
            case MakeNetwork():
                self._make(step.value, step.leave)
            case AwaitServices():
                self._await_services()
            case DropNetwork():
                found = self.network(step.name)
                if found is not None:
                    self._client.delete(Kind.NETWORK, found["ID"])

    def network(self, name: str) -> dict[str, Any] | None:
        """The HNS network of a name, or None. Raises HcnError, Unavailable."""
        found = self._client.list(Kind.NETWORK, Name=name)
        return found[0] if found else None

    def pods(self, name: str) -> list[str]:
        """The addresses of the network's endpoints. Raises HcnError, Unavailable."""
        network = self.network(name)
        if network is None:
            return []
        return [
            configuration["IpAddress"]
            for endpoint in self._client.list(Kind.ENDPOINT)
            if endpoint["HostComputeNetwork"] == network["ID"] and not endpoint.get("Flags", 0) & 1
            for configuration in endpoint.get("IpConfigurations") or ()
        ]

    def uplink(self) -> str:
        """The name of the NIC that the daemon uses, "" for none. Raises HcnError, Unavailable."""
        return str(self._client.get_json("/v2/health")["uplink"]["name"])

    def _make(self, wanted: dict[str, Any], leave: tuple[str, ...]) -> None:
        found = self.network(wanted["Name"])
        if found is None:
            return self._create(wanted)
        if found["Type"] != wanted["Type"] or _prefixes(found) != _prefixes(wanted):
            raise Conflict(
                f"there is an HNS network {wanted['Name']} of type {found['Type']} with {_prefixes(found)}: remove it"
            )
        present, due = _policies(found, leave), _policies(wanted, leave)
        for how, policies in (
            ("Remove", [policy for policy in present if policy not in due]),
            ("Add", [policy for policy in due if policy not in present]),
        ):
            if policies:
                self._client.modify(Kind.NETWORK, found["ID"], "Policy", how, {"Policies": policies})
        return None

    def _create(self, wanted: dict[str, Any]) -> None:
        """The daemon needs a moment to see that its tunnel has the port."""
        deadline = time.monotonic() + _TUNNEL_TIMEOUT_S
        while True:
            try:
                self._client.create(Kind.NETWORK, wanted)
                return
            except HcnError as error:
                if error.code is not HcnCode.ADAPTER_NOT_FOUND or time.monotonic() > deadline:
                    raise
            time.sleep(_POLL_S)

    def _await_services(self) -> None:
        """Until the switch has had its chance with each of them."""
        deadline = time.monotonic() + _SERVICES_TIMEOUT_S
        while any(one.get("error") == NOT_YET for one in self._client.get_json("/v2/services")):
            if time.monotonic() > deadline:
                raise Unavailable(
                    "samewire", "services are not programmed; `samewire get services` says which"
                )
            time.sleep(_POLL_S)


def _policies(network: dict[str, Any], leave: tuple[str, ...]) -> list[dict[str, Any]]:
    """Those that follow the node's old pods and the other nodes, in one spelling."""
    found = []
    for policy in network.get("Policies") or ():
        settings = policy["Settings"]
        if policy["Type"] == "SDNRoute":
            via = settings.get("NextHop")
            how = {"NextHop": via} if via else {"NeedEncap": True}
            settings = {"DestinationPrefix": settings["DestinationPrefix"], **how}
        if policy["Type"] in _KEPT_UP_TO_DATE and policy["Type"] not in leave:
            found.append({"Type": policy["Type"], "Settings": settings})
    return found


def _prefixes(network: dict[str, Any]) -> list[str]:
    return [subnet["IpAddressPrefix"] for ipam in network["Ipams"] for subnet in ipam["Subnets"]]


def _write(path: Path, text: str) -> None:
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        _replace(path, text.encode(), 0o644)


def _copy(source: Path, path: Path) -> None:
    if not source.exists():
        raise NotFound("CNI client of this installation", str(source))
    content = source.read_bytes()
    if not path.exists() or path.read_bytes() != content:
        _replace(path, content, 0o755)


def _rename(path: Path, new: Path) -> None:
    """Nothing to do when it has been done."""
    if path.exists() or not new.exists():
        _file(path, lambda: os.replace(path, new))


def _replace(path: Path, content: bytes, mode: int) -> None:
    new = path.with_name(f".{path.name}.new")

    def write() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with new.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.chmod(mode)
        os.replace(new, path)

    _file(path, write)


def _file(path: Path, work: Callable[[], T]) -> T:
    try:
        return work()
    except OSError as error:
        raise Unavailable(str(path), f"cannot be written: {error}") from error
