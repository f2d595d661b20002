"""Running another plugin's executable: bounded in time and output, without blocking the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from msgspec import Struct

from samewire.children import begin, kill_group, release
from samewire.cni.errors import CniCode, CniError
from samewire.errors import Unavailable

MAX_OUTPUT = 1 << 20


class Execution(Struct, frozen=True):
    """What a process left: its exit status (-N = ended by signal N), stdout, and the end of stderr."""

    status: int
    output: bytes
    complaint: str


async def execute(path: str, stdin: bytes, variables: Mapping[str, str], timeout_s: float) -> Execution:
    """Run an executable to its end.

    Raises CniError(IPAM_PLUGIN) when it cannot be started or says too much, and Unavailable when it takes
    longer than ``timeout_s``; it and its children are killed then.
    """
    try:
        process = await begin(path, stdin=asyncio.subprocess.PIPE, env=variables)
    except (OSError, ValueError) as error:
        raise CniError(CniCode.IPAM_PLUGIN, f"cannot run {path}", str(error)) from error
    try:
        async with asyncio.timeout(timeout_s):
            return await _talk(process, stdin, path)
    except BaseException as error:
        kill_group(process)
        if isinstance(error, TimeoutError):
            raise Unavailable(path, f"no answer in {timeout_s:g} s; it was ended") from None
        raise
    finally:
        await release(process)


async def _talk(process: asyncio.subprocess.Process, stdin: bytes, path: str) -> Execution:
    pipes = process.stdin, process.stdout, process.stderr
    assert pipes[0] is not None
    assert pipes[1] is not None
    assert pipes[2] is not None
    output, complaint, _ = await asyncio.gather(_read(pipes[1]), _read(pipes[2]), _feed(pipes[0], stdin))
    if len(output) > MAX_OUTPUT:
        raise CniError(CniCode.IPAM_PLUGIN, f"{path} printed more than {MAX_OUTPUT} bytes")
    return Execution(await process.wait(), output, complaint.decode(errors="replace")[-1000:].strip())


async def _read(stream: asyncio.StreamReader) -> bytes:
    """Read to the end; what is more than allowed is not kept."""
    kept = bytearray()
    while chunk := await stream.read(1 << 16):
        if len(kept) <= MAX_OUTPUT:
            kept += chunk
    return bytes(kept)


async def _feed(stream: asyncio.StreamWriter, data: bytes) -> None:
    try:
        stream.write(data)
        await stream.drain()
        stream.close()
        await stream.wait_closed()
    except (BrokenPipeError, ConnectionResetError):
        pass  # it did not read its configuration; its answer says what it thinks
