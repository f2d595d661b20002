"""The questions of an ACL table: each longest-prefix look-up and what it answers, and the vectors that they name."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Final

from samewire.vfp.address import ADDRESS_BYTES, IPV4, IPV6
from samewire.vfp.compile.acl_rules import Ports, Rule
from samewire.vfp.compile.edits import Draft
from samewire.vfp.compile.prefixes import EVERY, Nested, Node, range_prefixes
from samewire.vfp.constants import (
    ACL_DESTINATION,
    ACL_PORT_KEY_BITS,
    ACL_PREFIX_KEY_BITS,
    ACL_SOURCE,
    ACL_WORDS,
    AclShape,
)
from samewire.vfp.hashes import hash64, set_name
from samewire.vfp.model import Entries
from samewire.vfp.record import Record
from samewire.vfp.tables import AclAnyKey, AclPortKey, AclPrefixKey, AclSetKey, AclVector, Hash

_WORDS: Final = struct.Struct(f"<{ACL_WORDS}Q")
_LOW: Final = 0xFFFFFFFF
_WORD: Final = 64
_ADDRESS_BITS: Final = 8 * ADDRESS_BYTES
_PORT_BITS: Final = 16
_WITH_PORTS: Final = frozenset((6, 17, 132))
_SIDES: Final = ((ACL_SOURCE, AclShape.SOURCE), (ACL_DESTINATION, AclShape.DESTINATION))

Flip = tuple[Rule, int, bool]
"""A rule, its place, and whether it takes part from now on."""

_Question = tuple[str, int, int]
"""A table, a side, and a family or a protocol."""


Feature = tuple[str, int]
"""Something that a rule asks, and others may not. What a table is like depends on which of them its rules have."""


def features(rule: Rule) -> Iterator[Feature]:
    """What a rule asks, each once."""
    if rule.source_ports:
        yield "shape", int(AclShape.SOURCE_PORT)
    for end, plain, with_sets in (
        (rule.source, AclShape.SOURCE, AclShape.SOURCE_SETS),
        (rule.destination, AclShape.DESTINATION, AclShape.DESTINATION_SETS),
    ):
        if not end.any:
            yield "shape", int(plain)
        if end.sets:
            yield "shape", int(with_sets)
    for protocol in set(rule.protocols):
        yield "protocol", protocol
    if rule.destination_ports and not rule.protocols:
        yield "ports", 0


def shape_of(asked: Iterable[Feature]) -> int:
    """What rules ask about beside protocols and destination ports."""
    return sum({value for kind, value in asked if kind == "shape"})


def protocols_asked(asked: Collection[Feature]) -> frozenset[int]:
    """The protocols that have answers of their own. A port means one of those that have ports."""
    named = {value for kind, value in asked if kind == "protocol"}
    return frozenset(named | _WITH_PORTS if ("ports", 0) in asked else named)


class Questions:
    """All that the rules of a table ask, with the bits of the rules that are content.

    ``apart``: rules that take any answer stand beside the answers and not in each of them.
    """

    def __init__(
        self, table: int, shape: int, network_id: str, protocols: frozenset[int], *, apart: bool
    ) -> None:
        self.protocols = protocols
        self._apart = apart
        self._table, self._shape, self._network_id = table, shape, network_id
        asked: list[_Question] = [("sw_acl_ports", ACL_DESTINATION, protocol) for protocol in protocols]
        if shape & AclShape.SOURCE_PORT:
            asked.append(("sw_acl_ports", ACL_SOURCE, 0))
        self._nested = {question: Nested(_PORT_BITS, [EVERY]) for question in asked}
        for side, plain in _SIDES:
            if shape & plain:
                for family in (IPV4, IPV6):
                    self._nested["sw_acl_prefixes", side, family] = Nested(_ADDRESS_BITS)
        self._alone: dict[Record, int] = {}
        """Bits under keys without prefixes: of sets, and of the protocols that no rule names."""
        self._any: dict[_Question, int] = {}
        """Bits of the rules that take any answer, where they stand apart."""
        self.edition: object = None
        """The table that this is of."""
        self.last: tuple[object, Entries, Sequence[Flip]] | None = None
        """The table that it was of before, the entries of the one that it is of, and what has been done between."""
        self._users: dict[bytes, int] = {}
        """How many keys have a vector. By its bytes: Python's hashes of single bits are 61 different ones."""

    def begin(self, draft: Draft) -> None:
        """Enter what is there without any rule: every protocol and port has an answer."""
        for question in self._nested:
            if question[0] == "sw_acl_ports":
                self._change(draft, question, {EVERY: 0})
        self._change_alone(draft, {self._anything: 0})

    def flip(self, draft: Draft, rules: Iterable[tuple[Rule, int]], *, there: bool) -> None:
        """Let rules take part with the bits of their places, or no longer."""
        nodes: dict[_Question, dict[Node, int]] = {}
        every: dict[_Question, int] = {}
        alone: dict[Record, int] = {}
        for rule, place in rules:
            bit = 1 << place
            for question, node in self._asked(rule):
                if self._apart and node == EVERY:
                    own = every[question] if question in every else self._any.get(question, 0)
                    every[question] = own | bit if there else own & ~bit
                    continue
                bits = nodes.setdefault(question, {})
                own = bits[node] if node in bits else self._nested[question].direct.get(node, 0)
                bits[node] = own | bit if there else own & ~bit
            for key in self._asked_alone(rule):
                own = alone[key] if key in alone else self._alone.get(key, 0)
                alone[key] = own | bit if there else own & ~bit
        for question, bits in nodes.items():
            self._change(draft, question, bits)
        self._change_any(draft, every)
        self._change_alone(draft, alone)

    def _asked(self, rule: Rule) -> Iterator[tuple[_Question, Node]]:
        """The prefixes that a rule is content with."""
        for side, end in ((ACL_SOURCE, rule.source), (ACL_DESTINATION, rule.destination)):
            if ("sw_acl_prefixes", side, IPV4) in self._nested:
                for family in (IPV4, IPV6) if end.any else ():
                    yield ("sw_acl_prefixes", side, family), EVERY
                for prefix in end.prefixes:
                    node = int.from_bytes(prefix.packed, "big"), prefix.bits
                    yield ("sw_acl_prefixes", side, prefix.family), node
        for protocol in rule.protocols or self.protocols:
            for node in _port_nodes(rule.destination_ports):
                yield ("sw_acl_ports", ACL_DESTINATION, protocol), node
        if self._shape & AclShape.SOURCE_PORT:
            for node in _port_nodes(rule.source_ports):
                yield ("sw_acl_ports", ACL_SOURCE, 0), node

    def _asked_alone(self, rule: Rule) -> Iterator[Record]:
        """The sets that a rule names, and the shortest prefix: it answers for protocols that no rule names."""
        for side, end in ((ACL_SOURCE, rule.source), (ACL_DESTINATION, rule.destination)):
            for name in end.sets:
                yield AclSetKey(self._table, set_name(self._network_id, name), side)
        if not rule.protocols and any(node[0] == 0 for node in _port_nodes(rule.destination_ports)):
            yield self._anything

    @property
    def _anything(self) -> AclPortKey:
        return AclPortKey(ACL_PORT_KEY_BITS, self._table & _LOW, self._table >> 32, ACL_DESTINATION, 0, 0)

    def _change(self, draft: Draft, question: _Question, bits: Mapping[Node, int]) -> None:
        changed = self._nested[question].change(bits)
        for node, (_, after) in changed.items():
            self._answer(draft, question[0], self._key(question, node), after)
        for before, _ in changed.values():
            self._leave(draft, before)

    def _change_any(self, draft: Draft, changed: Mapping[_Question, int]) -> None:
        for question, bits in changed.items():
            table, side, kind = question
            family, protocol = (0, kind) if table == "sw_acl_ports" else (kind, 0)
            key = AclAnyKey(self._table, side, family, protocol)
            if bits:
                self._any[question] = bits
                draft.put("sw_acl_any", key, _vector(bits, bits.to_bytes(_WORDS.size, "little")))
            elif self._any.pop(question, 0):
                draft.remove("sw_acl_any", key)

    def _change_alone(self, draft: Draft, changed: Mapping[Record, int]) -> None:
        for key, bits in changed.items():
            table = "sw_acl_sets" if isinstance(key, AclSetKey) else "sw_acl_ports"
            before, after = self._alone.get(key), bits if bits or key == self._anything else None
            if before != after:
                self._answer(draft, table, key, after)
                self._leave(draft, before)
            if after is None:
                self._alone.pop(key, None)
            else:
                self._alone[key] = after

    def _key(self, question: _Question, node: Node) -> Record:
        (table, side, kind), (value, length) = question, node
        low, high = self._table & _LOW, self._table >> 32
        if table == "sw_acl_ports":
            return AclPortKey(ACL_PORT_KEY_BITS + 8 + length, low, high, side, kind, value)
        address = value.to_bytes(ADDRESS_BYTES, "big")
        return AclPrefixKey(ACL_PREFIX_KEY_BITS + length, low, high, kind, side, address)

    def _answer(self, draft: Draft, table: str, key: Record, after: int | None) -> None:
        if after is None:
            draft.remove(table, key)
            return
        vector = after.to_bytes(_WORDS.size, "little")
        name, users = _vector_name(vector), self._users.get(vector, 0)
        if not users:
            draft.put("sw_acl_vectors", name, _vector(after, vector))
        self._users[vector] = users + 1
        draft.put(table, key, name)

    def _leave(self, draft: Draft, before: int | None) -> None:
        """One key less has a vector."""
        if before is None:
            return
        vector = before.to_bytes(_WORDS.size, "little")
        self._users[vector] -= 1
        if not self._users[vector]:
            del self._users[vector]
            draft.remove("sw_acl_vectors", _vector_name(vector))


def _vector(bits: int, packed: bytes) -> AclVector:
    return AclVector(_summary(bits), _WORDS.unpack(packed))


def _summary(bits: int) -> int:
    """Which words of a vector are not zero. Most have few that are not."""
    found = place = 0
    while bits:
        zeros = ((bits & -bits).bit_length() - 1) // _WORD
        place += zeros
        found |= 1 << place
        place += 1
        bits >>= _WORD * (zeros + 1)
    return found


@lru_cache(maxsize=8192)
def _vector_name(vector: bytes) -> Hash:
    return Hash(hash64(vector))


def _port_nodes(ports: Ports) -> Iterable[Node]:
    """The prefixes of port ranges, () = all."""
    return [node for low, high in ports for node in range_prefixes(low, high)] if ports else (EVERY,)
