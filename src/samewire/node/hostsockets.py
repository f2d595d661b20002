"""Connected UDP sockets of the node's own processes, and the backends that they were sent to.

A socket is sent to a backend when it connects; no program sees what it sends afterwards. When the backend goes, such a
socket would talk to nobody, or to whoever gets the address next, for as long as it lives. So it is ended: the
application is told, and connects again, to a backend that is there.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import structlog

from samewire.errors import KernelError
from samewire.kernel.sockdiag import ConnectedSocket, SocketDiagnosis
from samewire.node.tables import KernelTables
from samewire.vfp.compile.balanced import ID
from samewire.vfp.records_runtime import Socket, SocketKey

log = structlog.get_logger(__name__)

_UDP: Final = 17
_ADDRESS_BYTES: Final = 16
_IPV4_BYTES: Final = 4
_FEW_PORTS: Final = 8
"""For more than so many all sockets are listed at once: the kernel walks through all of them each time."""


def end_orphans(tables: KernelTables, removed: Collection[bytes] | None = None) -> int:
    """End the connected UDP sockets whose backend is no more, and no others; returns how many.

    ``removed``: the targets (16 bytes of an address, port) whose backends have just been removed; None = look at all
    sockets. What cannot be done is logged: the next audit tries again.
    """
    ended = 0
    ports = {0} if removed is None else {int.from_bytes(target[_ADDRESS_BYTES:]) for target in removed}
    try:
        with SocketDiagnosis() as diagnosis:
            for port in ports if len(ports) <= _FEW_PORTS else (0,):
                for found in diagnosis.connected_udp(port):
                    if (removed is None or _target(found) in removed) and _is_orphan(tables, found):
                        ended += diagnosis.end(found)
    except KernelError as error:
        log.warning("sockets of removed backends stay until the next audit", error=str(error))
    if ended:
        log.info("ended sockets whose backend is gone", sockets=ended)
    return ended


def _target(found: ConnectedSocket) -> bytes:
    return found.peer.ljust(_ADDRESS_BYTES, b"\0") + found.port.to_bytes(2)


def _is_orphan(tables: KernelTables, found: ConnectedSocket) -> bool:
    """Whether a socket was sent to a backend, by the note that the socket programs made, and that is gone."""
    family = 4 if len(found.peer) == _IPV4_BYTES else 6
    key = SocketKey(found.cookie, found.peer.ljust(_ADDRESS_BYTES, b"\0"), found.port, family, _UDP)
    row = tables.row("sw_sockets", key.pack())
    if row is None:
        return False
    backend = Socket.unpack(row).backend
    return backend != 0 and tables.row("sw_backends", ID.pack(backend)) is None
