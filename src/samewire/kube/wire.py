"""The API's lists and watch events, decoded once, straight into the model (pure)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final, Generic, Literal, get_args

import msgspec
from msgspec import Raw, Struct, field
from msgspec.structs import force_setattr

from samewire.errors import SamewireError
from samewire.kube.model import EndpointSlice, Key, Namespace, Node, ObjectT, Pod, Service, TrafficPolicy
from samewire.kube.yamltext import MAX_DEPTH, without_nulls

MAX_LINE_BYTES: Final = 32 << 20

PATHS: Final[dict[type, str]] = {
    Service: "/api/v1/services",
    EndpointSlice: "/apis/discovery.k8s.io/v1/endpointslices",
    Node: "/api/v1/nodes",
    Namespace: "/api/v1/namespaces",
    Pod: "/api/v1/pods",
}
API_VERSIONS: Final[dict[type, str]] = {
    kind: path.rpartition("/")[0].removeprefix("/apis/").removeprefix("/api/") for kind, path in PATHS.items()
}


# JSON that is not what was asked for, or has texts that are no UTF-8; and what is no JSON, too.
_UNFIT: Final = (msgspec.ValidationError, UnicodeDecodeError)
_BROKEN: Final = (msgspec.DecodeError, UnicodeDecodeError)


# Brackets, and the texts in which there are none.
_BRACKETS: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[][{}]', re.DOTALL)


_POLICIES: Final = {
    "externalTrafficPolicy": ("", *get_args(TrafficPolicy)),
    "internalTrafficPolicy": get_args(TrafficPolicy),
    "sessionAffinity": ("None", "ClientIP"),
}
"""The policies of a Service, and what is known of each."""


class BrokenStream(SamewireError):
    """Bytes that are no event at all: nobody can say which object they were about."""


class ListMeta(Struct, frozen=True, rename="camel"):
    """``resource_version``: what the list shows. ``continue_token``: "" on the last page."""

    resource_version: str = ""
    continue_token: str = field(default="", name="continue")


class _Page(Struct, Generic[ObjectT], frozen=True, gc=False):
    kind: str = ""
    metadata: ListMeta = ListMeta()
    items: list[ObjectT] | None = None


class _RawPage(Struct, frozen=True):
    kind: str = ""
    metadata: ListMeta = ListMeta()
    items: list[Raw] | None = None


class _Event(Struct, Generic[ObjectT], frozen=True, gc=False):
    type: str
    object: ObjectT


class _RawEvent(Struct, frozen=True):
    object: Raw


class _LooseMeta(Struct, frozen=True, rename="camel"):
    name: str = ""
    namespace: str = ""
    resource_version: str = ""


class _LooseObject(Struct, frozen=True):
    """What can be read of an object of any kind, a Status among them."""

    metadata: _LooseMeta = _LooseMeta()
    code: int = 0
    reason: str = ""
    message: str = ""


class _LooseEvent(Struct, frozen=True):
    type: str
    object: _LooseObject


class Page(Struct, Generic[ObjectT], frozen=True):
    """One page of a list. ``unreadable``: keys of objects that could not be decoded, with the reason."""

    meta: ListMeta
    items: list[ObjectT]
    unreadable: list[tuple[Key, str]]


class Event(Struct, Generic[ObjectT], frozen=True, gc=False):
    """One event.

    ``type``: PUT and DELETE of an object (``object`` None with PUT: it could not be decoded, ``message`` says why);
    BOOKMARK: only ``version`` counts; ERROR: ``code``, ``reason`` and ``message`` are the server's.
    """

    type: Literal["PUT", "DELETE", "BOOKMARK", "ERROR"]
    key: Key
    version: str
    object: ObjectT | None = None
    code: int = 0
    reason: str = ""
    message: str = ""


class Decoder(Generic[ObjectT]):
    """Decodes one kind."""

    def __init__(self, kind: type[ObjectT]) -> None:
        self._kind: type[ObjectT] = kind
        self._object: msgspec.json.Decoder[ObjectT] = msgspec.json.Decoder(kind)
        self._page: msgspec.json.Decoder[_Page[ObjectT]] = msgspec.json.Decoder(_Page[kind])  # type: ignore[valid-type]
        self._event: msgspec.json.Decoder[_Event[ObjectT]] = msgspec.json.Decoder(_Event[kind])  # type: ignore[valid-type]

    def page(self, body: bytes) -> Page[ObjectT]:
        """One page. Raises ``BrokenStream`` if it is no list."""
        try:
            return self._read_page(body)
        except RecursionError:
            return self._read_page(_shallow(body))

    def event(self, line: bytes) -> Event[ObjectT]:
        """One event. Raises ``BrokenStream`` if it is none."""
        try:
            return self._read_event(line)
        except RecursionError:
            return self._read_event(_shallow(line))

    def _read_page(self, body: bytes) -> Page[ObjectT]:
        try:
            page = self._page.decode(body)
        except _UNFIT:
            return self._loose_page(body)
        except msgspec.DecodeError as error:
            raise BrokenStream(f"a list cannot be read: {error}") from None
        self._check(page.kind)
        items = page.items or []
        for item in items:
            _take_version(item)
        return Page(page.metadata, items, [])

    def _check(self, kind: str) -> None:
        """What is no list of our kind does not say that there is nothing of it. Raises ``BrokenStream``."""
        if kind != f"{self._kind.__name__}List":
            raise BrokenStream(
                f"a list cannot be read: its kind is {kind[:64]!r}, not {self._kind.__name__}List"
            )

    def _read_event(self, line: bytes) -> Event[ObjectT]:
        try:
            event = self._event.decode(line)
        except _UNFIT as error:
            return self._loose_event(line, str(error))
        except msgspec.DecodeError as error:
            raise BrokenStream(f"an event cannot be read: {error}") from None
        found, kind = event.object, event.type
        if (kind == "ADDED" or kind == "MODIFIED") and found.metadata.name:
            return Event("PUT", found.key, _take_version(found), found)
        return self._loose_event(line, f"event of type {kind!r} without an object's name")

    def _loose_page(self, body: bytes) -> Page[ObjectT]:
        """A page with objects that do not decode: each on its own."""
        try:
            page = msgspec.json.decode(body, type=_RawPage)
        except _BROKEN as error:
            raise BrokenStream(f"a list cannot be read: {error}") from None
        self._check(page.kind)
        items: list[ObjectT] = []
        unreadable: list[tuple[Key, str]] = []
        for raw in page.items or ():
            try:
                item = self._object_loosely(raw)
            except _UNFIT as error:
                unreadable.append((_loose_key(raw), str(error)))
            else:
                _take_version(item)
                items.append(item)
        return Page(page.metadata, items, unreadable)

    def _object_loosely(self, raw: Raw) -> ObjectT:
        """One object; null is as absent, and so is a policy of a newer version. Raises ``msgspec.ValidationError``,
        ``UnicodeDecodeError``.
        """
        try:
            return self._object.decode(raw)
        except msgspec.ValidationError:
            return msgspec.convert(_understood(without_nulls(msgspec.json.decode(raw))), self._kind)

    def _loose_event(self, line: bytes, fault: str) -> Event[ObjectT]:
        """Deletions, bookmarks and errors, of which little is read, and events with an object that does not decode."""
        try:
            event = msgspec.json.decode(line, type=_LooseEvent)
        except _BROKEN as error:
            raise BrokenStream(f"an event cannot be read: {error}") from None
        found = event.object
        meta = found.metadata
        key = (meta.namespace, meta.name)
        if event.type == "BOOKMARK":
            return Event("BOOKMARK", key, meta.resource_version)
        if event.type == "ERROR":
            return Event("ERROR", key, "", code=found.code, reason=found.reason, message=found.message)
        if not meta.name:
            raise BrokenStream(f"an event cannot be read: {fault}")
        if event.type == "DELETED":
            return Event("DELETE", key, meta.resource_version)
        if event.type in ("ADDED", "MODIFIED"):
            with suppress(*_UNFIT):
                item = self._object_loosely(msgspec.json.decode(line, type=_RawEvent).object)
                return Event("PUT", key, _take_version(item), item)
        return Event("PUT", key, meta.resource_version, message=fault)


class LineSplitter:
    """Cuts a stream into lines. What is left at its end was cut off and is no line."""

    def __init__(self, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self._max_line_bytes = max_line_bytes
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The lines that are complete now. Raises ``BrokenStream`` for one that is too long."""
        *complete, rest = chunk.split(b"\n")
        if complete and self._parts:
            complete[0] = b"".join((*self._parts, complete[0]))
            self._parts, self._size = [], 0
        if rest:
            self._parts.append(rest)
            self._size += len(rest)
        if self._size > self._max_line_bytes:
            raise BrokenStream(f"an event is longer than {self._max_line_bytes >> 20} MiB")
        return (line for line in complete if line and not line.isspace())


def _shallow(text: bytes) -> bytes:
    """JSON with null for all that nests deeper than `MAX_DEPTH`. Nothing that we read does; but who may write an object
    may nest ten thousand levels into its managedFields, and the decoder gives up at a thousand, also where it skips.
    """
    parts, depth, begin = [], 0, 0
    for found in _BRACKETS.finditer(text):
        token = found[0]
        if token in (b"{", b"["):
            depth += 1
            if depth == MAX_DEPTH + 1:
                parts += [text[begin : found.start()], b"null"]
                begin = len(text)
        elif token in (b"}", b"]"):
            if depth == MAX_DEPTH + 1:
                begin = found.end()
            depth -= 1
    return b"".join((*parts, text[begin:]))


def _understood(value: Any) -> Any:
    """An object without the policies of a Service that are not known here: as kube-proxy has it, what is none of those
    it knows is the default.
    """
    spec = value.get("spec") if isinstance(value, dict) else None
    if isinstance(spec, dict):
        for name, known in _POLICIES.items():
            if isinstance(spec.get(name), str) and spec[name] not in known:
                del spec[name]
    return value


def _take_version(item: ObjectT) -> str:
    """The version of a new object, which keeps none: an object is its contents."""
    version = item.metadata.resource_version
    force_setattr(item.metadata, "resource_version", "")
    return version


def _loose_key(raw: Raw) -> Key:
    try:
        meta = msgspec.json.decode(raw, type=_LooseObject).metadata
    except _UNFIT:
        return ("", "")
    return (meta.namespace, meta.name)
