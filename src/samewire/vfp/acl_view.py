"""ACL tables read backwards: which rules they hold, and what each asks for.

A prefix's vector holds the rules of all prefixes around it too; a rule has named those at which its bit first appears.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, TypeVar

import msgspec

from samewire.vfp.address import ADDRESS_BYTES, IPV4, IPV6, address_text
from samewire.vfp.compile.prefixes import Node
from samewire.vfp.constants import (
    ACL_DESTINATION,
    ACL_OUT,
    ACL_PORT_KEY_BITS,
    ACL_PREFIX_KEY_BITS,
    ACL_SOURCE,
    AclAction,
)
from samewire.vfp.model import Entries
from samewire.vfp.protocols import protocol_text
from samewire.vfp.record import Record
from samewire.vfp.rule_names import tier_of
from samewire.vfp.tables import (
    AclAnyKey,
    AclPortKey,
    AclPrefixKey,
    AclRule,
    AclRuleKey,
    AclSetKey,
    AclVector,
    Hash,
    Port,
)

K = TypeVar("K", bound=Record)
V = TypeVar("V", bound=Record)

_ADDRESS_BITS: Final = 8 * ADDRESS_BYTES
_PORT_BITS: Final = 16
_EVERY: Final[Node] = (0, 0)
_ALL_PORTS: Final = ((0, 65535),)
_VERDICTS: Final = {
    AclAction.ALLOW: "allow",
    AclAction.BLOCK: "block",
    AclAction.PASS: "pass to the next tier",
}


class AclRuleView(msgspec.Struct, frozen=True):
    """One rule. ``rule``: its name in drops; ``conditions``: all must hold."""

    rule: int
    priority: int
    stage: int
    action: str
    conditions: tuple[str, ...]


class _Rows(msgspec.Struct):
    """The entries of one table: vectors by prefix (side, family), by (side, protocol), by (side, set)."""

    rules: dict[int, AclRule] = {}
    prefixes: dict[tuple[int, int], dict[Node, int]] = {}
    ports: dict[tuple[int, int], dict[Node, int]] = {}
    anything: int = 0
    sets: dict[tuple[int, int], int] = {}


class AclIndex:
    """All ACL tables, sorted out once for many ports. Sets without a name are shown as their hashes."""

    def __init__(self, tables: Entries) -> None:
        self._tables: dict[int, _Rows] = {}
        vectors = {
            key.value: _bits(value) for key, value in _typed(tables, "sw_acl_vectors", Hash, AclVector)
        }
        for rule_key, rule in _typed(tables, "sw_acl_rules", AclRuleKey, AclRule):
            self._rows(rule_key.table).rules[rule_key.index] = rule
        for prefix, name in _typed(tables, "sw_acl_prefixes", AclPrefixKey, Hash):
            node = int.from_bytes(prefix.address, "big"), prefix.prefix_bits - ACL_PREFIX_KEY_BITS
            nodes = self._rows(prefix.table).prefixes.setdefault((prefix.side, prefix.family), {})
            nodes[node] = vectors.get(name.value, 0)
        for port, name in _typed(tables, "sw_acl_ports", AclPortKey, Hash):
            self._add_port(port, vectors.get(name.value, 0))
        for any_key, vector in _typed(tables, "sw_acl_any", AclAnyKey, AclVector):
            self._add_any(any_key, _bits(vector))
        for set_key, name in _typed(tables, "sw_acl_sets", AclSetKey, Hash):
            self._rows(set_key.table).sets[set_key.side, set_key.set] = vectors.get(name.value, 0)

    def rules(
        self, port: Port, direction: int, set_names: Mapping[int, str] | None = None
    ) -> Iterator[AclRuleView]:
        """The rules of one direction of a port, in the order in which they are asked."""
        rows = self._tables.get(port.acl_table[direction]) if port.acl_words[direction] else None
        if rows is None:
            return
        ends = (
            ("local", "remote") if direction == ACL_OUT else ("remote", "local")
        )  # of source and destination
        stages: dict[int, int] = {}
        for place, rule in sorted(rows.rules.items()):
            yield AclRuleView(
                rule.rule,
                rule.priority,
                stages.setdefault(tier_of(rule.rule), len(stages)),
                _VERDICTS[AclAction(rule.action)],
                tuple(_conditions(rows, 1 << place, ends, set_names or {})),
            )

    def _rows(self, table: int) -> _Rows:
        return self._tables.setdefault(table, _Rows())

    def _add_port(self, key: AclPortKey, vector: int) -> None:
        rows, bits = self._rows(key.table), key.prefix_bits - ACL_PORT_KEY_BITS
        if bits < 8:
            rows.anything = vector
        else:
            rows.ports.setdefault((key.side, key.protocol), {})[key.port, bits - 8] = vector

    def _add_any(self, key: AclAnyKey, vector: int) -> None:
        """Rules that take any answer: as if they had named the shortest prefix."""
        rows = self._rows(key.table)
        if key.family:
            nodes = rows.prefixes.setdefault((key.side, key.family), {})
        else:
            nodes = rows.ports.setdefault((key.side, key.protocol), {})
        nodes[_EVERY] = nodes.get(_EVERY, 0) | vector


def _conditions(rows: _Rows, bit: int, ends: tuple[str, str], set_names: Mapping[int, str]) -> Iterator[str]:
    protocols, ports = _service(rows, bit)
    yield f"protocol {protocols}"
    for side, name in ((ACL_SOURCE, ends[0]), (ACL_DESTINATION, ends[1])):
        items = [*_addresses(rows, side, bit), *_sets(rows, side, bit, set_names)]
        if items:
            yield f"{name} {','.join(items)}"
        if side == ACL_SOURCE:
            nodes = rows.ports.get((ACL_SOURCE, 0))
            found = _ranges(nodes, bit) if nodes else _ALL_PORTS
        else:
            found = ports
        if found != _ALL_PORTS:
            yield f"{name} port {','.join(map(_range_text, found))}"


def _sets(rows: _Rows, side: int, bit: int, set_names: Mapping[int, str]) -> Iterator[str]:
    for (of_side, name), vector in rows.sets.items():
        if of_side == side and vector & bit:
            yield f"set {set_names.get(name, f'{name:016x}')}"


def _service(rows: _Rows, bit: int) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Protocols and destination ports."""
    # What holds for a protocol as a whole is left out where it is what holds for all others.
    found = {
        protocol: ranges
        for (side, protocol), nodes in rows.ports.items()
        if side == ACL_DESTINATION and (ranges := _ranges({_EVERY: rows.anything, **nodes}, bit))
    }
    if rows.anything & bit:
        return "any", next(iter(found.values()), _ALL_PORTS)
    names = ",".join(protocol_text(protocol) for protocol in sorted(found))
    return names or "none", next(iter(found.values()), ())


def _addresses(rows: _Rows, side: int, bit: int) -> Iterator[str]:
    """The prefixes that a rule names on one side; nothing when it takes any address."""
    of_family = {family: rows.prefixes.get((side, family), {}) for family in (IPV4, IPV6)}
    if all(nodes.get(_EVERY, 0) & bit for nodes in of_family.values()):
        return
    for family, nodes in of_family.items():
        for value, bits in _named(nodes, bit, _ADDRESS_BITS):
            yield f"{address_text(family, value.to_bytes(ADDRESS_BYTES, 'big'))}/{bits}"


def _ranges(nodes: Mapping[Node, int], bit: int) -> tuple[tuple[int, int], ...]:
    ranges: list[tuple[int, int]] = []
    for value, bits in _named(nodes, bit, _PORT_BITS):
        low, high = value, value + (1 << (_PORT_BITS - bits)) - 1
        if ranges and ranges[-1][1] + 1 == low:
            low = ranges.pop()[0]
        ranges.append((low, high))
    return tuple(ranges)


def _named(nodes: Mapping[Node, int], bit: int, width: int) -> Iterator[Node]:
    """The outermost prefixes that have the bit."""
    end = 0
    for value, bits in sorted(nodes):
        if value >= end and nodes[value, bits] & bit:
            end = value + (1 << (width - bits))
            yield value, bits


def _range_text(ports: tuple[int, int]) -> str:
    return str(ports[0]) if ports[0] == ports[1] else f"{ports[0]}-{ports[1]}"


def _bits(vector: AclVector) -> int:
    return sum(word << 64 * place for place, word in enumerate(vector.word) if word)


def _typed(tables: Entries, name: str, key: type[K], value: type[V]) -> Iterator[tuple[K, V]]:
    for k, v in tables.get(name, {}).items():
        if isinstance(k, key) and isinstance(v, value):
            yield k, v
