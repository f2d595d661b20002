"""Takes everything of Samewire off a node: the opposite of the daemon's start, and of every attachment since.

Others' things stay: their filters beside ours on the uplink, the administrator's reserved ports, the uplink itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Iterator
from typing import Final

import msgspec

from samewire.errors import KernelError, SamewireError
from samewire.hcn.store import Store
from samewire.kernel.bpf import unmount_bpffs
from samewire.kernel.rtnetlink import (
    Netlink,
    link_del_group,
    link_dump,
)
from samewire.node import proxies
from samewire.node.config import NodeConfig
from samewire.node.devices import OWN_DEVICES, give_ports_back
from samewire.node.hooks import detach_uplink, pins, take_off
from samewire.node.keepsakes import FILE_NAME, find_keepsakes, save_keepsakes
from samewire.node.listeners import Listeners
from samewire.node.losettings import FILE_NAME as LO_FILE_NAME
from samewire.node.losettings import LoSettings
from samewire.node.memory import STARTS
from samewire.node.nicfilters import NicFilters
from samewire.node.planning import netns_path
from samewire.node.runlock import LOCK_NAME, TAKEOVER_LOCK_NAME, lock_network, lock_run_dir
from samewire.proxy.relay import Relay
from samewire.vfp.address import IPV6, address_text
from samewire.vfp.compile.link import host_name
from samewire.vfp.model import LINK_GROUP


def uninstall(config: NodeConfig, *, purge: bool = False) -> list[str]:
    """Remove everything; returns what was removed, in words. ``purge``: the objects in the state directory too.

    Goes on after a step that fails, and raises the first failure at the end. Raises Conflict when a daemon runs.
    """
    done: list[str] = []
    failures: list[SamewireError] = []
    config.run_dir.mkdir(parents=True, exist_ok=True)
    with lock_run_dir(config.run_dir), lock_network(), Netlink() as netlink:
        for step in _STEPS:
            try:
                done += step(config, netlink)
            except SamewireError as error:
                failures.append(error)
            except OSError as error:
                failures.append(KernelError(f"remove {error.filename}", error.errno or errno.EIO))
    if failures:
        raise failures[0]
    _tidy(config)
    if purge:
        done += list(_purge(config))
    return done


def _relay(config: NodeConfig, netlink: Netlink) -> Iterator[str]:
    """The process of user mode, which outlives its daemon."""
    if config.relay_socket.exists():
        asyncio.run(Relay(config.relay_socket).stop())
        config.relay_socket.unlink()
        yield "the user-mode relay"


def _filters(config: NodeConfig, netlink: Netlink) -> Iterator[str]:
    """Link addresses that the uplink lets in for endpoints on the underlay."""
    if not config.database.exists():
        return
    store = Store(config.database)
    try:
        for mac in NicFilters(store, netlink).leave_all_but(0):
            yield f"link address {mac.hex(':')}"
    finally:
        store.close()


def _listeners(config: NodeConfig, netlink: Netlink) -> Iterator[str]:
    for address in Listeners(netlink).leave_all_but(0):
        yield f"neighbour proxy {address_text(IPV6, address)}"


def _proxies(config: NodeConfig, netlink: Netlink) -> Iterator[str]:
    """Rules in the pods' own namespaces, which outlive their interfaces."""
    if not config.database.exists():
        return
    store = Store(config.database)
    try:
        found = [(host_name(item.id), netns_path(item, store.state)) for item in store.state.endpoints()]
    finally:
        store.close()
    for table, path in found:
        if path and proxies.remove(table, path):
            yield f"proxy rules {table} in {path}"


def _uplink(config: NodeConfig, netlink: Netlink) -> Iterator[str]:
    """Programs on devices that are not ours, by link or by filter."""
    directory = config.bpf_dir / "links"
    if directory.exists():
        for pin in pins(directory):
            take_off(pin)
            yield f"attachment {pin.name}"
    for link in netlink.dump(link_dump()):
        if link.group != LINK_GROUP and detach_uplink(netlink, link.ifindex):
            yield f"filters on {link.name}"


def _loopback(config: NodeConfig, netlink: Netlink) -> Iterator[str]:
    if LoSettings(config.run_dir).give_back():
        yield "settings of lo"


def _links(config: NodeConfig, netlink: Netlink) -> Iterator[str]:
    """With their routes. Those that a takeover has made lead to old pods by flannel's bridge: its way back has them."""
    names = [link.name for link in netlink.dump(link_dump()) if link.group == LINK_GROUP]
    # The end of the own pair that carries no mark, if it was made by a daemon that died right then, goes along.
    if not netlink.request(link_del_group(LINK_GROUP).tolerating(errno.ENODEV)):
        yield from (f"interface {name}" for name in sorted(names, key=lambda name: name not in OWN_DEVICES))


def _ports(config: NodeConfig, netlink: Netlink) -> Iterator[str]:
    keepsakes = find_keepsakes(config.state_dir)
    if keepsakes is not None and keepsakes.reserved_ports_added:
        give_ports_back(keepsakes)
        save_keepsakes(config.state_dir, msgspec.structs.replace(keepsakes, reserved_ports_added=""))
        yield f"reserved ports {keepsakes.reserved_ports_added}"


def _pins(config: NodeConfig, netlink: Netlink) -> Iterator[str]:
    if config.bpf_dir.exists():
        unmount_bpffs(config.bpf_dir)
        yield f"programs and maps in {config.bpf_dir}"


def _files(config: NodeConfig, netlink: Netlink) -> Iterator[str]:
    for path in (config.http_socket, config.cni_socket, config.run_dir / "switch.o"):
        if path.exists():
            path.unlink()
            yield str(path)


_STEPS: Final = (
    _relay,
    _filters,
    _listeners,
    _proxies,
    _uplink,
    _loopback,
    _links,
    _ports,
    _pins,
    _files,
)


def _tidy(config: NodeConfig) -> None:
    """What else is ours in the run directory, and that itself, unless others have something in it."""
    new = ("switch.o.new", f"{LO_FILE_NAME}.new")
    for name in (config.hns_token_file.name, STARTS, *new, TAKEOVER_LOCK_NAME, LOCK_NAME):
        with contextlib.suppress(OSError):
            (config.run_dir / name).unlink()
    for directory in (config.bpf_dir, config.run_dir):
        with contextlib.suppress(OSError):
            directory.rmdir()


def _purge(config: NodeConfig) -> Iterator[str]:
    names: list[str] = [FILE_NAME, "samewire.db", "samewire.db-wal", "samewire.db-shm", "samewire.db.room"]
    new = [f"{FILE_NAME}.new", "samewire.db.new"]  # of a daemon that was killed as it wrote them
    for name in (*names, *new):
        path = config.state_dir / name
        if path.exists():
            path.unlink()
            yield str(path)
    with contextlib.suppress(OSError):  # there is something of others in it, or it never was
        config.state_dir.rmdir()
