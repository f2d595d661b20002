"""The native programs of the benchmarks: compiled when their source is newer, and run."""

from __future__ import annotations

import contextlib
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import msgspec

from benchmarks import netns
from benchmarks.errors import BenchError

SOURCE = Path(__file__).parent / "native"
BUILD = Path(__file__).parent / "build"
CNI_TIMEOUT_S = 300

_C = ("cc", "-O2", "-Wall", "-Wextra", "-Werror", "-static")
_BPF = ("clang", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "--target=bpf", "-mcpu=v3", "-c")


class LoadResult(msgspec.Struct, frozen=True):
    """What native/load.c prints; ``rate`` is bytes/s for stream and transactions/s otherwise."""

    mode: str
    seconds: float
    count: int
    rate: float
    lost: int
    retransmits: int


class CniTimes(msgspec.Struct, frozen=True):
    """What native/cni_exec.c prints: one time (ms) per pod, the time of all together, the failures."""

    wall_s: float
    ms: list[float]
    failed: int
    error: str


class _BareTimes(msgspec.Struct):
    """What native/bare_pairs.c prints."""

    cpu_ms: list[float]


def build() -> None:
    """Compile what is missing or older than its source.

    Raises:
        BenchError: the compiler is missing or refuses.
    """
    BUILD.mkdir(exist_ok=True)
    include = f"-I/usr/include/{platform.machine()}-linux-gnu"
    programs = (
        *((name, _C) for name in ("load", "cni_exec", "bare_pairs", "epoll_relay")),
        *((name, (*_BPF, include)) for name in ("stateless.o", "least.o")),
    )
    for name, command in programs:
        source, target = SOURCE / f"{name.removesuffix('.o')}.c", BUILD / name
        if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
            partial = target.with_suffix(".tmp")
            netns.run([*command, "-o", partial, source])
            partial.replace(target)


class Endpoints(msgspec.Struct, frozen=True):
    """Where a measurement runs: client and server namespaces (names) and the address the client calls.

    ``server_address``: what the server binds, where that is another one. ``port_shift``: added to all server
    ports, where two share a server.
    """

    client: str
    server: str
    address: str
    server_address: str = ""
    port_shift: int = 0


def measure(ends: Endpoints, mode: str, seconds: float, cpu: int, port: int) -> LoadResult:
    """One measurement with both sides on one CPU, on one server port (shifted).

    Raises:
        BenchError: the server does not come up, or the client fails (no route, loss, time-out).
    """
    common = ["-m", mode, "-P", str(port + ends.port_shift), "-p", str(cpu)]
    bound = ["-a", ends.server_address or ends.address, *_namespace(ends.server)]
    called = ["-a", ends.address, *_namespace(ends.client)]
    with _server([*common, *bound]):
        said = netns.run([BUILD / "load", "-c", *common, *called, "-t", str(seconds)])
    return msgspec.json.decode(said, type=LoadResult)


def _namespace(name: str) -> list[str]:
    return ["-n", netns.path(name)]


@contextlib.contextmanager
def _server(arguments: list[str]) -> Iterator[None]:
    command = [str(BUILD / "load"), "-s", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            _await_ready(process)
            yield
        finally:
            process.kill()


def _await_ready(process: subprocess.Popen[str]) -> None:
    out: IO[str] | None = process.stdout
    if out is None or out.readline() != "ready\n":
        process.kill()
        said = process.stderr.read().strip() if process.stderr else ""
        raise BenchError(f"load server: {said or 'ended'}")


def execute_cni(
    verb: str,
    plugin: Path,
    conf: Path,
    pods: Mapping[str, str],
    node: str,
    tmp: Path,
    env: Mapping[str, str],
    workers: int = 1,
) -> CniTimes:
    """Execute a CNI plugin once per pod (container id -> namespace name) in the node's namespace.

    Raises:
        BenchError: an execution failed; the text carries the plugin's error.
    """
    listing = tmp / "pods"
    listing.write_text("".join(f"{container} {netns.path(pod)}\n" for container, pod in pods.items()))
    what: list[str | Path] = ["-v", verb, "-x", plugin, "-f", conf, "-i", listing]
    how = ["-j", str(workers), *_namespace(node)]
    said = netns.run([BUILD / "cni_exec", *what, *how], env=env, timeout_s=CNI_TIMEOUT_S)
    times = msgspec.json.decode(said, type=CniTimes)
    if times.failed:
        raise BenchError(f"{plugin.name} {verb}: {times.failed} of {len(pods)} failed: {times.error}")
    return times


def bare_pairs(pods: Sequence[str], node: str, tmp: Path) -> list[float]:
    """Attach pods (namespace names) with the network messages alone: CPU time of each, in ms.

    Raises:
        BenchError: a message was refused.
    """
    listing = tmp / "pods"
    listing.write_text("".join(f"{pod} {netns.path(pod)}\n" for pod in pods))
    said = netns.run([BUILD / "bare_pairs", "-i", listing, *_namespace(node)])
    return msgspec.json.decode(said, type=_BareTimes).cpu_ms
