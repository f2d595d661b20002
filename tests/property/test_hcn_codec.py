"""Any object survives the wire and the store; any input ends in an object or a clean error."""

from __future__ import annotations

import enum
import json
import types
import typing
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from samewire.hcn.base import Wire
from samewire.hcn.codec import INTERNAL, canonical_json, decode_modify, decode_object, encode
from samewire.hcn.errors import HcnError
from samewire.hcn.jsontext import parse_json
from samewire.hcn.normalise import check_endpoint, check_namespace, check_network, check_route
from samewire.hcn.normalise_lb import check_load_balancer
from samewire.hcn.policies import KNOWN_POLICIES, OtherPolicy
from samewire.hcn.schema import STRUCTS, Kind, Object

CHECKS: dict[Kind, Any] = {
    Kind.NETWORK: check_network,
    Kind.ENDPOINT: check_endpoint,
    Kind.NAMESPACE: check_namespace,
    Kind.ROUTE: check_route,
    Kind.LOADBALANCER: check_load_balancer,
}
kinds = st.sampled_from(list(Kind))
plain_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
telling_text = st.one_of(
    plain_text,
    st.ip_addresses().map(str),
    st.sampled_from(
        [
            "10.0.0.0/8",
            "10.1.2.3/8",
            "fd00::/64",
            "FD00::1",
            "0.0.0.0/0",
            "::/0",
            "00:15:5d:01:02:03",
            "80,8000-8080",
        ]
    ),
    st.uuids().map(str),
)
numbers = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | telling_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(plain_text, inner, max_size=4),
    max_leaves=12,
)
unknown_fields = st.dictionaries(plain_text.map(lambda text: "Unknown" + text), json_values, max_size=2).map(
    lambda fields: tuple(sorted((name, canonical_json(value)) for name, value in fields.items()))
)


def values_of(hint: Any, text: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    """Return a strategy for a field of a struct."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return st.integers(arguments[1].ge, arguments[1].le)
    if origin is tuple:
        return st.lists(values_of(arguments[0], text), max_size=3).map(tuple)
    if origin in (types.UnionType, typing.Union):
        return st.one_of(*(values_of(argument, text) for argument in arguments))
    if hint is types.NoneType:
        return st.none()
    if isinstance(hint, type) and issubclass(hint, Wire):
        return structs(hint, text)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return st.sampled_from(list(hint))
    return {str: text, bool: st.booleans()}[hint]


def structs(cls: type[Wire], text: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    """Return a strategy for all values of a struct."""
    if cls is OtherPolicy:
        names = plain_text.filter(lambda name: name and name.lower() not in KNOWN_POLICIES)
        return st.builds(OtherPolicy, type_name=names, settings_json=json_values.map(canonical_json))
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = {name: values_of(hint, text) for name, hint in hints.items() if name not in INTERNAL}
    return st.builds(cls, **fields, extra=unknown_fields)


OBJECTS = {kind: structs(struct, telling_text) for kind, struct in STRUCTS.items()}
objects = kinds.flatmap(lambda kind: st.tuples(st.just(kind), OBJECTS[kind]))


def mangle(value: Any, draw: Any) -> Any:
    """Spell a JSON value otherwise: keys in another case, numbers as text."""
    if isinstance(value, dict):
        return {
            draw(st.sampled_from([name, name.lower(), name.upper()])): mangle(item, draw)
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [mangle(item, draw) for item in value]
    if isinstance(value, int) and not isinstance(value, bool) and draw(st.booleans()):
        return str(value)
    return value


def refusal(work: Callable[[], object]) -> HcnError | None:
    """Return the error that something ends in, None for none; any other exception is a failure of the test."""
    try:
        work()
    except HcnError as error:
        return error
    return None


@given(objects)
def test_an_object_survives_the_wire(case: tuple[Kind, Object]) -> None:
    kind, value = case
    assert decode_object(kind, parse_json(json.dumps(encode(value)))) == without_empty(value)


def without_empty(value: Any) -> Any:
    """Return a struct as it is after what is empty was left out on the wire."""
    if isinstance(value, tuple):
        return tuple(without_empty(item) for item in value)
    if not isinstance(value, Wire):
        return value
    changes = {}
    for field in msgspec.structs.fields(value):
        item = without_empty(getattr(value, field.name))
        is_empty_struct = isinstance(item, Wire) and not encode(item)
        changes[field.name] = field.default if is_empty_struct else item
    return msgspec.structs.replace(value, **changes)


@given(objects)
def test_an_object_survives_the_store(case: tuple[Kind, Object]) -> None:
    kind, value = case
    again = msgspec.json.decode(msgspec.json.encode(value), type=STRUCTS[kind])
    assert again == value
    assert hash(again) == hash(value)


@given(objects, st.data())
def test_spelling_makes_no_difference(case: tuple[Kind, Object], data: st.DataObject) -> None:
    kind, value = case
    known = without_unknown(value)
    assert decode_object(kind, mangle(encode(known), data.draw)) == decode_object(kind, encode(known))


def without_unknown(value: Any) -> Any:
    """Return a struct without unknown fields and policies, whose spelling is not ours to change."""
    if isinstance(value, tuple):
        return tuple(without_unknown(item) for item in value if not isinstance(item, OtherPolicy))
    if not isinstance(value, Wire):
        return value
    fields = {
        field.name: without_unknown(getattr(value, field.name)) for field in msgspec.structs.fields(value)
    }
    return msgspec.structs.replace(value, **{**fields, "extra": ()})


@given(objects)
def test_canonical_forms_are_final(case: tuple[Kind, Object]) -> None:
    kind, value = case
    if refusal(lambda: CHECKS[kind](value)):
        return
    canonical = CHECKS[kind](value)
    assert CHECKS[kind](canonical) == canonical
    assert CHECKS[kind](decode_object(kind, encode(canonical))) == without_empty(canonical)


@given(kinds, json_values)
def test_any_json_is_read_or_refused(kind: Kind, value: Any) -> None:
    for read in (decode_object, decode_modify):
        error = refusal(partial(read, kind, value))
        assert error is None or error.message.startswith("$")


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all values within a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(deeper for key, item in items for deeper in paths(item, (*path, key)))]


@given(objects, json_values, st.data())
def test_one_wrong_value_is_read_or_refused(
    case: tuple[Kind, Object], wrong: Any, data: st.DataObject
) -> None:
    kind, value = case
    body = encode(value)
    path = data.draw(st.sampled_from(paths(body)))
    target: Any = {"": body}
    for key in ("", *path)[:-1]:
        target = target[key]
    target[("", *path)[-1]] = wrong
    error = refusal(lambda: CHECKS[kind](decode_object(kind, body if path else wrong)))
    assert error is None or error.message.startswith("$")


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    if refusal(lambda: parse_json(data)) is None:
        assert json.loads(data) == parse_json(data)


@given(json_values)
def test_any_json_is_read_as_json_reads_it(value: Any) -> None:
    assert parse_json(json.dumps(value)) == value


@given(st.text(max_size=40), st.integers(0, 40), st.characters())
def test_a_character_out_of_place_is_no_crash(text: str, position: int, character: str) -> None:
    body = json.dumps({"Name": text, "Policies": [{"Type": "ACL"}]})
    with_fault = body[:position] + character + body[position:]
    data = with_fault.encode("utf-8", "surrogatepass")
    error = refusal(lambda: decode_object(Kind.ENDPOINT, parse_json(data)))
    assert error is None or error.message.startswith("$")
