"""What happens to the objects, told to those who listen: HCN's service notifications."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from typing import Any

import msgspec

from samewire.errors import Exhausted
from samewire.hcn.schema import Endpoint, Kind, Object
from samewire.hcn.switch import Change

MAX_LISTENERS = 64
MAX_WAITING = 65536
"""Events kept for a listener that does not read; one that is further behind is cut off."""


class NotificationType(enum.IntEnum):
    """HCN_NOTIFICATIONS: the numbers of the service callback."""

    NETWORK_PRE_CREATE = 1
    NETWORK_CREATE = 2
    NETWORK_PRE_DELETE = 3
    NETWORK_DELETE = 4
    NAMESPACE_CREATE = 5
    NAMESPACE_DELETE = 6
    NETWORK_ENDPOINT_ATTACHED = 0x9
    NETWORK_ENDPOINT_DETACHED = 0x10
    SERVICE_DISCONNECT = 0x01000000


class Notification(msgspec.Struct, frozen=True, rename={"type": "Type", "status": "Status", "data": "Data"}):
    """One call of the callback: its number, an HRESULT, and the payload ``{ID, Flags, Data}``."""

    type: NotificationType
    data: dict[str, Any]
    status: int = 0


class Notifications:
    """Hands every event to every listener, in order."""

    def __init__(self) -> None:
        self._listeners: set[asyncio.Queue[Notification | None]] = set()

    async def listen(self, idle_s: float) -> AsyncGenerator[Notification | None, None]:
        """Yield None at once and whenever nothing has happened for ``idle_s``, else events, until `close`.

        Raises Exhausted when too many listen already.
        """
        if len(self._listeners) >= MAX_LISTENERS:
            raise Exhausted("listeners", f"{MAX_LISTENERS} are there already")
        queue: asyncio.Queue[Notification | None] = asyncio.Queue(MAX_WAITING)
        self._listeners.add(queue)
        try:
            yield None
            while True:
                try:
                    async with asyncio.timeout(idle_s):
                        event = await queue.get()
                except TimeoutError:
                    yield None
                    continue
                if event is None:
                    break
                yield event
            yield Notification(NotificationType.SERVICE_DISCONNECT, _payload(""))
        finally:
            self._listeners.discard(queue)

    def before(self, changes: Sequence[Change]) -> None:
        """Announce changes that are about to be made."""
        if self._listeners:
            self._send(_before(changes))

    def after(self, changes: Sequence[Change]) -> None:
        """Announce changes that have been made."""
        if self._listeners:
            self._send(_after(changes))

    def close(self) -> None:
        """End all listening."""
        for queue in list(self._listeners):
            _end(queue)

    def _send(self, events: Iterable[Notification]) -> None:
        for event in events:
            for queue in list(self._listeners):
                if queue.full():
                    self._listeners.discard(queue)
                    _end(queue)
                else:
                    queue.put_nowait(event)


def _end(queue: asyncio.Queue[Notification | None]) -> None:
    while queue.full():
        queue.get_nowait()
    queue.put_nowait(None)


def _before(changes: Sequence[Change]) -> Iterator[Notification]:
    for change in changes:
        if change.kind is Kind.NETWORK and change.before is None:
            yield Notification(NotificationType.NETWORK_PRE_CREATE, _payload(change.id))
        if change.kind is Kind.NETWORK and change.after is None:
            yield Notification(NotificationType.NETWORK_PRE_DELETE, _payload(change.id))


def _after(changes: Sequence[Change]) -> Iterator[Notification]:
    for change in changes:
        if change.kind is Kind.ENDPOINT:
            yield from _moved(change)
        elif change.kind in _NUMBERS and (change.before is None or change.after is None):
            made, gone = _NUMBERS[change.kind]
            yield Notification(made if change.before is None else gone, _payload(change.id))


_NUMBERS = {
    Kind.NETWORK: (NotificationType.NETWORK_CREATE, NotificationType.NETWORK_DELETE),
    Kind.NAMESPACE: (NotificationType.NAMESPACE_CREATE, NotificationType.NAMESPACE_DELETE),
}


def _moved(change: Change) -> Iterator[Notification]:
    if _place(change.before) == _place(change.after):
        return
    for value, number in (
        (change.before, NotificationType.NETWORK_ENDPOINT_DETACHED),
        (change.after, NotificationType.NETWORK_ENDPOINT_ATTACHED),
    ):
        if isinstance(value, Endpoint) and _place(value):
            data = {"EndpointId": value.id, "NamespaceId": value.namespace_id}
            yield Notification(number, _payload(value.network_id, data))


def _payload(object_id: str, data: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"ID": object_id, "Flags": 0, "Data": data or {}}


def _place(value: Object | None) -> str:
    """Where an endpoint is attached: to a namespace, or to containers whose namespace nobody has named."""
    if not isinstance(value, Endpoint):
        return ""
    return value.namespace_id or ("containers" if value.shared_containers else "")
