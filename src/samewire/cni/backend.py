"""What the CNI verbs need of the node: a Protocol, and the values that go through it.

The verbs (`cni/verbs.py`) do the protocol of CNI: configuration, IPAM, results, undoing. The backend owns the
network objects and the kernel. MAC addresses have the form 0e:2a:0a:01:00:05, addresses and prefixes their
shortest form.
"""

from __future__ import annotations

from typing import Any, Protocol

from msgspec import Struct

from samewire.cni.errors import CniCode, CniError
from samewire.cni.result import Dns, Route
from samewire.hcn.policies import Policy


class Address(Struct, frozen=True):
    """One address of an attachment. ``gateway`` "" = none known."""

    ip: str
    prefix_length: int
    gateway: str = ""

    @property
    def cidr(self) -> str:
        """The address with its prefix length."""
        return f"{self.ip}/{self.prefix_length}"


class NetworkInfo(Struct, frozen=True):
    """What is known of a network: ``gateways[i]`` is that of ``subnets[i]``, "" where it has none.

    ``mtu`` is that of its endpoints' interfaces in bytes, ``type`` the HCN network type, ``management_ip`` the
    node's address in the underlay, "" without one.
    """

    subnets: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()
    mtu: int = 0
    dns: Dns = Dns()
    type: str = ""
    management_ip: str = ""


class AttachRequest(Struct, frozen=True):
    """An interface to make in a container's network namespace, with its endpoint.

    Without ``addresses`` the backend allocates them from the network's subnets. In ``routes`` a route without
    ``gw`` goes through the gateway of its family. ``mac`` "" and ``mtu`` 0 = the network's choice.
    ``policies`` are endpoint policies, checked. ``endpoint_name`` "" = that of the pod.
    """

    network: str
    container_id: str
    interface_name: str
    netns_path: str
    addresses: tuple[Address, ...] = ()
    routes: tuple[Route, ...] = ()
    mac: str = ""
    mtu: int = 0
    policies: tuple[Policy, ...] = ()
    dns: Dns = Dns()
    pod_namespace: str = ""
    pod_name: str = ""
    endpoint_name: str = ""


class Attached(Struct, frozen=True):
    """An interface as it was made. ``addresses`` and ``routes`` are those that the container really has."""

    host_interface: str
    host_mac: str
    mac: str
    mtu: int
    addresses: tuple[Address, ...]
    routes: tuple[Route, ...] = ()


class CheckRequest(Struct, frozen=True):
    """What CHECK expects of the kernel, as the result of ADD says it.

    ``host_interface`` "", ``mac`` "" and ``mtu`` 0 = the result does not say. Each of ``addresses`` must be on
    the interface and each of ``routes`` in the namespace; there may be more.
    """

    network: str
    container_id: str
    interface_name: str
    netns_path: str
    host_interface: str = ""
    mac: str = ""
    mtu: int = 0
    addresses: tuple[Address, ...] = ()
    routes: tuple[Route, ...] = ()


class CniBackend(Protocol):
    """The node's side of CNI. Every method may raise SamewireError; `cni/errors.py` gives it its CNI code.

    Calls for the same container and interface never overlap; others do. A call is never cancelled, except
    when the daemon ends.
    """

    async def ensure_network(self, name: str, network: dict[str, Any] | None) -> NetworkInfo:
        """Return what is known of a network; create it from the HCN object ``network`` where it is missing.

        Raises NotFound when it is missing and ``network`` is None.
        """
        ...

    async def attach(self, request: AttachRequest) -> Attached:
        """Make the interface, all or nothing; return when the endpoint's policies are active in the kernel.

        A half-made attachment of the same container and interface, left by a crash, is replaced. Raises
        Conflict when a complete one exists or the namespace has an interface of that name, and
        `bad_netns` when ``netns_path`` is not the file of a network namespace other than the node's own.
        """
        ...

    async def refuse_attached(self, container_id: str, interface_name: str, netns_path: str) -> bool:
        """Raise the Conflict of `attach` for a complete attachment, before addresses are asked for.

        Returns whether there is one that `attach` would replace: half-made, or its namespace has died.
        """
        ...

    async def find(
        self, container_id: str, interface_name: str, netns_path: str
    ) -> tuple[str, Attached] | None:
        """Return the network's name and the interface of a complete attachment, None when there is none.

        ``netns_path`` "" = in whatever namespace; an interface in another namespace than that is none.
        """
        ...

    async def namespace_path(self, namespace_id: str) -> str:
        """Return the file of an HCN namespace's network namespace. Raises `bad_netns` where there is none."""
        ...

    async def detach(self, container_id: str, interface_name: str) -> None:
        """Remove an attachment, in whichever network. Gone already, or its namespace or network gone: that is success.

        On return the interface is out of the container's namespace, or dead.
        """
        ...

    async def check(self, request: CheckRequest) -> None:
        """Compare an attachment with the kernel. Raises `check_failed` for the first difference."""
        ...

    async def list_attachments(self, network: str) -> list[tuple[str, str]]:
        """Return the (container id, interface name) of all attachments that CNI made in a network."""
        ...

    async def status(self) -> None:
        """Return when attachments can be made.

        Raises CniError(NOT_AVAILABLE), or CniError(LIMITED_CONNECTIVITY) when the existing ones suffer too.
        """
        ...


def bad_netns(path: str, reason: str) -> CniError:
    """Return the error for a CNI_NETNS that is no network namespace to attach to."""
    return CniError(CniCode.INVALID_ENVIRONMENT, f"CNI_NETNS {path!r} cannot be used: {reason}")


def check_failed(message: str) -> CniError:
    """Return the error of a CHECK that found a difference."""
    return CniError(CniCode.CHECK_FAILED, message)
