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
import time

DEFAULT_SOCKET = "/run/samewire/cni.sock"
DEFAULT_TIMEOUT_S = 30.0
MAX_TIMEOUT_S = 3600.0
MAX_REQUEST = 1 << 20
MAX_REPLY = 1 << 20
PAUSE_S = 0.02
VERSION_WAIT_S = 2.0  # only who leaves stdin open waits; who writes to it may be slow
IO_FAILURE = 5
TRY_AGAIN = 11
NO_ANSWER = "the samewire daemon does not answer"
NO_END = "the network configuration has no end"
VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")

PLUGINS = ("win-bridge", "win-overlay", "sdnbridge", "sdnoverlay", "azure-vnet", "flannel")

_SOCKET = re.compile(rb'"samewireSocket"[ \t\r\n:]*"(/[^"\\]{0,106})"')
_VERSION = re.compile(rb'"cniVersion"[ \t\r\n:]*"([0-9.]*)"')


def main() -> int:
    """Answer one call; returns the exit status."""
    _set_alarm(VERSIONS[-1], NO_END, "not in time")
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
    path, version = os.environ.get("SAMEWIRE_CNI_SOCKET") or socket_of(conf), version_of(conf)
    where = _shown(path)
    _set_alarm(version, NO_ANSWER, f"{where}: not in time")
    patience_s = _timeout_s() / 3 if variables.get(b"CNI_COMMAND") == b"DEL" else 0.0
    try:
        reply = _ask_patiently(path, environment + conf, patience_s)
    except OSError as error:
        return _fail(version, TRY_AGAIN, NO_ANSWER, f"{where}: connect: {error.strerror or error}")
    return _pass_on(reply, version, where)


def version_of(conf: bytes) -> str:
    """Return the version that a configuration names, if it is one we know, else the latest."""
    found = _VERSION.search(conf)
    version = found.group(1).decode() if found else ""
    return version if version in VERSIONS else VERSIONS[-1]


def socket_of(conf: bytes) -> str:
    """Return the path of the daemon's socket that a configuration names, else the usual one."""
    found = _SOCKET.search(conf)
    return os.fsdecode(found.group(1)) if found else DEFAULT_SOCKET


def _shown(path: str) -> str:
    """The socket as errors name it."""
    start = os.fsencode(path)[:107]
    return "".join("?" if byte < 32 or byte > 126 or byte in b'"\\' else chr(byte) for byte in start)


def _ask_patiently(path: str, request: bytes, patience_s: float) -> bytes | None:
    """Ask until there is a daemon, or one that does not end over it, for a time. Raises OSError."""
    while True:
        try:
            reply = _ask(path, request)
        except (FileNotFoundError, ConnectionRefusedError):
            if patience_s <= 0:
                raise
            reply = b""
        if reply != b"" or patience_s <= 0:
            return reply
        time.sleep(PAUSE_S)
        patience_s -= PAUSE_S


def _ask(path: str, request: bytes) -> bytes | None:
    with socket.socket(socket.AF_UNIX) as daemon:
        daemon.connect(path)
        try:
            daemon.sendall(request)
            daemon.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            pass  # a daemon that refuses the request may close before it has all of it; its answer is there
        return _read(daemon.fileno(), MAX_REPLY, None)


def _pass_on(reply: bytes | None, version: str, where: str) -> int:
    if reply is None:
        return _fail(version, TRY_AGAIN, NO_ANSWER, f"{where}: answer: too long")
    status, newline, output = reply.partition(b"\n")
    if not newline or not status.isdigit() or int(status) > 255:
        return _fail(version, TRY_AGAIN, NO_ANSWER, f"{where}: answer: {'malformed' if reply else 'none'}")
    signal.setitimer(signal.ITIMER_REAL, 0)
    _write(output)
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
        except BlockingIOError:  # the runtime has made it so, with its own end
            select.select([fd], [], [])
            continue
        except OSError:
            break
        if not chunk:
            break
        data += chunk
        if len(data) > limit:
            return None
    return data


def _set_alarm(version: str, message: str, details: str) -> None:
    """What is said when the time is over; its clock runs apart from it."""
    signal.signal(signal.SIGALRM, lambda *_: os._exit(_fail(version, TRY_AGAIN, message, details)))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})  # a mask is inherited


def _fail(version: str, code: int, message: str, details: str) -> int:
    _print({"cniVersion": version, "code": code, "msg": message, "details": details})
    return 1


def _print(value: object) -> None:
    _write(json.dumps(value).encode() + b"\n")


def _write(data: bytes) -> None:
    while data:
        try:
            data = data[os.write(1, data) :]
        except BlockingIOError:
            select.select([], [1], [])
        except OSError:
            os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
