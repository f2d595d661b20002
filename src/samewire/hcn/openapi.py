"""The OpenAPI 3.1 description of the HTTP API, made from the structs.

``python -m samewire.hcn.openapi`` prints it; docs/api/openapi.json is its output, and a test keeps it so.
"""

from __future__ import annotations

import json
import re
from typing import Any, get_args

import msgspec

from samewire.hcn.base import wire_name
from samewire.hcn.codec import INTERNAL
from samewire.hcn.errors import HcnCode
from samewire.hcn.modify import ModifySettings, RequestType
from samewire.hcn.openapi_paths import SCHEMAS, call_paths, other_paths, tool_paths
from samewire.hcn.policies import KNOWN_POLICIES, OtherPolicy
from samewire.hcn.schema import STRUCTS, Kind
from samewire.hcn.switch import EndpointStats

JsonObject = dict[str, Any]

INTRODUCTION = (
    "HCN v2 objects of one node, over HTTP on the daemon's unix socket. On input, keys, policy types and "
    "enumeration values are accepted in any case and numbers as text; output has the spelling given here and "
    "omits what is empty. Fields and policy types that are not described are stored and returned unchanged. "
    "See docs/api.md."
)
TITLES = {
    Kind.NETWORK: "HostComputeNetwork",
    Kind.ENDPOINT: "HostComputeEndpoint",
    Kind.NAMESPACE: "HostComputeNamespace",
    Kind.ROUTE: "HostComputeRoute",
    Kind.LOADBALANCER: "HostComputeLoadBalancer",
}
RESOURCE_TYPES = {
    Kind.NETWORK: ["Policy", "DNS", "Subnet", "IPSubnet", "Extension"],
    Kind.ENDPOINT: ["Policy", "Port"],
    Kind.NAMESPACE: ["Endpoint", "Container"],
    Kind.LOADBALANCER: ["LoadBalancer", "Endpoint"],
}
HIDDEN = frozenset(wire_name(attribute) for attribute in INTERNAL)


def document() -> JsonObject:
    """Return the whole description."""
    paths: JsonObject = {"/v2/version": {"get": _operation("Version of the API", _content(_ref("Version")))}}
    for kind in Kind:
        paths.update(_paths(kind))
        paths.update(call_paths(f"/v2/{kind.value}", TITLES[kind], _ID))
    stats = _operation("Counters of an endpoint", _content(_ref("EndpointStats")))
    paths["/v2/endpoints/{id}/stats"] = {"parameters": [_ID], "get": stats, "post": stats}
    paths.update(other_paths(_ID))
    paths.update(tool_paths())
    return {
        "openapi": "3.1.0",
        "info": {"title": "Samewire HNS", "version": "2.0", "description": INTRODUCTION},
        "servers": [{"url": "http://localhost", "description": "/run/samewire/samewire.sock"}],
        "paths": paths,
        "components": {"schemas": _schemas()},
    }


_ID: JsonObject = {
    "name": "id",
    "in": "path",
    "required": True,
    "description": "GUID of the object",
    "schema": {"type": "string", "format": "uuid"},
}
_FILTER: JsonObject = {
    "name": "filter",
    "in": "query",
    "description": "JSON object; all keys must match",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Filter"}}},
}


def _paths(kind: Kind) -> JsonObject:
    title = TITLES[kind]
    item: JsonObject = {
        "parameters": [_ID],
        "get": _operation(f"One {title}", _content(_ref(title))),
        "delete": _operation(f"Delete a {title}", None, 204),
    }
    if kind in RESOURCE_TYPES:
        body = _modify_request(kind)
        if kind is Kind.LOADBALANCER:
            body = {"anyOf": [body, _ref(title)]}
        item["post"] = _operation(f"Modify a {title}", _content(_ref(title)), body=body)
    collection = {
        "get": {
            **_operation(f"All {title} objects", _content({"type": "array", "items": _ref(title)})),
            "parameters": [_FILTER],
        },
        "post": _operation(f"Create a {title}", _content(_ref(title)), 201, _ref(title)),
    }
    return {f"/v2/{kind.value}": collection, f"/v2/{kind.value}/{{id}}": item}


def _operation(
    summary: str, content: JsonObject | None, status: int = 200, body: JsonObject | None = None
) -> JsonObject:
    success: JsonObject = {"description": summary}
    if content:
        success["content"] = content
    operation: JsonObject = {
        "summary": summary,
        "responses": {
            str(status): success,
            "default": {"description": "The request failed", "content": _content(_ref("Error"))},
        },
    }
    if body:
        operation["requestBody"] = {"required": True, "content": _content(body)}
    return operation


def _content(schema: JsonObject) -> JsonObject:
    return {"application/json": {"schema": schema}}


def _ref(name: str) -> JsonObject:
    return {"$ref": f"#/components/schemas/{name}"}


def _modify_request(kind: Kind) -> JsonObject:
    return {
        "type": "object",
        "required": ["ResourceType", "RequestType"],
        "properties": {
            "ResourceType": {"enum": RESOURCE_TYPES[kind]},
            "RequestType": {"enum": [item.value for item in RequestType]},
            "Settings": {"anyOf": [_ref(name) for name in _settings_names(kind)]},
        },
    }


def _settings_names(kind: Kind) -> list[str]:
    names = {
        "Policy": "PolicySettings",
        "DNS": "Dns",
        "Subnet": "SubnetSettings",
        "IPSubnet": "IpSubnetSettings",
    }
    return [names.get(resource, f"{resource}Settings") for resource in RESOURCE_TYPES[kind]]


def _schemas() -> JsonObject:
    """Return the components: the structs' own schemas, with policies in their ``{Type, Settings}`` shape."""
    _, components = msgspec.json.schema_components(
        [*STRUCTS.values(), *get_args(ModifySettings), EndpointStats],
        ref_template="#/components/schemas/{name}",
    )
    for title in TITLES.values():  # nothing refers to these
        components[title] = components.pop(title.removeprefix("HostCompute")) | {"title": title}
    policies = {policy.__name__ for policy in KNOWN_POLICIES.values()} | {OtherPolicy.__name__}
    schemas = {
        name: _policy(name, body) if name in policies else _open(body) for name, body in components.items()
    }
    schemas["Policy"] = {"anyOf": [_ref(name) for name in sorted(policies)]}
    for title in TITLES.values():
        schemas[title]["properties"]["Health"] = {"type": "object", "readOnly": True}
        schemas[title]["properties"]["State"] = {"type": "integer", "readOnly": True}
    guid: JsonObject = {"type": "string", "readOnly": True}
    schemas[TITLES[Kind.NAMESPACE]]["properties"]["NamespaceGuid"] = guid
    route = schemas[TITLES[Kind.ROUTE]]["properties"]
    route["Setting"] = {**route["Routes"], "description": "the same as Routes"}
    return dict(sorted({**schemas, **SCHEMAS, **_FIXED}.items()))


def _open(body: JsonObject) -> JsonObject:
    """Describe a struct as the API takes it: with unknown fields, and without what is Python's own affair."""
    body = {**body, "description": _first_paragraph(body.get("description", ""))}
    if "properties" in body:
        body["properties"] = {key: item for key, item in body["properties"].items() if key not in HIDDEN}
        body.pop("additionalProperties", None)
        if "Policies" in body["properties"]:
            body["properties"]["Policies"] = {"type": "array", "items": _ref("Policy")}
    return body


def _first_paragraph(docstring: str) -> str:
    """Return the first paragraph of a docstring on one line, with fields by the names they have in JSON."""
    text = " ".join(docstring.split("\n\n")[0].split())
    text = re.sub(r"``([a-z_]+)``", lambda match: wire_name(match[1]), text)
    return text.replace("`", "")


def _policy(name: str, body: JsonObject) -> JsonObject:
    if name == OtherPolicy.__name__:
        return {
            "type": "object",
            "description": _first_paragraph(body["description"]),
            "required": ["Type"],
            "properties": {"Type": {"type": "string"}, "Settings": {}},
        }
    body = _open(body)
    fields = {key: item for key, item in body["properties"].items() if key != "Type"}
    required = [key for key in body.get("required", []) if key != "Type"]
    settings: JsonObject = {"type": "object", "properties": fields}
    if required:
        settings["required"] = required
    return {
        "type": "object",
        "description": body["description"],
        "required": ["Type", *(["Settings"] if required else [])],
        "properties": {"Type": {"const": name}, "Settings": settings},
    }


_FIXED: JsonObject = {
    "Version": {
        "type": "object",
        "properties": {"Major": {"type": "integer"}, "Minor": {"type": "integer"}},
    },
    "Filter": {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "ID": {"type": "string"},
            "Name": {"type": "string"},
            "VirtualNetwork": {"type": "string", "description": "GUID of the network"},
            "VirtualNetworkName": {"type": "string"},
            "State": {"type": "integer", "description": "1 created, 2 to 4 of endpoints only, 5 degraded"},
        },
    },
    "Error": {
        "type": "object",
        "required": ["Success", "Error", "ErrorCode"],
        "properties": {
            "Success": {"const": False},
            "Error": {
                "type": "string",
                "description": "what is wrong, with the path of the field where there is one",
            },
            "ErrorCode": {
                "type": "integer",
                "description": "HRESULT: " + ", ".join(f"{code.value:#010x} {code.name}" for code in HcnCode),
            },
        },
    },
}


def main() -> None:
    """Print the description."""
    print(json.dumps(document(), indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
