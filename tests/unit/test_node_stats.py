"""An endpoint's counters: what was dropped on the way to it, and what on the way from it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest

from samewire.kernel.bpf import BpfMap
from samewire.node.stats import read_drops
from samewire.vfp.constants import Arrival, Layer, Reason
from samewire.vfp.tables import DropKey

PORT = 7


class Drops:
    """The map of drops, on a node of two CPUs."""

    def __init__(self, *keys: DropKey) -> None:
        self._keys = keys

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        for key in self._keys:
            yield key.pack(), (2).to_bytes(8, "little") + (1).to_bytes(8, "little")

    def per_cpu_values(self, value: bytes) -> list[bytes]:
        return [value[:8], value[8:]]


def drop(layer: Layer, reason: Reason, arrival: Arrival, port: int = PORT) -> DropKey:
    return DropKey(port=port, rule=0, layer=layer, reason=reason, arrival=arrival)


@pytest.mark.parametrize(
    ("key", "counted"),
    [
        (drop(Layer.GUARD, Reason.SPOOFED_IP, Arrival.POD), (0, 3)),
        (drop(Layer.ACL_OUT, Reason.BLOCKED, Arrival.POD), (0, 3)),
        (drop(Layer.ACL_IN, Reason.BLOCKED, Arrival.TUNNEL), (3, 0)),
        (drop(Layer.ACL_IN, Reason.BLOCKED, Arrival.POD), (3, 0)),  # sent by another pod of this node
        (drop(Layer.L2, Reason.PORT_BLOCKED, Arrival.POD), (3, 0)),
        (drop(Layer.L2, Reason.MULTICAST, Arrival.POD), (0, 3)),
        (drop(Layer.ACL_IN, Reason.BLOCKED, Arrival.POD, port=8), (0, 0)),
    ],
)
def test_which_way_a_packet_was_going(key: DropKey, counted: tuple[int, int]) -> None:
    assert read_drops(PORT, cast(BpfMap, cast(Any, Drops(key)))) == counted
