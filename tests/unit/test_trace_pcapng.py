"""Our pcapng files, read by scapy, by tcpdump and (options and flags) by a reader of blocks."""

from __future__ import annotations

import io
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from scapy.utils import PcapNgReader

from samewire.trace import pcapng
from samewire.trace.pcapng import Direction
from tests.unit.test_trace_probe import probe

TIME_NS = 1_795_000_000_123_456_789
FRAMES = [
    (TIME_NS, probe("tcp", 4), Direction.OUTBOUND),
    (TIME_NS + 1, probe("icmp", 6), Direction.INBOUND),
    (TIME_NS + 2_000_000_000, probe("udp", 4) + b"x", Direction.INBOUND),
]


@pytest.fixture
def capture() -> bytes:
    packets = b"".join(pcapng.packet(*frame) for frame in FRAMES)
    head = pcapng.header("eth0", "shop/web-0 in pods", "endpoint 1")
    return head + packets + pcapng.statistics(TIME_NS + 3_000_000_000, 5, 2)


def blocks(data: bytes) -> Iterator[tuple[int, bytes]]:
    while data:
        kind, length = struct.unpack_from("<II", data)
        assert length % 4 == 0
        assert struct.unpack_from("<I", data, length - 4)[0] == length
        yield kind, data[8 : length - 4]
        data = data[length:]


def options(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while True:
        code, length = struct.unpack_from("<HH", data)
        if not code:
            assert data == bytes(4)
            return found
        found[code] = data[4 : 4 + length]
        data = data[4 + (length + 3) // 4 * 4 :]


def test_scapy_reads_them(capture: bytes) -> None:
    with PcapNgReader(io.BytesIO(capture)) as reader:  # type: ignore[arg-type]  # a file does, too
        packets = list(reader)
    assert [bytes(packet) for packet in packets] == [frame for _, frame, _ in FRAMES]
    assert [str(packet.direction) for packet in packets] == ["2", "1", "1"]
    assert [round(float(packet.time) * 1e9, -3) for packet in packets] == [
        round(float(time_ns), -3) for time_ns, _, _ in FRAMES
    ]


def test_tcpdump_reads_them(capture: bytes, tmp_path: Path) -> None:
    file = tmp_path / "x.pcapng"
    file.write_bytes(capture)
    done = subprocess.run(
        ["tcpdump", "-nn", "-tt", "--nano", "-r", str(file)], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) == len(FRAMES)
    assert lines[0].startswith("1795000000.123456789 IP 10.244.1.5.40000 > 93.184.216.34.80: Flags [S]")
    assert "ICMP6, echo request" in lines[1]
    assert lines[2].startswith("1795000002.123456789 ")


def test_blocks(capture: bytes) -> None:
    found = list(blocks(capture))
    assert [kind for kind, _ in found] == [0x0A0D0D0A, 1, 6, 6, 6, 5]
    assert struct.unpack_from("<IHHq", found[0][1]) == (0x1A2B3C4D, 1, 0, -1)
    assert options(found[0][1][16:]) == {1: b"endpoint 1", 4: b"samewire capture"}
    assert struct.unpack_from("<HHI", found[1][1]) == (1, 0, 0)
    assert options(found[1][1][8:]) == {2: b"eth0", 3: b"shop/web-0 in pods", 9: b"\x09"}
    for (time_ns, frame, direction), (_, body) in zip(FRAMES, found[2:5], strict=True):
        interface, high, low, captured, length = struct.unpack_from("<5I", body)
        assert (interface, high << 32 | low, captured, length) == (0, time_ns, len(frame), len(frame))
        assert options(body[20 + (captured + 3) // 4 * 4 :]) == {2: struct.pack("<I", direction)}
    interface, high, low = struct.unpack_from("<3I", found[5][1])
    assert (interface, high << 32 | low) == (0, TIME_NS + 3_000_000_000)
    assert options(found[5][1][12:]) == {4: struct.pack("<Q", 5), 5: struct.pack("<Q", 2)}


def test_an_empty_capture_is_a_file() -> None:
    with PcapNgReader(io.BytesIO(pcapng.header("eth0"))) as reader:  # type: ignore[arg-type]  # as above
        assert list(reader) == []
