"""From the bytes of one build's structures to those of another, member by member. Pure.

An upgrade may give a structure new members, move them or widen an integer. What the new layout has and the old one
had not is zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from samewire.kernel.bpf.btf import BtfStruct

Convert = Callable[[bytes], bytes]

_NESTED = ("sw_addr", "sw_action")


def converter(name: str, old: Mapping[str, BtfStruct], new: Mapping[str, BtfStruct]) -> Convert | None:
    """A function from the old bytes of structure ``name`` to its new ones; None when there is no safe way.

    No way: one of the two has no such structure, or a member shrank, or an array or a structure within it changed
    (its parts cannot be told apart here).
    """
    before, after = old.get(name), new.get(name)
    if before is None or after is None or any(old.get(part) != new.get(part) for part in _NESTED):
        return None
    moves: list[tuple[int, int, int]] = []
    known = {field.name: field for field in before.fields}
    for field in after.fields:
        source = known.get(field.name)
        if source is None or field.name == "reserved":
            continue
        widened = source.size in (1, 2, 4) and field.size in (2, 4, 8) and source.size < field.size
        if source.size != field.size and not widened:
            return None
        moves.append((source.offset, field.offset, source.size))
    return _mover(before.size, after.size, moves)


def _mover(old_size: int, new_size: int, moves: list[tuple[int, int, int]]) -> Convert:
    joined: list[tuple[int, int, int]] = []
    for source, target, size in sorted(moves, key=lambda move: move[1]):
        if joined and (joined[-1][0] + joined[-1][2], joined[-1][1] + joined[-1][2]) == (source, target):
            joined[-1] = (joined[-1][0], joined[-1][1], joined[-1][2] + size)
        else:
            joined.append((source, target, size))

    def convert(data: bytes) -> bytes:
        if len(data) != old_size:
            raise ValueError(f"{len(data)} bytes where {old_size} are due")
        result = bytearray(new_size)
        for source, target, size in joined:
            result[target : target + size] = data[source : source + size]
        return bytes(result)

    return convert
