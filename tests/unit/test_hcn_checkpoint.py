"""The log is written back beside the commits: they go on, it stays small, and kill -9 in the middle loses nothing."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from samewire.hcn import checkpoint
from samewire.hcn import store as store_module
from samewire.hcn.schema import Kind, Network
from samewire.hcn.store import Store
from samewire.hcn.switch import Change

DUE_BYTES = 4 << 20


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """One whose log is written back at 4 MB, and whose file then shrinks to nothing."""
    monkeypatch.setattr(checkpoint, "DUE_BYTES", DUE_BYTES)
    monkeypatch.setattr(store_module, "DUE_BYTES", 0)
    opened = Store(tmp_path / "hns.db", "boot-1")
    try:
        yield opened
    finally:
        opened.close()


def put(store: Store, number: int, *, size: int = 100) -> None:
    network = Network(id=f"N{number}", name="x" * size)
    store.commit([Change(Kind.NETWORK, network.id, store.state.network(network.id), network)])


def log_bytes(store: Store) -> int:
    return store.path.with_name("hns.db-wal").stat().st_size


def wait_for_end(store: Store) -> None:
    running = store._checkpoints._running
    assert running is not None
    running.result(timeout=60)


def test_commits_go_on_during_a_checkpoint(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """One begins and ends within a pass."""
    real, passes = checkpoint.Checkpoints.is_complete, ["none is on"]

    def noting(self: checkpoint.Checkpoints) -> bool:
        passes.append("one is on")
        complete = real(self)
        passes.append("none is on")
        return complete

    monkeypatch.setattr(checkpoint.Checkpoints, "is_complete", noting)

    def is_seen(attempt: int) -> bool:
        put(store, 2 * attempt, size=DUE_BYTES)
        before = passes[:]
        put(store, 2 * attempt + 1)
        return before[-1] == "one is on" and before == passes

    assert any(is_seen(attempt) for attempt in range(200))


def test_the_log_stays_small_however_fast_changes_come(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes that never catch up: the last one is made with nobody in between, and the log begins anew."""
    real, calls = checkpoint.Checkpoints.is_complete, []

    def always_late(self: checkpoint.Checkpoints) -> bool:
        calls.append(store._alone.locked())
        return real(self) and len(calls) > checkpoint._PASSES

    monkeypatch.setattr(checkpoint.Checkpoints, "is_complete", always_late)
    put(store, 0, size=DUE_BYTES)
    assert log_bytes(store) > DUE_BYTES
    wait_for_end(store)
    assert calls == [False] * checkpoint._PASSES + [True]
    put(store, 1)
    assert log_bytes(store) < DUE_BYTES


def test_a_reader_holds_up_the_log_and_nobody_else(store: Store) -> None:
    """An administrator's sqlite3, say: tried again when there is as much more, and not at each commit."""
    with closing(sqlite3.connect(store.path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM objects").fetchone() == (0,)
        put(store, 0, size=DUE_BYTES)
        wait_for_end(store)
        ended = store._checkpoints._running
        put(store, 1)
        assert store._checkpoints._running is ended
        assert log_bytes(store) > DUE_BYTES
    put(store, 2, size=DUE_BYTES)
    wait_for_end(store)
    put(store, 3)
    assert log_bytes(store) < DUE_BYTES


def test_the_log_is_written_back_after_a_while(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However small it is: it begins anew in its own room, and the file alone has what was."""
    monkeypatch.setattr(checkpoint, "DUE_S", 0.0)
    store._checkpoints._due_at_s = 0.0
    for number in range(20):
        put(store, number % 3)
        wait_for_end(store)
    assert log_bytes(store) < 20 * 4096
    copy = tmp_path / "copy" / "hns.db"
    copy.parent.mkdir()
    copy.write_bytes(store.path.read_bytes())
    opened = Store(copy, "boot-1")
    assert len(list(opened.state.networks())) == 3
    opened.close()


def test_a_log_that_somebody_removed_is_written_back_at_once(store: Store, tmp_path: Path) -> None:
    """To make room, say: what is in there would go with the process."""
    put(store, 0)
    for path in tmp_path.glob("hns.db-*"):
        path.unlink()
    for number in (1, 2):
        put(store, number)
        wait_for_end(store)
    copy = tmp_path / "copy" / "hns.db"
    copy.parent.mkdir()
    copy.write_bytes(store.path.read_bytes())
    with closing(Store(copy, "boot-1")) as opened:
        assert [network.id for network in opened.state.networks()] == ["N0", "N1", "N2"]


def test_a_failure_is_told_and_stops_no_commit(store: Store) -> None:
    with capture_logs() as logs:
        store._checkpoints._db.close()
        put(store, 0, size=DUE_BYTES)
        wait_for_end(store)
        put(store, 1)
    assert [entry["event"] for entry in logs] == ["the database's log cannot be written back"]


WRITER = """
import os
import sys
from pathlib import Path
from samewire.hcn import checkpoint
from samewire.hcn.schema import Kind, Network
from samewire.hcn.store import Store
from samewire.hcn.switch import Change

checkpoint.DUE_BYTES = 1 << 20
real = checkpoint.Checkpoints.is_complete

def telling(self):
    os.write(1, b"pass\n")
    return real(self)

checkpoint.Checkpoints.is_complete = telling
store = Store(Path(sys.argv[1]), "boot-1")
for number in range(100000):
    network = Network(id=f"N{number}", name="x" * 100000)
    store.commit([Change(Kind.NETWORK, network.id, None, network)])
    os.write(1, b"done %d\n" % number)
"""


@pytest.mark.parametrize("passes", [1, 2, 5, 12])
def test_kill_9_in_the_middle_of_a_checkpoint(tmp_path: Path, passes: int) -> None:
    """What was committed is there."""
    path = tmp_path / "hns.db"
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        lines = []
        for line in child.stdout:
            lines.append(line)
            if lines.count("pass\n") == passes:
                break
        child.send_signal(signal.SIGKILL)
        lines += child.stdout
    done = [int(line.split()[1]) for line in lines if line.startswith("done ")]
    store = Store(path, "boot-1")
    try:
        assert {f"N{number}" for number in done} <= {network.id for network in store.state.networks()}
    finally:
        store.close()
