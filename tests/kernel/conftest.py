"""Fixtures of the tests that need root: fresh network namespaces, a root check that fails instead of skipping."""

from __future__ import annotations

import ctypes
import itertools
import os
import platform
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import pytest_asyncio

from samewire.kernel import netns
from samewire.kernel.bpf import mount_bpffs, unmount_bpffs
from samewire.kernel.netns import NetNamespace
from samewire.node.config import NodeConfig
from samewire.node.node import Node
from tests.support.node import NodeNet, node_net
from tests.support.running import running
from tests.support.switch_rig import SwitchRig, require_root

_COUNTER = itertools.count(1)
_BPF_SYSCALL = {"x86_64": 321, "aarch64": 280}
_BPF_PROG_LOAD = 5
_BPF_PROG_TYPE_SCHED_CLS = 3


@pytest.fixture(autouse=True)
def root_is_there(request: pytest.FixtureRequest) -> None:
    """A test marked ``root`` fails without root: a skip would look like success."""
    if request.node.get_closest_marker("root") is not None and os.geteuid() != 0:
        pytest.fail("this test needs root")


@pytest.fixture(scope="module")
def rig() -> Iterator[SwitchRig]:
    """The loaded switch, for runs of single frames."""
    require_root()
    made = SwitchRig()
    yield made
    made.close()


@pytest.fixture
def netns_factory() -> Iterator[Callable[[], NetNamespace]]:
    """Makes namespaces ``/run/netns/swt-<pid>-<n>`` (so that ``ip -n`` finds them); all are removed afterwards."""
    with ExitStack() as stack:

        def make() -> NetNamespace:
            path = f"/run/netns/swt-{os.getpid()}-{next(_COUNTER)}"
            namespace = netns.create(path)
            stack.callback(_remove, path)
            return stack.enter_context(namespace)

        yield make


@pytest.fixture
def pass_program() -> Iterator[int]:
    """A loaded tc program that lets every packet pass (``return TC_ACT_OK``); its descriptor."""
    instructions = bytes.fromhex("b7000000000000009500000000000000")  # r0 = 0; exit
    code = ctypes.create_string_buffer(instructions, len(instructions))
    licence = ctypes.create_string_buffer(b"GPL")
    attr = ctypes.create_string_buffer(128)
    ctypes.memmove(attr, (ctypes.c_uint32 * 2)(_BPF_PROG_TYPE_SCHED_CLS, 2), 8)
    pointers = (ctypes.c_uint64 * 2)(ctypes.addressof(code), ctypes.addressof(licence))
    ctypes.memmove(ctypes.byref(attr, 8), pointers, 16)
    libc = ctypes.CDLL(None, use_errno=True)
    number = _BPF_SYSCALL[platform.machine()]
    fd = libc.syscall(number, _BPF_PROG_LOAD, attr, len(attr))
    assert fd >= 0, os.strerror(ctypes.get_errno())
    yield fd
    os.close(fd)


@pytest.fixture
def net() -> Iterator[NodeNet]:
    """A node's network namespace, in which the test itself is, and what is around it."""
    with node_net() as made, made.inside():
        yield made


@pytest.fixture
def config(net: NodeNet, tmp_path: Path) -> Iterator[NodeConfig]:
    """Of a node in ``net``; whatever of it is pinned goes afterwards."""
    made = NodeConfig(name="node", uplink="eth0", run_dir=tmp_path / "run", state_dir=tmp_path / "state")
    made.run_dir.mkdir()
    try:
        yield made
    finally:
        unmount_bpffs(made.bpf_dir)


@pytest_asyncio.fixture
async def node(config: NodeConfig) -> AsyncIterator[Node]:
    """A node without a daemon around it."""
    async with running(config) as made:
        yield made


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Compiles ``tests/kernel/programs/<name>.c``, once, the way the switch is compiled; gives the object."""
    directory = tmp_path_factory.mktemp("programs")

    def compile_one(name: str) -> Path:
        built = directory / f"{name}.o"
        if not built.exists():
            source = Path(__file__).parent / "programs" / f"{name}.c"
            include = f"-I/usr/include/{platform.machine()}-linux-gnu"
            flags = ["-O2", "-g", "-Wall", "-Werror", "--target=bpf", "-mcpu=v3", include]
            subprocess.run(["clang", *flags, "-c", str(source), "-o", str(built)], check=True)
            subprocess.run(["llvm-strip", "-g", str(built)], check=True)
        return built

    return compile_one


@pytest.fixture
def bpffs(tmp_path: Path) -> Iterator[Path]:
    """A bpffs of the test's own; some kernels put maps.debug and progs.debug there."""
    path = tmp_path / "bpf"
    mount_bpffs(path)
    try:
        yield path
    finally:
        unmount_bpffs(path)


def _remove(path: str) -> None:
    if Path(path).exists():  # a test may have removed it
        netns.delete(path)
