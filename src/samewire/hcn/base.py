"""What all HCN structs share: names on the wire, scalar types, and the fields we do not know.

Attributes are the snake_case form of the HCN name (``ip_address_prefix`` is ``IpAddressPrefix``);
`WIRE_NAMES` lists the ones that do not follow. All structs are frozen and hashable, so that a value can be
shared between the store, the compiler and a reader without a copy.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

U8 = Annotated[int, msgspec.Meta(ge=0, le=2**8 - 1)]
U16 = Annotated[int, msgspec.Meta(ge=0, le=2**16 - 1)]
U32 = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
U64 = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]  # msgspec bounds are signed 64-bit

WIRE_NAMES = {
    "id": "ID",
    "extra": "$",
    "beside": "$$",
    "rule_id": "Id",
    "set_id": "Id",
    "resource_id": "Id",
    "extension_id": "ExtensionID",
    "ip": "IP",
    "user_sid": "UserSID",
    "outbound_nat": "OutboundNAT",
    "vip": "VIP",
    "virtual_ip": "VirtualIP",
    "network_id": "HostComputeNetwork",
    "namespace_id": "HostComputeNamespace",
    "endpoint_ids": "HostComputeEndpoints",
    "compartment_id": "NamespaceId",
    "source_vip": "SourceVIP",
    "frontend_vips": "FrontendVIPs",
    "local_endpoint_ids": "LocalEndpoints",
    "draining_endpoint_ids": "DrainingEndpoints",
}


def wire_name(attribute: str) -> str:
    """Return the HCN spelling of a struct attribute."""
    return WIRE_NAMES.get(attribute) or attribute.title().replace("_", "")


class Wire(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    omit_defaults=True,
    forbid_unknown_fields=True,
    rename=wire_name,
):
    """Base of every HCN value.

    ``extra`` holds the fields of the JSON object that Samewire does not know, as (name as received, JSON
    text with sorted keys): they are returned unchanged, and stay hashable. Clients of newer schema versions
    lose nothing.
    """

    extra: tuple[tuple[str, str], ...] = ()


class SchemaVersion(Wire, frozen=True, kw_only=True):
    """Version of the schema that an object was written in."""

    major: U32 = 2
    minor: U32 = 0
