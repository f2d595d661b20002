"""Namespaces and links for tests with real packets: hosts, bridges as wires, routers. All gone at the end."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Self, TypeVar

from samewire.kernel import netns, sysctl
from samewire.kernel.rtnetlink import Netlink, address_add, link_get, link_set, veth_add
from samewire.vfp.address import parse_interface

T = TypeVar("T")

PREFIX: Final = "swreal"
_COUNTER = itertools.count(1)
_POLL_S = 0.005


def poll(what: str, condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Wait until something is so, or fail."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {timeout_s} s")
        time.sleep(_POLL_S)


class Space:
    """A network namespace with loopback up, IPv6 without duplicate address detection, and quiet links."""

    def __init__(self, stack: ExitStack, label: str) -> None:
        self.name = f"{PREFIX}-{os.getpid()}-{next(_COUNTER)}{label}"
        path = f"/run/netns/{self.name}"
        self.ns = netns.create(path)
        stack.callback(_remove, path)
        stack.callback(self.ns.close)
        self.netlink = Netlink(self.ns.fd)
        stack.callback(self.netlink.close)
        self.run(self._settle)
        self.netlink.request(link_set("lo", up=True))

    @staticmethod
    def _settle() -> None:
        for where in ("all", "default"):
            sysctl.write(("net", "ipv6", "conf", where, "accept_dad"), 0)
            sysctl.write(("net", "ipv6", "conf", where, "router_solicitations"), 0)
        # As many ICMP errors as are due: tests are faster than anybody's limit.
        sysctl.write(("net", "ipv4", "icmp_ratelimit"), 0)
        sysctl.write(("net", "ipv6", "icmp", "ratelimit"), 0)

    def run(self, function: Callable[[], T]) -> T:
        """Call a function in the namespace; sockets that it makes stay there."""
        return self.ns.run(function)

    def set(self, *path: str, value: str | int) -> None:
        """Write a setting below /proc/sys/net."""
        self.run(lambda: sysctl.write(("net", *path), value))

    def ip(self, *arguments: str) -> str:
        """Run ``ip`` in the namespace."""
        return self.command("ip", *arguments)

    def command(self, *arguments: str) -> str:
        """Run a command in the namespace; its output."""
        full = ["ip", "netns", "exec", self.name, *arguments]
        if arguments[0] == "ip":
            full = ["ip", "-n", self.name, *arguments[1:]]
        done = subprocess.run(full, check=False, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(full)}: {done.stderr.strip()}"
        return done.stdout

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """A socket in the namespace."""
        return self.run(lambda: socket.socket(family, kind, protocol))

    def ifindex(self, name: str) -> int:
        """The index of an interface."""
        return self.netlink.get(link_get(name)).ifindex

    def mac(self, name: str) -> bytes:
        """The MAC of an interface."""
        return self.netlink.get(link_get(name)).mac

    def address(self, ifname: str, *texts: str) -> None:
        """Give an interface addresses with prefix lengths."""
        ifindex = self.ifindex(ifname)
        for text in texts:
            own = parse_interface(text)
            packed = own.packed[: 4 if own.family == 4 else 16]
            self.netlink.request(address_add(ifindex, packed, own.bits, family=own.family))


class Lab:
    """Owns every namespace that is made through it. A context manager."""

    def __init__(self) -> None:
        self.stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()

    def space(self, label: str = "") -> Space:
        """A new namespace."""
        return Space(self.stack, label)

    def join(self, left: Space, left_name: str, right: Space, right_name: str, mtu: int = 1500) -> None:
        """A cable between two namespaces, both ends up."""
        left.netlink.request(
            veth_add(left_name, right_name, peer_netns_fd=right.ns.fd, mtu=mtu, peer_mtu=mtu)
        )
        left.netlink.request(link_set(left_name, up=True))
        right.netlink.request(link_set(right_name, up=True))

    def wire(self) -> Wire:
        """A learning switch."""
        return Wire(self)

    def host(self, wire: Wire, *addresses: str, gateways: tuple[str, ...] = ()) -> Space:
        """A machine on a wire with ``eth0``."""
        space = self.space("host")
        wire.plug(space, "eth0")
        space.address("eth0", *addresses)
        for gateway in gateways:
            space.ip("route", "add", "default", "via", gateway)
        return space


class Wire:
    """A Linux bridge in a namespace of its own: the underlay's switch."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.space = lab.space("wire")
        self.space.set("ipv6", "conf", "default", "disable_ipv6", value=1)
        self.space.ip("link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
        self.space.ip("link", "set", "br0", "up")
        self._ports = itertools.count(1)

    def plug(self, space: Space, ifname: str, mtu: int = 1500) -> str:
        """Join a namespace; returns the name of the switch's port."""
        port = f"port{next(self._ports)}"
        self.lab.join(self.space, port, space, ifname, mtu)
        self.space.ip("link", "set", port, "master", "br0")
        return port

    def learned(self, port: str) -> set[str]:
        """The MACs that the switch has learned behind a port."""
        lines = self.space.command("bridge", "fdb", "show", "dynamic", "br", "br0").splitlines()
        return {line.split()[0] for line in lines if f"dev {port} " in f"{line} "}


def _remove(path: str) -> None:
    if Path(path).exists():
        netns.delete(path)
