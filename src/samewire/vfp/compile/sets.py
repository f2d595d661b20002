"""The IP sets of a network: which address is in which sets.

An address's class is the combination of the flat sets that it is in, by the longest prefix of any set that contains it.
Members are entered once, whoever names their sets. A nested set is no member's business: it stands in the classes of
the flat sets that it holds, so that editing it touches classes only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final

from samewire.errors import Invalid
from samewire.hcn.policies import Policy, SetPolicy, SetType
from samewire.hcn.schema import Network
from samewire.vfp.address import ADDRESS_BYTES, IPV4, IPV6, Prefix, parse_prefix
from samewire.vfp.compile.builder import Builder
from samewire.vfp.compile.prefixes import Node
from samewire.vfp.constants import ACL_MEMBER, ACL_PREFIX_KEY_BITS, CLASS_CHUNKS, CLASS_SETS
from samewire.vfp.hashes import hash64, set_name, space_name
from samewire.vfp.model import Compiled
from samewire.vfp.tables import AclPrefixKey, AclSpace, Hash, SetClass, SetClassKey

MAX_SETS_OF_ADDRESS: Final = CLASS_CHUNKS * CLASS_SETS

_ADDRESS_BITS: Final = 8 * ADDRESS_BYTES
_NONE: Final[frozenset[str]] = frozenset()


def has_sets(policies: Iterable[Policy]) -> bool:
    """Whether there are IP sets among a network's policies."""
    return any(isinstance(policy, SetPolicy) for policy in policies)


def compile_sets(network: Network, generation: int) -> Compiled:
    """The entries of a network's IP sets; ``generation`` must be new whenever they may have changed.

    Raises ``Invalid``, naming the set, when an address is in too many.
    """
    sets = [policy for policy in network.policies if isinstance(policy, SetPolicy)]
    flat = {p.set_id: _members(p.values) for p in sets if p.policy_type is SetType.IPSET}
    holders = _holders(sets, flat)
    builder = Builder()
    content = hashlib.blake2b(digest_size=8)
    classes: dict[frozenset[str], Hash] = {}
    space = space_name(network.id)
    low, high = space & 0xFFFFFFFF, space >> 32
    for family in (IPV4, IPV6):
        for (value, bits), names in _classified(flat, family):
            name = classes.get(names)
            if name is None:
                name = classes[names] = _enter_class(builder, network.id, names, holders)
            key = AclPrefixKey(
                ACL_PREFIX_KEY_BITS + bits,
                low,
                high,
                family,
                ACL_MEMBER,
                value.to_bytes(ADDRESS_BYTES, "big"),
            )
            builder.put("sw_set_members", key, name)
            content.update(key.pack() + name.pack())
    for chunk, part in builder.entries.get("sw_set_classes", {}).items():
        content.update(chunk.pack() + part.pack())
    builder.put(
        "sw_acl_spaces", Hash(space), AclSpace(generation, int.from_bytes(content.digest(), "little"))
    )
    return Compiled(builder.entries)


@lru_cache(maxsize=512)
def _members(values: str) -> Mapping[int, tuple[Node, ...]]:
    """A set's members by family."""
    found: dict[int, dict[Node, None]] = {IPV4: {}, IPV6: {}}
    for raw in values.split(","):
        item = raw.strip()
        if item:
            prefix = parse_prefix(item)
            found[prefix.family][_node(prefix)] = None
    return {family: tuple(nodes) for family, nodes in found.items()}


@lru_cache(maxsize=65536)
def _node(prefix: Prefix) -> Node:
    return int.from_bytes(prefix.packed, "big"), prefix.bits


def _holders(sets: Iterable[SetPolicy], flat: Mapping[str, object]) -> Mapping[str, frozenset[str]]:
    """For every flat set, the nested ones that hold it."""
    nested = {p.set_id: p.values for p in sets if p.policy_type is SetType.NESTEDIPSET}
    holders: dict[str, set[str]] = {}
    for name in nested:
        seen: set[str] = set()
        waiting = [name]
        while waiting:
            current = waiting.pop()
            if current in seen:
                continue
            seen.add(current)
            waiting += [item for raw in nested.get(current, "").split(",") if (item := raw.strip())]
        for held in seen & flat.keys():
            holders.setdefault(held, set()).add(name)
    return {name: frozenset(found) for name, found in holders.items()}


def _classified(
    flat: Mapping[str, Mapping[int, tuple[Node, ...]]], family: int
) -> Iterable[tuple[Node, frozenset[str]]]:
    """Every prefix of a family with all sets that contain it, in order of their values."""
    nodes: dict[Node, frozenset[str]] = {}
    unions: dict[tuple[frozenset[str], str], frozenset[str]] = {}
    for name, members in flat.items():
        for node in members[family]:
            before = nodes.get(node, _NONE)
            after = unions.get((before, name))
            if after is None:
                after = unions[before, name] = before | {name}
            nodes[node] = after
    around: list[tuple[int, frozenset[str]]] = [(1 << _ADDRESS_BITS, _NONE)]
    for node in sorted(nodes):
        value, bits = node
        while value >= around[-1][0]:
            around.pop()
        outer = around[-1][1]
        sets = nodes[node] | outer if outer else nodes[node]
        if bits < _ADDRESS_BITS:
            around.append((value + (1 << (_ADDRESS_BITS - bits)), sets))
        yield node, sets


def _enter_class(
    builder: Builder, network_id: str, flat: frozenset[str], holders: Mapping[str, frozenset[str]]
) -> Hash:
    """Add the chunks of a class. Its name is that of the flat sets: nested ones come and go within."""
    ordered = sorted(flat)
    name = hash64(b"".join(set_name(network_id, item).to_bytes(8, "little") for item in ordered))
    nested = {holder for item in ordered for holder in holders.get(item, _NONE)}
    names = [set_name(network_id, item) for item in (*ordered, *sorted(nested))]
    if len(names) > MAX_SETS_OF_ADDRESS:
        raise Invalid(
            "$.Policies",
            f"an address is in {len(names)} sets, {ordered[0]} for one; {MAX_SETS_OF_ADDRESS} are possible",
        )
    for chunk in range(-(-len(names) // CLASS_SETS)):
        part = names[CLASS_SETS * chunk : CLASS_SETS * (chunk + 1)]
        padded = (*part, *[0] * (CLASS_SETS - len(part)))
        builder.put("sw_set_classes", SetClassKey(name, chunk), SetClass(padded))
    return Hash(name)
