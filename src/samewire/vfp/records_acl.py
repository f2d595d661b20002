"""Records of the ACL tables and IP sets (``bpf/layout.h``)."""

from typing import Annotated, ClassVar

from samewire.vfp.record import U8, U16, U32, U64, Addr, Be16, Pad, Record, record


@record("")
class Hash(Record, frozen=True, gc=False):
    """64 bits of a hash: the name of a vector, a class, a space."""

    value: U64


@record("sw_acl_prefix_key")
class AclPrefixKey(Record, frozen=True, gc=False):
    """An LPM key: addresses in a table's rules, or in a space's sets. ``prefix_bits`` counts 96 bits more."""

    prefix_bits: U32
    table_low: U32
    table_high: U32
    family: U8
    side: U8
    reserved: ClassVar[Pad] = Pad(2)
    address: Addr

    @property
    def table(self) -> int:
        """The table, or the space."""
        return self.table_high << 32 | self.table_low


@record("sw_acl_port_key")
class AclPortKey(Record, frozen=True, gc=False):
    """An LPM key: protocols and ports in a table's rules. ``prefix_bits`` counts 72 bits more."""

    prefix_bits: U32
    table_low: U32
    table_high: U32
    side: U8
    protocol: U8
    port: Be16

    @property
    def table(self) -> int:
        """The table."""
        return self.table_high << 32 | self.table_low


@record("sw_acl_vector")
class AclVector(Record, frozen=True, gc=False):
    """A set of rules, as bits: rule 64 * w + i is bit i of word w; bit w of the summary: word w is not 0."""

    summary: U64
    word: Annotated[tuple[U64, ...], 64]


@record("sw_acl_any_key")
class AclAnyKey(Record, frozen=True, gc=False):
    """A question of a table: for an address of a family, or for a protocol and its port (source ports: 0)."""

    table: U64
    side: U8
    family: U8
    protocol: U8
    reserved: ClassVar[Pad] = Pad(5)


@record("sw_acl_set_key")
class AclSetKey(Record, frozen=True, gc=False):
    """A set named by rules of a table on one side."""

    table: U64
    set: U64
    side: U32
    reserved: ClassVar[Pad] = Pad(4)


@record("sw_acl_rule_key")
class AclRuleKey(Record, frozen=True, gc=False):
    """A rule's place in its table."""

    table: U64
    index: U32
    reserved: ClassVar[Pad] = Pad(4)


@record("sw_acl_rule")
class AclRule(Record, frozen=True, gc=False):
    """A rule's name and verdict; ``next`` is where the next stage starts."""

    rule: U32
    priority: U16
    next: U16
    action: U8
    reserved: ClassVar[Pad] = Pad(3)


@record("sw_rule_count_key")
class RuleCountKey(Record, frozen=True, gc=False):
    """Whose judgements are counted."""

    port: U32
    rule: U32
    side: U8
    reserved: ClassVar[Pad] = Pad(3)


@record("sw_set_class_key")
class SetClassKey(Record, frozen=True, gc=False):
    """A part of a class."""

    class_number: U64
    chunk: U32
    reserved: ClassVar[Pad] = Pad(4)


@record("sw_set_class")
class SetClass(Record, frozen=True, gc=False):
    """The sets of a class; 0 ends them."""

    set: Annotated[tuple[U64, ...], 16]


@record("sw_acl_space")
class AclSpace(Record, frozen=True, gc=False):
    """The sets of a network: a hash of all members, and a generation that moves with it."""

    generation: U32
    reserved: ClassVar[Pad] = Pad(4)
    content: U64
