"""The local ports: which endpoint has which link, and in which network namespace."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from samewire.vfp.model import PortLink


class PortState(msgspec.Struct, frozen=True):
    """A link that is there. ``identity`` is that of the pod's namespace, None when it was adopted unseen."""

    ifindex: int
    link: PortLink
    identity: tuple[int, int] | None


class Ports:
    """Port states by endpoint id and by ifindex."""

    def __init__(self) -> None:
        self._by_id: dict[str, PortState] = {}
        self._by_ifindex: dict[int, str] = {}

    def __contains__(self, endpoint_id: object) -> bool:
        return endpoint_id in self._by_id

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[tuple[str, PortState]]:
        return iter(list(self._by_id.items()))

    def get(self, endpoint_id: str) -> PortState | None:
        """The state of an endpoint's port, None when it has none."""
        return self._by_id.get(endpoint_id)

    def endpoint_of(self, ifindex: int) -> str:
        """The endpoint behind a port, empty when it is no pod's."""
        return self._by_ifindex.get(ifindex, "")

    def set(self, endpoint_id: str, state: PortState) -> None:
        """Enter or replace a port."""
        self.remove(endpoint_id)
        self._by_id[endpoint_id] = state
        self._by_ifindex[state.ifindex] = endpoint_id

    def remove(self, endpoint_id: str) -> PortState | None:
        """Forget a port; returns what it was."""
        state = self._by_id.pop(endpoint_id, None)
        if state is not None:
            del self._by_ifindex[state.ifindex]
        return state
