"""JSON to HCN structs and back.

Input is read generously, as HNS and its clients do: keys and enumeration values in any case, the divergent
spellings of the field (``Setting``/``Routes``, ``ExceptionList``/``Exceptions``, ``Suffix``/``Domain``,
``Data``/``Settings``), numbers as text and text as numbers, null for "not given". Output has one exact
spelling, and omits what is empty. What is in doubt is refused with the path of the field: a key given
twice, a number out of range, a value of the wrong shape.
"""

from __future__ import annotations

import enum
import types
import typing
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar, cast

import msgspec

from samewire.hcn.base import Wire
from samewire.hcn.errors import HcnCode, HcnError
from samewire.hcn.policies import (
    ACL,
    KNOWN_POLICIES,
    NatFlags,
    OtherPolicy,
    OutBoundNAT,
    Policy,
    PolicyBase,
    PortMapping,
    policy_type,
)
from samewire.hcn.schema import (
    STRUCTS,
    ContainerSettings,
    Dns,
    Endpoint,
    EndpointFlags,
    EndpointSettings,
    IpSubnet,
    IpSubnetFlags,
    Kind,
    ModifySettingRequest,
    ModifySettings,
    Network,
    NetworkFlags,
    NetworkType,
    Object,
    PolicySettings,
    RequestType,
    Route,
    Subnet,
    SubnetFlags,
    SubnetSettings,
)

W = TypeVar("W", bound=Wire)
Read = Callable[[Any, str], Any]

ALIASES: dict[type[Wire], dict[str, str]] = {
    Route: {"setting": "Routes"},
    Dns: {"suffix": "Domain"},
    OutBoundNAT: {"exceptionlist": "Exceptions", "vip": "VirtualIP"},
}
OUTPUT_ONLY = frozenset({"health", "state", "telemetry", "version", "namespaceguid", "additionalparams"})
"""Fields that the service itself writes on output; clients send them back, and they mean nothing then."""

FLAGS: dict[type[Wire], type[enum.IntFlag]] = {
    Network: NetworkFlags,
    Endpoint: EndpointFlags,
    Subnet: SubnetFlags,
    IpSubnet: IpSubnetFlags,
    OutBoundNAT: NatFlags,
    PortMapping: NatFlags,
}
NETWORK_MODES = ("NAT", "ICS", "Transparent", "L2Bridge", "L2Tunnel", "Overlay", "Private", "Internal")
"""Network types by number: the schema's order, some of which are not implemented here."""

PROTOCOLS = {"icmpv4": 1, "igmp": 2, "tcp": 6, "udp": 17, "icmpv6": 58}


def fail(path: str, message: str, code: HcnCode = HcnCode.INVALID_JSON) -> typing.NoReturn:
    """Raise the error of one field."""
    raise HcnError(code, f"{path}: {message}")


def decode_object(kind: Kind, value: Any) -> Object:
    """Return the object of a parsed JSON value. Raises HcnError."""
    if isinstance(value, dict):
        value = {key: item for key, item in value.items() if key.lower() not in OUTPUT_ONLY}
    return _read_struct(STRUCTS[kind], value, "$")


def decode_policy(value: Any, path: str = "$") -> Policy:
    """Return the policy of a parsed ``{"Type": ..., "Settings": {...}}``. Raises HcnError."""
    policy = _read_policy(value, path)
    if policy is None:
        fail(path, "a policy needs a Type", HcnCode.INVALID_POLICY)
    return policy


def decode_modify(kind: Kind, value: Any) -> ModifySettingRequest:
    """Return a modify request for an object of a kind. Raises HcnError (REQUEST_UNSUPPORTED for unknown
    resources).
    """
    fields = _lowered(value, "$")
    resource = fields.get("resourcetype")
    wanted = next(
        (struct for name, struct in _RESOURCES[kind].items() if name.lower() == str(resource).lower()), None
    )
    if wanted is None:
        fail(
            "$.ResourceType",
            f"{resource!r:.40} of {kind.value} cannot be modified; known: {', '.join(_RESOURCES[kind])}",
            HcnCode.REQUEST_UNSUPPORTED,
        )
    request_type = _enum_reader(RequestType)(fields.get("requesttype"), "$.RequestType")
    settings = fields.get("settings")
    body = _read_struct(wanted, {} if settings is None else settings, "$.Settings")
    return ModifySettingRequest(request_type=request_type, settings=cast(ModifySettings, body))


_RESOURCES: dict[Kind, dict[str, type[Wire]]] = {
    Kind.NETWORK: {"Policy": PolicySettings, "DNS": Dns, "Subnet": SubnetSettings},
    Kind.ENDPOINT: {"Policy": PolicySettings},
    Kind.NAMESPACE: {"Endpoint": EndpointSettings, "Container": ContainerSettings},
    Kind.ROUTE: {},
}


def encode(value: Wire) -> dict[str, Any]:
    """Return the JSON object of a struct: exact spelling, nothing empty, unknown fields as they came."""
    result: dict[str, Any] = {}
    for attribute, name in _output_fields(type(value)):
        item = _encode_item(getattr(value, attribute))
        if item is not None and item != "" and item != [] and item != {}:
            result[name] = item
    result.update((name, msgspec.json.decode(text)) for name, text in value.extra)
    return result


def encode_policy(policy: Policy) -> dict[str, Any]:
    """Return the ``{"Type": ..., "Settings": ...}`` of a policy."""
    settings = (
        msgspec.json.decode(policy.settings_json) if isinstance(policy, OtherPolicy) else encode(policy)
    )
    beside = {name: msgspec.json.decode(text) for name, text in policy.beside}
    return {"Type": policy_type(policy), "Settings": settings, **beside}


def canonical_json(value: Any) -> str:
    """Return JSON text with sorted keys, so that equal values have equal text."""
    return msgspec.json.encode(value, order="sorted").decode()


def _encode_item(item: Any) -> Any:
    if isinstance(item, PolicyBase):
        return encode_policy(cast(Policy, item))
    if isinstance(item, Wire):
        return encode(item)
    if isinstance(item, tuple):
        return [_encode_item(element) for element in item]
    return item.value if isinstance(item, enum.Enum) else item


@cache
def _output_fields(cls: type[Wire]) -> list[tuple[str, str]]:
    return [
        (field.name, field.encode_name)
        for field in msgspec.structs.fields(cls)
        if field.name not in ("extra", "beside")
    ]


def _lowered(value: Any, path: str) -> dict[str, Any]:
    """Return the fields of a JSON object by lower-case name."""
    if not isinstance(value, dict):
        fail(path, f"expected an object, got {_shape(value)}")
    lowered = {key.lower(): item for key, item in value.items()}
    if len(lowered) != len(value):
        fail(path, "two keys differ only in case")
    return lowered


def _shape(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "text", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


class _Input(msgspec.Struct, frozen=True):
    """How to read one struct: fields by lower-case name, and the names that must be there."""

    fields: dict[str, tuple[str, str, Read]]
    required: dict[str, str]


@cache
def _input(cls: type[Wire]) -> _Input:
    hints = typing.get_type_hints(cls, include_extras=True)
    fields: dict[str, tuple[str, str, Read]] = {}
    required = {}
    for field in msgspec.structs.fields(cls):
        if field.name in ("extra", "beside"):
            continue
        name = field.encode_name
        fields[name.lower()] = (field.name, name, _reader(cls, field.name, hints[field.name]))
        if field.required:
            required[field.name] = name
    for alias, name in ALIASES.get(cls, {}).items():
        fields[alias] = fields[name.lower()]
    return _Input(fields, required)


def _read_struct(cls: type[W], value: Any, path: str) -> W:
    """Read a JSON object; fields of policies carry INVALID_POLICY, others INVALID_JSON."""
    if not isinstance(value, dict):
        fail(path, f"expected an object, got {_shape(value)}")
    plan = _input(cls)
    arguments: dict[str, Any] = {}
    extra: list[tuple[str, str]] = []
    for key, item in value.items():
        known = plan.fields.get(key.lower())
        if known is None:
            extra.append((key, canonical_json(item)))
            continue
        attribute, name, read = known
        if attribute in arguments:
            fail(f"{path}.{name}", f"given twice (also as {key!r})")
        if item is not None:
            arguments[attribute] = read(item, f"{path}.{name}")
    for attribute, name in plan.required.items():
        if attribute not in arguments:
            code = HcnCode.INVALID_POLICY if issubclass(cls, PolicyBase) else HcnCode.INVALID_JSON
            fail(f"{path}.{name}", "is required", code)
    return cls(**arguments, extra=tuple(sorted(extra)))


def _read_policy(value: Any, path: str) -> Policy | None:
    """Read a policy; None for ``{}``, which clients send to say "no policies"."""
    fields = _lowered(value, path)
    if not fields:
        return None
    name = fields.pop("type", None)
    if not isinstance(name, str) or not name:
        fail(
            f"{path}.Type", f"expected the name of a policy type, got {_shape(name)}", HcnCode.INVALID_POLICY
        )
    if "settings" in fields and "data" in fields:
        fail(f"{path}.Settings", "given twice (also as 'Data')")
    settings = fields.pop("settings", fields.pop("data", None))
    beside = tuple((key, canonical_json(item)) for key, item in value.items() if key.lower() in fields)
    known = KNOWN_POLICIES.get(name.lower())
    if known is None:
        return OtherPolicy(type_name=name, settings_json=canonical_json(settings), beside=beside)
    if beside and settings is None:
        fail(
            path, f"the fields of a {known.__name__} policy belong into its Settings", HcnCode.INVALID_POLICY
        )
    policy = _read_struct(known, {} if settings is None else settings, f"{path}.Settings")
    return cast(Policy, msgspec.structs.replace(policy, beside=beside) if beside else policy)


def _read_policies(value: Any, path: str) -> tuple[Policy, ...]:
    if not isinstance(value, list):
        fail(path, f"expected an array of policies, got {_shape(value)}")
    policies = (_read_policy(item, f"{path}[{index}]") for index, item in enumerate(value))
    return tuple(policy for policy in policies if policy is not None)


def _reader(cls: type[Wire], attribute: str, hint: Any) -> Read:
    """Return the function that reads one field."""
    if attribute == "flags":
        return _flags_reader(FLAGS.get(cls, enum.IntFlag))
    if cls is PortMapping and attribute == "protocol":
        return _read_protocol
    if attribute == "policies":
        return _read_policies
    if cls is ACL and hint is str:
        return _read_list_text
    return _type_reader(hint)


def _type_reader(hint: Any) -> Read:
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        return _type_reader(next(part for part in typing.get_args(hint) if part is not types.NoneType))
    if origin is tuple:
        return _list_reader(_type_reader(typing.get_args(hint)[0]))
    if origin is typing.Annotated:
        return _int_reader(typing.get_args(hint)[1])
    if isinstance(hint, type) and issubclass(hint, Wire):
        return lambda value, path: _read_struct(hint, value, path)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _enum_reader(hint)
    return {str: _read_text, bool: _read_bool}[hint]


def _read_text(value: Any, path: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    fail(path, f"expected text, got {_shape(value)}")


def _read_list_text(value: Any, path: str) -> str:
    """Comma-separated text, for which some clients send a JSON array."""
    if isinstance(value, list):
        return ",".join(_read_text(item, f"{path}[{index}]") for index, item in enumerate(value))
    return _read_text(value, path)


def _read_bool(value: Any, path: str) -> bool:
    text = str(value).lower()
    if isinstance(value, bool | int | str) and text in ("true", "false", "1", "0"):
        return text in ("true", "1")
    fail(path, f"expected true or false, got {value!r:.40}")


def _int_reader(bounds: msgspec.Meta) -> Read:
    low, high = cast(int, bounds.ge), cast(int, bounds.le)

    def read(value: Any, path: str) -> int:
        number = _integer(value)
        if number is None or not low <= number <= high:
            fail(path, f"expected a whole number from {low} to {high}, got {value!r:.40}")
        return number

    return read


def _integer(value: Any) -> int | None:
    """Return a whole number given as one or as decimal digits, else None."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and len(value) <= 20 and value.isascii() and value.isdigit():
        return int(value)
    return None


def _enum_reader(wanted: type[enum.Enum]) -> Read:
    members = list(wanted)
    names = {str(member.value).lower(): member for member in members}
    numbers = NETWORK_MODES if wanted is NetworkType else [member.value for member in members]
    names |= {
        str(number): names[name.lower()] for number, name in enumerate(numbers) if name.lower() in names
    }
    code = HcnCode.INVALID_NETWORK_TYPE if wanted is NetworkType else HcnCode.INVALID_JSON

    def read(value: Any, path: str) -> enum.Enum:
        if isinstance(value, str | int) and str(value).lower() in names:
            return names[str(value).lower()]
        fail(
            path,
            f"expected one of {', '.join(str(member.value) for member in members)}, got {value!r:.40}",
            code,
        )

    return read


def _flags_reader(names: type[enum.IntFlag]) -> Read:
    """Flags as a number, or as the schema's names separated by commas."""
    bits = {member.name.replace("_", "").lower(): member.value for member in names if member.name}

    def read(value: Any, path: str) -> int:
        number = _integer(value)
        if number is None and isinstance(value, str):
            words = [word.strip().lower() for word in value.split(",")]
            if all(word in bits or word == "none" for word in words):
                number = sum({bits.get(word, 0) for word in words})
        if number is None or not 0 <= number < 2**32:
            fail(path, f"expected flags as a number or as names ({', '.join(bits)}), got {value!r:.40}")
        return number

    return read


def _read_protocol(value: Any, path: str) -> int:
    number = PROTOCOLS.get(value.lower()) if isinstance(value, str) else None
    if number is None:
        number = _integer(value)
    if number is None or not 0 <= number < 2**32:
        fail(path, f"expected a protocol number, got {value!r:.40}", HcnCode.INVALID_POLICY)
    return number


def _list_reader(read: Read) -> Read:
    def read_list(value: Any, path: str) -> tuple[Any, ...]:
        if not isinstance(value, list):
            fail(path, f"expected an array, got {_shape(value)}")
        return tuple(read(item, f"{path}[{index}]") for index, item in enumerate(value))

    return read_list
