"""The switch of this node: makes changes of HNS objects true in the kernel, all of them or none.

A change is planned (`samewire.node.planning`), its links are made but kept down, everything it touches is compiled,
and then the kernel is brought there in an order in which every moment is safe: new entries, links up, old entries
away, links away. Each step knows its way back.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Final

import msgspec
import structlog

from samewire.errors import Invalid, KernelError, NotFound, there
from samewire.hcn.errors import StoreError
from samewire.hcn.schema import Endpoint
from samewire.hcn.switch import Change, EndpointStats, StoreView
from samewire.hcn.switch import NodeFacts as HcnFacts
from samewire.kernel.netns import GONE, NetNamespace
from samewire.kernel.packet_socket import FrameSender
from samewire.kernel.rtnetlink import Netlink
from samewire.node import links, proxies
from samewire.node.balancers import Balancers
from samewire.node.bindings import in_order
from samewire.node.freeports import usable_ports
from samewire.node.hooks import Attaching, Hooks
from samewire.node.hostnet import HostNet
from samewire.node.loopback import Loopback
from samewire.node.numbers import Key, StoreNumbers
from samewire.node.owners import Owners
from samewire.node.places import identity_text
from samewire.node.plan_balancers import touched_by_link
from samewire.node.planning import (
    NODE,
    Owner,
    Steps,
    endpoint_owner,
    netns_path,
    plan_changes,
    plan_everything,
)
from samewire.node.ports import Ports, PortState
from samewire.node.reaper import LinkReaper
from samewire.node.stats import read_stats
from samewire.node.sweep import PortSweeper
from samewire.node.tables import KernelTables
from samewire.node.undo import UndoStack, end_without_memory
from samewire.node.wanted import Changes, Wanted, judged_again
from samewire.vfp import compile as compilers
from samewire.vfp.compile.loadbalancer import LocalPort
from samewire.vfp.diff import Operation
from samewire.vfp.model import Compiled, NodeFacts, PortLink

log = structlog.get_logger(__name__)

_NOTHING: Final = Compiled({})


class Kernel(msgspec.Struct, frozen=True):
    """The parts of the kernel that the switch is made of."""

    netlink: Netlink
    tables: KernelTables
    hooks: Hooks
    hostnet: HostNet
    reaper: LinkReaper
    sender: FrameSender


class _Opened(msgspec.Struct, frozen=True):
    """A link in the making; ``attaching``: the program to its host end."""

    netns: NetNamespace
    link: PortLink
    pair: links.Pair
    attaching: Attaching


class NodeSwitch:
    """Implements `samewire.hcn.switch.Switch`. Use from one event loop."""

    def __init__(self, kernel: Kernel, numbers: StoreNumbers, facts: NodeFacts, hcn_facts: HcnFacts) -> None:
        self.kernel = kernel
        self.numbers = numbers
        self.node_facts = facts
        self.wanted = Wanted(kernel.tables.read(["sw_ports"]))
        self.ports = Ports()
        self.balancers = Balancers(kernel.tables, numbers, self._local_port)
        self.owners = Owners(numbers, self.wanted, self.ports, self.balancers, kernel.tables.generation())
        self.lock = asyncio.Lock()
        self.sweeper = PortSweeper(
            *(kernel.tables.maps[name] for name in ("sw_flows", "sw_drops", "sw_rule_counts"))
        )
        self.version = 0
        """Grows with every change; a reader that saw two values has not seen one state."""
        self.suspect = asyncio.Event()
        """Set when the kernel may differ from what is wanted: the audit should look."""
        self.loopback = Loopback(kernel.hooks, self.wanted, self.balancers, self.suspect)
        self.netns_identity = identity_text
        self.usable_ports = usable_ports
        self._hcn_facts = hcn_facts
        with NetNamespace("/proc/thread-self/ns/net") as own:
            self._own_netns = own.identity

    def facts(self) -> HcnFacts:
        """What the node knows of itself."""
        return self._hcn_facts

    async def endpoint_stats(self, endpoint: Endpoint) -> EndpointStats:
        """The endpoint's counters; zeros while it has no port. Raises SamewireError."""
        state = self.ports.get(endpoint.id)
        if state is None:
            return EndpointStats()
        return read_stats(state, self.kernel.netlink, self.kernel.tables.maps["sw_drops"])

    async def apply(self, changes: Sequence[Change], view: StoreView) -> None:
        """Make the changes true, all or none. Raises SamewireError."""
        async with self.lock:
            steps = plan_changes(changes, view, self.node_facts, self.ports.__contains__)
            await self._carry_out(steps, view)

    async def set_facts(self, facts: NodeFacts, hcn_facts: HcnFacts, view: StoreView) -> None:
        """Take over new facts about the node: all is compiled anew that goes with them. Raises SamewireError."""
        async with self.lock:
            before = self.node_facts, self._hcn_facts, self.kernel.hostnet.uplink
            self.node_facts, self._hcn_facts = facts, hcn_facts
            self.kernel.hostnet.uplink = facts.uplink_ifindex
            try:
                steps = plan_everything(view, self.ports.__contains__)
                if not self.balancers.moved(view, before[0], facts):
                    steps.balancers = {}
                await self._carry_out(steps, view)
            except BaseException:
                self.node_facts, self._hcn_facts, self.kernel.hostnet.uplink = before
                raise

    async def set_config(self, facts: NodeFacts, view: StoreView) -> None:
        """Take over facts that matter to the programs alone. Raises SamewireError."""
        async with self.lock:
            before, self.node_facts = self.node_facts, facts
            try:
                await self._carry_out(Steps(owners={NODE: True}), view)
            except BaseException:
                self.node_facts = before
                raise

    def restore(self, view: StoreView, adopted: Iterable[tuple[str, PortState]]) -> None:
        """At start: take over the links that are there and work out what is wanted, without touching the
        kernel. Objects that no longer compile are logged and left out. Raises StoreError.
        """
        for endpoint_id, state in adopted:
            self.ports.set(endpoint_id, state)
        for owner in plan_everything(view, self.ports.__contains__).owners:
            self.numbers.begin()
            compiled = self.owners.compile_if_possible(owner, view, self.node_facts)
            if compiled is not None:
                self.wanted.replace(owner, compiled, Changes())
                self.numbers.hold(owner, self.numbers.asked())

    async def reattach(self, endpoint: Endpoint, view: StoreView) -> None:
        """Make the link of an endpoint again whose link is gone; call with the lock held. Raises
        SamewireError.
        """
        gone = self.ports.remove(endpoint.id)
        if gone is not None:
            self.sweeper.add(gone.ifindex)
        steps = Steps(
            owners={endpoint_owner(endpoint.id): True},
            attach={endpoint.id: endpoint},
            balancers=touched_by_link(endpoint.id, view),
        )
        await self._carry_out(steps, view)

    async def forget_port(self, endpoint_id: str, view: StoreView) -> None:
        """Remove the entries of a port whose link is gone for good; call with the lock held."""
        state = self.ports.remove(endpoint_id)
        if state is not None:
            self.sweeper.add(state.ifindex)
            touched = touched_by_link(endpoint_id, view)
            await self._carry_out(Steps(owners={endpoint_owner(endpoint_id): False}, balancers=touched), view)

    async def _carry_out(self, steps: Steps, view: StoreView) -> None:
        self.version += 1
        undo = UndoStack()
        asked: dict[Owner, dict[Key, None]] = {}
        try:
            await self._run(steps, view, undo, asked)
        except BaseException as error:
            end_without_memory(error)
            self.balancers.forget_places()
            self.balancers.doubt(steps.balancers)
            if not await undo.run():
                self.suspect.set()
            for keys in asked.values():
                self.numbers.forget_unused(keys)
            raise
        self.loopback.follow()
        try:
            self.numbers.hold_all(asked)
        except StoreError as error:
            # The change is made; numbers that stay allocated are released by the next start.
            log.warning("numbers could not be released", error=str(error))

    async def _run(
        self, steps: Steps, view: StoreView, undo: UndoStack, asked: dict[Owner, dict[Key, None]]
    ) -> None:
        kernel, balancers, opened = self.kernel, self.balancers, dict[str, _Opened]()
        if any(kind in ("node", "network") for kind, _ in steps.owners):
            balancers.forget_places()
        try:
            old = {endpoint_id: self.ports.get(endpoint_id) for endpoint_id in steps.detach}
            for endpoint_id, endpoint in steps.attach.items():
                self._create_link(endpoint_id, endpoint, view, undo, opened)
            changes = self._compile_all(steps, view, undo, asked)
            bindings = in_order(changes.bindings)
            balance = balancers.plan(steps.balancers, view, self.node_facts, steps.were)
            undo.push("load balancers", partial(balancers.take_back, balance))
            kernel.tables.write(changes.puts())
            balancers.write_puts(balance)
            kernel.hostnet.apply(step for step in bindings if step.add)
            for endpoint_id in steps.attach:
                made = opened[endpoint_id]
                if made.link.proxies:
                    forget = partial(proxies.remove, made.link.host_name, made.link.netns_path)
                    undo.push("proxy rules", forget)
                made.attaching.result()
                new = endpoint_id in steps.new
                links.activate(kernel.netlink, made.link, made.pair, made.netns, new=new)
            news = [frame for made in opened.values() for frame in made.link.announcements]
            for endpoint in steps.relink.values():
                news += self._change_link(endpoint, view, undo)
            wanted = self.wanted.bindings.wants
            kernel.hostnet.apply(step for step in bindings if not (step.add or wanted(step.wish)))
            balancers.write_removals(balance)
            kernel.tables.write(changes.removals())
            kernel.tables.write(self._led_again(changes))
            for endpoint_id, state in old.items():
                kept = opened[endpoint_id].link.netns_path if endpoint_id in opened else ""
                if state is not None and state.link.netns_path != kept:
                    proxies.remove(state.link.host_name, state.link.netns_path)
            await self._delete_links([state for state in old.values() if state is not None])
            balancers.accept(balance)
            self._announce(news)
        finally:
            for made in opened.values():
                made.netns.close()

    def _create_link(
        self,
        endpoint_id: str,
        endpoint: Endpoint,
        view: StoreView,
        undo: UndoStack,
        opened: dict[str, _Opened],
    ) -> None:
        link = self._link(endpoint, view)
        netns = NetNamespace.shared(link.netns_path)
        try:
            if netns.identity == self._own_netns:
                raise Invalid("$.NetnsPath", f"{link.netns_path} is the node's own network namespace")
            before = self.ports.get(endpoint_id)
            pair = links.create(
                self.kernel.netlink,
                link,
                netns,
                lambda ifindex: self.ports.endpoint_of(ifindex) not in ("", endpoint_id),
            )
            undo.push(f"create {link.host_name}", partial(self._delete_link, pair.host))
            attaching = self.kernel.hooks.begin_pod(pair.host)
        except BaseException:
            netns.close()
            raise
        opened[endpoint_id] = _Opened(netns, link, pair, attaching)
        undo.push(f"attach {link.host_name}", attaching.wait)
        self.ports.set(endpoint_id, PortState(pair.host, link, netns.identity))
        undo.push("port", partial(self._put_port_back, endpoint_id, before))

    def _put_port_back(self, endpoint_id: str, state: PortState | None) -> None:
        if state is None:
            self.ports.remove(endpoint_id)
        else:
            self.ports.set(endpoint_id, state)

    async def _delete_link(self, ifindex: int) -> None:
        """With one more try: a link must not stay because of a passing fault."""
        try:
            await self.kernel.reaper.delete(ifindex)
        except KernelError:
            await self.kernel.reaper.delete(ifindex)

    def _compile_all(
        self, steps: Steps, view: StoreView, undo: UndoStack, asked: dict[Owner, dict[Key, None]]
    ) -> Changes:
        """Compile what has to be, and return what has to be done for it."""
        changes = Changes()
        before: list[tuple[Owner, Compiled]] = []
        undo.push("entries", lambda: self._restore_entries(before, changes))
        for endpoint_id in steps.detach:
            if endpoint_id not in steps.attach:
                undo.push("port", partial(self._put_port_back, endpoint_id, self.ports.remove(endpoint_id)))
        if_possible = partial(self.owners.compile_if_possible, spared=Invalid)
        compile_one = if_possible if steps.everything else self.owners.compile
        for owner, compile_it in steps.owners.items():
            self.numbers.begin()
            asked[owner] = self.numbers.asked()
            compiled = compile_one(owner, view, self.node_facts) if compile_it else _NOTHING
            if compiled is None:
                del asked[owner]  # it stays as it was
                continue
            before.append((owner, self.wanted.held(owner)))
            self.wanted.replace(owner, compiled, changes)
        return changes

    def _restore_entries(self, before: list[tuple[Owner, Compiled]], made: Changes) -> None:
        """Give the owners back what they had, here and in the kernel. What was judged meanwhile is judged again."""
        changes = Changes()
        for owner, compiled in reversed(before):
            self.wanted.replace(owner, judged_again(compiled, self.owners.next_generation()), changes)
        changes.enter(self.wanted.left_over(made))
        self.kernel.tables.write([*changes.puts(), *changes.removals(), *self._led_again(changes)])
        self.kernel.hostnet.apply(in_order(changes.bindings))

    def _led_again(self, changes: Changes) -> list[Operation]:
        """What comes behind all else, so that no flow goes on by a route that is no more, or past one that is there."""
        if not changes.scopes:
            return []
        return self.wanted.led_again(changes.scopes, self.owners.next_generation())

    def judged_again_after(self, repairs: Sequence[Operation]) -> list[Operation]:
        """What is to follow repairs of the tables, so that no flow keeps a verdict from before them."""
        return self.wanted.again(repairs, self.owners.next_generation())

    def _local_port(self, endpoint_id: str) -> LocalPort | None:
        state = self.ports.get(endpoint_id)
        return LocalPort(state.ifindex, state.link.mac) if state is not None else None

    def _link(self, endpoint: Endpoint, view: StoreView) -> PortLink:
        network = there(view.network(endpoint.network_id), "network", endpoint.network_id)
        return compilers.compile_link(endpoint, network, self.node_facts, netns_path(endpoint, view))

    def _announce(self, frames: Iterable[bytes]) -> None:
        """Tell the wire whose addresses are here now. Who does not hear it finds out in the end."""
        uplink = self.kernel.hostnet.uplink
        try:
            for frame in frames if uplink else ():
                self.kernel.sender.send(uplink, frame)
        except KernelError as error:
            log.warning("addresses could not be announced", error=str(error))

    def _change_link(self, endpoint: Endpoint, view: StoreView, undo: UndoStack) -> tuple[bytes, ...]:
        """Returns what is to be announced of it."""
        state = there(self.ports.get(endpoint.id), "port of endpoint", endpoint.id)
        before, after = state.link, self._link(endpoint, view)
        if before == after:
            return ()
        try:
            netns = NetNamespace(after.netns_path)
        except GONE:
            return ()  # a pod that has died; its DEL is on the way
        with netns:
            if state.identity not in (None, netns.identity):
                return ()  # somebody else has taken its place
            undo.push(f"change {after.host_name}", partial(self._change_back, state, after, endpoint.id))
            try:
                links.change(self.kernel.netlink, before, after, state.ifindex, netns)
            except (NotFound, KernelError) as error:
                # What a pod does with its interface keeps no other from a change: the audit says what is wrong with it.
                if isinstance(error, KernelError) and error.errno != errno.ENODEV:
                    raise
                self.suspect.set()
        self.ports.set(endpoint.id, msgspec.structs.replace(state, link=after))
        return after.announcements if after.announcements != before.announcements else ()

    def _change_back(self, state: PortState, after: PortLink, endpoint_id: str) -> None:
        self.ports.set(endpoint_id, state)
        with NetNamespace(state.link.netns_path) as netns:
            links.change(self.kernel.netlink, after, state.link, state.ifindex, netns)

    async def _delete_links(self, old: list[PortState]) -> None:
        """The last step. After the first link is gone there is no way back, and none is needed: a link that
        stays has no entries, is dead, and goes with the next audit.
        """
        if not old:
            return
        results = await asyncio.gather(
            *(self._delete_link(state.ifindex) for state in old), return_exceptions=True
        )
        failures = [result for result in results if isinstance(result, BaseException)]
        if failures and len(failures) == len(old):
            raise failures[0]
        for failure in failures:
            log.error("a link could not be removed", error=str(failure))
            self.suspect.set()
        for state in old:
            self.sweeper.add(state.ifindex)
