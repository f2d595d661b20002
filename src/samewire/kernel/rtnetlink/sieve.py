"""Which announcements get to a monitor: a classic BPF program in front of its socket (``linux/filter.h``). Pure.

A pod's interface is announced four times while it is made. To be woken for each, read it and find that nothing has
to be done took longer than to make the interface known to the switch.
"""

from __future__ import annotations

import struct

import msgspec

from samewire.kernel.rtnetlink import codec, links, routes

_INSTRUCTION = struct.Struct("=HBBI")  # code, jump if true, jump if false, operand
_WORD, _HALF, _BYTE = 0x20, 0x28, 0x30  # BPF_LD | BPF_ABS with a size
_EQUAL, _ANY_BIT = 0x15, 0x45  # BPF_JMP | BPF_JEQ or BPF_JSET | BPF_K
_RETURN = 0x06
_DROP, _KEEP = 0, 0xFFFFFFFF

_TYPE_AT = 4  # nlmsg_type
_BODY_AT = codec.HEADER.size
_TABLE_AT = _BODY_AT + 4  # rtm_table
_FLAGS_AT = _BODY_AT + 8  # ifi_flags
_CHANGE_AT = _BODY_AT + 12  # ifi_change
_NAME_AT = _BODY_AT + 16  # IFLA_IFNAME, which comes first
_IFLA_IFNAME = 3
_ALL_BITS = 0xFFFFFFFF  # the change mask of an interface that is new


class Names(msgspec.Struct, frozen=True):
    """Interfaces by the two letters their names begin with, and by the length of the names."""

    prefix: str
    length: int


def sieve(quiet: Names | None) -> bytes:
    """The program. Of routes it keeps those of the main table; of interfaces with ``quiet`` names only that one is
    set down and that one is gone; everything else.
    """
    link = _link(quiet) if quiet is not None else [(_RETURN, 0, 0, _KEEP)]
    program = [
        (_HALF, 0, 0, _TYPE_AT),
        (_EQUAL, 6, 0, _loaded("=H", links.RTM_NEWLINK)),
        (_EQUAL, 2, 0, _loaded("=H", routes.RTM_NEWROUTE)),
        (_EQUAL, 1, 0, _loaded("=H", routes.RTM_DELROUTE)),
        (_RETURN, 0, 0, _KEEP),
        (_BYTE, 0, 0, _TABLE_AT),
        (_EQUAL, len(link) + 1, 0, routes.TABLE_MAIN),  # over the next and those, to the end, which keeps
        (_RETURN, 0, 0, _DROP),
    ]
    return b"".join(_INSTRUCTION.pack(*each) for each in [*program, *link, (_RETURN, 0, 0, _KEEP)])


def _link(quiet: Names) -> list[tuple[int, int, int, int]]:
    name = struct.pack("=HH", 4 + quiet.length + 1, _IFLA_IFNAME)
    up = _loaded("=I", links.IFF_UP)
    return [
        (_WORD, 0, 0, _NAME_AT),
        (_EQUAL, 0, 7, int.from_bytes(name, "big")),
        (_HALF, 0, 0, _NAME_AT + len(name)),
        (_EQUAL, 0, 5, int.from_bytes(quiet.prefix.encode(), "big")),
        (_WORD, 0, 0, _CHANGE_AT),
        (_EQUAL, 4, 0, _ALL_BITS),
        (_ANY_BIT, 0, 3, up),
        (_WORD, 0, 0, _FLAGS_AT),
        (_ANY_BIT, 1, 0, up),
        (_RETURN, 0, 0, _KEEP),
        (_RETURN, 0, 0, _DROP),
    ]


def _loaded(layout: str, value: int) -> int:
    """A number in host order as the program sees it, which loads in network order."""
    return int.from_bytes(struct.pack(layout, value), "big")
