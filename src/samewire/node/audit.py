"""Wanted against actual: reads the kernel back, says what differs, and repairs it.

Nothing is inferred from a read that failed: then the audit fails, and nothing is touched. What carries our mark and
belongs to no object is removed. A link whose network namespace has died cannot be repaired: its endpoint is reported
as degraded until the runtime's DEL or GC removes it.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Final, Protocol, TypeAlias

import msgspec
import structlog

from samewire.errors import KernelError, NotFound, SamewireError
from samewire.hcn.schema import Endpoint
from samewire.hcn.state import State
from samewire.hcn.switch import StoreView
from samewire.kernel.netns import GONE, NetNamespace
from samewire.kernel.rtnetlink import Link, Netlink, link_dump
from samewire.node import links
from samewire.node.apply import NodeSwitch
from samewire.node.audit_balancers import BalancerAudit
from samewire.node.bindings import words
from samewire.node.devices import OWN_DEVICES, reserved_ports, wrong_settings
from samewire.node.hostsockets import end_orphans
from samewire.node.places import kept_identity
from samewire.node.planning import netns_path
from samewire.node.portranges import parse_ports, port_range
from samewire.node.ports import PortState
from samewire.vfp.diff import diff
from samewire.vfp.model import LINK_GROUP, PortLink

log = structlog.get_logger(__name__)

Identity: TypeAlias = tuple[int, int]

_TURN: Final = 8  # pods looked into before others have their turn
_INTERFACE_GONE: Final = "its interface is gone"


class Difference(msgspec.Struct, frozen=True, order=True):
    """One thing that is not as it should be. ``kind``: table, link, pod, hook, host, device, pin or endpoint."""

    kind: str
    subject: str
    text: str

    @property
    def lasting(self) -> bool:
        """Whether no audit can set it right: an endpoint without the network namespace that it was in."""
        return self.kind == "endpoint" and self.text != _INTERFACE_GONE


class AuditReport(msgspec.Struct, frozen=True):
    """Outcome of one audit. ``failed``: what could not be repaired, or not be read, in words."""

    differences: tuple[Difference, ...] = ()
    repaired: int = 0
    failed: tuple[str, ...] = ()
    at_unix_s: float = 0.0
    duration_s: float = 0.0


class Holder(Protocol):
    """The node's part in repairs: what is its own and no object's. All may raise SamewireError."""

    def unpinned(self) -> list[str]:
        """Names of maps and programs that would end with this process, and of sockets that nobody finds."""

    def pin_again(self) -> None:
        """Give them their pins back."""

    def attach_sockets(self) -> None:
        """Attach the socket programs to the host's cgroup."""

    def reserve_ports(self) -> None:
        """Take the NAT pool out of what the kernel hands to sockets."""

    def troubles(self) -> dict[str, str]:
        """Why networks cannot work, by id."""


class Auditor:
    """Compares one switch with the kernel."""

    def __init__(self, switch: NodeSwitch, view: State, holder: Holder) -> None:
        self._switch = switch
        self._holder = holder
        self._view = view
        self._known: set[Difference] = set()
        self._known_failed: set[str] = set()
        self._lost: dict[str, Identity] = {}
        self._degraded: dict[str, str] = {}
        self.last = AuditReport()
        self.totals: Counter[str] = Counter()
        self.devices_wrong = asyncio.Event()
        """Set when the node's own devices are not as they should be: somebody has to read them again."""

    @property
    def degraded(self) -> dict[str, str]:
        """What the last audit found wrong with endpoints that are still there."""
        return {name: text for name, text in self._degraded.items() if self._view.endpoint(name)}

    async def compare(self) -> list[Difference]:
        """What differs now; nothing is changed. Raises KernelError when the kernel cannot be read."""
        async with self._switch.lock:
            found = await _Pass(self._switch, self._view, self._holder, {}, repair=False).run()
        balancers = BalancerAudit(self._switch, self._view, repair=False)
        await balancers.run()
        return [*found, *(Difference("table", *item) for item in balancers.found)]

    async def audit(self) -> AuditReport:
        """Compare and repair. Never raises for what it finds; see the report's ``failed``."""
        started = time.monotonic()
        at = time.time()
        degraded: dict[str, str] = {}
        async with self._switch.lock:
            self._switch.suspect.clear()
            one = _Pass(self._switch, self._view, self._holder, degraded, repair=True, lost=self._lost)
            try:
                found = await one.run()
            except SamewireError as error:
                found, one.failed = one.found, [*one.failed, str(error)]
        balancers = BalancerAudit(self._switch, self._view, repair=True)
        try:
            await balancers.run()
        except SamewireError as error:
            balancers.failed.append(str(error))
        found += (Difference("table", *item) for item in balancers.found)
        one.failed += balancers.failed
        end_orphans(self._switch.kernel.tables)
        if any(difference.kind == "device" for difference in found):
            self.devices_wrong.set()
        self._degraded = degraded
        self._view.note_troubles({**self._holder.troubles(), **degraded})
        repaired = len(found) - len(one.failed) - len(degraded)
        self.last = AuditReport(
            tuple(found), max(repaired, 0), tuple(one.failed), at, time.monotonic() - started
        )
        self._tell(found, one.failed)
        return self.last

    def _tell(self, found: list[Difference], failed: list[str]) -> None:
        """Log each distinct problem once, as long as it lasts."""
        self.totals.update(difference.kind for difference in found)
        for difference in found:
            if difference not in self._known:
                log.warning(
                    "the kernel was not as wanted",
                    kind=difference.kind,
                    subject=difference.subject,
                    what=difference.text,
                )
        self._known = set(found)
        for text in failed:
            if text not in self._known_failed:
                log.error("the audit could not set something right", error=text)
        self._known_failed = set(failed)


class _Pass:
    """One run over everything; the switch's lock is held."""

    def __init__(
        self,
        switch: NodeSwitch,
        view: StoreView,
        holder: Holder,
        degraded: dict[str, str],
        *,
        repair: bool,
        lost: dict[str, Identity] | None = None,
    ) -> None:
        self._switch = switch
        self._lost = {} if lost is None else lost
        self._holder = holder
        self._kernel = switch.kernel
        self._view = view
        self._repair = repair
        self._degraded = degraded
        self.found: list[Difference] = []
        self.failed: list[str] = []

    async def run(self) -> list[Difference]:
        """Raises KernelError when something cannot be read."""
        present = {link.ifindex: link for link in self._kernel.netlink.dump(link_dump())}
        self._pins()
        self._own_devices(present)
        await self._links(present)
        await self._pods(present, links.shaped_rates(self._kernel.netlink))
        self._tables()
        self._host()
        return self.found

    def _report(self, kind: str, subject: str, text: str, repair: Callable[[], object] | None = None) -> None:
        """Note a difference, and set it right if that is wanted and can be done at once."""
        self.found.append(Difference(kind, subject, text))
        if self._repair and repair is not None:
            try:
                repair()
            except SamewireError as error:
                self.failed.append(f"{kind} {subject}: {text}: {error}")

    def _pins(self) -> None:
        """First of all: what is attached below is pinned beside them."""
        holder = self._holder
        for number, name in enumerate(holder.unpinned()):
            self._report("pin", name, "is gone", None if number else holder.pin_again)
        if not self._kernel.hooks.on_sockets():
            self._report("hook", "host_cgroup", "the socket programs do not run", holder.attach_sockets)

    def _own_devices(self, present: dict[int, Link]) -> None:
        facts, hooks = self._switch.node_facts, self._kernel.hooks
        for ifindex, name in zip(
            (facts.host_ifindex, facts.host_peer_ifindex, facts.tunnel_ifindex), OWN_DEVICES, strict=True
        ):
            link = present.get(ifindex)
            if link is None or not link.up:
                self._report("device", name, "is gone" if link is None else "is down")
                continue
            if link.name != name:
                self._report("device", name, f"is called {link.name}")
            for setting in wrong_settings(name):
                self._report("device", name, f"{setting} is not as it should be")
        for ifindex in (facts.tunnel_ifindex, facts.host_peer_ifindex):
            if ifindex in present and not hooks.attached(ifindex):
                self._report(
                    "hook",
                    present[ifindex].name,
                    "the switch's program does not run",
                    lambda: hooks.attach_own(facts.tunnel_ifindex, facts.host_peer_ifindex),
                )
        if facts.uplink_ifindex in present and not hooks.on_uplink(facts.uplink_ifindex):
            self._report(
                "hook",
                present[facts.uplink_ifindex].name,
                "the uplink's programs do not run",
                lambda: hooks.attach_uplink(facts.uplink_ifindex),
            )
        loopback = self._switch.loopback
        if text := loopback.trouble():
            self._report("hook", "lo", text, loopback.attach)

    async def _links(self, present: dict[int, Link]) -> None:
        """Links that are missing, and those that belong to nobody."""
        for endpoint_id in [item for item in self._lost if self._view.endpoint(item) is None]:
            del self._lost[endpoint_id]
        for endpoint in list(self._view.endpoints()):
            path = netns_path(endpoint, self._view)
            state = self._switch.ports.get(endpoint.id)
            if path and (state is None or state.ifindex not in present):
                await self._missing(endpoint, path, state)
        known = {state.ifindex for _, state in self._switch.ports}
        for link in present.values():
            if is_leftover(link) and link.ifindex not in known:
                self.found.append(Difference("link", link.name, "belongs to no endpoint"))
                if self._repair:
                    await self._remove(link)

    async def _remove(self, link: Link) -> None:
        try:
            await self._kernel.reaper.delete(link.ifindex)
        except KernelError as error:
            self.failed.append(f"link {link.name}: {error}")

    async def _missing(self, endpoint: Endpoint, path: str, state: PortState | None) -> None:
        """A link is gone: make it again if its namespace is still the one it was in."""
        identity = state.identity if state is not None else self._lost.get(endpoint.id)
        identity = identity or kept_identity(endpoint, self._view)
        reason = _dead(path, identity)
        self.found.append(Difference("endpoint", endpoint.id, reason or _INTERFACE_GONE))
        if not self._repair:
            return
        try:
            if reason:
                self._degraded[endpoint.id] = reason
                if identity is not None:
                    self._lost[endpoint.id] = identity
                await self._switch.forget_port(endpoint.id, self._view)
            else:
                await self._switch.reattach(endpoint, self._view)
        except SamewireError as error:
            self._degraded[endpoint.id] = str(error)

    async def _pods(self, present: dict[int, Link], rates: dict[int, int]) -> None:
        for number, (endpoint_id, state) in enumerate(self._switch.ports):
            link = present.get(state.ifindex)
            if link is None:
                continue  # dealt with above
            self._host_end(state, link, rates)
            try:
                self._inside(endpoint_id, state)
            # A pod may change faster than it can be read; nobody else suffers for that.
            except KernelError as error:
                self.found.append(Difference("pod", endpoint_id, f"cannot be read: {error}"))
                self.failed.append(f"pod {endpoint_id} cannot be read: {error}")
            if number % _TURN == _TURN - 1:
                await asyncio.sleep(0)

    def _host_end(self, state: PortState, link: Link, rates: dict[int, int]) -> None:
        kernel = self._kernel
        wrong = links.host_differences(state.link, link, rates)
        for number, text in enumerate(wrong):
            repair = None if number else _repair_host(kernel.netlink, state)
            self._report("link", link.name, text, repair)
        if not kernel.hooks.attached(state.ifindex):
            self._report(
                "hook",
                link.name,
                "the switch's program does not run",
                lambda: kernel.hooks.attach_pod(state.ifindex),
            )

    def _inside(self, endpoint_id: str, state: PortState) -> None:
        try:
            netns = NetNamespace(state.link.netns_path)
        except GONE as error:
            # The namespace lives on (its link does) without its file: a pod that is being removed.
            is_gone = isinstance(error, NotFound)
            self._degraded[endpoint_id] = f"{state.link.netns_path} is gone" if is_gone else str(error)
            self.found.append(Difference("endpoint", endpoint_id, self._degraded[endpoint_id]))
            return
        with netns:
            if state.identity not in (None, netns.identity):
                self._degraded[endpoint_id] = f"{state.link.netns_path} is another namespace now"
                self.found.append(Difference("endpoint", endpoint_id, self._degraded[endpoint_id]))
                return
            wrong = links.inside_differences(state.link, netns)
            for number, text in enumerate(wrong):
                repair = None if number else _repair_inside(state.link, netns)
                self._report("pod", endpoint_id, text, repair)

    def _tables(self) -> None:
        tables = self._kernel.tables
        operations = diff(self._switch.wanted.entries.tables(), tables.read())

        def repair() -> None:
            tables.write([*operations, *self._switch.judged_again_after(operations)])

        for number, operation in enumerate(operations):
            self._report(
                "table",
                operation.table,
                operation.describe(),
                None if number else repair,
            )

    def _host(self) -> None:
        hostnet, wanted = self._kernel.hostnet, self._switch.wanted.bindings.wanted()
        steps = hostnet.missing(wanted)
        for number, step in enumerate(steps):
            verb = "is missing" if step.add else "should not be there"
            repair = None if number else lambda: hostnet.apply(steps)
            self._report("host", "stack", f"{words(step.wish)} {verb}", repair)
        facts = self._switch.node_facts
        if port_range(facts.nat_port_low, facts.nat_port_high) & ~parse_ports(reserved_ports()):
            text = "lacks ports of the NAT pool"
            self._report("host", "ip_local_reserved_ports", text, self._holder.reserve_ports)


def is_leftover(link: Link) -> bool:
    """Whether a link is one of ours that must belong to an endpoint."""
    marked = link.group == LINK_GROUP or link.group >> 16 == LINK_GROUP
    return marked and link.kind == "veth" and link.name not in OWN_DEVICES


def _dead(path: str, known: Identity | None) -> str:
    """Why a missing link cannot be made again; empty when it can. ``known``: the namespace it was in."""
    try:
        with NetNamespace(path) as netns:
            identity = netns.identity
    except SamewireError as error:
        return str(error)
    if known is not None:
        return "" if identity == known else f"{path} is another namespace now"
    # Not seen by this process: a path that names a process may name another one's namespace by now.
    return f"{path} may be another process's namespace" if path.startswith("/proc/") else ""


def _repair_host(netlink: Netlink, state: PortState) -> Callable[[], object]:
    return lambda: links.repair_host(netlink, state.link, state.ifindex)


def _repair_inside(link: PortLink, netns: NetNamespace) -> Callable[[], object]:
    return lambda: links.repair_inside(link, netns)
