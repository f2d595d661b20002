"""Traffic control: the hook of programs (clsact) and the shaper (tbf) (``linux/pkt_sched.h``, ``pkt_cls.h``)."""

from __future__ import annotations

import errno
import socket
import struct
from functools import lru_cache
from typing import Literal

import msgspec

from samewire.kernel.rtnetlink import codec
from samewire.kernel.rtnetlink.codec import Query, Request

_RTM_NEWQDISC = 36
_RTM_DELQDISC = 37
_RTM_GETQDISC = 38
_RTM_NEWTFILTER = 44
_RTM_DELTFILTER = 45
_RTM_GETTFILTER = 46

_TCA_KIND = 1
_TCA_OPTIONS = 2
_TCA_BPF_FD = 6
_TCA_BPF_NAME = 7
_TCA_BPF_FLAGS = 8
_TCA_BPF_ID = 11
_BPF_FLAG_ACT_DIRECT = 1
_TCA_TBF_PARMS = 1
_TCA_TBF_RATE64 = 4
_TCA_TBF_BURST = 6

_ROOT = 0xFFFFFFFF
_CLSACT = 0xFFFFFFF1
_CLSACT_HANDLE = 0xFFFF0000
_PARENTS = {"ingress": 0xFFFFFFF2, "egress": 0xFFFFFFF3}
_ALL_PROTOCOLS = socket.htons(3)  # ETH_P_ALL
_LINKLAYER_ETHERNET = 1
_TICK_NS = 64  # PSCHED_SHIFT 6

_KIND_CLSACT = codec.text(_TCA_KIND, "clsact")
_TCMSG = struct.Struct("=BxxxiIII")  # family, ifindex, handle, parent, info
_RATESPEC = "BBHhHI"  # cell log, link layer, overhead, cell align, mpu, rate
_TBF = struct.Struct(f"={_RATESPEC}{_RATESPEC}III")  # rate, peak rate, limit, buffer (ticks), mtu

Direction = Literal["ingress", "egress"]


class Filter(msgspec.Struct, frozen=True):
    """A program on a clsact hook. ``name`` and ``program_id`` are empty and 0 for filters that are no program."""

    priority: int
    handle: int
    name: str
    program_id: int


class Qdisc(msgspec.Struct, frozen=True):
    """A queueing discipline. The three last are those of tbf, 0 for other kinds; the burst is exact to the
    kernel's 64 ns tick only."""

    ifindex: int
    kind: str
    handle: int
    parent: int
    rate_bytes_per_s: int = 0
    burst_bytes: int = 0
    limit_bytes: int = 0

    @property
    def root(self) -> bool:
        """It is the interface's own discipline, not a child or the clsact hook."""
        return self.parent == _ROOT


def clsact_add(ifindex: int) -> Request:
    """The hook that programs attach to; one that is there already stays."""
    flags = codec.NLM_F_CREATE | codec.NLM_F_EXCL
    operation = f"add clsact to interface {ifindex}"
    return Request(_RTM_NEWQDISC, flags, _clsact(ifindex), operation, frozenset({errno.EEXIST}))


def clsact_del(ifindex: int) -> Request:
    """Remove the hook and every filter on it, whoever put it there."""
    return Request(_RTM_DELQDISC, 0, _clsact(ifindex), f"delete clsact of interface {ifindex}")


def bpf_filter_replace(
    ifindex: int, direction: Direction, prog_fd: int, name: str, *, priority: int = 1, handle: int = 1
) -> Request:
    """Attach a program in direct-action mode, in the place of the filter with this priority and handle.

    Packets see the old program or the new one, never none. Needs :func:`clsact_add` before.
    """
    body = _filter(ifindex, direction, priority, handle) + _program(prog_fd, name)
    operation = f"attach {name} to {direction} of interface {ifindex}"
    return Request(_RTM_NEWTFILTER, codec.NLM_F_CREATE, body, operation)


def bpf_filter_del(ifindex: int, direction: Direction, *, priority: int = 1, handle: int = 1) -> Request:
    """Detach a program; ``ENOENT`` or ``EINVAL`` (no hook) when it is not there."""
    body = _filter(ifindex, direction, priority, handle) + codec.text(_TCA_KIND, "bpf")
    return Request(_RTM_DELTFILTER, 0, body, f"detach program from {direction} of interface {ifindex}")


def filter_dump(ifindex: int, direction: Direction) -> Query[Filter]:
    """The filters on one side of an interface; none when it has no hook."""

    def decode(body: memoryview) -> Filter | None:
        (_family, _index, handle, _parent, info), found = codec.fixed(_TCMSG, body)
        if handle == 0:
            return None  # the chain's head, listed besides its filters
        options = codec.attributes(found.get(_TCA_OPTIONS, memoryview(b"")))
        is_bpf = codec.get_text(found, _TCA_KIND) == "bpf"
        name = codec.get_text(options, _TCA_BPF_NAME) if is_bpf else ""
        program = codec.get_u32(options, _TCA_BPF_ID, 0) if is_bpf else 0
        return Filter(info >> 16, handle, name, program)

    body = _TCMSG.pack(0, ifindex, 0, _PARENTS[direction], 0)
    return Query(_RTM_GETTFILTER, body, f"list {direction} filters of interface {ifindex}", decode)


def tbf_replace(ifindex: int, rate_bytes_per_s: int, burst_bytes: int, limit_bytes: int) -> Request:
    """Shape what leaves an interface: a token bucket of ``burst_bytes`` filled at the rate, a queue of
    ``limit_bytes`` in front of it. Takes the place of any other root discipline."""
    rate = (0, _LINKLAYER_ETHERNET, 0, 0, 0, min(rate_bytes_per_s, 0xFFFFFFFF))
    options = [
        # The bucket in ticks is set from TCA_TBF_BURST, exactly, so the field for it stays 0.
        codec.attribute(_TCA_TBF_PARMS, _TBF.pack(*rate, *(0, 0, 0, 0, 0, 0), limit_bytes, 0, 0)),
        codec.u32(_TCA_TBF_BURST, burst_bytes),
    ]
    if rate_bytes_per_s > 0xFFFFFFFF:
        options.append(codec.u64(_TCA_TBF_RATE64, rate_bytes_per_s))
    body = _TCMSG.pack(0, ifindex, 0, _ROOT, 0) + codec.text(_TCA_KIND, "tbf")
    body += codec.nested(_TCA_OPTIONS, *options)
    operation = f"shape interface {ifindex} to {rate_bytes_per_s} bytes/s"
    return Request(_RTM_NEWQDISC, codec.NLM_F_CREATE | codec.NLM_F_REPLACE, body, operation)


def qdisc_del_root(ifindex: int) -> Request:
    """Go back to the default discipline; ``ENOENT`` when none was set."""
    body = _TCMSG.pack(0, ifindex, 0, _ROOT, 0)
    return Request(_RTM_DELQDISC, 0, body, f"delete root qdisc of interface {ifindex}")


def qdisc_dump(ifindex: int | None = None) -> Query[Qdisc]:
    """The disciplines of one interface or of all."""

    def decode(body: memoryview) -> Qdisc | None:
        qdisc = _decode_qdisc(body)
        return qdisc if ifindex in (None, qdisc.ifindex) else None

    return Query(_RTM_GETQDISC, _TCMSG.pack(0, 0, 0, 0, 0), "list qdiscs", decode)


def _decode_qdisc(body: memoryview) -> Qdisc:
    (_family, ifindex, handle, parent, _info), found = codec.fixed(_TCMSG, body)
    kind = codec.get_text(found, _TCA_KIND)
    if kind != "tbf":
        return Qdisc(ifindex, kind, handle, parent)
    options = codec.attributes(found.get(_TCA_OPTIONS, memoryview(b"")))
    values = _TBF.unpack(options[_TCA_TBF_PARMS][: _TBF.size])
    rate, (limit, ticks) = values[5], values[12:14]
    if _TCA_TBF_RATE64 in options:
        rate = struct.unpack("=Q", options[_TCA_TBF_RATE64])[0]
    burst = round(ticks * _TICK_NS * rate / 1e9)
    return Qdisc(ifindex, kind, handle, parent, rate, burst, limit)


def _clsact(ifindex: int) -> bytes:
    return _TCMSG.pack(0, ifindex, _CLSACT_HANDLE, _CLSACT, 0) + _KIND_CLSACT


@lru_cache(maxsize=8)
def _program(prog_fd: int, name: str) -> bytes:
    """The attributes that name a program: all pods have one."""
    options = codec.nested(
        _TCA_OPTIONS,
        codec.u32(_TCA_BPF_FD, prog_fd),
        codec.text(_TCA_BPF_NAME, name),
        codec.u32(_TCA_BPF_FLAGS, _BPF_FLAG_ACT_DIRECT),
    )
    return codec.text(_TCA_KIND, "bpf") + options


def _filter(ifindex: int, direction: Direction, priority: int, handle: int) -> bytes:
    return _TCMSG.pack(0, ifindex, handle, _PARENTS[direction], priority << 16 | _ALL_PROTOCOLS)
