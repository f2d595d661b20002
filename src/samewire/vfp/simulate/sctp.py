"""SCTP's CRC32c: of a whole packet, and when a port is replaced (``bpf/sctp.h``)."""

from __future__ import annotations

from typing import Final

_POLYNOMIAL: Final = 0x82F63B78
_ONE: Final = 0x80000000
_X8: Final = 0x00800000


def _multiply(a: int, b: int) -> int:
    product = 0
    for bit in range(31, -1, -1):
        if b >> bit & 1:
            product ^= a
        a = a >> 1 ^ (_POLYNOMIAL if a & 1 else 0)
    return product


def checksum(packet: bytes) -> bytes:
    """The four bytes for a packet that has zeroes there."""
    crc = 0xFFFFFFFF
    for byte in packet:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (_POLYNOMIAL if crc & 1 else 0)
    return (crc ^ 0xFFFFFFFF).to_bytes(4, "little")


def replace_port(header: bytes, length: int, where: int, port: int) -> bytes:
    """The first twelve bytes of a packet of ``length`` bytes after a port at offset ``where`` has been replaced."""
    changed = header[:where] + port.to_bytes(2, "big") + header[where + 2 :]
    if header[8:12] == bytes(4):  # left to a NIC
        return changed
    difference = int.from_bytes(header[:4], "little") ^ int.from_bytes(changed[:4], "little")
    power, shift = _X8, _ONE
    for bit in range(16):
        if length >> bit & 1:
            shift = _multiply(shift, power)
        power = _multiply(power, power)
    crc = int.from_bytes(header[8:12], "little") ^ _multiply(difference, shift)
    return changed[:8] + crc.to_bytes(4, "little")
