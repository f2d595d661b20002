"""Reading an endless answer of the daemon, line by line."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any

from samewire.errors import Unavailable
from samewire.hcn.client import DEFAULT_TIMEOUT_S
from samewire.hcn.errors import HcnCode, HcnError


def json_lines(socket_path: str, path: str, timeout_s: float = DEFAULT_TIMEOUT_S) -> Iterator[Any]:
    """The values of an NDJSON answer as they come; the first may take for ever, that there is an answer ``timeout_s``.

    Raises Unavailable, HcnError.
    """
    connection = http.client.HTTPConnection("samewire")
    connection.sock = opened = socket.socket(socket.AF_UNIX)
    try:
        opened.settimeout(timeout_s)
        opened.connect(socket_path)
        connection.request("GET", path)
        response = connection.getresponse()
        if response.status >= 400:
            raise _refused(response.status, response.read())
        opened.settimeout(None)
        while line := response.readline():
            yield json.loads(line)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Unavailable(f"samewire at {socket_path}", str(error) or type(error).__name__) from error
    finally:
        connection.close()


def _refused(status: int, body: bytes) -> HcnError:
    message = str(json.loads(body).get("Error", f"HTTP status {status}"))
    return HcnError(HcnCode.ERROR_NOT_FOUND if status == 404 else HcnCode.E_FAIL, message)
