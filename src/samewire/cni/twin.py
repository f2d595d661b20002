"""The CNI client in Python: the twin of ``native/samewire-cni.c``, for reading and as a fallback.

It does the same, needs nothing but the standard library, and costs 20 ms a call instead of 1.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import sys

DEFAULT_SOCKET = "/run/samewire/cni.sock"
DEFAULT_TIMEOUT_S = 30.0
MAX_TIMEOUT_S = 3600.0
MAX_REQUEST = 1 << 20
MAX_REPLY = 1 << 20
VERSION_WAIT_S = 0.2
IO_FAILURE = 5
TRY_AGAIN = 11
NO_ANSWER = "the samewire daemon does not answer"
VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")

PLUGINS = ("win-bridge", "win-overlay", "sdnbridge", "sdnoverlay", "azure-vnet", "flannel")

_SOCKET = re.compile(rb'"samewireSocket"[ \t\r\n:]*"(/[^"\\]{0,106})"')
_VERSION = re.compile(rb'"cniVersion"[ \t\r\n:]*"([0-9.]*)"')


def main() -> int:
    """Answer one call; returns the exit status."""
    signal.signal(signal.SIGALRM, _on_alarm)
    signal.setitimer(signal.ITIMER_REAL, _timeout_s())
    variables = {name: value for name, value in os.environb.items() if name.startswith(b"CNI_")}
    if variables.get(b"CNI_COMMAND") == b"VERSION":
        question = _read(0, MAX_REQUEST, VERSION_WAIT_S) or b""
        _print({"cniVersion": version_of(question), "supportedVersions": VERSIONS})
        return 0
    name = os.path.basename(sys.argv[0])
    if name in PLUGINS:
        variables[b"CNI_SAMEWIRE_PLUGIN"] = name.encode()
    environment = b"".join(b"%b=%b\0" % item for item in variables.items()) + b"\0"
    if len(environment) > MAX_REQUEST:
        return _fail(VERSIONS[-1], IO_FAILURE, "too long", "environment")
    conf = _read(0, MAX_REQUEST - len(environment), None)
    if conf is None:
        return _fail(VERSIONS[-1], IO_FAILURE, "too long", "network configuration")
    try:
        with socket.socket(socket.AF_UNIX) as daemon:
            daemon.connect(os.environ.get("SAMEWIRE_CNI_SOCKET") or socket_of(conf))
            reply = _ask(daemon, environment + conf)
    except OSError as error:
        return _fail(version_of(conf), TRY_AGAIN, NO_ANSWER, f"connect: {error.strerror or error}")
    return _pass_on(reply, version_of(conf))


def version_of(conf: bytes) -> str:
    """Return the version that a configuration names, if it is one we know, else the latest."""
    found = _VERSION.search(conf)
    version = found.group(1).decode() if found else ""
    return version if version in VERSIONS else VERSIONS[-1]


def socket_of(conf: bytes) -> str:
    """Return the path of the daemon's socket that a configuration names, else the usual one."""
    found = _SOCKET.search(conf)
    return os.fsdecode(found.group(1)) if found else DEFAULT_SOCKET


def _ask(daemon: socket.socket, request: bytes) -> bytes | None:
    try:
        daemon.sendall(request)
        daemon.shutdown(socket.SHUT_WR)
    except (BrokenPipeError, ConnectionResetError):
        pass  # a daemon that refuses the request may close before it has all of it; its answer is there
    return _read(daemon.fileno(), MAX_REPLY, None)


def _pass_on(reply: bytes | None, version: str) -> int:
    if reply is None:
        return _fail(version, TRY_AGAIN, NO_ANSWER, "answer: too long")
    status, newline, output = reply.partition(b"\n")
    if not newline or not status.isdigit() or int(status) > 255:
        return _fail(version, TRY_AGAIN, NO_ANSWER, f"answer: {'malformed' if reply else 'none'}")
    signal.setitimer(signal.ITIMER_REAL, 0)
    sys.stdout.buffer.write(output)
    sys.stdout.flush()
    return int(status)


def _timeout_s() -> float:
    try:
        seconds = float(os.environ.get("SAMEWIRE_CNI_TIMEOUT_S", DEFAULT_TIMEOUT_S))
    except ValueError:
        return DEFAULT_TIMEOUT_S
    return seconds if 0.001 <= seconds <= MAX_TIMEOUT_S else DEFAULT_TIMEOUT_S


def _read(fd: int, limit: int, wait_s: float | None) -> bytes | None:
    """Read to the end of file, or until nothing comes for a while (None = wait). None = longer than allowed."""
    data = b""
    while wait_s is None or select.select([fd], [], [], wait_s)[0]:
        try:
            chunk = os.read(fd, limit - len(data) + 1)
        except OSError:
            break
        if not chunk:
            break
        data += chunk
        if len(data) > limit:
            return None
    return data


def _on_alarm(_signal: int, _frame: object) -> None:
    os._exit(_fail(VERSIONS[-1], TRY_AGAIN, NO_ANSWER, "not in time"))


def _fail(version: str, code: int, message: str, details: str) -> int:
    _print({"cniVersion": version, "code": code, "msg": message, "details": details})
    return 1


def _print(value: object) -> None:
    os.write(1, json.dumps(value).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main())
