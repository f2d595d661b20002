"""Network namespaces of a scenario: made under a prefix of our own, removed with everything in them.

Commands run with ``nsenter --net=`` and not ``ip netns exec``, which remounts /sys and hides the cgroups.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from benchmarks.errors import BenchError

PREFIX = "swb"
TMPFS = Path("/dev/shm")
ADDRESSES = "addresses"
"""Where all IPAM plugins keep their files, one an address. An ext4 without a journal looks for each new file at every
inode that was deleted in the minutes before, so that an ADD would cost what earlier cases have left.
"""
CONGESTION_CONTROL = "reno"
"""Of all TCP here, and not the machine's default: BBR paces a stream to a third of what the path can do, and every
datapath looks alike. Every kernel has Reno, every namespace may choose it, and Cubic does the same where round trips
are microseconds.
"""
NETNS_DIR = Path("/run/netns")
COMMAND_TIMEOUT_S = 60
CLONE_NEWNET = 0x40000000

T = TypeVar("T")


def run(
    command: Sequence[str | Path],
    *,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    timeout_s: float = COMMAND_TIMEOUT_S,
) -> str:
    """Run a command to its end and return its stdout.

    Raises:
        BenchError: it could not be started, failed, or took more than ``timeout_s``.
    """
    argv = [str(part) for part in command]
    try:
        done = subprocess.run(
            argv, input=stdin, env=env, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BenchError(f"{' '.join(argv)}: {error}") from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip())[-600:]
        raise BenchError(f"{' '.join(argv)}: status {done.returncode}: {said}")
    return done.stdout


def ip(netns: str, *args: str) -> str:
    """``ip`` in a namespace of ours."""
    return run(["ip", "-n", netns, *args])


def inside(netns: str, *command: str | Path) -> str:
    """Any command in a namespace of ours."""
    return run([*enter(netns), *command])


def enter(netns: str) -> list[str]:
    """The words that put a command into a namespace."""
    return ["nsenter", f"--net={path(netns)}"]


def path(netns: str) -> str:
    """The namespace file, as CNI_NETNS wants it."""
    return str(NETNS_DIR / netns)


def sysctl(netns: str, key: str, value: int | str) -> None:
    """Set one ``net.*`` sysctl of a namespace."""
    inside(netns, "sh", "-ec", f"echo {value} > /proc/sys/{key.replace('.', '/')}")


def veth(a: tuple[str, str], b: tuple[str, str], mtu: int = 1500) -> None:
    """A veth pair between two (namespace, interface name), both ends up."""
    ip(
        a[0],
        "link",
        "add",
        a[1],
        "mtu",
        str(mtu),
        "type",
        "veth",
        "peer",
        "name",
        b[1],
        "netns",
        b[0],
        "mtu",
        str(mtu),
    )
    ip(a[0], "link", "set", a[1], "up")
    ip(b[0], "link", "set", b[1], "up")


def address(netns: str, ifname: str, cidr: str) -> None:
    """Give an interface an address (usable at once: no duplicate address detection)."""
    nodad = ["nodad"] if ":" in cidr else []
    ip(netns, "addr", "add", cidr, "dev", ifname, *nodad)


def mac(netns: str, ifname: str) -> str:
    """The MAC address of an interface."""
    link: str = json.loads(ip(netns, "-j", "link", "show", "dev", ifname))[0]["address"]
    return link


def ifindex(netns: str, ifname: str) -> int:
    """The index of an interface."""
    index: int = json.loads(ip(netns, "-j", "link", "show", "dev", ifname))[0]["ifindex"]
    return index


def delete(names: Iterable[str]) -> None:
    """Delete namespaces that exist, in one process; the kernel frees what is in them afterwards."""
    present = [name for name in names if (NETNS_DIR / name).exists()]
    if present:
        run(["ip", "-batch", "-"], stdin="".join(f"netns del {name}\n" for name in present))


def sweep() -> None:
    """Remove what a killed earlier run left: namespaces of ours whose process is gone."""
    if not NETNS_DIR.is_dir():
        return
    names = (re.fullmatch(rf"{PREFIX}(\d+)-.*", entry.name) for entry in NETNS_DIR.iterdir())
    delete(match.string for match in names if match and not Path(f"/proc/{match[1]}").exists())


class Sandbox:
    """The namespaces and the temporary directory of one scenario; closing it removes both.

    ``tmp`` is short, because paths of unix sockets end at 107 bytes. `ADDRESSES` in it is a tmpfs.
    """

    def __init__(self, label: str) -> None:
        self.label = label
        self.tmp = Path(tempfile.mkdtemp(prefix=f"{PREFIX}-"))
        self._memory = Path(tempfile.mkdtemp(prefix=f"{PREFIX}-", dir=TMPFS))
        (self.tmp / ADDRESSES).symlink_to(self._memory)
        self._names: list[str] = []

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def netns(self, label: str) -> str:
        """Make a namespace (loopback up); returns its name."""
        [name] = self.many([label])
        ip(name, "link", "set", "lo", "up")
        sysctl(name, "net.ipv4.tcp_congestion_control", CONGESTION_CONTROL)
        return name

    def many(self, labels: Sequence[str]) -> list[str]:
        """Make several namespaces in one go (their loopback stays down)."""
        names = [f"{PREFIX}{os.getpid()}-{self.label}-{label}" for label in labels]
        self._names += names
        run(["ip", "-batch", "-"], stdin="".join(f"netns add {name}\n" for name in names))
        return names

    def close(self) -> None:
        """Remove the namespaces and the directory. May be called again."""
        names, self._names = self._names, []
        try:
            delete(names)
        finally:
            for directory in (self.tmp, self._memory):
                shutil.rmtree(directory, ignore_errors=True)


def call_in(netns: str, work: Callable[[], T]) -> T:
    """What ``work`` returns when its thread is in a namespace of ours: its sockets are born there.

    Raises what ``work`` raises, and OSError when the namespace cannot be entered.
    """
    result: list[T] = []
    failure: list[BaseException] = []

    def run_there() -> None:
        try:
            with Path(path(netns)).open() as namespace:
                if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), f"setns {netns}")
            result.append(work())
        except BaseException as error:  # handed to the caller, whatever it is
            failure.append(error)

    thread = threading.Thread(target=run_there)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]
