"""computenetwork.dll through ctypes: the HCN library of a Windows node, or one with the same exports.

Signatures are those of Microsoft's header computenetwork.h: GUIDs by reference, text as UTF-16, results and error
records to be freed with CoTaskMemFree. Calls block; one library may be used by several threads.
"""

from __future__ import annotations

import ctypes
import json
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from samewire.errors import SamewireError, Unsupported

S_OK: Final = 0
ZERO: Final = "00000000-0000-0000-0000-000000000000"

Json = dict[str, Any]


class LibraryError(SamewireError):
    """A call that the library refused: its HRESULT (unsigned) and the text of its error record."""

    def __init__(self, call: str, hresult: int, text: str) -> None:
        super().__init__(f"{call}: {text or f'HRESULT 0x{hresult:08X}'}")
        self.hresult = hresult
        self.text = text


class ComputeNetwork:
    """The library. ``path``: another one with the same exports.

    ``one`` and ``many`` name a kind as the exports do: Network and Networks, SdnRoute and SdnRoutes.
    """

    def __init__(self, path: str = "computenetwork.dll") -> None:
        windows = sys.platform == "win32"
        load: Any = getattr(ctypes, "WinDLL" if windows else "CDLL")
        try:
            self._library: Any = load(path)
            memory: Any = load("ole32") if windows else self._library
        except (OSError, AttributeError) as error:
            raise Unsupported("computenetwork", f"{path}: {error}") from error
        self._free = memory.CoTaskMemFree
        self._free.argtypes = [ctypes.c_void_p]
        self._free.restype = None

    def enumerate(self, many: str, query: str = "") -> list[str]:
        """The ids of a kind. Raises LibraryError."""
        result = ctypes.c_void_p()
        self._call(f"HcnEnumerate{many}", _text(query), ctypes.byref(result))
        found: list[str] = json.loads(self._taken(result) or "[]")
        return found

    def create(self, one: str, object_id: str, settings: Mapping[str, Any], network: str = "") -> None:
        """Create an object; an endpoint within the network of that id. Raises LibraryError."""
        handle, text, guid = ctypes.c_void_p(), _text(json.dumps(settings)), _guid(object_id)
        if not network:
            self._call(f"HcnCreate{one}", guid, text, ctypes.byref(handle))
        else:
            opened = self._open("Network", network)
            try:
                self._call(f"HcnCreate{one}", opened, guid, text, ctypes.byref(handle))
            finally:
                self._close("Network", opened)
        self._close(one, handle)

    def query(self, one: str, object_id: str, query: str = "", what: str = "Properties") -> Json:
        """An object's properties; of an endpoint also its ``Stats`` or ``Addresses``. Raises LibraryError."""
        handle, result = self._open(one, object_id), ctypes.c_void_p()
        try:
            self._call(f"HcnQuery{one}{what}", handle, _text(query), ctypes.byref(result))
        finally:
            self._close(one, handle)
        found: Json = json.loads(self._taken(result) or "{}")
        return found

    def modify(self, one: str, object_id: str, settings: Mapping[str, Any]) -> None:
        """Modify an object. Raises LibraryError."""
        handle = self._open(one, object_id)
        try:
            self._call(f"HcnModify{one}", handle, _text(json.dumps(settings)))
        finally:
            self._close(one, handle)

    def delete(self, one: str, object_id: str) -> None:
        """Delete an object. Raises LibraryError."""
        self._call(f"HcnDelete{one}", _guid(object_id))

    @contextmanager
    def listening(self, heard: Callable[[int, int, str], None]) -> Iterator[None]:
        """Call ``heard`` with the number, HRESULT and JSON text of each notification, on a thread of the library's.
        Raises LibraryError.
        """

        def told(number: int, _: int | None, status: int, data: int | None) -> None:
            heard(number, status & 0xFFFFFFFF, _read(data) if data else "")

        callback, handle = _callback(told), ctypes.c_void_p()
        register = self._library.HcnRegisterServiceCallback
        register.restype = ctypes.c_int32
        code = register(callback, None, ctypes.byref(handle))
        if code != S_OK:
            raise LibraryError("HcnRegisterServiceCallback", code & 0xFFFFFFFF, "")
        try:
            yield
        finally:
            unregister = self._library.HcnUnregisterServiceCallback
            unregister.argtypes = [ctypes.c_void_p]
            unregister(handle)

    def _open(self, one: str, object_id: str) -> ctypes.c_void_p:
        handle = ctypes.c_void_p()
        self._call(f"HcnOpen{one}", _guid(object_id), ctypes.byref(handle))
        return handle

    def _close(self, one: str, handle: ctypes.c_void_p) -> None:
        close = getattr(self._library, f"HcnClose{one}")
        close.argtypes = [ctypes.c_void_p]
        close(handle)

    def _call(self, name: str, *arguments: Any) -> None:
        """One export; its last argument, the error record, is added here. Raises LibraryError."""
        record = ctypes.c_void_p()
        function = getattr(self._library, name)
        function.restype = ctypes.c_int32
        code = function(*arguments, ctypes.byref(record))
        text = self._taken(record)
        if code != S_OK:
            raise LibraryError(name, code & 0xFFFFFFFF, _reason(text))

    def _taken(self, pointer: ctypes.c_void_p) -> str:
        """The UTF-16 text at a pointer, which is freed."""
        if not pointer.value:
            return ""
        try:
            return _read(pointer.value)
        finally:
            self._free(pointer)


_callback: Final[Any] = getattr(ctypes, "WINFUNCTYPE", ctypes.CFUNCTYPE)(
    None, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p
)


def _read(address: int) -> str:
    """The UTF-16 text at an address."""
    length = 0
    while ctypes.c_uint16.from_address(address + 2 * length).value:
        length += 1
    return ctypes.string_at(address, 2 * length).decode("utf-16-le")


def _text(text: str) -> Any:
    return ctypes.create_string_buffer(text.encode("utf-16-le") + b"\0")


def _guid(object_id: str) -> Any:
    """A GUID in memory (its first three parts little-endian), by reference."""
    return ctypes.create_string_buffer(uuid.UUID(object_id or ZERO).bytes_le, 16)


def _reason(record: str) -> str:
    try:
        return str(json.loads(record)["Error"])
    except (ValueError, KeyError, TypeError):
        return record
