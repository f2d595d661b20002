"""JSON to HCN structs and back.

Input is read generously, as HNS and its clients do: keys and enumeration values in any case, the divergent
spellings of the field (``Setting``/``Routes``, ``ExceptionList``/``Exceptions``, ``Suffix``/``Domain``,
``Data``/``Settings``), numbers as text and text as numbers, null for "not given". Output has one exact
spelling, and omits what is empty. What is in doubt is refused with the path of the field: a key given
twice with two values, a number out of range, a value of the wrong shape.
"""

from __future__ import annotations

import enum
import types
import typing
from functools import cache
from typing import Any, Final, TypeVar, cast

import msgspec

from samewire.hcn.base import Wire
from samewire.hcn.errors import HcnCode, HcnError, fail
from samewire.hcn.flat import V2_NAMES, from_flat
from samewire.hcn.loadbalancers import (
    BackendFlags,
    LoadBalancer,
    LoadBalancerBackend,
    LoadBalancerFlags,
    LoadBalancerPortMapping,
    LoadBalancerSettings,
    PortMappingFlags,
)
from samewire.hcn.modify import (
    ContainerSettings,
    EndpointSettings,
    ExtensionSettings,
    IpSubnetSettings,
    ModifySettingRequest,
    ModifySettings,
    PolicySettings,
    PortSettings,
    RequestType,
    SubnetSettings,
)
from samewire.hcn.policies import (
    ACL,
    KNOWN_POLICIES,
    L4WFPPROXY,
    FilterTuple,
    L4Proxy,
    NatFlags,
    NetworkACL,
    OtherPolicy,
    OutBoundNAT,
    Policy,
    PolicyBase,
    PortMapping,
    SetPolicy,
    TierAclRule,
    policy_type,
)
from samewire.hcn.readers import (
    Read,
    enum_reader,
    flags_reader,
    int_enum_reader,
    int_reader,
    list_reader,
    read_bool,
    read_list_text,
    read_protocol,
    read_text,
    shape,
)
from samewire.hcn.schema import (
    STRUCTS,
    Dns,
    Endpoint,
    EndpointFlags,
    IpSubnet,
    IpSubnetFlags,
    Kind,
    Network,
    NetworkFlags,
    Object,
    Route,
    Subnet,
    SubnetFlags,
)

W = TypeVar("W", bound=Wire)

ALIASES: dict[type[Wire], dict[str, str]] = {
    Route: {"setting": "Routes"},
    L4WFPPROXY: {"port": "OutboundProxyPort"},
    Dns: {"suffix": "Domain"},
    OutBoundNAT: {"exceptionlist": "Exceptions", "vip": "VirtualIP"},
    L4Proxy: {"exceptionlist": "Exceptions"},
    SetPolicy: {"type": "PolicyType"},
}
OUTPUT_ONLY = frozenset({"health", "state", "telemetry", "version", "namespaceguid", "additionalparams"})
"""Fields that the service itself writes on output; clients send them back, and they mean nothing then."""

FLAT_TYPES = frozenset({*KNOWN_POLICIES, *V2_NAMES})
"""Types (lower case) whose fields may stand beside ``Type``, as in HNS v1."""

LISTS_AS_TEXT = frozenset({ACL, NetworkACL, TierAclRule, FilterTuple, SetPolicy})
"""Structs with comma-separated lists, for which some clients send JSON arrays."""

INTERNAL = frozenset({"extra", "beside", "shared_containers", "detached", "netns_identity"})
"""Attributes that are no fields of the JSON object."""

FLAGS: dict[type[Wire], type[enum.IntFlag]] = {
    Network: NetworkFlags,
    Endpoint: EndpointFlags,
    Subnet: SubnetFlags,
    IpSubnet: IpSubnetFlags,
    OutBoundNAT: NatFlags,
    PortMapping: NatFlags,
    LoadBalancer: LoadBalancerFlags,
    LoadBalancerPortMapping: PortMappingFlags,
    LoadBalancerBackend: BackendFlags,
}


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

    Load balancers may be modified by sending the whole object, as HNS's clients do.
    """
    fields = _lowered(value, "$")
    if kind is Kind.LOADBALANCER and not fields.keys() & {"resourcetype", "requesttype"}:
        whole = cast(LoadBalancer, decode_object(kind, value))
        return ModifySettingRequest(request_type=RequestType.UPDATE, settings=whole)
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
    code = HcnCode.REQUEST_UNSUPPORTED if fields.get("requesttype") else HcnCode.INVALID_JSON
    request_type = enum_reader(RequestType, code)(fields.get("requesttype"), "$.RequestType")
    settings = fields.get("settings")
    body = _read_struct(wanted, {} if settings is None else settings, "$.Settings")
    return ModifySettingRequest(request_type=request_type, settings=cast(ModifySettings, body))


def encode_modify(kind: Kind, request: ModifySettingRequest) -> dict[str, Any]:
    """Return the JSON object of a modify request; of a whole load balancer that is the load balancer. Raises
    TypeError for settings of another kind.
    """
    settings = request.settings
    if isinstance(settings, LoadBalancer):
        return encode(settings)
    names = [name for name, struct in _RESOURCES[kind].items() if struct is type(settings)]
    if not names:
        raise TypeError(f"{type(settings).__name__} are no settings of {kind.value}")
    how = request.request_type.value
    return {"ResourceType": names[0], "RequestType": how, "Settings": encode(settings)}


_RESOURCES: dict[Kind, dict[str, type[Wire]]] = {
    Kind.NETWORK: {
        "Policy": PolicySettings,
        "DNS": Dns,
        "Subnet": SubnetSettings,
        "IPSubnet": IpSubnetSettings,
        "Extension": ExtensionSettings,
    },
    Kind.ENDPOINT: {"Policy": PolicySettings, "Port": PortSettings},
    Kind.NAMESPACE: {"Endpoint": EndpointSettings, "Container": ContainerSettings},
    Kind.ROUTE: {},
    Kind.LOADBALANCER: {"LoadBalancer": LoadBalancerSettings, "Endpoint": EndpointSettings},
}


_PLAIN: Final = frozenset({str, int, bool, type(None)})
"""What is its own JSON: nearly every field, of thousands of objects."""


def encode(value: Wire) -> dict[str, Any]:
    """Return the JSON object of a struct: exact spelling, nothing empty, unknown fields as they came."""
    result: dict[str, Any] = {}
    for attribute, name, required in _output_fields(type(value)):
        item = getattr(value, attribute)
        if item.__class__ not in _PLAIN:
            item = _encode_item(item)
        if required or (item is not None and item != "" and item != [] and item != {}):
            result[name] = item
    if value.extra:
        result.update((name, msgspec.json.decode(text)) for name, text in value.extra)
    return result


def encode_policy(policy: Policy) -> dict[str, Any]:
    """Return the ``{"Type": ..., "Settings": ...}`` of a policy."""
    settings = (
        msgspec.json.decode(policy.settings_json) if isinstance(policy, OtherPolicy) else encode(policy)
    )
    result = {"Type": policy_type(policy), "Settings": settings}
    if policy.beside:
        result.update((name, msgspec.json.decode(text)) for name, text in policy.beside)
    return result


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
def _output_fields(cls: type[Wire]) -> list[tuple[str, str, bool]]:
    """Return attribute, name in JSON, and whether a reader needs it."""
    return [
        (field.name, field.encode_name, field.required)
        for field in msgspec.structs.fields(cls)
        if field.name not in INTERNAL
    ]


def _lowered(value: Any, path: str) -> dict[str, Any]:
    """Return the fields of a JSON object by lower-case name."""
    if not isinstance(value, dict):
        fail(path, f"expected an object, got {shape(value)}")
    lowered = {key.lower(): item for key, item in value.items()}
    if len(lowered) != len(value):
        fail(path, "two keys differ only in case")
    return lowered


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
        if field.name in INTERNAL:
            continue
        name = field.encode_name
        fields[name.lower()] = (field.name, name, _reader(cls, field.name, hints[field.name]))
        if field.required:
            required[field.name] = name
    for alias, name in ALIASES.get(cls, {}).items():
        fields[alias] = fields[name.lower()]
    return _Input(fields, required)


def _read_struct(cls: type[W], value: Any, path: str) -> W:
    """Read a JSON object, keeping what is unknown. Raises HcnError(INVALID_JSON)."""
    if not isinstance(value, dict):
        fail(path, f"expected an object, got {shape(value)}")
    plan = _input(cls)
    arguments: dict[str, Any] = {}
    extra: list[tuple[str, str]] = []
    for key, item in value.items():
        known = plan.fields.get(key.lower())
        if known is None:
            extra.append((key, canonical_json(item)))
            continue
        attribute, name, read = known
        if item is None:
            continue
        given = read(item, f"{path}.{name}")
        if arguments.setdefault(attribute, given) != given:
            fail(f"{path}.{name}", f"given twice (also as {key!r})")
    for attribute, name in plan.required.items():
        if attribute not in arguments:
            fail(f"{path}.{name}", "is required")
    return cls(**arguments, extra=tuple(sorted(extra)))


def _read_policy(value: Any, path: str) -> Policy | None:
    """Read a policy; None for ``{}`` or an empty type alone, which clients send to say "no policies"."""
    fields = _lowered(value, path)
    if not fields or fields == {"type": ""}:
        return None
    name = fields.pop("type", None)
    if not isinstance(name, str) or not name:
        fail(f"{path}.Type", f"expected the name of a policy type, got {shape(name)}", HcnCode.INVALID_POLICY)
    if "settings" in fields and "data" in fields:
        fail(f"{path}.Settings", "given twice (also as 'Data')")
    settings = fields.pop("settings", fields.pop("data", None))
    beside = tuple((key, canonical_json(item)) for key, item in value.items() if key.lower() in fields)
    if beside and settings is None and name.lower() in FLAT_TYPES:
        return _read_policy(from_flat(value), path)
    known = KNOWN_POLICIES.get(name.lower())
    if known is None:
        return OtherPolicy(type_name=name, settings_json=canonical_json(settings), beside=beside)
    try:
        policy = _read_struct(known, {} if settings is None else settings, f"{path}.Settings")
    except HcnError as error:
        raise HcnError(HcnCode.INVALID_POLICY, error.message) from None
    return cast(Policy, msgspec.structs.replace(policy, beside=beside) if beside else policy)


def _read_policies(value: Any, path: str) -> tuple[Policy, ...]:
    if not isinstance(value, list):
        fail(path, f"expected an array of policies, got {shape(value)}")
    policies = (_read_policy(item, f"{path}[{index}]") for index, item in enumerate(value))
    return tuple(policy for policy in policies if policy is not None)


def _reader(cls: type[Wire], attribute: str, hint: Any) -> Read:
    """Return the function that reads one field."""
    if attribute == "flags":
        return flags_reader(FLAGS.get(cls, enum.IntFlag))
    if attribute == "protocol":
        return read_protocol
    if attribute == "policies":
        return _read_policies
    if cls in LISTS_AS_TEXT and hint is str:
        return read_list_text
    return _type_reader(hint)


def _type_reader(hint: Any) -> Read:
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        return _type_reader(next(part for part in typing.get_args(hint) if part is not types.NoneType))
    if origin is tuple:
        return list_reader(_type_reader(typing.get_args(hint)[0]))
    if origin is typing.Annotated:
        return int_reader(typing.get_args(hint)[1])
    if isinstance(hint, type) and issubclass(hint, Wire):
        return lambda value, path: _read_struct(hint, value, path)
    if isinstance(hint, type) and issubclass(hint, enum.IntEnum):
        return int_enum_reader(hint)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return enum_reader(hint)
    return {str: read_text, bool: read_bool}[hint]
