"""Objects: opening, constants, sizes, shared maps, the verifier's words, test runs, BTF."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from samewire.errors import Conflict, Invalid, KernelError, NotFound
from samewire.kernel import faults, features
from samewire.kernel.bpf import BpfMap, BpfObject, BpfProgram, SkbContext
from samewire.kernel.bpf.btf import BtfField, read_btf
from samewire.kernel.bpf.elf import Elf
from samewire.kernel.netns import NetNamespace

pytestmark = [pytest.mark.root, pytest.mark.kernelcore]

Compiled = Callable[[str], Path]
FRAME = bytes.fromhex("020000000001 020000000002 0800") + bytes(range(50))
ZERO = bytes(4)


@pytest.fixture(scope="module")
def basics(compiled: Compiled) -> Iterator[BpfObject]:
    with BpfObject(compiled("basics")) as loaded:
        loaded.load()
        yield loaded


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_what_an_object_holds(compiled: Compiled) -> None:
    with BpfObject(compiled("basics")) as opened:
        assert {"t_hash", "t_trie", "t_events", "t_calls"} <= set(opened.map_names())
        assert {"t_constants", "t_tail", "t_connect4"} <= set(opened.program_names())
        assert opened.declared_shape("t_trie") == (11, 8, 8, 16384)


def test_constants_default_and_set(compiled: Compiled, basics: BpfObject) -> None:
    assert basics.programs["t_constants"].test_run(FRAME).retval == 1049
    with BpfObject(compiled("basics")) as opened:
        opened.set_constants({"t_byte": 2, "t_answer": 500, "t_signed": -9})
        opened.load()
        assert opened.programs["t_constants"].test_run(FRAME).retval == 2491
        opened.programs["t_look"].test_run(FRAME)
        seen = opened.maps["t_seen"].lookup(ZERO)
        assert seen is not None
        assert int.from_bytes(seen[40:48], "little") == 500


@pytest.mark.parametrize(
    ("constants", "error"),
    [({"t_nothing": 1}, NotFound), ({"t_colour": 1}, NotFound), ({"t_byte": 256}, Invalid)],
)
def test_impossible_constants(compiled: Compiled, constants: dict[str, int], error: type[Exception]) -> None:
    with BpfObject(compiled("basics")) as opened, pytest.raises(error):
        opened.set_constants(constants)


def test_sizes_are_overridden(compiled: Compiled) -> None:
    with BpfObject(compiled("basics")) as opened:
        opened.set_max_entries({"t_hash": 2, "t_trie": 1})
        assert opened.declared_shape("t_hash")[3] == 2
        opened.load()
        table = opened.maps["t_hash"]
        assert table.max_entries == 2
        for key in (1, 2):
            table.update(key.to_bytes(4, "little"), bytes(8))
        with pytest.raises(KernelError, match="E2BIG"):
            table.update(b"\3\0\0\0", bytes(8))
    with BpfObject(compiled("basics")) as opened, pytest.raises(NotFound):
        opened.set_max_entries({"t_nothing": 2})


def test_maps_are_shared_between_objects(compiled: Compiled, basics: BpfObject) -> None:
    with BpfObject(compiled("basics")) as second:
        second.reuse({"t_seen": basics.maps["t_seen"]})
        second.load()
        assert second.maps["t_seen"].id == basics.maps["t_seen"].id
        assert second.maps["t_hash"].id != basics.maps["t_hash"].id


def test_a_map_of_another_shape_is_refused(compiled: Compiled, basics: BpfObject) -> None:
    with BpfObject(compiled("other")) as other, pytest.raises(Conflict, match="t_hash"):
        other.reuse({"t_hash": basics.maps["t_hash"]})


def test_verifier_log_is_told_with_its_end(compiled: Compiled) -> None:
    with BpfObject(compiled("rejected")) as rejected, pytest.raises(KernelError) as caught:
        rejected.load()
    assert caught.value.errno == errno.EACCES
    assert "invalid access to packet" in caught.value.detail
    assert 10_000 < len(caught.value.detail) < 20_000


def test_errors_carry_no_older_words(compiled: Compiled, basics: BpfObject) -> None:
    with BpfObject(compiled("rejected")) as rejected, pytest.raises(KernelError):
        rejected.load()
    with pytest.raises(KernelError) as caught:
        basics.maps["t_array"].update(b"\xff\0\0\0", bytes(8))
    assert caught.value.detail == "there is room for 8 entries"


def test_files_that_are_no_objects(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match="ENOENT"):
        BpfObject(tmp_path / "missing.o")
    garbage = tmp_path / "garbage.o"
    garbage.write_bytes(b"\x7fELF" + bytes(100))
    with pytest.raises(KernelError) as caught:
        BpfObject(garbage)
    assert "garbage.o" in caught.value.detail  # libbpf's own words
    for text in (b"plain", b"\x7fELF\x02\x01" + bytes(58), b"\x7fELF\x02\x01" + b"\xff" * 58):
        with pytest.raises(Invalid):
            Elf(text, "x")


def test_close_closes_everything_once(compiled: Compiled) -> None:
    before = open_descriptors()
    opened = BpfObject(compiled("basics"))
    opened.load()
    table, program = opened.maps["t_hash"], opened.programs["t_count"]
    assert open_descriptors() > before
    opened.close()
    opened.close()
    assert open_descriptors() == before
    assert (table.fd, program.fd) == (-1, -1)  # not the numbers of files to come
    with pytest.raises(KernelError, match="EBADF"):
        table.lookup(ZERO)
    with pytest.raises(KernelError, match="EBADF"):
        program.test_run(FRAME)


def test_run_gives_back_packet_and_verdict(basics: BpfObject) -> None:
    run = basics.programs["t_rewrite"].test_run(FRAME)
    assert run.retval == -5
    assert run.data[:14] == FRAME[6:12] + FRAME[:6] + FRAME[12:14]
    assert len(run.data) == len(FRAME) + 8
    assert run.data[22:] == FRAME[14:]


def test_run_with_a_context(basics: BpfObject, netns_factory: Callable[[], NetNamespace]) -> None:
    context = SkbContext(ifindex=1, ingress_ifindex=1, mark=10, priority=20, cb=(1, 2, 3, 4, 5), gso_size=500)
    run = netns_factory().run(lambda: basics.programs["t_look"].test_run(FRAME, context))
    assert run.retval == 0
    assert (run.context.mark, run.context.priority) == (11, 21)
    assert run.context.cb == (1, 2, 77, 4, 5)
    seen = basics.maps["t_seen"].lookup(ZERO)
    assert seen is not None
    assert [int.from_bytes(seen[at : at + 4], "little") for at in range(0, 40, 4)] == [
        1, 1, 10, 20, 500, 1, 2, 3, 4, 5,
    ]  # fmt: skip


def test_run_on_an_interface_that_is_not_there(basics: BpfObject) -> None:
    with pytest.raises(KernelError, match=r"run t_look: ENODEV"):
        basics.programs["t_look"].test_run(FRAME, SkbContext(ifindex=0x7FFFFFF))


def test_run_repeats(basics: BpfObject) -> None:
    table = basics.maps["t_cpu_hash"]
    table.delete(ZERO)
    run = basics.programs["t_count"].test_run(FRAME, repeat=500)
    counts = table.lookup(ZERO)
    assert counts is not None
    assert sum(int.from_bytes(one, "little") for one in table.per_cpu_values(counts)) == 500
    assert run.duration_ns > 0


def test_programs_by_id_and_from_instructions(basics: BpfObject) -> None:
    with BpfProgram.from_id(basics.programs["t_count"].id) as again:
        assert again.name == "t_count"
    with BpfProgram.from_instructions("t_seven", bytes.fromhex("b700000007000000 9500000000000000")) as seven:
        assert seven.test_run(FRAME).retval == 7
        lost = seven.id
    wait_until_gone(lost)
    with pytest.raises(KernelError, match="load t_bad"):
        BpfProgram.from_instructions("t_bad", bytes(8))


def wait_until_gone(program_id: int) -> None:
    """A closed program goes after a grace period."""
    for _ in range(2000):
        try:
            BpfProgram.from_id(program_id).close()
        except NotFound:
            return
        threading.Event().wait(0.01)
    pytest.fail(f"program {program_id} is still there")


def test_features_agree_with_the_version() -> None:
    """A kernel that is new enough must be seen to have the feature; an older one may have it carried back."""
    assert features.has_tcx() == (features.kernel_version() >= (6, 6))
    if features.kernel_version() >= (6, 16):
        assert features.has_csum_ipv6()


def test_layouts_from_btf(compiled: Compiled) -> None:
    btf = read_btf(compiled("basics"))
    assert btf.structs["t_prefix"].size == 8
    assert btf.structs["t_prefix"].fields == (BtfField("bits", 0, 4), BtfField("address", 4, 4))
    seen = btf.structs["t_seen"]
    assert seen.size == 56
    assert [(field.name, field.offset, field.size) for field in seen.fields][5:] == [
        ("cb", 20, 20), ("answer", 40, 8), ("nested", 48, 6), ("tail", 54, 2),
    ]  # fmt: skip
    assert (btf.constants["T_RED"], btf.constants["T_BLUE"]) == (3, -1)


def test_object_without_btf(tmp_path: Path, compiled: Compiled) -> None:
    plain = tmp_path / "plain.o"
    data = compiled("other").read_bytes()
    plain.write_bytes(data.replace(b".BTF\0", b".BTX\0"))
    with pytest.raises(Invalid, match=r"\.BTF"):
        read_btf(plain)


def test_variables_and_their_places(compiled: Compiled) -> None:
    variables = Elf.read(compiled("basics")).variables(".rodata")
    assert {name: size for name, (_, size) in variables.items()} == {
        "t_byte": 1, "t_answer": 8, "t_signed": 4, "t_vip": 4, "t_port": 2,
    }  # fmt: skip


OPERATIONS: dict[str, Callable[[BpfObject, Path], object]] = {
    "open basics.o": lambda loaded, _: BpfObject(loaded.path),
    "load basics.o": lambda loaded, _: BpfObject.load(loaded),
    "update t_array": lambda loaded, _: loaded.maps["t_array"].update(ZERO, bytes(8)),
    "update t_array (1 elements)": lambda loaded, _: loaded.maps["t_array"].update_batch({ZERO: bytes(8)}),
    "look up in t_array": lambda loaded, _: loaded.maps["t_array"].lookup(ZERO),
    "delete from t_hash": lambda loaded, _: loaded.maps["t_hash"].delete(ZERO),
    "delete from t_hash (1 elements)": lambda loaded, _: loaded.maps["t_hash"].delete_batch([ZERO]),
    "read t_array": lambda loaded, _: list(loaded.maps["t_array"].items()),
    "walk t_calls": lambda loaded, _: list(loaded.maps["t_calls"].items()),
    "pin map t_array": lambda loaded, path: loaded.maps["t_array"].pin(path),
    "pin program t_count": lambda loaded, path: loaded.programs["t_count"].pin(path),
    "open map 1": lambda *_: BpfMap.from_id(1),
    "open program 1": lambda *_: BpfProgram.from_id(1),
    "run t_count": lambda loaded, _: loaded.programs["t_count"].test_run(FRAME),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_can_be_made_to_fail(
    basics: BpfObject, bpffs: Path, operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = open_descriptors()

    def inject(text: str) -> None:
        if text == operation:
            raise KernelError(text, errno.EIO, "injected")

    monkeypatch.setattr(faults, "inject", inject)
    with pytest.raises(KernelError, match="injected"):
        OPERATIONS[operation](basics, bpffs / "pin")
    assert not (bpffs / "pin").exists()
    assert open_descriptors() == before
