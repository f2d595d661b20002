"""The ACL layers (``bpf/acl.h``): vectors of rules by longest prefix, and the first rule that all have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from samewire.vfp.address import address_bits, masked
from samewire.vfp.constants import (
    ACL_DESTINATION,
    ACL_MEMBER,
    ACL_OUT,
    ACL_PORT_KEY_BITS,
    ACL_PREFIX_KEY_BITS,
    ACL_SOURCE,
    CLASS_CHUNKS,
    AclAction,
    AclShape,
    Layer,
    Reason,
)
from samewire.vfp.record import Record
from samewire.vfp.simulate.packet import WITH_PORTS
from samewire.vfp.simulate.state import Dropped, State, Walk
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
    SetClass,
    SetClassKey,
)

_LOW = 0xFFFFFFFF


def judge(state: State, walk: Walk, port: Port, ifindex: int, direction: int) -> None:
    """Judge a connection by one side's rules; none blocks. Raises ``Dropped``."""
    if not port.acl_words[direction]:
        return
    rule = decide(state, walk, port, direction)
    outward = direction == ACL_OUT
    if rule is None or rule.action != AclAction.ALLOW:
        layer = Layer.ACL_OUT if outward else Layer.ACL_IN
        raise Dropped(layer, Reason.BLOCKED, ifindex, rule.rule if rule else 0)
    walk.rule = (rule.rule, walk.rule[1]) if outward else (walk.rule[0], rule.rule)


def decide(state: State, walk: Walk, port: Port, direction: int) -> AclRule | None:
    """The rule that decides; None when none is content."""
    candidates = _candidates(state, walk, port, direction)
    table, start = port.acl_table[direction], 0
    while candidates >> start:
        left = candidates >> start << start
        place = (left & -left).bit_length() - 1
        rule = cast(AclRule | None, state.get("sw_acl_rules", AclRuleKey(table, place)))
        if rule is None or rule.action != AclAction.PASS:
            return rule
        start = rule.next
    return None


def _candidates(state: State, walk: Walk, port: Port, direction: int) -> int:
    """The rules that are content with everything, as bits."""
    table, shape = port.acl_table[direction], port.acl_shape[direction]
    protocol = walk.packet.protocol
    ports = (walk.first.source_port, walk.out.destination_port) if protocol in WITH_PORTS else (0, 0)
    found = _by_port(state, table, ACL_DESTINATION, protocol, ports[1])
    if shape & AclShape.SOURCE_PORT:
        found &= _by_port(state, table, ACL_SOURCE, 0, ports[0])
    if shape & AclShape.SOURCE:
        space = port.acl_space if shape & AclShape.SOURCE_SETS else 0
        found &= _by_address(state, walk, table, ACL_SOURCE, space)
    if shape & AclShape.DESTINATION:
        space = port.acl_space if shape & AclShape.DESTINATION_SETS else 0
        found &= _by_address(state, walk, table, ACL_DESTINATION, space)
    return found


def bits_of(state: State, name: Hash | None) -> int:
    """The rules of a vector, as bits; none when there is no such vector."""
    return _bits(state.get("sw_acl_vectors", name)) if name is not None else 0


def _bits(vector: Record | None) -> int:
    found = cast(AclVector | None, vector)
    return sum(word << 64 * place for place, word in enumerate(found.word)) if found is not None else 0


def _any(state: State, table: int, side: int, family: int = 0, protocol: int = 0) -> int:
    return _bits(state.get("sw_acl_any", AclAnyKey(table, side, family, protocol)))


def _by_port(state: State, table: int, side: int, protocol: int, port: int) -> int:
    content, wide = protocol << 16 | port, _any(state, table, side, protocol=protocol)
    for bits in range(24, -1, -1):
        kept = content >> (24 - bits) << (24 - bits)
        key = AclPortKey(ACL_PORT_KEY_BITS + bits, table & _LOW, table >> 32, side, kept >> 16, kept & 0xFFFF)
        found = cast(Hash | None, state.get("sw_acl_ports", key))
        if found is not None:
            return bits_of(state, found) | wide
    return wide


def _by_address(state: State, walk: Walk, table: int, side: int, space: int) -> int:
    address = walk.first.source if side == ACL_SOURCE else walk.out.destination
    return content_with(state, walk.packet.family, address, table, side, space)


def content_with(state: State, family: int, address: bytes, table: int, side: int, space: int) -> int:
    """The rules of a table that are content with an address on a side, as bits. ``space`` 0: none names sets."""
    found = bits_of(state, _longest(state, "sw_acl_prefixes", table, family, side, address))
    found |= _any(state, table, side, family=family)
    if space:
        member = _longest(state, "sw_set_members", space, family, ACL_MEMBER, address)
        for name in _sets(state, member) if member is not None else ():
            found |= bits_of(state, cast(Hash | None, state.get("sw_acl_sets", AclSetKey(table, name, side))))
    return found


def _sets(state: State, name: Hash) -> Iterator[int]:
    for chunk in range(CLASS_CHUNKS):
        part = cast(SetClass | None, state.get("sw_set_classes", SetClassKey(name.value, chunk)))
        if part is None:
            return
        for held in part.set:
            if not held:
                return
            yield held


def _longest(state: State, name: str, table: int, family: int, side: int, address: bytes) -> Hash | None:
    for bits in range(address_bits(family), -1, -1):
        key = AclPrefixKey(
            ACL_PREFIX_KEY_BITS + bits, table & _LOW, table >> 32, family, side, masked(address, bits)
        )
        found = cast(Hash | None, state.get(name, key))
        if found is not None:
            return found
    return None
