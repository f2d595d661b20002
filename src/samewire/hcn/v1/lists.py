"""v1's policy lists: a load balancer (ELB) or a route (ROUTE) with the endpoints it is for."""

from __future__ import annotations

from typing import Any

import msgspec

from samewire.hcn.codec import encode
from samewire.hcn.errors import HcnCode, HcnError, fail
from samewire.hcn.readers import integer, read_text
from samewire.hcn.schema import Kind, Object, Route
from samewire.hcn.state import View
from samewire.hcn.v1.read import Fields

JsonObject = dict[str, Any]

KINDS = (Kind.LOADBALANCER, Kind.ROUTE)
ENDPOINTS, NETWORKS = "/endpoints/", "/networks/"
TCP = 6
"""What is balanced when a list does not say: New-HnsLoadBalancer of hns.psm1 cannot."""
DSR, ILB = 1, 1
"""The flags of a load balancer and of its port mapping that v1 has as booleans."""
_MAPPING = frozenset({"Protocol", "InternalPort", "ExternalPort", "DistributionType", "Flags"})


def find(view: View, object_id: str) -> Object:
    """Return the object of a policy list. Raises HcnError."""
    for kind in KINDS:
        found = view.get(kind, object_id)
        if found is not None:
            return found
    raise HcnError(HcnCode.ERROR_NOT_FOUND, f"Element not found. (policy list {object_id})")


def kind_of(value: Object) -> Kind:
    """Return the kind of a policy list's object."""
    return Kind.ROUTE if isinstance(value, Route) else Kind.LOADBALANCER


def to_v2(body: Any) -> tuple[Kind, JsonObject]:
    """Return the kind and the v2 JSON of a policy list. Raises HcnError."""
    fields = Fields(body)
    references = _references(fields.take("References"))
    policies = [Fields(item) for item in fields.items("Policies")]
    kinds = {policy.text("Type").lower() for policy in policies}
    if kinds not in ({"elb"}, {"route"}):
        raise HcnError(
            HcnCode.INVALID_POLICY, "$.Policies: a policy list holds policies of one type, ELB or ROUTE"
        )
    common = {**fields.rest(), **references}
    if kinds == {"route"}:
        return Kind.ROUTE, {**common, "Routes": [policy.rest() for policy in policies]}
    return Kind.LOADBALANCER, {**common, **_balancer(policies)}


def as_kind(kind: Kind, body: Any) -> JsonObject:
    """Return the v2 JSON of a policy list that is to be of a kind. Raises HcnError."""
    found, given = to_v2(body)
    if found is not kind:
        raise HcnError(HcnCode.INVALID_POLICY, f"$.Policies: these are no policies of {kind.value}")
    return given


def _references(value: Any) -> JsonObject:
    if not isinstance(value, list):
        fail("$.References", 'expected an array such as ["/endpoints/<id>"]')
    endpoints: list[str] = []
    result: JsonObject = {"HostComputeEndpoints": endpoints}
    for index, item in enumerate(value):
        text = read_text(item, f"$.References[{index}]")
        if text.lower().startswith(ENDPOINTS):
            endpoints.append(text[len(ENDPOINTS) :])
        elif text.lower().startswith(NETWORKS):
            result["HostComputeNetwork"] = text[len(NETWORKS) :]
        else:
            raise HcnError(
                HcnCode.INVALID_JSON_REFERENCE,
                f"$.References[{index}]: expected /endpoints/<id>, got {text[:64]!r}",
            )
    return result


def _balancer(policies: list[Fields]) -> JsonObject:
    """Return the fields of a load balancer; all ports of a list share its addresses and flags."""
    shared: list[JsonObject] = []
    mappings: list[JsonObject] = []
    for index, policy in enumerate(policies):
        path = f"$.Policies[{index}]"
        shared.append(
            {
                "SourceVIP": policy.text("SourceVIP"),
                "FrontendVIPs": policy.texts("VIPs"),
                "Flags": DSR if policy.flag("IsDSR") else 0,
            }
        )
        mapping = {
            "Protocol": policy.take("Protocol") or TCP,
            "InternalPort": policy.take("InternalPort"),
            "ExternalPort": policy.take("ExternalPort"),
            "Flags": ILB if policy.flag("ILB") else 0,
        }
        mappings.append({**policy.rest(), **mapping})
        if shared[-1] != shared[0]:
            raise HcnError(
                HcnCode.INVALID_POLICY, f"{path}: the VIPs and flags of a list's ELB policies differ"
            )
    return {**shared[0], "PortMappings": mappings}


def to_v1(value: Object) -> JsonObject:
    """Return a policy list."""
    body = encode(value)
    unknown = {name: msgspec.json.decode(text) for name, text in value.extra}
    references = [f"{ENDPOINTS}{item}" for item in body.get("HostComputeEndpoints", [])]
    if not references and body.get("HostComputeNetwork"):
        references = [f"{NETWORKS}{body['HostComputeNetwork']}"]
    policies = _routes(value) if isinstance(value, Route) else _ports(body)
    return {"ID": value.id, "References": references, "Policies": policies, **unknown}


def _routes(value: Route) -> list[JsonObject]:
    return [{"Type": "ROUTE", **encode(item)} for item in value.routes]


def _ports(body: JsonObject) -> list[JsonObject]:
    return [
        {
            "Type": "ELB",
            "Protocol": mapping.get("Protocol", 0),
            "InternalPort": mapping.get("InternalPort", 0),
            "ExternalPort": mapping.get("ExternalPort", 0),
            "SourceVIP": body.get("SourceVIP", ""),
            "VIPs": body.get("FrontendVIPs", []),
            "ILB": bool((integer(mapping.get("Flags", 0)) or 0) & ILB),
            "IsDSR": bool((integer(body.get("Flags", 0)) or 0) & DSR),
            **{name: item for name, item in mapping.items() if name not in _MAPPING},
        }
        for mapping in body.get("PortMappings", [])
    ]
