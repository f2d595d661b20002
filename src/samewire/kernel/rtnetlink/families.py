"""IP versions and packed addresses: 4 and 6 here, AF_INET and AF_INET6 in the kernel."""

from __future__ import annotations

import socket

from samewire.errors import Invalid

_KERNEL = {4: int(socket.AF_INET), 6: int(socket.AF_INET6)}
_VERSION = {kernel: version for version, kernel in _KERNEL.items()}
_LENGTH = {4: 4, 6: 16}
_BY_LENGTH = {4: socket.AF_INET, 16: socket.AF_INET6}


def kernel_family(version: int) -> int:
    """AF_INET or AF_INET6; :class:`Invalid` for anything but 4 and 6."""
    try:
        return _KERNEL[version]
    except KeyError:
        raise Invalid("family", f"{version!r} must be 4 or 6") from None


def version_of(family: int) -> int | None:
    """4, 6, or ``None`` for other address families."""
    return _VERSION.get(family)


def check_address(address: bytes, version: int, bits: int | None = None) -> None:
    """Raise :class:`Invalid` unless the packed address and the prefix length fit the IP version."""
    kernel_family(version)
    if len(address) != _LENGTH[version]:
        raise Invalid("address", f"{len(address)} bytes are no IPv{version} address")
    if bits is not None and not 0 <= bits <= 8 * len(address):
        raise Invalid("bits", f"{bits} is no IPv{version} prefix length")


def show(address: bytes) -> str:
    """A packed address as text, for the words of an operation."""
    family = _BY_LENGTH.get(len(address))
    return socket.inet_ntop(family, address) if family is not None else address.hex()
