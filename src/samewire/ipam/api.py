"""What an address manager does for an attachment: the verbs of CNI, without the network."""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct

from samewire.cni.conf import NetConf
from samewire.cni.environment import Environment
from samewire.cni.result import Result
from samewire.errors import Conflict


class IpamRequest(Struct, frozen=True):
    """One call: the whole network configuration, and the environment of the CNI call it is part of."""

    conf: NetConf
    environment: Environment


class DuplicateAllocation(Conflict):
    """ADD for an attachment that has addresses already."""


class Ipam(Protocol):
    """An address manager. Every method may raise SamewireError."""

    async def add(self, request: IpamRequest) -> Result:
        """Return new addresses, routes and resolver settings. Raises DuplicateAllocation, Exhausted."""
        ...

    async def delete(self, request: IpamRequest) -> None:
        """Give the attachment's addresses back; having none is success."""
        ...

    async def check(self, request: IpamRequest) -> None:
        """Raise CniError(CHECK_FAILED) when the attachment has no addresses."""
        ...

    async def collect(self, request: IpamRequest, valid: frozenset[tuple[str, str]]) -> None:
        """Give back the addresses of all but these (container id, interface name) pairs (GC)."""
        ...

    async def status(self, request: IpamRequest) -> None:
        """Raise when addresses cannot be given."""
        ...
