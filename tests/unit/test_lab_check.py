"""What a check leaves behind."""

from __future__ import annotations

import asyncio
import fcntl
import json
import socket
import threading
from asyncio.subprocess import PIPE
from pathlib import Path

import msgspec
import pytest

from samewire.lab import check
from samewire.lab.check import _Agent, daemon_facts
from samewire.lab.state import NodeState
from samewire.node.runlock import LOCK_NAME
from tests.support.lab import lab_state


@pytest.fixture
def node(tmp_path: Path) -> NodeState:
    """A node with its socket in a directory of its own."""
    found = lab_state("l2bridge").nodes[0]
    return msgspec.structs.replace(found, socket=str(tmp_path / "samewire.sock"))


async def observed(node: NodeState) -> str:
    """What the check sees of the node's daemon."""
    (fact,) = await daemon_facts([node])
    assert (fact.row, fact.expected) == (node.plan.name, "it runs")
    return fact.observed


async def test_a_daemon_that_hangs_or_is_in_trouble_is_not_as_expected(
    node: NodeState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs, and the packets go on; but nobody repairs and nothing new comes."""
    assert await observed(node) == "it has ended"
    with (tmp_path / LOCK_NAME).open("w") as lock, socket.socket(socket.AF_UNIX) as server:
        fcntl.flock(lock, fcntl.LOCK_EX)
        server.bind(node.socket)
        server.listen()
        monkeypatch.setattr(check, "ANSWER_TIMEOUT_S", 0.05)
        assert (await observed(node)).startswith("it does not answer: ")
        server.accept()[0].close()
        monkeypatch.undo()
        for problems, shown in (["one", "two"], "one; two"), ([], "it runs"):
            answering = threading.Thread(target=answer, args=(server, {"problems": problems}))
            answering.start()
            assert await observed(node) == shown
            answering.join()


def answer(server: socket.socket, document: object) -> None:
    """Serve one request over HTTP."""
    connection, _ = server.accept()
    with connection:
        connection.recv(65536)
        body = json.dumps(document).encode()
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))


async def test_a_probe_runner_at_work_ends_with_a_check_that_is_broken_off() -> None:
    """Whoever cannot wait for its farewell: it would go on in the lab."""
    agent = _Agent("web", "nowhere")
    agent._process = process = await asyncio.create_subprocess_exec(
        "sleep", "600", stdin=PIPE, stdout=PIPE, stderr=PIPE
    )
    try:
        stopping = asyncio.create_task(agent.stop())
        await asyncio.sleep(0)
        stopping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stopping
        assert process.returncode is not None
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
