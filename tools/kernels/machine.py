"""One run of the virtual machine: the shared root, qemu, its console and its result."""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import initramfs
from debian import Kernel

VIRTIOFSD = "/usr/lib/qemu/virtiofsd"
MEMORY = "3G"
STOP_TIMEOUT_S = 10
HERE = Path(__file__).parent
DIED, NOT_BOOTED = 125, 124
_BOOTED = "kernel "  # how guest-init's first line begins


def _mount_point(path: Path) -> Path:
    while not os.path.ismount(path):
        path = path.parent
    return path


def _share_command(shared: Path, socket: Path, visible: list[Path]) -> list[str]:
    """Serve "/" read-only, from a mount namespace of its own, without the host's other mounts.

    The mounts that hold ``visible`` paths (a repository on a disk of its own) are added.
    """
    points = sorted({_mount_point(path.resolve()) for path in [Path("/usr/bin"), *visible]} | {Path("/")})
    steps = ["set -e"]
    for point in points:
        inside = shlex.quote(f"{shared}{point}" if point != Path("/") else str(shared))
        steps += [f"mount --bind {shlex.quote(str(point))} {inside}", f"mount -o remount,bind,ro {inside}"]
    # --rlimit-nofile=0: do not try to raise the limit, which not every root may.
    serve = [VIRTIOFSD, f"--socket-path={socket}", "-o", f"source={shared}", "-o", "cache=always",
             "-o", "log_level=warn", "--rlimit-nofile=0"]  # fmt: skip
    steps.append(f"exec {shlex.join(serve)}")
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", "\n".join(steps)]


def _qemu_command(kernel: Kernel, archive: Path, socket: Path) -> list[str]:
    return [
        "qemu-system-x86_64", "-machine", "q35,memory-backend=memory", "-accel", "tcg,thread=multi",
        "-cpu", "max", "-smp", "2", "-m", MEMORY,
        "-object", f"memory-backend-memfd,id=memory,size={MEMORY},share=on",
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio",
        "-chardev", f"socket,id=host,path={socket}", "-device", "vhost-user-fs-pci,chardev=host,tag=host",
        "-kernel", str(kernel.image), "-initrd", str(archive),
        # panic=-1 with -no-reboot: a kernel that panics ends the run at once.
        "-append", "console=ttyS0 quiet loglevel=4 panic=-1 random.trust_cpu=on mitigations=off",
    ]  # fmt: skip


@contextlib.contextmanager
def _process(command: list[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A child that is gone, and its mount namespace with it, when the block ends."""
    child = subprocess.Popen(command, **options)
    try:
        yield child
    finally:
        if child.poll() is None:
            child.terminate()
            try:
                child.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                child.kill()
        child.wait()
        if child.stdout is not None:
            child.stdout.close()


def _follow(child: subprocess.Popen[bytes], token: str) -> int:
    """Print the console until it ends; the exit status that the guest reported."""
    assert child.stdout is not None
    status: int | None = None
    booted = False
    for raw in child.stdout:
        line = raw.decode(errors="replace").rstrip("\r\n")
        booted |= line.startswith(_BOOTED)
        if line.startswith(token):
            status = int(line.removeprefix(token))
        elif status is None:
            print(line, flush=True)
    if status is None:
        return DIED if booted else NOT_BOOTED
    return status


def run(kernel: Kernel, repository: Path, python: Path, limit_s: float) -> int:
    """Boot ``kernel``, run the tests with ``python`` in it, print their output, return their exit status.

    A guest that dies, hangs past ``limit_s`` or reports nothing is a failure (`DIED`). One that does not get as far as
    the tests is booted once more: with two CPUs qemu's emulation may trip over a kernel that patches its own code.
    """
    status = _run(kernel, repository, python, limit_s)
    if status == NOT_BOOTED:
        print("--- it did not boot; once more", flush=True)
        status = _run(kernel, repository, python, limit_s)
    return status


def _run(kernel: Kernel, repository: Path, python: Path, limit_s: float) -> int:
    token = f"samewire-{secrets.token_hex(8)}:"
    values = {
        "TOKEN": token, "REPO": str(repository), "PYTHON": str(python),
        "MODULES": str(kernel.modules),
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="samewire-kernel-") as name:
        work = Path(name)
        archive, socket, shared = work / "initramfs", work / "host.sock", work / "root"
        shared.mkdir()
        init = initramfs.fill((HERE / "guest-init").read_text(), values)
        initramfs.build(archive, kernel.modules / kernel.release, init)
        visible = [repository, python, python.resolve(), kernel.modules]
        share = _share_command(shared, socket, visible)
        with (work / "virtiofsd.log").open("w+b") as log, _process(share, stderr=log) as server:
            while not socket.exists():
                if server.poll() is not None:
                    log.seek(0)
                    raise RuntimeError(f"virtiofsd: {log.read().decode(errors='replace').strip()}")
                time.sleep(0.02)
            with _process(
                _qemu_command(kernel, archive, socket),
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            ) as machine:  # fmt: skip
                timer = threading.Timer(limit_s, machine.kill)
                timer.start()
                try:
                    return _follow(machine, token)
                finally:
                    timer.cancel()
