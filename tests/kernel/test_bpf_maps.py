"""Maps: single operations, batches, reading under change, per-CPU values, pins, program arrays, ring buffers."""

from __future__ import annotations

import random
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from samewire.errors import KernelError, NotFound
from samewire.kernel.bpf import BpfMap, BpfObject, BpfProgram, RingBuffer, UpdateFlag, ringbuf
from samewire.kernel.bpf.map import possible_cpus

pytestmark = [pytest.mark.root, pytest.mark.kernelcore]

Compiled = Callable[[str], Path]
FRAME = bytes(range(64))
HASHES = ["t_hash", "t_lru", "t_trie", "t_cpu_hash"]


@pytest.fixture(scope="module")
def loaded(compiled: Compiled) -> Iterator[BpfObject]:
    with BpfObject(compiled("basics")) as opened:
        opened.load()
        yield opened


@pytest.fixture(autouse=True)
def empty_maps(loaded: BpfObject) -> None:
    for name in HASHES:
        table = loaded.maps[name]
        table.delete_batch([key for key, _ in table.items()])
        assert not list(table.items())


def key_for(table: BpfMap, number: int) -> bytes:
    """Keys of any of the maps: a trie's are host prefixes."""
    if table.key_size == 8:
        return (32).to_bytes(4, "little") + number.to_bytes(4, "big")
    return number.to_bytes(4, "little")


def u64(number: int) -> bytes:
    return number.to_bytes(8, "little")


def whole(table: BpfMap, value: bytes) -> bytes:
    """A value as it is read back: per-CPU maps give one for each CPU."""
    return value * possible_cpus() if table.per_cpu else value


@pytest.mark.parametrize("name", HASHES)
def test_single_operations(loaded: BpfObject, name: str) -> None:
    table = loaded.maps[name]
    key = key_for(table, 7)
    assert table.lookup(key) is None
    assert table.delete(key) is False
    with pytest.raises(KernelError, match="ENOENT"):
        table.update(key, u64(1), UpdateFlag.EXIST)
    table.update(key, u64(1), UpdateFlag.NOEXIST)
    with pytest.raises(KernelError, match=f"update {name}: EEXIST"):
        table.update(key, u64(2), UpdateFlag.NOEXIST)
    table.update(key, u64(3), UpdateFlag.EXIST)
    table.update(key, u64(4))
    assert table.lookup(key) == whole(table, u64(4))
    assert list(table.items()) == [(key, whole(table, u64(4)))]
    assert table.delete(key) is True
    assert table.lookup(key) is None


@pytest.mark.parametrize("name", HASHES)
def test_batches_larger_than_a_system_call(loaded: BpfObject, name: str) -> None:
    table = loaded.maps[name]
    wanted = {key_for(table, number): u64(number * 3) for number in range(9000)}
    table.update_batch(wanted)
    assert dict(table.items()) == {key: whole(table, value) for key, value in wanted.items()}
    # Every second one, and as many that are not there, among them the first and the last of a system call.
    victims = [key_for(table, number) for number in range(0, 9000, 2)]
    strangers = [key_for(table, number) for number in range(20000, 24500)]
    mixed = [strangers[0], *victims[:4095], *strangers[1:], *victims[4095:]]
    assert table.delete_batch(mixed) == len(victims)
    assert {key for key, _ in table.items()} == wanted.keys() - set(victims)


@pytest.mark.parametrize("name", ["t_hash", "t_trie", "t_cpu_hash"])
def test_batch_into_a_full_map_tells_how_far_it_came(compiled: Compiled, name: str) -> None:
    with BpfObject(compiled("basics")) as opened:
        opened.set_max_entries({name: 5000})
        opened.load()
        table = opened.maps[name]
        with pytest.raises(KernelError, match=r"after 5000 elements, there is room for 5000 entries$"):
            table.update_batch({key_for(table, number): u64(2) for number in range(6000)})
        with pytest.raises(KernelError, match=r"\): there is room for 5000 entries$"):
            table.update(key_for(table, 6000), u64(2))
        assert len(list(table.items())) == 5000


def test_empty_batches_do_nothing(loaded: BpfObject) -> None:
    loaded.maps["t_hash"].update_batch([])
    assert loaded.maps["t_hash"].delete_batch([]) == 0


def test_small_crowded_hash_is_read_whole(compiled: Compiled) -> None:
    """A batch of one element is less than many buckets hold."""
    with BpfObject(compiled("basics")) as opened:
        opened.set_max_entries({"t_hash": 5, "t_cpu_hash": 1})
        opened.load()
        for name, count in (("t_hash", 5), ("t_cpu_hash", 1)):
            table = opened.maps[name]
            table.update_batch({key_for(table, number): u64(number) for number in range(count)})
            assert len(dict(table.items())) == count


def test_arrays(loaded: BpfObject) -> None:
    table = loaded.maps["t_array"]
    table.update(key_for(table, 3), u64(33))
    assert [int.from_bytes(value, "little") for _, value in table.items()] == [0, 0, 0, 33, 0, 0, 0, 0]
    table.update_batch({key_for(table, number): u64(number) for number in range(8)})
    assert [int.from_bytes(value, "little") for _, value in table.items()] == list(range(8))
    with pytest.raises(KernelError, match="EINVAL"):
        table.delete(key_for(table, 3))


def test_per_cpu_values(loaded: BpfObject) -> None:
    """The array's values are 4 bytes wide, in slots of 8."""
    table = loaded.maps["t_cpu_array"]
    key = key_for(table, 2)
    table.update(key, b"abcd")
    raw = table.lookup(key)
    assert raw is not None
    assert table.per_cpu_values(raw) == [b"abcd"] * possible_cpus()
    different = b"".join(bytes([cpu] * 4) + bytes(4) for cpu in range(possible_cpus()))
    table.update(key, different)
    assert table.lookup(key) == different
    assert dict(table.items())[key] == different
    table.update_batch({key: b"wxyz"})
    assert dict(table.items())[key] == b"wxyz\0\0\0\0" * possible_cpus()


@pytest.mark.parametrize(
    "call",
    [
        lambda table: table.update(bytes(3), bytes(8)),
        lambda table: table.update(bytes(4), bytes(7)),
        lambda table: table.update_batch([(bytes(4), bytes(8)), (bytes(3), bytes(9))]),
        lambda table: table.lookup(bytes(5)),
        lambda table: table.delete(b""),
        lambda table: table.delete_batch([bytes(4), bytes(3)]),
    ],
)
def test_sizes_are_checked_before_the_kernel_reads(
    loaded: BpfObject, call: Callable[[BpfMap], object]
) -> None:
    with pytest.raises(KernelError, match="EINVAL"):
        call(loaded.maps["t_hash"])
    assert not list(loaded.maps["t_hash"].items())


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["put", "new", "drop", "puts", "drops"]),
            st.lists(st.integers(0, 12), min_size=1, max_size=6, unique=True),
            st.integers(0, 1 << 40),
        ),
        max_size=30,
    )
)
@pytest.mark.parametrize("name", HASHES)
def test_a_map_is_a_dictionary(loaded: BpfObject, name: str, steps: list[tuple[str, list[int], int]]) -> None:
    table = loaded.maps[name]
    table.delete_batch([key for key, _ in table.items()])
    model: dict[bytes, bytes] = {}
    for verb, numbers, value in steps:
        keys = [key_for(table, number) for number in numbers]
        if verb == "put":
            table.update(keys[0], u64(value))
            model[keys[0]] = u64(value)
        elif verb == "new":
            if keys[0] in model:
                with pytest.raises(KernelError, match="EEXIST"):
                    table.update(keys[0], u64(value), UpdateFlag.NOEXIST)
            else:
                table.update(keys[0], u64(value), UpdateFlag.NOEXIST)
                model[keys[0]] = u64(value)
        elif verb == "drop":
            assert table.delete(keys[0]) == (model.pop(keys[0], None) is not None)
        elif verb == "puts":
            table.update_batch({key: u64(value) for key in keys})
            model |= {key: u64(value) for key in keys}
        else:
            assert table.delete_batch(keys) == sum(model.pop(key, None) is not None for key in keys)
    assert dict(table.items()) == {key: whole(table, value) for key, value in model.items()}


def test_hash_is_read_right_while_it_changes(loaded: BpfObject) -> None:
    table = loaded.maps["t_hash"]
    lasting = {key_for(table, number): u64(number) for number in range(3000)}
    table.update_batch(lasting)
    finished = threading.Event()

    def churn() -> None:
        numbers = random.Random(1)
        while not finished.is_set():
            keys = [key_for(table, 100_000 + numbers.randrange(5000)) for _ in range(200)]
            table.update_batch({key: u64(0) for key in keys})
            table.delete_batch(keys)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(30):
            seen = [key for key, _ in table.items()]
            assert len(seen) == len(set(seen))
            assert lasting.keys() <= set(seen)
    finally:
        finished.set()
        thread.join()


def test_trie_may_be_changed_by_its_reader(loaded: BpfObject) -> None:
    """The kernel's walk begins anew after the removal of the element it stood on."""
    table = loaded.maps["t_trie"]
    wanted = {key_for(table, number): u64(number) for number in range(9000)}
    table.update_batch(wanted)
    seen: list[tuple[bytes, bytes]] = []
    for number, (key, value) in enumerate(table.items()):
        seen.append((key, value))
        if number % 2:
            table.delete(key)
    assert len(seen) == len(wanted)
    assert dict(seen) == wanted
    assert len(list(table.items())) == 4500


def test_trie_finds_the_longest_prefix(loaded: BpfObject) -> None:
    table = loaded.maps["t_trie"]
    table.update_batch(
        {
            (8).to_bytes(4, "little") + bytes([10, 0, 0, 0]): u64(8),
            (24).to_bytes(4, "little") + bytes([10, 1, 2, 0]): u64(24),
        }
    )
    host = (32).to_bytes(4, "little")
    assert table.lookup(host + bytes([10, 1, 2, 9])) == u64(24)
    assert table.lookup(host + bytes([10, 1, 3, 9])) == u64(8)
    assert table.lookup(host + bytes([11, 1, 3, 9])) is None


def test_types_without_elements_say_so(loaded: BpfObject) -> None:
    with pytest.raises(KernelError, match="walk t_events"):
        list(loaded.maps["t_events"].items())


def test_program_array(loaded: BpfObject) -> None:
    calls, tail, target = (
        loaded.maps["t_calls"],
        loaded.programs["t_tail"],
        loaded.programs["t_constants"],
    )
    assert tail.test_run(FRAME).retval == 99
    calls.update(key_for(calls, 1), target.fd.to_bytes(4, "little"))
    assert tail.test_run(FRAME).retval == 1049
    assert dict(calls.items()) == {key_for(calls, 1): target.id.to_bytes(4, "little")}
    assert calls.delete(key_for(calls, 1))
    assert tail.test_run(FRAME).retval == 99


def test_ring_buffer(loaded: BpfObject, bpffs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    send, pin = loaded.programs["t_send"], bpffs / "events"
    loaded.maps["t_events"].pin(pin)
    with BpfMap.open_pinned(pin) as again, RingBuffer(again) as ring:
        again.close()
        assert ring.receive() == []
        assert select.select([ring], [], [], 0)[0] == []
        for first in b"xyz":
            assert send.test_run(bytes([first]) + FRAME[1:]).retval == 0
        assert select.select([ring], [], [], 5)[0] == [ring]
        assert ring.receive() == [b"x\1\2\3", b"y\1\2\3", b"z\1\2\3"]
        while send.test_run(FRAME).retval == 0:
            pass  # until it is full: what does not fit is the program's to notice
        assert len(ring.receive()) > 100
        assert send.test_run(FRAME).retval == 0
        assert ring.receive() == [FRAME[:4]]
        monkeypatch.setattr(ringbuf, "_AT_ONCE", 2)
        for first in b"xyz":
            assert send.test_run(bytes([first]) + FRAME[1:]).retval == 0
        assert ring.receive() == [b"x\1\2\3", b"y\1\2\3"]
        assert select.select([ring], [], [], 0)[0] == [ring]
        assert ring.receive() == [b"z\1\2\3"]
        assert ring.receive() == []
        ring.close()
    with pytest.raises(KernelError, match="open ring buffer t_hash"):
        RingBuffer(loaded.maps["t_hash"])


def test_maps_by_id(loaded: BpfObject) -> None:
    table = loaded.maps["t_hash"]
    with BpfMap.from_id(table.id) as again:
        assert again.shape == table.shape == (1, 4, 8, 16384, 0)
        assert again.name == "t_hash"
        again.update(key_for(table, 1), u64(9))
    assert table.lookup(key_for(table, 1)) == u64(9)
    with pytest.raises(NotFound):
        BpfMap.from_id(0x7FFFFFFF)


REUSE = """
import sys
from pathlib import Path
from samewire.kernel.bpf import BpfMap, BpfObject, BpfProgram
pins, built = Path(sys.argv[1]), Path(sys.argv[2])
with BpfMap.open_pinned(pins / "t_hash") as table, BpfObject(built) as again:
    assert table.lookup(b"key!") == b"content!", table.lookup(b"key!")
    again.reuse({"t_hash": table})
    again.load()
    assert again.maps["t_hash"].id == table.id
    again.maps["t_hash"].update(b"new!", b"fromhere")
with BpfProgram.open_pinned(pins / "t_constants") as program:
    print(program.test_run(bytes(64)).retval)
"""


def test_pins_are_used_by_a_second_process(compiled: Compiled, bpffs: Path) -> None:
    with BpfObject(compiled("basics")) as first:
        first.set_constants({"t_answer": 600})
        first.load()
        first.maps["t_hash"].update(b"key!", b"content!")
        first.maps["t_hash"].pin(bpffs / "t_hash")
        first.programs["t_constants"].pin(bpffs / "t_constants")
    command = [sys.executable, "-c", REUSE, str(bpffs), str(compiled("basics"))]
    second = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert second.stdout == "1607\n"
    with BpfMap.open_pinned(bpffs / "t_hash") as table:
        assert dict(table.items()) == {b"key!": b"content!", b"new!": b"fromhere"}


def test_pins_that_are_not_there_or_something_else(loaded: BpfObject, bpffs: Path, tmp_path: Path) -> None:
    for cls in (BpfMap, BpfProgram):
        with pytest.raises(NotFound):
            cls.open_pinned(bpffs / "nothing")
    loaded.maps["t_array"].pin(bpffs / "array")
    with pytest.raises(KernelError, match="EEXIST"):
        loaded.maps["t_array"].pin(bpffs / "array")
    with pytest.raises(KernelError):
        BpfProgram.open_pinned(bpffs / "array")
    with pytest.raises(KernelError):
        loaded.maps["t_array"].pin(tmp_path / "not-on-bpffs")
