"""Random load balancers for the small world of random tables: most of its addresses are somebody's VIP."""

from __future__ import annotations

from typing import Final

from hypothesis import strategies as st

from samewire.vfp.address import ZERO, masked
from samewire.vfp.constants import (
    CHUNK_BACKENDS,
    SCOPE_ANY,
    SCOPE_HOST,
    SCOPE_OUTSIDE,
    SCOPE_UPLINK,
    SOURCE_RANGE_KEY_BITS,
    ServiceFlag,
)
from samewire.vfp.record import Record
from samewire.vfp.tables import (
    Backend,
    BackendChunk,
    BackendChunkKey,
    BackendPlace,
    DirectKey,
    Id,
    Portmap,
    Service,
    ServiceKey,
    SourceRangeKey,
)

Tables = dict[str, dict[Record, Record]]

_EMPTY: Final = BackendPlace(0, 0)
_FLAGS: Final = (
    0,
    0,
    ServiceFlag.REJECT,
    ServiceFlag.SOURCE_RANGES | ServiceFlag.REJECT,
    ServiceFlag.BY_CLIENT,
    ServiceFlag.BY_CLIENT | ServiceFlag.BY_PROTOCOL,
    ServiceFlag.DSR,
    ServiceFlag.DSR,
    ServiceFlag.PRESERVE,
)


def add_services(
    draw: st.DrawFn,
    tables: Tables,
    scope: int,
    vips: dict[int, list[bytes]],
    targets: dict[int, list[bytes]],
    node: dict[int, bytes],
) -> None:
    """Services on some VIPs (zero: NodePorts) with backends among the targets, of one network or of none."""
    for name in ("sw_services", "sw_backend_sets", "sw_backends", "sw_source_ranges", "sw_direct"):
        tables[name] = {}
    for family in (4, 6):
        for index in range(draw(st.integers(1, 4))):
            number = 10 * family + index
            _add_set(draw, tables, number, family, scope, targets[family])
            service = Service(
                service=number,
                set=number,
                chunks=draw(st.sampled_from([2, 2, 2, 2, 1, 0])),
                flags=int(draw(st.sampled_from(_FLAGS)) | draw(st.sampled_from([0, ServiceFlag.LOCAL]))),
                affinity_ticks=draw(st.sampled_from([0, 0, 5000])),
                source=draw(st.sampled_from([ZERO, node[family], node[family]])),
            )
            for _ in range(6):
                key = ServiceKey(
                    address=draw(st.sampled_from([ZERO, *vips[family]])),
                    port=draw(st.sampled_from([80, 8080, 53])),
                    protocol=draw(st.sampled_from([6, 6, 17, 132])),
                    family=family,
                    scope=draw(st.sampled_from([scope, SCOPE_OUTSIDE, SCOPE_OUTSIDE, SCOPE_ANY, SCOPE_HOST])),
                )
                tables["sw_services"][key] = service
            if draw(st.booleans()):
                client = draw(st.sampled_from(targets[family]))
                bits = draw(st.sampled_from([24, 32]))
                address = masked(client, bits)
                range_key = SourceRangeKey(SOURCE_RANGE_KEY_BITS + bits, number, family, address)
                tables["sw_source_ranges"][range_key] = Id(1)


def _add_set(
    draw: st.DrawFn, tables: Tables, number: int, family: int, scope: int, targets: list[bytes]
) -> None:
    places: list[BackendPlace] = []
    for index in range(draw(st.sampled_from([0, 1, 2, 3, 4]))):
        backend = 100 * number + index
        tables["sw_backends"][Id(backend)] = Backend(
            address=draw(st.sampled_from(targets)),
            port=draw(st.sampled_from([80, 8080, 40000])),
            family=family,
            flags=draw(st.sampled_from([0, 0, 0, 1, 2])),
            service=number,
            direct=draw(st.sampled_from([0, 2])),
            scope=draw(st.sampled_from([scope] * 8 + [SCOPE_UPLINK] * 4 + [2])),
        )
        places.append(BackendPlace(backend, draw(st.integers(0, 2**32 - 1))))
    half = draw(st.integers(0, len(places)))
    for chunk, part in enumerate((places[:half], places[half:])):
        if part:
            padded = (_EMPTY, *part, *[_EMPTY] * CHUNK_BACKENDS)[:CHUNK_BACKENDS]
            tables["sw_backend_sets"][BackendChunkKey(number, chunk)] = BackendChunk(padded)


def add_direct(
    draw: st.DrawFn,
    tables: Tables,
    scope: int,
    vips: dict[int, list[bytes]],
    pods: list[tuple[int, bytes, dict[int, bytes]]],
) -> None:
    """What the pods get by DSR, or with the VIP preserved."""
    for ifindex, mac, own in pods[:2]:
        for family in (4, 6):
            address = draw(st.sampled_from([ZERO, *vips[family]]))
            port = draw(st.sampled_from([80, 8080]))
            for protocol in (6, 17):
                key = DirectKey(address, port, protocol, family, mac)
                target = draw(st.sampled_from([own[family], vips[family][0]]))
                internal = port if target != own[family] else 8080
                tables["sw_direct"][key] = Portmap(ifindex, scope, internal, target)
