"""Where the programs are attached, and how: replaced in place, so that no packet passes without one.

The uplink is the node's: tcx links where the kernel has them (order and ownership are kept apart from others'), else
a clsact filter of our own priority and handle. Our own devices and the pods' host ends: clsact filters.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Final

from samewire.errors import KernelError, NotFound, Unavailable
from samewire.kernel.bpf import BpfLink, BpfProgram
from samewire.kernel.bpf.link import AttachType
from samewire.kernel.features import has_tcx
from samewire.kernel.rtnetlink import (
    Netlink,
    Request,
    bpf_filter_del,
    bpf_filter_replace,
    clsact_add,
    clsact_del,
    filter_dump,
)
from samewire.kernel.rtnetlink.tc import Direction
from samewire.node.losettings import LoSettings
from samewire.vfp.constants import LOOPBACK

UPLINK_PRIORITY: Final = 0x5377
_INGRESS: Final = "sw_ingress"
_OUT: Final = "sw_uplink_out"
# The name of the link's pin, the program, where.
_UPLINK: Final[tuple[tuple[str, str, Direction, AttachType], ...]] = (
    ("sw_uplink_in", _INGRESS, "ingress", AttachType.TCX_INGRESS),
    ("sw_uplink_out", _OUT, "egress", AttachType.TCX_EGRESS),
)
_LO: Final = "sw_lo_out"
SOCKETS: Final[dict[str, AttachType]] = {
    "sw_connect4": AttachType.CGROUP_INET4_CONNECT,
    "sw_connect6": AttachType.CGROUP_INET6_CONNECT,
    "sw_sendmsg4": AttachType.CGROUP_UDP4_SENDMSG,
    "sw_sendmsg6": AttachType.CGROUP_UDP6_SENDMSG,
    "sw_recvmsg4": AttachType.CGROUP_UDP4_RECVMSG,
    "sw_recvmsg6": AttachType.CGROUP_UDP6_RECVMSG,
    "sw_getpeername4": AttachType.CGROUP_INET4_GETPEERNAME,
    "sw_getpeername6": AttachType.CGROUP_INET6_GETPEERNAME,
}
# The target of a link is gone (device, cgroup): it can only be removed.
_DEFUNCT: Final = frozenset({errno.ENOLINK, errno.ENODEV, errno.EINVAL, errno.ENOENT})


class Attaching:
    """Requests that a thread sends. (A future of an executor takes twice as long, 0.1 ms of CPU for each pod.)"""

    def __init__(self, requests: list[Request]) -> None:
        self._requests = requests
        self._error: BaseException | None = None
        self._running = Lock()
        self._running.acquire()

    def run(self, netlink: Netlink) -> None:
        """Send them; for the thread."""
        try:
            netlink.batch(self._requests)
        except BaseException as error:  # the waiter's, whatever it is
            self._error = error
        finally:
            self._running.release()

    def wait(self) -> None:
        """Return when they have been worked off, well or not."""
        with self._running:
            pass

    def result(self) -> None:
        """The same; raises what went wrong."""
        self.wait()
        if self._error is not None:
            raise self._error


class Hooks:
    """Attaches the programs of one switchboard. Close it at the end: what is attached stays."""

    def __init__(self, netlink: Netlink, bpf_dir: Path, programs: Mapping[str, BpfProgram]) -> None:
        self._netlink = netlink
        self._links = bpf_dir / "links"
        self._lo_pin = self._links / _LO
        self._lo_settings = LoSettings(bpf_dir.parent)
        self._programs = programs
        self._cgroup: Path | None = None
        self._closed = False
        self._begun: SimpleQueue[Attaching | None] = SimpleQueue()
        self._thread = Thread(target=self._run, args=(Netlink(),), name="hooks", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Let what has been begun come to its end; no more is begun."""
        self._closed = True
        self._begun.put(None)
        self._thread.join()

    def attach_own(self, tunnel_ifindex: int, host_peer_ifindex: int) -> None:
        """Attach to swvxlan0 and samewire1. Raises KernelError."""
        for ifindex in (tunnel_ifindex, host_peer_ifindex):
            self.attach_pod(ifindex)

    def attach_pod(self, ifindex: int) -> None:
        """Attach to the host end of a pod that is there already, unless it is. Raises KernelError."""
        if not self.attached(ifindex):
            self._netlink.batch(self._pod_requests(ifindex))

    def begin_pod(self, ifindex: int) -> Attaching:
        """Begin to attach to a new host end.

        In a thread: before the kernel lets a filter into a new hook it waits for the end of an RCU period, which takes
        no CPU but 0.3 to 10 ms. Raises Unavailable when closed: the thread is gone.
        """
        if self._closed:
            raise Unavailable("the switch", "it is closed, no pod is attached any more")
        attaching = Attaching(self._pod_requests(ifindex))
        self._begun.put(attaching)
        return attaching

    def _run(self, netlink: Netlink) -> None:
        with netlink:
            while (attaching := self._begun.get()) is not None:
                attaching.run(netlink)

    def _pod_requests(self, ifindex: int) -> list[Request]:
        request = bpf_filter_replace(ifindex, "ingress", self._programs[_INGRESS].fd, _INGRESS)
        return [clsact_add(ifindex), request]

    def attached(self, ifindex: int) -> bool:
        """Whether a device of ours, or of a pod, has the program on its ingress. Raises KernelError."""
        found = self._netlink.dump(filter_dump(ifindex, "ingress"))
        program = next((item.program_id for item in found if (item.priority, item.handle) == (1, 1)), 0)
        return program == self._programs[_INGRESS].id

    def leave_uplink(self, ifindex: int) -> None:
        """Detach from a device that is the uplink no more, before the tables say so: the program takes a device
        that they do not name for a pod's, and lets nothing in. Raises KernelError.
        """
        self._unpin_others("sw_uplink_", set())
        if ifindex and not has_tcx():
            detach_uplink(self._netlink, ifindex)

    def attach_uplink(self, ifindex: int) -> None:
        """Attach to the uplink, and leave any other that we were attached to. Raises KernelError."""
        keep = set()
        for link, name, direction, kind in _UPLINK:
            if not ifindex:
                break
            if has_tcx():
                pin = self._links / f"{link}_{ifindex}"
                self._attach_link(pin, self._programs[name], ifindex, kind)
                keep.add(pin.name)
            else:
                self._attach_filter(ifindex, direction, name)
        self._unpin_others("sw_uplink_", keep)

    def on_uplink(self, ifindex: int) -> bool:
        """Whether both programs are on the uplink. Raises KernelError."""
        if has_tcx():
            return all(
                self._linked(f"{link}_{ifindex}", self._programs[name], ifindex)
                for link, name, _, _ in _UPLINK
            )
        return all(
            self._filtered(ifindex, direction, self._programs[name]) for _, name, direction, _ in _UPLINK
        )

    def attach_loopback(self) -> None:
        """Attach to lo what looks at packets from the node to itself. Raises KernelError."""
        self._lo_settings.set()
        if has_tcx():
            self._attach_link(self._lo_pin, self._programs[_OUT], LOOPBACK, AttachType.TCX_EGRESS)
        else:
            self._attach_filter(LOOPBACK, "egress", _OUT)

    def leave_loopback(self) -> None:
        """Take it off. Raises KernelError."""
        if has_tcx():
            take_off(self._lo_pin)
        else:
            detach_uplink(self._netlink, LOOPBACK)
        self._lo_settings.give_back()

    def on_loopback(self) -> bool:
        """Whether the program is on lo. Raises KernelError."""
        if has_tcx():
            return self._linked(_LO, self._programs[_OUT], LOOPBACK)
        return self._filtered(LOOPBACK, "egress", self._programs[_OUT])

    def loopback_takes(self) -> bool:
        """Whether lo takes what comes back. Raises KernelError."""
        return self._lo_settings.are_set()

    def on_sockets(self) -> bool:
        """Whether every socket program is attached where it was asked for, and that is there. Raises KernelError."""
        if self._cgroup is None:
            return True
        try:
            inode = self._cgroup.stat().st_ino
        except OSError:
            return False
        programs = ((name, self._programs[name]) for name in SOCKETS if name in self._programs)
        return all(self._linked(f"{name}_{inode}", program, inode) for name, program in programs)

    def attach_sockets(self, cgroup: Path | None) -> None:
        """Attach the socket programs to a cgroup, and leave any other. Raises KernelError, NotFound."""
        keep = set()
        self._cgroup = cgroup
        if cgroup is not None:
            try:
                directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError as error:
                raise NotFound("cgroup", str(cgroup)) from error
            try:
                inode = os.fstat(directory).st_ino
                for name, kind in SOCKETS.items():
                    if name in self._programs:
                        pin = self._links / f"{name}_{inode}"
                        self._attach_link(pin, self._programs[name], directory, kind)
                        keep.add(pin.name)
            finally:
                os.close(directory)
        for name in SOCKETS:
            self._unpin_others(f"{name}_", keep)

    def _attach_filter(self, ifindex: int, direction: Direction, name: str) -> None:
        """On a device that is not ours: our own priority, whatever others have there."""
        program = self._programs[name]
        if self._filtered(ifindex, direction, program):
            return
        request = bpf_filter_replace(
            ifindex, direction, program.fd, name, priority=UPLINK_PRIORITY, handle=UPLINK_PRIORITY
        )
        self._netlink.batch([clsact_add(ifindex), request])

    def _filtered(self, ifindex: int, direction: Direction, program: BpfProgram) -> bool:
        found = self._netlink.dump(filter_dump(ifindex, direction))
        return any(item.priority == UPLINK_PRIORITY and item.program_id == program.id for item in found)

    def _attach_link(self, pin: Path, program: BpfProgram, target: int, kind: AttachType) -> None:
        """Put the program into the place of the pinned link, or make the link."""
        try:
            link = BpfLink.open_pinned(pin)
        except NotFound:
            pass
        else:
            try:
                if (
                    kind not in (AttachType.TCX_INGRESS, AttachType.TCX_EGRESS)
                    or link.info().target == target
                ):
                    link.update(program)
                    return
                pin.unlink()
            except KernelError as error:
                if error.errno not in _DEFUNCT:
                    raise
                pin.unlink()
            finally:
                link.close()
        link = BpfLink.attach(program, target, kind)
        try:
            link.pin(pin)
        finally:
            link.close()

    def _linked(self, name: str, program: BpfProgram, target: int) -> bool:
        try:
            with BpfLink.open_pinned(self._links / name) as link:
                info = link.info()
        except NotFound:
            return False
        return (info.program_id, info.target) == (program.id, target)

    def _unpin_others(self, prefix: str, keep: set[str]) -> None:
        for pin in pins(self._links, prefix):
            if pin.name not in keep:
                take_off(pin)


def pins(links: Path, prefix: str = "") -> Iterator[Path]:
    """The pinned links whose names begin with ``prefix``."""
    yield from (path for path in sorted(links.iterdir()) if path.name.startswith(prefix))


def take_off(pin: Path) -> None:
    """Detach what is pinned there, if there is anything, and remove the pin. Raises KernelError.

    Now: the kernel takes its time over a link whose last pin goes, and one that a tool has open stays for as long.
    """
    try:
        with BpfLink.open_pinned(pin) as link:
            link.detach()
    except NotFound:
        return
    except KernelError as error:
        if error.errno not in _DEFUNCT:
            raise
    try:
        pin.unlink()
    except OSError as error:
        raise KernelError(f"remove {pin}", error.errno or errno.EIO) from error


def detach_uplink(netlink: Netlink, ifindex: int) -> bool:
    """Remove our filters from a device that is not ours; the clsact hook too if nothing else is on it.

    Returns whether there were any. Raises KernelError.
    """
    gone = (errno.ENOENT, errno.EINVAL, errno.ENODEV)
    removed = False
    for _, _, direction, _ in _UPLINK:
        found = netlink.dump(filter_dump(ifindex, direction))
        if any(item.priority == UPLINK_PRIORITY for item in found):
            removed = True
            request = bpf_filter_del(ifindex, direction, priority=UPLINK_PRIORITY, handle=UPLINK_PRIORITY)
            netlink.request(request.tolerating(*gone))
    left = [item for _, _, direction, _ in _UPLINK for item in netlink.dump(filter_dump(ifindex, direction))]
    if removed and not left:
        netlink.request(clsact_del(ifindex).tolerating(*gone))
    return removed
