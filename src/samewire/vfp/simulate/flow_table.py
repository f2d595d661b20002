"""The simulator's flow table: what it has changed, on top of what was there, which is only read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping

from samewire.vfp.tables import Flow, FlowKey


class FlowTable(MutableMapping[FlowKey, Flow]):
    """A copy of a table that copies nothing."""

    def __init__(self, there: Mapping[FlowKey, Flow]) -> None:
        self._there = there
        self._changed: dict[FlowKey, Flow | None] = {}  # None: removed

    def __getitem__(self, key: FlowKey) -> Flow:
        if key not in self._changed:
            return self._there[key]
        flow = self._changed[key]
        if flow is None:
            raise KeyError(key)
        return flow

    def __setitem__(self, key: FlowKey, flow: Flow) -> None:
        self._changed[key] = flow

    def __delitem__(self, key: FlowKey) -> None:
        self[key]  # raises KeyError
        self._changed[key] = None

    def __iter__(self) -> Iterator[FlowKey]:
        yield from (key for key in self._there if key not in self._changed)
        yield from (key for key, flow in self._changed.items() if flow is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)
