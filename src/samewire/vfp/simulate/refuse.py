"""The answer to a packet for nobody: a TCP RST (``bpf/refuse.h``)."""

from __future__ import annotations

from typing import Final

from samewire.vfp.address import IPV4
from samewire.vfp.constants import Arrival, TcpFlag
from samewire.vfp.simulate import checksum
from samewire.vfp.simulate.packet import L3, TCP
from samewire.vfp.simulate.state import Walk

PORT_UNREACHABLE: Final = {4: (3, 3), 6: (1, 4)}
_SYN, _FIN, _ACK = 0x02, 0x01, 0x10


def reset_frame(walk: Walk) -> bytes | None:
    """The RST for the frame in hand, turned round; None where none may be sent."""
    packet = walk.packet
    v4 = packet.family == IPV4
    if packet.tcp_flags & TcpFlag.RST or packet.fragment or walk.arrival == Arrival.TUNNEL:
        return None
    if packet.l4 != L3 + (20 if v4 else 40) or packet.is_for_all:
        return None
    data = bytes(packet.data)
    ends = slice(L3 + 12, L3 + 20) if v4 else slice(L3 + 8, L3 + 40)
    length = int.from_bytes(data[L3 + 2 : L3 + 4] if v4 else data[L3 + 4 : L3 + 6], "big") - (20 if v4 else 0)
    head = data[packet.l4 : packet.l4 + 20]
    left_to_nic = int.from_bytes(head[16:18], "little") == checksum.partial(_pseudo(data[ends], length))
    size = (len(data[ends])) // 2
    turned = data[ends][size:] + data[ends][:size]
    answer = _header(head, length - (head[12] >> 4) * 4)
    pseudo = _pseudo(turned, 20)
    # What is left to the NIC starts from the sum of the pseudo header.
    summed = (
        checksum.partial(pseudo).to_bytes(2, "little") if left_to_nic else checksum.whole(pseudo + answer)
    )
    answer = answer[:16] + summed + answer[18:]
    ip = _ip4(data, turned) if v4 else data[L3 : L3 + 4] + b"\0\x14" + bytes((TCP, 64)) + turned
    return data[6:12] + data[0:6] + data[12:14] + ip + answer


def _ip4(data: bytes, turned: bytes) -> bytes:
    ip = data[L3 : L3 + 1] + b"\0\0\x28\0\0\x40\0" + bytes((64, TCP, 0, 0)) + turned
    return ip[:10] + checksum.whole(ip) + ip[12:]


def _pseudo(ends: bytes, length: int) -> bytes:
    return ends + (length & 0xFFFFFFFF).to_bytes(4, "big") + TCP.to_bytes(4, "big")


def _header(head: bytes, payload: int) -> bytes:
    ports, flags = head[2:4] + head[0:2], head[13]
    if flags & _ACK:
        return ports + head[8:12] + bytes(4) + b"\x50\x04\0\0" + bytes(4)
    sequence = int.from_bytes(head[4:8], "big") + payload
    sequence += (1 if flags & _SYN else 0) + (flags & _FIN)
    acknowledged = (sequence & 0xFFFFFFFF).to_bytes(4, "big")
    return ports + bytes(4) + acknowledged + b"\x50\x14\0\0" + bytes(4)
