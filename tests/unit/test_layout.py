"""bpf/layout.h and its Python mirror are the same, byte by byte and name by name.

A stub that uses every structure, enum and constant of the header is compiled, and its BTF compared with the
records; then the maps of the built switch are compared with the registry.
"""

from __future__ import annotations

import re
import struct
import subprocess
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path

import msgspec
import pytest

from samewire.vfp import constants
from samewire.vfp.diff import PUT_ORDER
from samewire.vfp.tables import RECORDS, TABLES, Count, Hash, Id, Kind, PortmapKey, Record

ROOT = Path(__file__).resolve().parents[2]
HEADER = ROOT / "bpf" / "layout.h"
BUILT = ROOT / "src" / "samewire" / "_build"

INT, PTR, ARRAY, STRUCT, UNION, ENUM, TYPEDEF, VAR = 1, 2, 3, 4, 5, 6, 8, 14
KIND_EXTRA = {INT: 4, ARRAY: 12, 13: 0, VAR: 4, 17: 4}  # bytes behind the common header
MEMBER_SIZE = {STRUCT: 12, UNION: 12, ENUM: 8, 13: 8, 15: 12, 19: 12}

ENUMS = {
    "sw_arrival": ("SW_FROM_", constants.Arrival),
    "sw_layer": ("SW_LAYER_", constants.Layer),
    "sw_reason": ("SW_REASON_", constants.Reason),
    "sw_route_kind": ("SW_ROUTE_", constants.RouteKind),
    "sw_fate": ("SW_TO_", constants.Fate),
    "sw_counter": ("SW_COUNTER_", constants.Counter),
}
DEFINES = {
    "SW_CONFIG_": constants.ConfigFlag,
    "SW_PORT_": constants.PortFlag,
    "SW_ROUTE_": constants.RouteFlag,
    "SW_NEIGHBOUR_": constants.NeighbourFlag,
    "SW_ACL_": constants.AclAction,
    "SW_ACL_BY_": constants.AclShape,
    "SW_NAT_": (constants.NatAction, constants.NatFlag),
    "SW_FLOW_": constants.FlowFlag,
    "SW_SERVICE_": constants.ServiceFlag,
    "SW_BACKEND_": constants.BackendFlag,
    "SW_CHOICE_": constants.Choice,
    "SW_TCP_": constants.TcpFlag,
    "SW_STEP_": constants.StepVerdict,
}
MAP_TYPES = {
    1: "hash",
    2: "array",
    5: "percpu_hash",
    6: "percpu_array",
    9: "lru_hash",
    11: "lpm_trie",
    27: "ringbuf",
}


class Type(msgspec.Struct):
    """One BTF type; ``members`` are (name, type, bit offset), ``values`` those of an enum."""

    kind: int
    name: str
    size_or_type: int
    array: tuple[int, int] = (0, 0)
    members: list[tuple[str, int, int]] = []
    values: dict[str, int] = {}


class Btf:
    """Just enough of the BTF format (Documentation/bpf/btf.rst) to read structures, enums and map definitions."""

    def __init__(self, path: Path) -> None:
        data = _elf_section(path.read_bytes(), b".BTF")
        _, _, _, header, type_at, type_len, text_at, text_len = struct.unpack_from("<HBBIIIII", data)
        self.texts = data[header + text_at : header + text_at + text_len]
        self.types = [Type(0, "void", 0)]
        self._read(data[header + type_at : header + type_at + type_len])

    def _text(self, at: int) -> str:
        return self.texts[at : self.texts.index(b"\0", at)].decode()

    def _read(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            name, info, size_or_type = struct.unpack_from("<III", data, at)
            kind, count = info >> 24 & 0x1F, info & 0xFFFF
            kind_type = Type(kind, self._text(name), size_or_type)
            at += 12
            if kind == ARRAY:
                element, _, length = struct.unpack_from("<III", data, at)
                kind_type.array = (element, length)
            for i in range(count if kind in MEMBER_SIZE else 0):
                row = data[at + i * MEMBER_SIZE[kind] :]
                if kind in (STRUCT, UNION):
                    member, member_type, offset = struct.unpack_from("<III", row)
                    kind_type.members = [*kind_type.members, (self._text(member), member_type, offset)]
                elif kind == ENUM:
                    member, value = struct.unpack_from("<Ii", row)
                    kind_type.values = {**kind_type.values, self._text(member): value}
            at += count * MEMBER_SIZE[kind] if kind in MEMBER_SIZE else KIND_EXTRA.get(kind, 0)
            self.types.append(kind_type)

    def names(self, number: int) -> Iterator[str]:
        """The typedefs on the way to the real type."""
        while self.types[number].kind in (TYPEDEF, 9, 10, 11):
            yield self.types[number].name
            number = self.types[number].size_or_type

    def real(self, number: int) -> Type:
        """The type behind typedefs and qualifiers."""
        while self.types[number].kind in (TYPEDEF, 9, 10, 11):
            number = self.types[number].size_or_type
        return self.types[number]

    def size(self, number: int) -> int:
        real = self.real(number)
        return real.array[1] * self.size(real.array[0]) if real.kind == ARRAY else real.size_or_type

    def named(self, kind: int) -> dict[str, Type]:
        return {found.name: found for found in self.types if found.kind == kind and found.name}

    def maps(self) -> dict[str, dict[str, Type | int]]:
        """Map definitions: attribute -> number (``type``, ``max_entries``) or the pointed-at type's size."""
        found: dict[str, dict[str, Type | int]] = {}
        for variable in self.types:
            definition = self.real(variable.size_or_type) if variable.kind == VAR else None
            if definition is None or definition.kind != STRUCT or definition.name:
                continue
            attributes: dict[str, Type | int] = {}
            for name, number, _ in definition.members:
                target = self.real(self.real(number).size_or_type)
                pointed = self.real(number).size_or_type
                attributes[name] = target.array[1] if target.kind == ARRAY else self.size(pointed)
                if name in ("key", "value"):
                    attributes[f"{name}_name"] = target
            found[variable.name] = attributes
        return found


def _elf_section(elf: bytes, wanted: bytes) -> bytes:
    (table,) = struct.unpack_from("<Q", elf, 40)
    size, count, names = struct.unpack_from("<HHH", elf, 58)
    sections = [struct.unpack_from("<IIQQQQ", elf, table + i * size) for i in range(count)]
    strings = sections[names][4]
    for name, _, _, _, offset, length in sections:
        if elf[strings + name : elf.index(b"\0", strings + name)] == wanted:
            return elf[offset : offset + length]
    raise AssertionError(f"no section {wanted!r}")


def _header_names(pattern: str) -> list[str]:
    return re.findall(pattern, HEADER.read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def btf(tmp_path_factory: pytest.TempPathFactory) -> Btf:
    """BTF of a stub with one variable of every structure and enum, and an enum with the value of every define."""
    source = tmp_path_factory.mktemp("layout") / "stub.c"
    lines = ['#include "layout.h"']
    lines += [f"struct {name} s_{name};" for name in _header_names(r"^struct (sw_\w+) \{")]
    lines += [f"enum {name} e_{name};" for name in _header_names(r"^enum (sw_\w+) \{")]
    defines = ", ".join(f"T_{name} = {name}" for name in _header_names(r"^#define (SW_\w+)[ \t]+\S"))
    lines.append(f"enum all_defines {{ {defines} }} e_defines;")
    source.write_text("\n".join(lines))
    machine = subprocess.run(["uname", "-m"], check=True, capture_output=True, text=True).stdout.strip()
    flags = ["-O2", "-g", "--target=bpf", f"-I/usr/include/{machine}-linux-gnu", f"-I{HEADER.parent}"]
    built = source.with_suffix(".o")
    subprocess.run(["clang", *flags, "-c", str(source), "-o", str(built)], check=True)
    return Btf(built)


def test_every_structure_is_mirrored() -> None:
    assert {record.c_name for record in RECORDS} == set(_header_names(r"^struct (sw_\w+) \{")) - {"sw_addr"}


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.c_name)
def test_structure(btf: Btf, record: type[Record]) -> None:
    in_c = btf.named(STRUCT)[record.c_name]
    assert [(name, bits // 8, btf.size(number)) for name, number, bits in in_c.members] == [
        (field.name, field.offset, field.size) for field in record.fields
    ]
    assert record.size == in_c.size_or_type


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.c_name)
def test_arrays_and_byte_order(btf: Btf, record: type[Record]) -> None:
    for field, (name, number, _) in zip(record.fields, btf.named(STRUCT)[record.c_name].members, strict=True):
        real = btf.real(number)
        element, length = real.array if real.kind == ARRAY else (number, 0)
        if name != "reserved" and field.size // max(length, 1) != 1:  # MACs are arrays of bytes in C
            assert field.count == length, name
        assert field.be == ("__be16" in btf.names(element)), name


@pytest.mark.parametrize("name", ENUMS)
def test_enum(btf: Btf, name: str) -> None:
    prefix, mirror = ENUMS[name]
    in_c = {key.removeprefix(prefix): value for key, value in btf.named(ENUM)[name].values.items()}
    if "MAX" not in mirror.__members__:
        in_c.pop("MAX", None)
    assert {member.name: int(member) for member in mirror} == in_c


def test_defines(btf: Btf) -> None:
    in_c = {key.removeprefix("T_"): value for key, value in btf.named(ENUM)["all_defines"].values.items()}
    mirrored = {
        f"SW_{name}": value
        for name, value in vars(constants).items()
        if isinstance(value, int) and f"SW_{name}" in in_c
    }
    for prefix, enums in DEFINES.items():
        for enum in enums if isinstance(enums, tuple) else (enums,):
            mirrored |= {f"{prefix}{member.name}": int(member) for member in enum}
    mirrored |= {
        "SW_REWRITE_SOURCE": constants.RewriteFlag.SOURCE,
        "SW_REWRITE_DESTINATION": constants.RewriteFlag.DESTINATION,
        "SW_DECREMENT": constants.RewriteFlag.DECREMENT,
    }
    assert mirrored == in_c


def test_python_has_no_constant_of_its_own() -> None:
    ours = {"ROUTE_KEY_BITS", "NAT_KEY_BITS", "SOURCE_RANGE_KEY_BITS"}
    ours |= {"OWN_ROUTE_KEY_BITS", "ACL_PREFIX_KEY_BITS", "ACL_PORT_KEY_BITS"}
    header = set(_header_names(r"^#define SW_(\w+)[ \t]+\S"))
    plain = {
        name
        for name, value in vars(constants).items()
        if name.isupper() and isinstance(value, int) and not isinstance(value, IntEnum)
    }
    assert plain - ours <= header


@pytest.mark.parametrize("built", ["switch.o", "switch_trace.o"])
def test_maps_of_the_built_switch(built: str) -> None:
    in_c = {name: attributes for name, attributes in Btf(BUILT / built).maps().items() if name in TABLES}
    expected = (
        set(TABLES) if built == "switch_trace.o" else {n for n in TABLES if not n.startswith("sw_trace_")}
    )
    assert set(in_c) == expected
    for name, attributes in in_c.items():
        table = TABLES[name]
        map_type = attributes["type"]
        assert isinstance(map_type, int), name
        seen = (
            MAP_TYPES[map_type],
            attributes["max_entries"],
            attributes["key"],
            attributes["value"],
        )
        assert seen == (table.kind, table.max_entries, table.key.size, table.value.size), name
        for side, record in (("key_name", table.key), ("value_name", table.value)):
            if record not in (Id, Count, Hash):
                found = attributes[side]
                assert isinstance(found, Type), name
                assert found.name == record.c_name, name


def test_bytes_of_a_key() -> None:
    key = PortmapKey(address=bytes([192, 0, 2, 1, *bytes(12)]), port=0x1F90, protocol=6, family=4)
    assert key.pack() == bytes([192, 0, 2, 1, *bytes(12), 0x1F, 0x90, 6, 4])


def test_compiled_tables_have_a_place_in_the_order() -> None:
    assert set(PUT_ORDER) == {name for name, table in TABLES.items() if table.compiled}
    assert all(table.kind in (Kind.HASH, Kind.LPM, Kind.ARRAY) for table in TABLES.values() if table.compiled)
