"""The route netlink socket: sends requests, reads answers.

One socket belongs to one thread. The kernel works a request off inside ``send``, so its answer is there when
``send`` returns and nothing here waits.
"""

from __future__ import annotations

import errno
import socket as _socket
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from samewire.errors import KernelError, NotFound
from samewire.kernel import faults
from samewire.kernel.closing import Closing
from samewire.kernel.netns import NetNamespace, briefly_in
from samewire.kernel.rtnetlink import codec
from samewire.kernel.rtnetlink.codec import Message, Query, Request

T = TypeVar("T")

SOL_NETLINK = 270
NETLINK_ADD_MEMBERSHIP = 1
_NETLINK_CAP_ACK = 10
_NETLINK_EXT_ACK = 11
_NETLINK_GET_STRICT_CHK = 12
_SO_RCVBUFFORCE = 33

_BATCH = 100  # failures of more than ~300 requests overran the default receive buffer
_RECEIVE_BUFFER_BYTES = 4 << 20
_ANSWER_BYTES = 8 << 10
_DATAGRAM_BYTES = 64 << 10
_DUMP_ATTEMPTS = 10
_OPEN = "open netlink socket"
_FINE = (0, "")


def open_socket(netns_fd: int | None, protocol: int = _socket.NETLINK_ROUTE) -> _socket.socket:
    """A netlink socket in a namespace (``None``: the caller's own). Raises KernelError."""

    def make() -> _socket.socket:
        return _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, protocol)

    try:
        opened = make() if netns_fd is None else briefly_in(netns_fd, make)
    except OSError as error:
        raise KernelError(_OPEN, error.errno or errno.EIO) from error
    return _prepared(opened)


def _prepared(opened: _socket.socket) -> _socket.socket:
    try:
        opened.setsockopt(_socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER_BYTES)
        for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK):
            opened.setsockopt(SOL_NETLINK, option, 1)
        opened.bind((0, 0))
    except OSError as error:
        opened.close()
        raise KernelError(_OPEN, error.errno or errno.EIO) from error
    return opened


class Netlink(Closing):
    """A connection to route netlink of one network namespace. A context manager; not for two threads at once."""

    def __init__(
        self, netns: int | NetNamespace | None = None, protocol: int = _socket.NETLINK_ROUTE
    ) -> None:
        """Open in a namespace, given or as its descriptor (``None``: the caller's own); it may be closed after.

        An open `NetNamespace` has a socket at hand once it has told its identity, but of the route protocol only.
        """
        if isinstance(netns, NetNamespace):
            self._socket = _prepared(netns.route_socket())
        else:
            self._socket = open_socket(netns, protocol)
        self._buffer = bytearray(_ANSWER_BYTES)
        self._sequence = 0

    def close(self) -> None:
        """Close the socket; a second call does nothing."""
        self._socket.close()

    def request(self, request: Request, tolerate: frozenset[int] = frozenset()) -> int:
        """Make one change. Returns 0, or the error number that was tolerated.

        Raises :class:`KernelError` with the request's words and the kernel's explanation.
        """
        faults.check(request.operation)
        code, detail = self._exchange([request]).get(0, _FINE)
        if code and code not in request.tolerate | tolerate:
            raise KernelError(request.operation, code, detail)
        return code

    def make(self, request: Request, decode: Callable[[memoryview], T]) -> T | None:
        """Make something and return it as the kernel describes it; None when it does not (Linux before 6.2 does
        not describe links). Raises :class:`KernelError` as :meth:`request` does.
        """
        faults.check(request.operation)
        self._sequence += 1
        flags = request.flags | codec.NLM_F_REQUEST | codec.NLM_F_ACK | codec.NLM_F_ECHO
        self._send(request.operation, codec.pack(request.type, flags, self._sequence, request.body))
        made: T | None = None
        for message in self._answers(request.operation, self._sequence, self._sequence):
            if message.type != codec.NLMSG_ERROR:
                made = decode(message.body)
                continue
            code, detail = codec.error_of(message)
            if code:
                raise KernelError(request.operation, code, detail)
            break
        return made

    def batch(self, requests: Sequence[Request]) -> list[int]:
        """Make many changes, a hundred per system call. Every one is tried, also after a failure.

        Returns for each 0 or the tolerated error number. Raises :class:`KernelError` for the first failure,
        after all answers were read.
        """
        if faults.inject is not None:
            return [self.request(request) for request in requests]
        codes: list[int] = []
        failure: KernelError | None = None
        for start in range(0, len(requests), _BATCH):
            chunk = requests[start : start + _BATCH]
            answers = self._exchange(chunk)
            codes += (
                [answers.get(place, _FINE)[0] for place in range(len(chunk))] if answers else [0] * len(chunk)
            )
            for place, (code, detail) in answers.items():
                if code and code not in chunk[place].tolerate and failure is None:
                    failure = KernelError(chunk[place].operation, code, detail)
        if failure is not None:
            raise failure
        return codes

    def get(self, query: Query[T]) -> T:
        """The interface a query names; :class:`NotFound` when it does not exist.

        Raises KernelError otherwise.
        """
        self._sequence += 1
        flags = codec.NLM_F_REQUEST | codec.NLM_F_ACK
        self._send(query.operation, codec.pack(query.type, flags, self._sequence, query.body))
        value: T | None = None
        for message in self._answers(query.operation, self._sequence, self._sequence):
            if message.type != codec.NLMSG_ERROR:
                value = query.decode(message.body)
                continue
            code, detail = codec.error_of(message)
            if code and code not in (errno.ENODEV, errno.ENOENT):
                raise KernelError(query.operation, code, detail)
            break
        if value is None:
            raise NotFound("interface", query.name)
        return value

    def dump(self, query: Query[T]) -> list[T]:
        """All objects a query selects, as one consistent snapshot.

        A table that changed while it was read is read again; :class:`KernelError` (``EAGAIN``) when it changed
        ten times in a row.
        """
        for _attempt in range(_DUMP_ATTEMPTS):
            values, consistent = self._dump_once(query)
            if consistent:
                return values
        raise KernelError(query.operation, errno.EAGAIN, "the table changed during every attempt to read it")

    def _dump_once(self, query: Query[T]) -> tuple[list[T], bool]:
        if len(self._buffer) < _DATAGRAM_BYTES:
            self._buffer = bytearray(_DATAGRAM_BYTES)  # many objects come in one datagram
        self._sequence += 1
        flags = codec.NLM_F_REQUEST | codec.NLM_F_DUMP
        self._send(query.operation, codec.pack(query.type, flags, self._sequence, query.body))
        values: list[T] = []
        consistent = True
        for message in self._answers(query.operation, self._sequence, self._sequence):
            consistent = consistent and not message.flags & codec.NLM_F_DUMP_INTR
            if message.type not in (codec.NLMSG_ERROR, codec.NLMSG_DONE):
                value = query.decode(message.body)
                if value is not None:
                    values.append(value)
                continue
            code, detail = codec.error_of(message)
            if code and code != errno.ENOENT:  # ENOENT: a routing table nobody has used yet is empty
                raise KernelError(query.operation, code, detail)
            break
        return values, consistent

    def _exchange(self, requests: Sequence[Request]) -> dict[int, tuple[int, str]]:
        """Send requests; returns error numbers and the kernel's words by place, none for those that went well.

        Only the last is acknowledged: the kernel works in order, and of the others it answers what failed.
        """
        first = self._sequence + 1
        last = self._sequence = self._sequence + len(requests)
        parts = [
            codec.pack(
                request.type,
                request.flags | codec.NLM_F_REQUEST | (codec.NLM_F_ACK if sequence == last else 0),
                sequence,
                request.body,
            )
            for sequence, request in enumerate(requests, first)
        ]
        operation = requests[0].operation
        self._send(operation, b"".join(parts))
        data = self._receive(operation)
        if codec.is_success(data, last):  # what failed before would have been answered before
            return {}
        results: dict[int, tuple[int, str]] = {}
        for message in self._answers(operation, first, last, data):
            if message.type == codec.NLMSG_ERROR:
                results[message.sequence - first] = codec.error_of(message)
                if message.sequence == last:
                    break
        return results

    def _send(self, operation: str, data: bytes) -> None:
        try:
            self._socket.send(data)
        except OSError as error:
            raise KernelError(operation, error.errno or errno.EIO, "sending to netlink") from error

    def _answers(
        self, operation: str, first: int, last: int, data: memoryview | None = None
    ) -> Iterator[Message]:
        """Messages that answer sequence numbers first..last; older ones are left-overs of an aborted read.

        ``data`` is a datagram that has been read already.
        """
        while True:
            for message in codec.messages(self._receive(operation) if data is None else data):
                if first <= message.sequence <= last:
                    yield message
            data = None

    def _receive(self, operation: str) -> memoryview:
        try:
            length = self._socket.recv_into(self._buffer, 0, _socket.MSG_TRUNC)
        except OSError as error:
            raise KernelError(operation, error.errno or errno.EIO, "receiving from netlink") from error
        if length > len(self._buffer):
            raise KernelError(operation, errno.EMSGSIZE, f"answer of {length} bytes")
        return memoryview(self._buffer)[:length]
