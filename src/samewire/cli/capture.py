"""``samewire capture``: a pod's packets in both directions."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, TYPE_CHECKING, Any, Final, Self

import click

from samewire.counted import counted
from samewire.errors import Conflict, Invalid, NotFound
from samewire.trace import pcapng

if TYPE_CHECKING:
    from samewire.kernel.packet_socket import CapturedPacket, PacketSocket
    from samewire.trace.context import EndpointInfo

_DEFAULT_INTERFACE: Final = "eth0"
_LOOK_UP_S: Final = 0.2  # how long a signal may wait for a pod that is silent

Sink = Callable[["CapturedPacket"], None]


@click.command()
@click.argument("pod")
@click.option("-w", "--write", "file", metavar="FILE", help="Write pcapng; `-` is standard output.")
@click.option("--count", type=click.IntRange(1), help="End after so many packets.")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), help="End after this time.")
@click.pass_obj
def capture(socket: str, pod: str, file: str | None, count: int | None, seconds: float | None) -> None:
    """Record what POD sends and receives, until interrupted.

    tcpdump on the host's end of the pod's link sees one direction only, because the switch delivers into the pod
    directly; this looks at the pod's own interface. Needs root on the node. Without -w every packet is one line.
    """
    from samewire.kernel.netns import NetNamespace
    from samewire.kernel.packet_socket import PacketSocket

    info = _find(socket, pod)
    interface = info.interface or _DEFAULT_INTERFACE
    if file == "-" and sys.stdout.isatty():
        raise click.UsageError("pcapng is not for terminals: name a file, or pipe it on")
    with (
        _Limit(seconds) as limit,  # first: who sees the socket may end it
        NetNamespace(info.netns_path) as netns,
        PacketSocket(interface, netns.fd) as source,
    ):
        with _destination(file, interface, info, source) as sink:
            taken = _run(source, sink, count, limit)
        _, lost = source.statistics()
    where = f"{interface}, VLAN {info.vlan} on the uplink" if info.vlan else interface
    click.echo(
        f"{counted(taken, 'packet')} of {info.label} ({where}){f', {lost} lost' if lost else ''}", err=True
    )


def _find(socket: str, pod: str) -> EndpointInfo:
    """The endpoint, attached to a live namespace. Raises NotFound, Conflict."""
    import msgspec

    from samewire.hcn.client import HnsClient
    from samewire.trace.context import EndpointInfo
    from samewire.trace.names import find_endpoint

    found = HnsClient(socket).get_json("/v2/switch/endpoints")
    info = find_endpoint(msgspec.convert(found, list[EndpointInfo]), pod)
    if not info.netns_path:
        what = "is on another node" if info.remote else "is in no network namespace"
        raise Conflict(f"endpoint {info.label} {what}: there is nothing to capture here")
    return info


@contextlib.contextmanager
def _destination(
    file: str | None, interface: str, info: EndpointInfo, source: PacketSocket
) -> Iterator[Sink]:
    """Where packets go. Raises Invalid when the file cannot be written, or not to its end."""
    if file is None:
        yield _print
        return
    try:
        with contextlib.nullcontext(sys.stdout.buffer) if file == "-" else Path(file).open("wb") as target:
            yield _writer(target, interface, info)
            target.write(pcapng.statistics(time.time_ns(), *source.statistics()))
            target.flush()
    except BrokenPipeError:
        raise  # who reads it has seen enough
    except OSError as error:
        raise Invalid(file, error.strerror or str(error)) from error


def _writer(target: IO[bytes], interface: str, info: EndpointInfo) -> Sink:
    target.write(
        pcapng.header(
            interface,
            f"{info.label} in {info.network}{f', VLAN {info.vlan}' if info.vlan else ''}",
            f"endpoint {info.id}",
        )
    )

    def write(packet: CapturedPacket) -> None:
        direction = pcapng.Direction.OUTBOUND if packet.outgoing else pcapng.Direction.INBOUND
        target.write(pcapng.packet(packet.time_ns, packet.data, direction))
        target.flush()

    return write


def _print(packet: CapturedPacket) -> None:
    from samewire.trace.summary import summary

    at = time.strftime("%H:%M:%S", time.localtime(packet.time_ns // 1_000_000_000))
    fraction = packet.time_ns % 1_000_000_000 // 1000
    click.echo(f"{at}.{fraction:06d} {'out' if packet.outgoing else 'in '} {summary(packet.data)}")


def _run(source: PacketSocket, sink: Sink, count: int | None, limit: _Limit) -> int:
    """Take packets until enough, too late, interrupted or the pod is gone; returns how many.

    What came before the end is taken even if it has not been read by then.
    """
    taken = 0
    try:
        while count is None or taken < count:
            packet = source.receive(_LOOK_UP_S)
            if limit.is_passed(packet):
                break
            if packet is not None:
                sink(packet)
                taken += 1
    except NotFound as error:
        click.echo(f"the pod is gone: {error}", err=True)
    return taken


class _Limit:
    """The time at which a capture ends: after some seconds, or when SIGINT or SIGTERM comes.

    The signals do not interrupt anything, so that the file is whole. The seconds are those of a clock that nobody sets;
    packets have the time of day.
    """

    def __init__(self, seconds: float | None) -> None:
        self._due_ns = time.monotonic_ns() + round(seconds * 1e9) if seconds else None
        self._at_ns: int | None = None
        self._before: dict[signal.Signals, Any] = {}

    def is_passed(self, packet: CapturedPacket | None) -> bool:
        """Whether a packet has come after the end; whether that has been, when there is none."""
        if self._at_ns is None and self._due_ns is not None:
            late_ns = time.monotonic_ns() - self._due_ns
            if late_ns >= 0:
                self._at_ns = time.time_ns() - late_ns
        return self._at_ns is not None and (packet is None or packet.time_ns >= self._at_ns)

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._interrupt)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._at_ns = time.time_ns()
