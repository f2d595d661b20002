"""The IP sets of a network: which address is in which sets.

An address's class is the combination of the flat sets that it is in, by the longest prefix of any set that contains it.
Members are entered once, whoever names their sets. A nested set is no member's business: it stands in the classes of
the flat sets that it holds, so that editing it touches classes only.

What was compiled last of a network is remembered, and only what has changed since is worked out: a member more costs
the same beside ten and beside ten thousand others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import chain, count
from typing import Final

import msgspec

from samewire.errors import Invalid
from samewire.hcn.numbered import Numbered, numbered
from samewire.hcn.policies import Policy, SetPolicy, SetType, first
from samewire.hcn.policy_lists import PolicyList, sets_of
from samewire.hcn.schema import Network
from samewire.versions import Version
from samewire.vfp.address import ADDRESS_BYTES, IPV4, IPV6, parse_prefix
from samewire.vfp.compile.edits import Draft, Latest
from samewire.vfp.compile.prefixes import Nested, Node
from samewire.vfp.constants import ACL_MEMBER, ACL_PREFIX_KEY_BITS, CLASS_CHUNKS, CLASS_SETS
from samewire.vfp.hashes import hash64, set_name, space_name
from samewire.vfp.model import Compiled
from samewire.vfp.record import Record
from samewire.vfp.tables import AclPrefixKey, AclSpace, Hash, SetClass, SetClassKey

MAX_SETS_OF_ADDRESS: Final = CLASS_CHUNKS * CLASS_SETS

_Member = tuple[int, Node]
"""Family and prefix."""

_Pair = tuple[int, SetPolicy]

_ADDRESS_BITS: Final = 8 * ADDRESS_BYTES
_CONTENT: Final = (1 << 64) - 1


def has_sets(policies: Iterable[Policy]) -> bool:
    """Whether there are IP sets among a network's policies."""
    return first(policies, SetPolicy) is not None


def compile_sets(network: Network, generation: int) -> Compiled:
    """The entries of a network's IP sets; ``generation`` must be new whenever they may have changed.

    Raises ``Invalid``, naming the set, when an address is in too many.
    """
    last = _LAST.get(network.id) or _Sets(network.id)
    made = last.changed(numbered(network.policies), generation)
    _LAST.keep(network.id, made)
    return made.compiled


class _Flat(msgspec.Struct, frozen=True):
    """A set of addresses. ``bit`` stands for it in classes; ``texts`` are its members, of which some may be alike."""

    values: str
    bit: int
    texts: frozenset[str]
    members: Mapping[_Member, int]


class _Sets:
    """The sets of a network as they were compiled; `changed` makes the next ones of them."""

    def __init__(self, network_id: str) -> None:
        self.network_id = network_id
        self.compiled = Compiled({})
        self._policies: PolicyList = Numbered()
        self._flat: Version[str, _Flat] = Version({})
        self._by_bit: Version[int, str] = Version({})
        """The flat sets by the place of their bit."""
        self._free: tuple[int, ...] = ()
        """Places below the highest that nobody has."""
        self._holders: Mapping[str, frozenset[str]] = {}
        self._prefixes = {IPV4: Nested(_ADDRESS_BITS), IPV6: Nested(_ADDRESS_BITS)}
        self._users: Version[bytes, int] = Version({})
        """How many prefixes are of a class, by the bits of its sets."""
        self._content = 0
        """The sum of the hashes of all entries."""

    def changed(self, policies: PolicyList, generation: int) -> _Sets:
        """The same with the sets among these policies instead. Raises ``Invalid``; this one stays as it is in any
        case.
        """
        made = _Sets(self.network_id)
        made._policies, made._prefixes, made._content = policies, self._prefixes.copy(), self._content
        gone, new = policies.difference(self._policies).of(SetPolicy)
        moved = made._change_flat(self, [policy for _, policy in gone], [policy for _, policy in new])
        draft = Draft(self.compiled.entries)
        users = made._enter_members(draft, self, moved)
        made._holders = self._holders
        if _concerns_nested(policies, self, made, gone, new):
            sets = {policy.set_id: policy for policy in policies.of(SetPolicy)}
            made._holders = _holders(sets, made._flat)
        made._enter_classes(draft, self, users)
        draft.put("sw_acl_spaces", Hash(space_name(self.network_id)), AclSpace(generation, made._content))
        made.compiled = draft.compiled()
        return made

    def _change_flat(
        self, before: _Sets, gone: Iterable[SetPolicy], new: Iterable[SetPolicy]
    ) -> list[tuple[_Member, int, bool]]:
        """Work out the flat sets. Returns who has come into which (True) or left it, by its bit."""
        moved: list[tuple[_Member, int, bool]] = []
        flat: dict[str, _Flat | None] = {}
        wanted = {policy.set_id: policy for policy in new if policy.policy_type is SetType.IPSET}
        for policy in gone:
            known = before._flat.get(policy.set_id)
            if known is not None and policy.set_id not in wanted:
                _next(known, "", moved)
                flat[policy.set_id] = None
        # A bit that is free with this change is not given away with it: its prefixes would seem to be as they were.
        free = chain(before._free, count(len(before._flat) + len(before._free)))
        places: dict[int, str | None] = {}
        for name, policy in wanted.items():
            known = before._flat.get(name)
            if known is None:
                place = next(free)
                places[place], known = name, _Flat("", 1 << place, frozenset(), {})
            flat[name] = _next(known, policy.values, moved) if known.values != policy.values else known
        left = [before._flat[name].bit.bit_length() - 1 for name, found in flat.items() if found is None]
        self._flat = before._flat.changed(flat)
        self._by_bit = before._by_bit.changed({**places, **dict.fromkeys(left)})
        self._free = (*(place for place in before._free if place not in places), *left)
        return moved

    def _enter_members(
        self, draft: Draft, before: _Sets, moved: Iterable[tuple[_Member, int, bool]]
    ) -> dict[int, int]:
        """Put members into sets (True) and out of them, by the sets' bits. Returns how many prefixes are of a class
        now, of those classes that it concerns.
        """
        bits: dict[int, dict[Node, int]] = {IPV4: {}, IPV6: {}}
        for (family, node), bit, there in moved:
            own = bits[family].get(node)
            if own is None:
                own = self._prefixes[family].direct.get(node, 0)
            bits[family][node] = own | bit if there else own & ~bit
        space = space_name(self.network_id)
        low, high = space & 0xFFFFFFFF, space >> 32
        names: dict[int, Hash] = {}
        users: dict[int, int] = {}
        for family in [family for family in bits if bits[family]]:
            prefixes = self._prefixes[family] = self._prefixes[family].copy()
            for (value, length), (was, after) in prefixes.change(bits[family]).items():
                address = value.to_bytes(ADDRESS_BYTES, "big")
                key = AclPrefixKey(ACL_PREFIX_KEY_BITS + length, low, high, family, ACL_MEMBER, address)
                for mask, more in ((was, -1), (after, 1)):
                    if mask is not None:
                        users[mask] = users.get(mask, before._users.get(_bytes(mask), 0)) + more
                if after is None:
                    self._remove(draft, "sw_set_members", key)
                    continue
                name = names.get(after)
                if name is None:
                    name = names[after] = self._class_name(self._names(after))
                self._put(draft, "sw_set_members", key, name)
        self._users = before._users.changed({_bytes(mask): left or None for mask, left in users.items()})
        return users

    def _enter_classes(self, draft: Draft, before: _Sets, users: Mapping[int, int]) -> None:
        """Bring the classes up to date with who is in them, and with the nested sets that hold their sets."""
        for mask, left in users.items():
            if not left and _bytes(mask) in before._users:
                self._put_class(draft, self._class_name(before._names(mask)), ())
        moved = 0
        if self._holders is not before._holders:
            moved = sum(
                self._flat[name].bit
                for name in self._holders.keys() | before._holders.keys()
                if name in self._flat and self._holders.get(name) != before._holders.get(name)
            )
        standing = map(_mask, self._users) if moved else (mask for mask, left in users.items() if left)
        for mask in standing:
            if mask & moved or _bytes(mask) not in before._users:
                flat = self._names(mask)
                nested = {holder for item in flat for holder in self._holders.get(item, ())}
                self._put_class(draft, self._class_name(flat), (*flat, *sorted(nested)))

    def _names(self, mask: int) -> list[str]:
        """The flat sets of a class, in order."""
        names = []
        while mask:
            place = mask.bit_length() - 1
            names.append(self._by_bit[place])
            mask ^= 1 << place
        return sorted(names)

    def _class_name(self, flat: Iterable[str]) -> Hash:
        """The name of a class is that of its flat sets: nested ones come and go within."""
        parts = (set_name(self.network_id, item).to_bytes(8, "little") for item in flat)
        return Hash(hash64(b"".join(parts)))

    def _put_class(self, draft: Draft, name: Hash, sets: tuple[str, ...]) -> None:
        """Enter a class in chunks; one without sets goes."""
        if len(sets) > MAX_SETS_OF_ADDRESS:
            raise Invalid(
                "$.Policies",
                f"an address is in {len(sets)} sets, {sets[0]} for one; {MAX_SETS_OF_ADDRESS} are possible",
            )
        numbers = [set_name(self.network_id, item) for item in sets]
        for chunk in count():
            key = SetClassKey(name.value, chunk)
            part = numbers[CLASS_SETS * chunk : CLASS_SETS * (chunk + 1)]
            if part:
                padded = (*part, *[0] * (CLASS_SETS - len(part)))
                self._put(draft, "sw_set_classes", key, SetClass(padded))
            elif draft.get("sw_set_classes", key) is not None:
                self._remove(draft, "sw_set_classes", key)
            else:
                return

    def _put(self, draft: Draft, table: str, key: Record, value: Record) -> None:
        self._forget(key, draft.get(table, key))
        self._content = self._content + _entry_hash(key, value) & _CONTENT
        draft.put(table, key, value)

    def _remove(self, draft: Draft, table: str, key: Record) -> None:
        self._forget(key, draft.get(table, key))
        draft.remove(table, key)

    def _forget(self, key: Record, value: Record | None) -> None:
        if value is not None:
            self._content = self._content - _entry_hash(key, value) & _CONTENT


def _entry_hash(key: Record, value: Record) -> int:
    return hash64(key.pack() + value.pack())


def _bytes(mask: int) -> bytes:
    """A class as a key: Python's hashes of single bits are 61 different ones."""
    return mask.to_bytes(-(-mask.bit_length() // 8), "little")


def _mask(key: bytes) -> int:
    return int.from_bytes(key, "little")


def _concerns_nested(
    policies: PolicyList, before: _Sets, after: _Sets, gone: Iterable[_Pair], new: Iterable[_Pair]
) -> bool:
    """Whether a change of sets is one of nested ones, or of flat ones that nested ones name."""
    changed = {policy.set_id for _, policy in (*gone, *new)}
    if any(policy.policy_type is SetType.NESTEDIPSET for _, policy in (*gone, *new)):
        return True
    was, will = ({name for name in changed if name in sets._flat} for sets in (before, after))
    named = (policies.at(number) for name in was ^ will for number in policies.by(sets_of).get(name, ()))
    return any(isinstance(policy, SetPolicy) for policy in named)


def _next(before: _Flat, values: str, moved: list[tuple[_Member, int, bool]]) -> _Flat:
    """The set with these values; adds to ``moved`` what has come and gone."""
    texts = frozenset(filter(None, map(str.strip, values.split(","))))
    members = dict(before.members)
    for text in texts - before.texts:
        member = _member(text)
        members[member] = members.get(member, 0) + 1
        if members[member] == 1:
            moved.append((member, before.bit, True))
    for text in before.texts - texts:
        member = _member(text)
        members[member] -= 1
        if not members[member]:
            del members[member]
            moved.append((member, before.bit, False))
    return _Flat(values, before.bit, texts, members)


@lru_cache(maxsize=65536)
def _member(text: str) -> _Member:
    prefix = parse_prefix(text)
    return prefix.family, (int.from_bytes(prefix.packed, "big"), prefix.bits)


def _holders(sets: Mapping[str, SetPolicy], flat: Mapping[str, object]) -> Mapping[str, frozenset[str]]:
    """For every flat set, the nested ones that hold it."""
    nested = {name: p.values for name, p in sets.items() if p.policy_type is SetType.NESTEDIPSET}
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


_LAST: Final[Latest[_Sets]] = Latest(64)
"""By network."""
