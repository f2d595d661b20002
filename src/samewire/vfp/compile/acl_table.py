"""Rules in order -> the entries of an ACL table (``bpf/layout.h``, "ACL tables").

A rule's place is a bit. For every question the rules ask, each prefix that any of them names gets the vector of the
rules that are content with what the prefix contains; so what comes out grows with the rules as they are written (a list
of 100 addresses and 10 ports is one bit, 100 prefixes and 10 ports), never with their combinations.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

import msgspec

from samewire.vfp.address import ADDRESS_BYTES, IPV4, IPV6
from samewire.vfp.compile.acl_rules import Ends, Ports, Rule
from samewire.vfp.compile.builder import Builder
from samewire.vfp.compile.prefixes import Node, inherited, range_prefixes
from samewire.vfp.constants import (
    ACL_DESTINATION,
    ACL_PORT_KEY_BITS,
    ACL_PREFIX_KEY_BITS,
    ACL_SOURCE,
    ACL_WORDS,
    AclAction,
    AclShape,
)
from samewire.vfp.hashes import hash64, set_name, space_name
from samewire.vfp.model import Entries
from samewire.vfp.tables import (
    AclPortKey,
    AclPrefixKey,
    AclRule,
    AclRuleKey,
    AclSetKey,
    AclVector,
    Hash,
)

_WORDS: Final = struct.Struct(f"<{ACL_WORDS}Q")
_LOW: Final = 0xFFFFFFFF
_ADDRESS_BITS: Final = 8 * ADDRESS_BYTES
_PORT_BITS: Final = 16
_WITH_PORTS: Final = (6, 17, 132)
_EVERY: Final[Node] = (0, 0)
_ENCODER: Final = msgspec.msgpack.Encoder()


class AclTable(msgspec.Struct, frozen=True):
    """A port's reference to a table; ``words`` 0 = everything passes. ``space`` 0: its rules name no sets."""

    table: int = 0
    words: int = 0
    shape: int = 0
    space: int = 0


_MADE: dict[int, tuple[Entries, AclTable]] = {}
"""The entries of tables and the reference to them, by the tables' names: those are their content's."""
_REMEMBERED: Final = 8


class _Table:
    """One table being made."""

    def __init__(self, builder: Builder, rules: Sequence[Rule], network_id: str) -> None:
        self.builder = builder
        self.rules = rules
        self.network_id = network_id
        self.named = any(rule.source.sets or rule.destination.sets for rule in rules)
        content = _ENCODER.encode((network_id if self.named else "", rules))
        self.name = hash64(content)
        self._vectors: dict[int, Hash] = {}

    def vector(self, bits: int) -> Hash:
        """The name of a vector, which is entered."""
        found = self._vectors.get(bits)
        if found is None:
            packed = bits.to_bytes(_WORDS.size, "little")
            words = _WORDS.unpack(packed)
            summary = sum(1 << place for place, word in enumerate(words) if word)
            found = self._vectors[bits] = Hash(hash64(packed))
            self.builder.put("sw_acl_vectors", found, AclVector(summary, words))
        return found

    def addresses(self, side: int, ends: Sequence[Ends]) -> None:
        """The prefixes of one side, and the sets."""
        sets: dict[str, int] = {}
        nodes: dict[int, dict[Node, int]] = {IPV4: {}, IPV6: {}}
        for place, end in enumerate(ends):
            bit = 1 << place
            if end.any:
                for of_family in nodes.values():
                    of_family[_EVERY] = of_family.get(_EVERY, 0) | bit
            for prefix in end.prefixes:
                node = int.from_bytes(prefix.packed, "big"), prefix.bits
                of_family = nodes[prefix.family]
                of_family[node] = of_family.get(node, 0) | bit
            for name in end.sets:
                sets[name] = sets.get(name, 0) | bit
        low, high = self.name & _LOW, self.name >> 32
        for family, of_family in nodes.items():
            for (value, bits), answer in inherited(of_family, _ADDRESS_BITS):
                address = value.to_bytes(ADDRESS_BYTES, "big")
                key = AclPrefixKey(ACL_PREFIX_KEY_BITS + bits, low, high, family, side, address)
                self.builder.put("sw_acl_prefixes", key, self.vector(answer))
        for name, answer in sets.items():
            set_key = AclSetKey(self.name, set_name(self.network_id, name), side)
            self.builder.put("sw_acl_sets", set_key, self.vector(answer))

    def services(self) -> None:
        """Protocols and destination ports. The shortest prefix answers for protocols that no rule names."""
        anything = sum(
            1 << place
            for place, rule in enumerate(self.rules)
            if not rule.protocols and _takes(rule.destination_ports, 0)
        )
        self._ports(ACL_DESTINATION, ACL_PORT_KEY_BITS, 0, _EVERY, anything)
        protocols = {number for rule in self.rules for number in rule.protocols}
        if any(rule.destination_ports and not rule.protocols for rule in self.rules):
            protocols.update(_WITH_PORTS)
        for protocol in sorted(protocols):
            chosen = [
                rule.destination_ports if not rule.protocols or protocol in rule.protocols else None
                for rule in self.rules
            ]
            for node, answer in inherited(_port_nodes(chosen), _PORT_BITS, anything):
                self._ports(ACL_DESTINATION, ACL_PORT_KEY_BITS + 8, protocol, node, answer)

    def source_ports(self) -> None:
        """Source ports, whatever the protocol."""
        chosen = [rule.source_ports for rule in self.rules]
        for node, answer in inherited(_port_nodes(chosen), _PORT_BITS):
            self._ports(ACL_SOURCE, ACL_PORT_KEY_BITS + 8, 0, node, answer)

    def _ports(self, side: int, above: int, protocol: int, node: Node, answer: int) -> None:
        key = AclPortKey(above + node[1], self.name & _LOW, self.name >> 32, side, protocol, node[0])
        self.builder.put("sw_acl_ports", key, self.vector(answer))

    def verdicts(self) -> None:
        """The rules themselves."""
        last = self.rules[-1].stage
        starts = {rule.stage: place for place, rule in reversed(list(enumerate(self.rules)))}
        for place, rule in enumerate(self.rules):
            action, following = rule.action, 0
            if action is AclAction.PASS:
                if rule.stage == last:
                    action = AclAction.ALLOW
                else:
                    following = starts[rule.stage + 1]
            value = AclRule(rule.number, rule.priority, following, action, rule.stage)
            self.builder.put("sw_acl_rules", AclRuleKey(self.name, place), value)


def build_table(builder: Builder, rules: Sequence[Rule], network_id: str) -> AclTable:
    """Add the entries of a table; ``rules`` are in order, their stages without gaps. No rules: no table.

    The last ones are remembered: pods of one kind have the same rules, and a change of another policy of an endpoint
    is not to cost what its rules do.
    """
    if not rules:
        return AclTable()
    made = Builder()
    table = _Table(made, rules, network_id)
    known = _MADE.pop(table.name, None)
    if known is None:
        known = made.entries, _fill(table, rules, network_id)
        if len(_MADE) >= _REMEMBERED:
            del _MADE[next(iter(_MADE))]
    _MADE[table.name] = known
    entries, reference = known
    for name, rows in entries.items():
        builder.entries.setdefault(name, {}).update(rows)
    return reference


def _fill(table: _Table, rules: Sequence[Rule], network_id: str) -> AclTable:
    table.verdicts()
    table.services()
    shape = 0
    if any(rule.source_ports for rule in rules):
        shape |= AclShape.SOURCE_PORT
        table.source_ports()
    sources = [rule.source for rule in rules]
    destinations = [rule.destination for rule in rules]
    for side, ends, plain, with_sets in (
        (ACL_SOURCE, sources, AclShape.SOURCE, AclShape.SOURCE_SETS),
        (ACL_DESTINATION, destinations, AclShape.DESTINATION, AclShape.DESTINATION_SETS),
    ):
        if not all(end.any for end in ends):
            shape |= plain | (with_sets if any(end.sets for end in ends) else 0)
            table.addresses(side, ends)
    space = space_name(network_id) if table.named else 0
    return AclTable(table.name, (len(rules) + 63) // 64, int(shape), space)


def _port_nodes(chosen: Sequence[Ports | None]) -> dict[Node, int]:
    """Direct bits by prefix: rule ``i`` takes the ports ``chosen[i]``, () = all, None = none."""
    nodes: dict[Node, int] = {_EVERY: 0}
    for place, ports in enumerate(chosen):
        if ports is None:
            continue
        bit = 1 << place
        for low, high in ports or ((0, 65535),):
            for node in range_prefixes(low, high):
                nodes[node] = nodes.get(node, 0) | bit
    return nodes


def _takes(ports: Ports, port: int) -> bool:
    return not ports or any(low <= port <= high for low, high in ports)
