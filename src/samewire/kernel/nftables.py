"""Rules of nf_tables in a pod's network namespace, through libnftables: its text in, its JSON out.

Only pods whose connections are handed to a proxy have any (docs/decisions/010); the library is asked for with the
first of them. Family inet throughout.
"""

from __future__ import annotations

import ctypes
import errno
import json
import socket
import struct
import threading
from functools import cache
from typing import Any, Final

from samewire.errors import KernelError, Unsupported
from samewire.kernel import faults
from samewire.kernel.netns import NetNamespace, briefly_in, free_descriptors

_JSON: Final = 1 << 4  # NFT_CTX_OUTPUT_JSON
_NETLINK_NETFILTER: Final = 12
_GET_TABLE: Final = 10 << 8 | 1  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETTABLE
_TABLE_NAME: Final = 1  # NFTA_TABLE_NAME
_INET: Final = 1  # NFPROTO_INET
_REQUEST: Final = 1
_ERROR: Final = 2
_ABSENT: Final = frozenset({errno.ENOENT, errno.EPROTONOSUPPORT, errno.EOPNOTSUPP, errno.EINVAL})
_FIRST, _BEHIND = 3, 19  # descriptors that make room for the few that libnftables opens
_lock = threading.Lock()  # libnftables is not made for threads

Json = dict[str, Any]


def change(netns: NetNamespace, script: str, operation: str) -> None:
    """Carry out commands, all of them or none. Raises KernelError, Unsupported without libnftables."""
    faults.check(operation)
    _run(netns, script, operation)


def rules(netns: NetNamespace, table: str) -> list[tuple[str, str]] | None:
    """The rules of a table as (chain, comment), in order; None when there is no such table. Raises KernelError."""
    if not has_table(netns, table):
        return None
    text = _run(netns, f"list table inet {table}", f"list table {table}")
    found: list[Json] = json.loads(text)["nftables"]
    return [(item["rule"]["chain"], item["rule"].get("comment", "")) for item in found if "rule" in item]


def has_table(netns: NetNamespace, table: str) -> bool:
    """Whether there is such a table: one request, without the library. Raises KernelError."""
    name = table.encode() + b"\0"
    attribute = struct.pack("=HH", 4 + len(name), _TABLE_NAME) + name
    body = struct.pack("=BBH", _INET, 0, 0) + attribute.ljust(-len(attribute) % 4 + len(attribute), b"\0")
    request = struct.pack("=LHHLL", 16 + len(body), _GET_TABLE, _REQUEST, 1, 0) + body
    code = _answer(netns, request)
    if code and code not in _ABSENT:
        raise KernelError(f"look for table {table}", code)
    return not code


def _answer(netns: NetNamespace, request: bytes) -> int:
    """The error number that the kernel answers a request with; 0 = it has what is asked for."""
    try:
        with briefly_in(netns.fd, _netfilter_socket) as asked:
            asked.send(request)
            answer = asked.recv(8192)
    except OSError as error:
        return error.errno or errno.EIO
    kind = struct.unpack_from("=H", answer, 4)[0]
    return -struct.unpack_from("=i", answer, 16)[0] if kind == _ERROR else 0


def _netfilter_socket() -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)


def _run(netns: NetNamespace, script: str, operation: str) -> str:
    """What the commands print."""
    library = _library()

    def run() -> tuple[int, str, str]:
        # It waits for its socket by select(), which has no place for numbers from 1024 on and ends the process; clients
        # of the API may have all below.
        free_descriptors(_FIRST, _BEHIND)
        context = library.nft_ctx_new(0)
        if not context:
            return errno.ENOMEM, "", ""
        try:
            library.nft_ctx_output_set_flags(context, _JSON)
            library.nft_ctx_buffer_output(context)
            library.nft_ctx_buffer_error(context)
            code = library.nft_run_cmd_from_buffer(context, script.encode())
            printed, complaint = (
                (function(context) or b"").decode("utf-8", "replace")
                for function in (library.nft_ctx_get_output_buffer, library.nft_ctx_get_error_buffer)
            )
            return code and errno.EIO, printed, complaint
        finally:
            library.nft_ctx_free(context)

    with _lock:
        code, printed, complaint = netns.run(run)
    if code:
        raise KernelError(operation, code, complaint.partition("\n")[0])
    return printed


@cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libnftables.so.1")
    except OSError as error:
        needs = f"libnftables.so.1 (Debian: libnftables1): {error}"
        raise Unsupported("handing connections to a proxy", needs) from error
    library.nft_ctx_new.argtypes = [ctypes.c_uint32]
    library.nft_ctx_new.restype = ctypes.c_void_p
    for name, arguments, result in (
        ("nft_ctx_free", (), None),
        ("nft_ctx_buffer_output", (), ctypes.c_int),
        ("nft_ctx_buffer_error", (), ctypes.c_int),
        ("nft_ctx_get_output_buffer", (), ctypes.c_char_p),
        ("nft_ctx_get_error_buffer", (), ctypes.c_char_p),
        ("nft_ctx_output_set_flags", (ctypes.c_uint,), None),
        ("nft_run_cmd_from_buffer", (ctypes.c_char_p,), ctypes.c_int),
    ):
        function = getattr(library, name)
        function.argtypes, function.restype = [ctypes.c_void_p, *arguments], result
    return library
