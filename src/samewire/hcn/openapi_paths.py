"""OpenAPI descriptions of what is not an object: calls of the libraries, HNS v1, notifications, tools."""

from __future__ import annotations

from typing import Any

JsonObject = dict[str, Any]

TEXT: JsonObject = {"type": "string"}
ANY: JsonObject = {"type": "object"}
ROWS: JsonObject = {"type": "array", "items": ANY}
QUERY: JsonObject = {"$ref": "#/components/schemas/Query"}

TOOLS: dict[str, tuple[str, str, JsonObject, dict[str, str]]] = {
    "/v2/health": ("get", "State of the node", ANY, {}),
    "/v2/doctor": ("get", "What is wrong with the node, and what to do about it", ANY, {}),
    "/v2/services": (
        "get",
        "The Services of the node's kube-proxy",
        {},
        {"name": "of a Service", "counts": "1: with counters"},
    ),
    "/v2/switch/diff": ("get", "Wanted against kernel", ANY, {}),
    "/v2/switch/trace": ("post", "The way of a packet, layer by layer", ANY, {}),
    "/v2/switch/endpoints": (
        "get",
        "Endpoints with port, interfaces and namespace",
        {},
        {"endpoint": "any name of one"},
    ),
    "/v2/switch/ports": ("get", "Ports", ROWS, {"endpoint": "any name of one, or uplink, tunnel, host"}),
    "/v2/switch/layers": (
        "get",
        "Layers, groups and rules of a port",
        ANY,
        {"endpoint": "any name of one, or uplink, tunnel, host"},
    ),
    "/v2/switch/flows": (
        "get",
        "Connections",
        {},
        {"endpoint": "any name of one", "limit": "the first so many", "summary": "1: counters instead"},
    ),
    "/v2/switch/drops": (
        "get",
        "Drops by kind",
        ROWS,
        {
            "endpoint": "any name of one, or uplink, tunnel, host",
            "watch": "1: a line of JSON for each packet, until the client hangs up",
        },
    ),
    "/v2/switch/tables": ("get", "The tables as the kernel has them", ANY, {"name": "of a table"}),
}
"""Path -> method, summary, schema of the answer, query parameters."""


def tool_paths() -> JsonObject:
    """Return the paths of the tools."""
    paths: JsonObject = {
        path: {
            method: operation(
                summary, schema, parameters=_query(parameters), body=ANY if method == "post" else None
            )
        }
        for path, (method, summary, schema, parameters) in TOOLS.items()
    }
    paths["/v2/metrics"] = {
        "get": {
            "summary": "Prometheus metrics",
            "responses": {"200": {"description": "metrics", "content": {"text/plain": {"schema": TEXT}}}},
        }
    }
    return paths


def _query(parameters: dict[str, str]) -> list[JsonObject]:
    return [
        {"name": name, "in": "query", "description": description, "schema": TEXT}
        for name, description in parameters.items()
    ]


def call_paths(collection: str, title: str, item: JsonObject) -> JsonObject:
    """Return the paths of one kind that stand for calls of computenetwork.dll."""
    ids = {"type": "array", "items": {"type": "string", "format": "uuid"}}
    one = {"parameters": [item]}
    return {
        f"{collection}/enumerate": {
            "post": operation(f"Ids of the {title} objects that match", ids, body=QUERY)
        },
        f"{collection}/{{id}}/open": {
            **one,
            "post": operation(f"Whether a {title} is there", None, status=204),
        },
        f"{collection}/{{id}}/query": {
            **one,
            "post": operation(f"A {title} in the shape of the query's SchemaVersion", ANY, body=QUERY),
        },
    }


def other_paths(item: JsonObject) -> JsonObject:
    """Return the paths that no kind has in common with others."""
    addresses = operation("Addresses of an endpoint", ANY)
    path = {
        "name": "path",
        "in": "path",
        "required": True,
        "description": "as HNSCall has it",
        "schema": TEXT,
    }
    envelope = {"$ref": "#/components/schemas/Envelope"}
    v1 = operation("A call of HNS v1", envelope)
    return {
        "/v2/endpoints/{id}/addresses": {"parameters": [item], "get": addresses, "post": addresses},
        "/v2/notifications": {
            "get": {
                "summary": "What happens, a line of JSON each; empty lines say that nothing did",
                "responses": {
                    "200": {
                        "description": "notifications",
                        "content": {
                            "application/x-ndjson": {"schema": {"$ref": "#/components/schemas/Notification"}}
                        },
                    }
                },
            }
        },
        "/v1/{path}": {
            "parameters": [path],
            "get": v1,
            "post": operation("A call of HNS v1", envelope, body=ANY),
            "delete": v1,
        },
    }


def operation(
    summary: str,
    schema: JsonObject | None,
    status: int = 200,
    body: JsonObject | None = None,
    parameters: list[JsonObject] | None = None,
) -> JsonObject:
    """Return an operation; ``schema`` None = an answer without a body."""
    success: JsonObject = {"description": summary}
    if schema is not None:
        success["content"] = {"application/json": {"schema": schema}}
    failure = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    result: JsonObject = {
        "summary": summary,
        "responses": {
            str(status): success,
            "default": {"description": "The request failed", "content": failure},
        },
    }
    if parameters:
        result["parameters"] = parameters
    if body is not None:
        result["requestBody"] = {"required": False, "content": {"application/json": {"schema": body}}}
    return result


SCHEMAS: JsonObject = {
    "Query": {
        "type": "object",
        "properties": {
            "SchemaVersion": {"$ref": "#/components/schemas/SchemaVersion"},
            "Flags": {"enum": [0, 1], "description": "1: detailed"},
            "Filter": {"type": "string", "description": "a Filter object as JSON text"},
        },
    },
    "Envelope": {
        "type": "object",
        "required": ["Success", "Error", "ErrorCode"],
        "properties": {
            "Success": {"type": "boolean"},
            "Error": TEXT,
            "ErrorCode": {"type": "integer"},
            "Output": {},
        },
    },
    "Notification": {
        "type": "object",
        "required": ["Type", "Status", "Data"],
        "properties": {
            "Type": {"type": "integer"},
            "Status": {"type": "integer"},
            "Data": {"type": "object", "properties": {"ID": TEXT, "Flags": {"type": "integer"}, "Data": ANY}},
        },
    },
}
