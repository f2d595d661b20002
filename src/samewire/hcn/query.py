"""What the API shows of objects: their JSON with the fields the service derives, and HNS's filters."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import msgspec

from samewire.hcn.codec import encode, encode_policy
from samewire.hcn.errors import HcnCode, HcnError
from samewire.hcn.jsontext import parse_json
from samewire.hcn.numbered import name_of, numbered
from samewire.hcn.policies import NOT_ENFORCED, Policy, policy_type
from samewire.hcn.policy_lists import is_long
from samewire.hcn.readers import integer
from samewire.hcn.schema import (
    Endpoint,
    Kind,
    Namespace,
    NamespaceType,
    Network,
    Object,
    ObjectState,
    ResourceType,
    Route,
)
from samewire.hcn.state import View
from samewire.hcn.switch import StoreView

FILTER_KEYS = frozenset({"id", "name", "virtualnetwork", "virtualnetworkname", "state"})
GUID_KEYS = frozenset({"id", "virtualnetwork"})
MAX_KEPT = 8192
MAX_KEPT_BYTES = 4096
_FEW_KEPT = 64
MAX_REMEMBERED = 1024
QUERY_KEYS = frozenset({"schemaversion", "flags", "filter"})


def state_of(view: StoreView, value: Object) -> ObjectState:
    """Return the state HNS would report: process-isolated pods are "attached sharing", what is attached to the
    node itself is "attached". (Policy agents filter by the former to get the pods and nothing else.) What exists and
    cannot work is "degraded", a namespace when one of its endpoints is.
    """
    if _trouble(view, value):
        return ObjectState.DEGRADED
    return _attachment(view, value) if isinstance(value, Endpoint) else ObjectState.CREATED


def _trouble(view: StoreView, value: Object) -> str:
    """Return why an object cannot work, "" when nothing is known; a namespace has its endpoints' troubles."""
    own = view.trouble_of(value.id)
    if own or not isinstance(value, Namespace):
        return own
    return next(filter(None, (view.trouble_of(one.id) for one in view.endpoints_of_namespace(value.id))), "")


def _attachment(view: StoreView, endpoint: Endpoint) -> ObjectState:
    namespace = view.namespace(endpoint.namespace_id) if endpoint.namespace_id else None
    if namespace is not None and namespace.type is NamespaceType.HOST_DEFAULT:
        return ObjectState.ATTACHED
    if endpoint.namespace_id or endpoint.shared_containers:
        return ObjectState.ATTACHED_SHARING
    return ObjectState.DETACHED if endpoint.detached else ObjectState.CREATED


class Query(msgspec.Struct, frozen=True):
    """A HostComputeQuery: which objects, how much of them, and in which schema's shape."""

    filter: dict[str, str] = {}
    major: int = 2
    detailed: bool = False


EVERYTHING = Query()


def render(view: View, value: Object, detailed: bool = False) -> dict[str, Any]:
    """Return an object's JSON with the derived fields.

    ``State``, the endpoints among a namespace's ``Resources``, a route's entries once more as
    ``Setting`` (where hcsshim looks for them), and ``Health.Extra.StoredOnly``: the types of policies that are
    kept but not enforced; ``Health.Data.Error``: why it is degraded.
    """
    body = _body(value)
    body["State"] = int(state_of(view, value))
    if isinstance(value, Route):
        body["Setting"] = body["Routes"]
    if isinstance(value, Namespace):
        body["NamespaceGuid"] = value.id
        members = view.endpoints_of_namespace(value.id)
        resources = [{"Type": ResourceType.ENDPOINT.value, "Data": {"Id": member.id}} for member in members]
        if resources:
            body["Resources"] = [*body.get("Resources", []), *resources]
    extra = _details(view, value) if detailed else {}
    stored_only = _stored_only(value)
    if stored_only:
        extra["StoredOnly"] = stored_only
    health = {"Extra": extra} if extra else {}
    trouble = _trouble(view, value)
    if trouble:
        health["Data"] = {"Error": trouble}
    if health:
        body["Health"] = health
    return body


def _body(value: Object) -> dict[str, Any]:
    """Return an object's own JSON. The texts of many policies are kept: most are what they were the last time."""
    if not isinstance(value, Network | Endpoint) or not is_long(numbered(value.policies)):
        return encode(value)
    texts = numbered(value.policies).mapped(_policy_text)
    body = encode(msgspec.structs.replace(value, policies=()))
    return {**body, "Policies": msgspec.Raw(b"[" + b",".join(texts) + b"]")}


def _policy_text(policy: Policy) -> bytes:
    return msgspec.json.encode(encode_policy(policy))


class Rendered:
    """The JSON text of objects as `render` shows them, kept while an object stays what it is.

    Clients of HCN enumerate and then ask for each object, again and again.
    """

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        self._kept: dict[str, tuple[Object, bytes]] = {}
        self._room = _FEW_KEPT

    def json(self, view: View, value: Object) -> bytes:
        """Return the JSON text of an object."""
        # a namespace shows the endpoints in it, which come and go, as troubles do
        if isinstance(value, Namespace) or view.trouble_of(value.id):
            return msgspec.json.encode(render(view, value))
        kept = self._kept.get(value.id)
        if kept is not None and kept[0] is value:
            return kept[1]
        text = msgspec.json.encode(render(view, value))
        if len(text) <= MAX_KEPT_BYTES:
            if len(self._kept) >= self._room:
                self._sweep(view)
            self._kept[value.id] = (value, text)
        return text

    def _sweep(self, view: View) -> None:
        """Let go of objects that are no more: a node has few pods at a time, and very many in its life."""
        self._kept = {
            name: item for name, item in self._kept.items() if view.get(self._kind, name) is item[0]
        }
        if len(self._kept) >= MAX_KEPT:
            self._kept.clear()
        self._room = min(max(2 * len(self._kept), _FEW_KEPT), MAX_KEPT)


def _details(view: View, value: Object) -> dict[str, Any]:
    """Return what a detailed query adds to an object's Health."""
    if isinstance(value, Network):
        return {"Resources": {"Endpoints": view.ids(("network", value.id))}, **_policy_numbers(value)}
    if isinstance(value, Endpoint) and value.shared_containers:
        return {"SharedContainers": list(value.shared_containers), **_policy_numbers(value)}
    return _policy_numbers(value) if isinstance(value, Endpoint) else {}


def _policy_numbers(value: Network | Endpoint) -> dict[str, Any]:
    """Return what rules, drops and traces call the policies, in their order, where that is not 1, 2, 3, ..."""
    names = [name_of(number) for number in numbered(value.policies).numbers]
    return {"PolicyNumbers": names} if names != list(range(1, len(names) + 1)) else {}


def _stored_only(value: Object) -> list[str]:
    lists = [value.policies] if isinstance(value, Network | Endpoint) else []
    if isinstance(value, Network):
        lists += [subnet.policies for subnet in value.subnets]
    return sorted({str(name) for policies in lists for name in numbered(policies).by(_not_enforced)})


def _not_enforced(policy: Policy) -> tuple[str, ...]:
    return (policy_type(policy),) if type(policy) in NOT_ENFORCED else ()


def find(view: View, kind: Kind, query: Query) -> list[Object]:
    """Return the objects of a kind that a query's filter matches; all of its keys must."""
    wanted = query.filter
    if "id" in wanted:
        found = view.get(kind, wanted["id"])
        candidates = [] if found is None else [found]
    else:
        candidates = view.all(kind)
    return [value for value in candidates if all(_matches(view, value, *item) for item in wanted.items())]


def parse_query(text: str | bytes) -> Query:
    """Return the query of a call ("" = all objects).

    It is a HostComputeQuery, ``{SchemaVersion, Flags, Filter}``, or just the filter: a JSON object with
    HNS's v1 names (``ID``, ``Name``, ``VirtualNetwork``, ``VirtualNetworkName``, ``State``). Raises HcnError.
    """
    return _remembered(text) if len(text) <= MAX_REMEMBERED else _parsed(text)


def _parsed(text: str | bytes) -> Query:
    if not text.strip():
        return EVERYTHING
    value = parse_json(text)
    if not isinstance(value, dict):
        raise HcnError(HcnCode.INVALID_JSON, "$: a query is a JSON object")
    fields = {key.lower(): item for key, item in value.items()}
    if not fields.keys() & QUERY_KEYS:
        return Query(_filter(value))
    unknown = next((key for key in value if key.lower() not in QUERY_KEYS), None)
    if unknown is not None:
        raise HcnError(HcnCode.INVALID_JSON, f"$.{unknown[:64]}: is no part of a query")
    flags = integer(fields.get("flags") or 0)
    if flags is None or flags not in (0, 1):
        raise HcnError(HcnCode.INVALID_JSON, "$.Flags: expected 0 (None) or 1 (Detailed)")
    return Query(_filter(_inner(fields.get("filter"))), _major(fields.get("schemaversion")), bool(flags))


_remembered = lru_cache(maxsize=64)(_parsed)


def _inner(value: Any) -> Any:
    """Return the filter of a query, which is JSON within JSON."""
    return parse_json(value) if isinstance(value, str) and value.strip() else value or {}


def _major(value: Any) -> int:
    if value is None:
        return 2
    fields = {key.lower(): item for key, item in value.items()} if isinstance(value, dict) else {}
    major = integer(fields.get("major"))
    if major not in (0, 1, 2):
        raise HcnError(HcnCode.INVALID_JSON, "$.SchemaVersion: expected an object with Major 1 or 2")
    return major or 2  # hcsshim sends 0 where its caller says nothing


def _filter(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise HcnError(HcnCode.INVALID_JSON, "filter: expected a JSON object")
    result = {}
    for key, item in value.items():
        if key.lower() not in FILTER_KEYS or isinstance(item, dict | list | bool) or item is None:
            raise HcnError(HcnCode.E_INVALIDARG, f"filter: {key[:64]!r} is not something to filter by")
        text = str(item)
        result[key.lower()] = _plain_guid(text) if key.lower() in GUID_KEYS else text
    return result


def _plain_guid(text: str) -> str:
    return text.upper().removeprefix("{").removesuffix("}")


def _matches(view: View, value: Object, key: str, wanted: str) -> bool:
    if key == "id":
        return value.id == wanted
    if key == "name":
        return value.name == wanted
    if key == "state":
        return str(int(state_of(view, value))) == wanted
    network_id = "" if isinstance(value, Network | Namespace) else value.network_id
    if key == "virtualnetwork":
        return network_id == wanted
    network = view.network(network_id)
    return network is not None and network.name == wanted
