"""Watches the kernel: links that vanish, the node's own addresses, routes and MTU, and the ways to other nodes."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from samewire.errors import SamewireError
from samewire.kernel.rtnetlink import (
    AddressChanged,
    Event,
    LinkGone,
    LinkMonitor,
    LinkNew,
    Names,
    Overrun,
    RouteChanged,
)
from samewire.kernel.rtnetlink.routes import TABLE_MAIN
from samewire.kernel.toobig import TooBigSocket
from samewire.node.node import Node
from samewire.vfp.address import ZERO, Prefix
from samewire.vfp.compile.link import host_name

log = structlog.get_logger(__name__)

_POD_ENDS: Final = host_name("0" * 32)
QUIET: Final = Names(_POD_ENDS[:2], len(_POD_ENDS))
"""Interfaces whose making concerns nobody: the pods' host ends."""

_SETTLE_S: Final = 0.05  # changes of a node's network come in bursts
_RETRY_S: Final = 2.0
_REST: Final = 4  # times as long as an audit took there is none: who makes work for them leaves others theirs
_LONGEST_REST_S: Final = 1.0
_TOO_BIG_PAUSE_S: Final = 1.0  # anybody can send such errors, and many of them


class Watcher:
    """Turns what the kernel announces into refreshes and audits. Make the monitor before the node is read."""

    def __init__(self, monitor: LinkMonitor) -> None:
        self._monitor = monitor
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._was_down = False
        self._node: Node | None = None
        self._too_big: TooBigSocket | None = None
        self._pause: asyncio.TimerHandle | None = None

    def listen(self, node: Node) -> None:
        """Begin to read, early enough for the deletions of links during the start."""
        self._node = node
        asyncio.get_running_loop().add_reader(self._monitor.fileno(), self._readable)

    def run(self) -> None:
        """Begin to act on what is read, and to audit at intervals. Raises KernelError."""
        self._too_big = TooBigSocket(self.node.config.vxlan_port)
        self._hear_of_ways()
        self._tasks = [asyncio.ensure_future(self._refresh()), asyncio.ensure_future(self._audit())]

    async def close(self) -> None:
        """Stop watching."""
        if self._pause is not None:
            self._pause.cancel()
        if self._too_big is not None:
            for opened in self._too_big.sockets:
                asyncio.get_running_loop().remove_reader(opened)
            self._too_big.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def stop_listening(self) -> None:
        """Stop reading. Links that are being deleted by then still end, without the announcement."""
        asyncio.get_running_loop().remove_reader(self._monitor.fileno())
        self._monitor.close()

    @property
    def node(self) -> Node:
        """The node that is watched."""
        assert self._node is not None
        return self._node

    def _readable(self) -> None:
        events = self._monitor.receive()
        links = [event for event in events if isinstance(event, LinkNew)]
        own = self._own()
        self._was_down |= any(event.link.ifindex in own and not event.link.up for event in links)
        # Else only the latest state of a link counts: it is announced while it is still being set up, too.
        latest = {event.link.ifindex: event for event in links}
        for event in events:
            if not isinstance(event, LinkNew) or latest[event.link.ifindex] is event:
                self._look(event)

    def _look(self, event: Event) -> None:
        node = self.node
        match event:
            case LinkGone(ifindex):
                node.reaper.gone(ifindex)
                if node.switch.ports.endpoint_of(ifindex):
                    node.switch.suspect.set()
                elif ifindex in (*self._own(), node.uplink.ifindex):
                    self._changed.set()
            case LinkNew(link):
                of_uplink = link.vlan and link.peer_ifindex == node.uplink.ifindex
                if (
                    link.ifindex in (*self._own(), node.uplink.ifindex)
                    or of_uplink
                    or not node.uplink.ifindex
                ):
                    self._changed.set()
                elif node.switch.ports.endpoint_of(link.ifindex) and not link.up:
                    node.switch.suspect.set()
            case AddressChanged() | RouteChanged():
                self._addressing(event)
            case Overrun():
                log.warning("announcements of the kernel were lost")
                self._changed.set()
                node.switch.suspect.set()

    def _addressing(self, event: AddressChanged | RouteChanged) -> None:
        """On our own devices only a loss matters, and only of something that is wanted.

        Every link that comes up brings entries of the kernel's own tables along, which say nothing about the node.
        """
        if isinstance(event, AddressChanged):
            address = event.address
            ifindex, family, packed, bits = address.ifindex, address.family, address.address, address.bits
        else:
            route = event.route
            ifindex, family, packed, bits = route.oif, route.family, route.destination, route.bits
            if route.table != TABLE_MAIN:
                return
        if ifindex not in self._own():
            # Of others' routes only the default ones count: a routing daemon changes the rest all the time.
            counts = isinstance(event, AddressChanged) or not bits
            if counts and not self.node.switch.ports.endpoint_of(ifindex):
                self._changed.set()
            return
        wanted = self.node.switch.wanted.bindings
        if not event.present and wanted.mentions(Prefix(family, packed.ljust(len(ZERO), b"\0"), bits)):
            self.node.switch.suspect.set()

    def _own(self) -> tuple[int, int, int]:
        devices = self.node.devices
        return devices.host_ifindex, devices.host_peer_ifindex, devices.tunnel_ifindex

    async def _refresh(self) -> None:
        while True:
            await self._changed.wait()
            await asyncio.sleep(_SETTLE_S)
            self._changed.clear()
            try:
                await self.node.refresh()
            except Exception as error:
                self._trouble(error)
                await asyncio.sleep(_RETRY_S)
                self._changed.set()
                continue
            self.node.trouble = ""
            if self._was_down:  # its routes went with it, and the kernel does not say so
                self._was_down = False
                self.node.switch.suspect.set()

    def _hear_of_ways(self) -> None:
        """What is longer than the way to the other node the kernel's tunnel drops, and tells no pod; nor does it
        announce that it has learned how long that is.
        """
        for opened in self._too_big.sockets if self._too_big else ():
            asyncio.get_running_loop().add_reader(opened, self._too_long)

    def _too_long(self) -> None:
        assert self._too_big is not None
        loop = asyncio.get_running_loop()
        for opened in self._too_big.sockets:
            loop.remove_reader(opened)
        self._too_big.receive()
        self._changed.set()
        self._pause = loop.call_later(_TOO_BIG_PAUSE_S, self._hear_of_ways)

    def _look_at_ways(self) -> None:
        try:
            differ = self.node.ways_differ()
        except SamewireError:
            differ = True  # reading all of it anew says what is wrong
        if differ:
            self._changed.set()

    def _trouble(self, error: Exception) -> None:
        """Log what is wrong once, as long as it lasts; a bug with its traceback."""
        text = str(error) or type(error).__name__
        if text != self.node.trouble:
            bug = None if isinstance(error, SamewireError) else error
            log.error("the node's own state could not be taken over", error=text, exc_info=bug)
        self.node.trouble = text

    async def _audit(self) -> None:
        node = self.node
        while True:
            try:
                async with asyncio.timeout(node.config.audit_interval_s):
                    await node.switch.suspect.wait()
                await asyncio.sleep(_SETTLE_S)
            except TimeoutError:
                self._look_at_ways()  # the regular one
            try:
                await node.auditor.audit()
            except Exception:  # a bug must not end all audits
                log.exception("an audit failed by a bug")
                await asyncio.sleep(_RETRY_S)
            if node.auditor.devices_wrong.is_set():
                node.auditor.devices_wrong.clear()
                self._changed.set()
            await asyncio.sleep(min(_REST * node.auditor.last.duration_s, _LONGEST_REST_S))
