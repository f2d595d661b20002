"""The file: durable across kill -9, never mistaken for empty, numbers never given twice."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from threading import Thread

import pytest
from msgspec.structs import replace

from samewire.errors import Exhausted
from samewire.hcn import checkpoint, policy_rows
from samewire.hcn import store as store_module
from samewire.hcn.errors import StoreError
from samewire.hcn.numbered import name_of, numbered
from samewire.hcn.policies import AclDirection, OtherPolicy, PortMapping, SetPolicy, TierAcl
from samewire.hcn.policy_lists import BULKY, MANY, PolicyList
from samewire.hcn.policy_rows import statements
from samewire.hcn.reboot import netns_alive, read_boot_id
from samewire.hcn.schema import (
    Endpoint,
    Kind,
    Namespace,
    Network,
    NetworkFlags,
    NetworkType,
    Object,
    Route,
    SdnRoute,
)
from samewire.hcn.store import MAX_NUMBER, Store
from samewire.hcn.storefile import hold_directory
from samewire.hcn.switch import Change
from tests.support.hcn import at

VOLATILE = int(NetworkFlags.ENABLE_NON_PERSISTENT)
KINDS: dict[type[Object], Kind] = {
    Network: Kind.NETWORK,
    Endpoint: Kind.ENDPOINT,
    Namespace: Kind.NAMESPACE,
    Route: Kind.ROUTE,
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "hns.db"


@contextlib.contextmanager
def opened(path: Path, boot_id: str = "boot-1") -> Iterator[Store]:
    store = Store(path, boot_id)
    try:
        yield store
    finally:
        store.close()


def put(store: Store, *values: Object) -> None:
    store.commit([Change(KINDS[type(value)], value.id, None, value) for value in values])


def everything(store: Store) -> list[Object]:
    return [value for kind in Kind for value in store.state.all(kind)]


def test_a_new_file_is_private_and_empty(path: Path) -> None:
    with opened(path) as store:
        assert everything(store) == []
    assert path.stat().st_mode & 0o777 == 0o600
    assert {entry.name for entry in path.parent.iterdir()} == {"hns.db", "hns.db.room"}


def test_objects_come_back_in_their_order(path: Path) -> None:
    values: list[Object] = [Network(id=f"{9 - n}", name=f"n{n}") for n in range(5)]
    changed = Network(id="7", name="changed", extra=(("X", "1"),))
    with opened(path) as store:
        put(store, *values)
        store.commit(
            [Change(Kind.NETWORK, "7", values[2], changed), Change(Kind.NETWORK, "9", values[0], None)]
        )
    with opened(path) as store:
        assert everything(store) == [values[1], changed, *values[3:]]


def test_a_failed_transaction_changes_nothing(path: Path) -> None:
    with opened(path) as store:
        store._db.execute(
            "CREATE TRIGGER t BEFORE INSERT ON objects WHEN NEW.id = 'B' BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
        with pytest.raises(StoreError, match="no"):
            put(store, Network(id="A"), Network(id="B"))
        assert everything(store) == []
        put(store, Network(id="C"))
    with opened(path) as store:
        assert everything(store) == [Network(id="C")]


def damaged(path: Path, change: str) -> None:
    with opened(path) as store:
        put(store, *(Network(id=str(number), name="x" * 500) for number in range(50)))
    match change:
        case "truncated to nothing":
            path.write_bytes(b"")
        case "cut in half":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        case "overwritten":
            path.write_bytes(b"this is not a database" * 200)
        case "pages of noise":
            data = bytearray(path.read_bytes())
            data[4096 : len(data)] = os.urandom(len(data) - 4096)
            path.write_bytes(data)
        case "gone with its log left":
            path.rename(path.with_name("hns.db-wal"))
        case "another application's":
            path.unlink()
            with contextlib.closing(sqlite3.connect(path)) as db:
                db.execute("CREATE TABLE t (x)")
        case "inconsistent":
            data = bytearray(path.read_bytes())
            data[36:40] = (5).to_bytes(4, "big")  # the number of free pages, in the header
            path.write_bytes(data)
        case "newer":
            with contextlib.closing(sqlite3.connect(path)) as db:
                db.execute("PRAGMA user_version = 99")
        case "an unreadable row":
            with contextlib.closing(sqlite3.connect(path)) as db, db:
                db.execute("UPDATE objects SET json = '{\"Type\":\"ICS\"}' WHERE id = '7'")
        case "a row of another type":
            with contextlib.closing(sqlite3.connect(path)) as db, db:
                db.execute("UPDATE objects SET last_name = x'00' WHERE id = '7'")
        case "a directory":
            path.unlink()
            path.mkdir()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("truncated to nothing", "is empty"),
        ("cut in half", "damaged.*samewire uninstall"),
        ("overwritten", "not a database.*samewire uninstall"),
        ("pages of noise", "damaged.*samewire uninstall"),
        ("gone with its log left", "write-ahead log"),
        ("another application's", "no database of Samewire"),
        ("inconsistent", "the database is damaged.*samewire uninstall"),
        ("newer", "newer Samewire.*install that again"),
        ("an unreadable row", "networks 7 cannot be read"),
        ("a row of another type", "networks 7 cannot be read"),
        ("a directory", "unable to open.*read-only"),
    ],
)
def test_damage_is_an_error_and_never_empty(path: Path, change: str, says: str) -> None:
    damaged(path, change)
    with pytest.raises(StoreError, match=says) as caught:
        Store(path, "boot-1")
    assert str(path) in str(caught.value)


def test_one_process_has_it_open(path: Path) -> None:
    with opened(path) as store:
        with pytest.raises(StoreError, match="another process has the database open"):
            Store(path, "boot-1")
        put(store, Network(id="A"))
    with opened(path) as store:
        assert everything(store) == [Network(id="A")]


def test_nobody_makes_a_file_where_another_is_making_it(path: Path) -> None:
    held = hold_directory(path)
    try:
        with pytest.raises(StoreError, match="another process has the database open"):
            Store(path, "boot-1")
        assert list(path.parent.iterdir()) == []
    finally:
        os.close(held)
    with opened(path) as store:
        assert everything(store) == []


async def test_changes_are_made_where_no_thread_can_be_started(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Thread) -> None:
        raise RuntimeError("can't start new thread")

    with opened(path) as store:
        monkeypatch.setattr(Thread, "start", refuse)
        monkeypatch.setattr(checkpoint, "DUE_BYTES", 0)
        store._checkpoints._due_bytes = 0
        put(store, Network(id="A"))
        await store.commit_beside([Change(Kind.NETWORK, "B", None, Network(id="B"))])
        monkeypatch.undo()
    with opened(path) as store:
        assert everything(store) == [Network(id="A"), Network(id="B")]


def test_troubles_go_with_their_object(path: Path) -> None:
    with opened(path) as store:
        for _ in range(2):
            put(store, Network(id="A"))
            assert store.state.trouble_of("A") == ""
            store.state.note_troubles({"A": "the uplink is missing"})
            store.commit([Change(Kind.NETWORK, "A", store.state.network("A"), None)])


def test_an_unfinished_creation_is_started_again(path: Path) -> None:
    path.parent.mkdir()
    path.with_name("hns.db.new").write_bytes(b"half")
    with opened(path) as store:
        put(store, Network(id="A"))


def test_old_files_are_brought_up_to_date(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(path) as store:
        put(store, Network(id="A", name="old"))

    def rename(db: sqlite3.Connection) -> None:
        db.execute("UPDATE objects SET json = replace(json, 'old', 'new')")

    def fail(db: sqlite3.Connection) -> None:
        rename(db)
        db.execute("no such statement")

    present = store_module.SCHEMA_VERSION
    monkeypatch.setattr(store_module, "SCHEMA_VERSION", present + 1)
    monkeypatch.setattr(store_module, "MIGRATIONS", {present: fail})
    with pytest.raises(StoreError, match="syntax error"):
        Store(path, "boot-1")
    monkeypatch.setattr(store_module, "MIGRATIONS", {present: rename})
    with opened(path) as store:
        assert everything(store) == [Network(id="A", name="new")]
    monkeypatch.setattr(store_module, "MIGRATIONS", {present: fail})
    with opened(path) as store:
        assert everything(store) == [Network(id="A", name="new")]


def test_numbers_are_small_stable_and_never_reused(path: Path) -> None:
    with opened(path) as store:
        assert [store.allocate_number("scope", key) for key in "abab"] == [1, 2, 1, 2]
        assert store.allocate_number("port", "a") == 1
        store.release_number("scope", "b")
        store.release_number("scope", "b")
        assert store.allocate_number("scope", "b") == 3
        store.release_number("scope", "b")
    with opened(path) as store:
        assert store.numbers("scope") == {"a": 1}
        assert store.allocate_number("scope", "c") == 4
        assert store.allocate_number("scope", "a") == 1


def test_a_number_that_could_not_be_written_is_not_given_again(path: Path) -> None:
    with opened(path) as store:
        store._db.execute(
            "CREATE TRIGGER t BEFORE INSERT ON numbers WHEN NEW.key = 'bad' BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
        with pytest.raises(StoreError):
            store.allocate_number("scope", "bad")
        assert store.allocate_number("scope", "good") == 2


def test_numbers_run_out_cleanly(path: Path) -> None:
    with opened(path) as store:
        store._db.execute("INSERT INTO counters VALUES ('scope', ?)", (MAX_NUMBER - 1,))
    with opened(path) as store:
        assert store.allocate_number("scope", "last") == MAX_NUMBER
        with pytest.raises(Exhausted):
            store.allocate_number("scope", "one more")


def test_a_reboot_takes_what_was_not_to_last(path: Path) -> None:
    lasting, volatile = Network(id="N1"), Network(id="N2", flags=VOLATILE)
    alive, dead = (
        Namespace(id="S1", netns_path="/run/netns/alive"),
        Namespace(id="S2", netns_path="/run/netns/dead"),
    )
    plain = Namespace(id="S3")
    kept = Endpoint(id="E1", network_id="N1", namespace_id="S1")
    free = Endpoint(id="E2", network_id="N1", ip_configurations=at("10.0.0.2"))
    lost = Endpoint(id="E3", network_id="N1", namespace_id="S2")
    theirs = Endpoint(id="E4", network_id="N2", namespace_id="S1")
    shared = Route(id="R1", network_id="N1", endpoint_ids=("E1", "E3"))
    orphan = Route(id="R2", network_id="N1", endpoint_ids=("E3",))
    of_network = Route(id="R3", network_id="N2")
    watch = (SdnRoute(destination_prefix="10.96.0.0/12", automatic_endpoint_monitor=True),)
    watching = Route(id="R4", network_id="N1", endpoint_ids=("E3",), routes=watch)
    values = (
        lasting,
        volatile,
        alive,
        dead,
        plain,
        kept,
        free,
        lost,
        theirs,
        shared,
        orphan,
        of_network,
        watching,
    )
    with opened(path) as store:
        put(store, *values)
        assert store.prune_after_reboot(lambda _: False) == []
    with opened(path, "boot-2") as store:
        fresh = Network(id="N3", flags=VOLATILE)
        put(store, fresh)
        store.commit(
            [Change(Kind.NETWORK, "N2", volatile, Network(id="N2", name="changed since", flags=VOLATILE))]
        )
        changes = store.prune_after_reboot(lambda path: path == alive.netns_path)
        assert {change.id for change in changes} == {"N2", "S2", "E3", "E4", "R1", "R2", "R3", "R4"}
        survivors = [
            lasting,
            fresh,
            kept,
            free,
            alive,
            plain,
            Route(id="R1", network_id="N1", endpoint_ids=("E1",)),
            Route(id="R4", network_id="N1", routes=watch),
        ]
        assert everything(store) == survivors
    with opened(path, "boot-2") as store:
        assert everything(store) == survivors
        assert store.prune_after_reboot(lambda path: path == alive.netns_path) == []


def test_what_counts_as_a_living_network_namespace(tmp_path: Path) -> None:
    plain = tmp_path / "file"
    plain.touch()
    assert not netns_alive(str(plain))
    assert not netns_alive(str(tmp_path / "missing"))
    assert not netns_alive("/proc/self/ns/net")
    link = tmp_path / "netns"
    link.symlink_to("/proc/self/ns/net")
    assert netns_alive(str(link))


def test_the_boot_id_is_the_kernels() -> None:
    assert read_boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()


WRITER = '''
import json
import sys
from pathlib import Path
from samewire.hcn.schema import Endpoint, Kind, Network
from samewire.hcn.store import Store
from samewire.hcn.switch import Change

store = Store(Path(sys.argv[1]), "boot-1")
statements = store._statements
store._statements = lambda changes: [one for change in changes for one in statements([change])]

class Telling:
    """The database, that tells the steps of a transaction."""

    def __init__(self, database):
        self._database = database

    def execute(self, statement, values=()):
        found = self._database.execute(statement, values)
        if statement.startswith("INSERT INTO objects"):
            print(f"wrote {json.loads(values[-1])[0][1]}", flush=True)
        return found

    def __getattr__(self, name):
        return getattr(self._database, name)

store._db = Telling(store._db)
for number in range(100000):
    network = Network(id=f"N{number}")
    endpoints = [Endpoint(id=f"E{number}.{part}", network_id=network.id) for part in range(3)]
    store.allocate_number("scope", network.id)
    changes = [Change(Kind.NETWORK, network.id, None, network)]
    store.commit(changes + [Change(Kind.ENDPOINT, value.id, None, value) for value in endpoints])
    print(f"done {number}", flush=True)
'''


@pytest.mark.parametrize("last", ["wrote N40", "wrote E40.0", "wrote E40.1", "wrote E40.2", "done 40"])
def test_kill_9_between_the_steps_of_a_transaction(path: Path, last: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        done = -1
        for line in child.stdout:
            done = int(line.split()[1]) if line.startswith("done") else done
            if line.strip() == last:
                break
        child.send_signal(signal.SIGKILL)
        rest = [line for line in child.stdout if line.startswith("done")]
        done = int(rest[-1].split()[1]) if rest else done
    with opened(path) as store:
        networks = store.state.networks()
        assert len(networks) in (done + 1, done + 2)  # a commit may have been made and not been told
        for network in networks:
            assert len(store.state.endpoints_of_network(network.id)) == 3
        numbers = store.numbers("scope")
        assert set(numbers) >= {network.id for network in networks}
        assert store.allocate_number("scope", "next") == max(numbers.values()) + 1


def as_version_4(db: sqlite3.Connection) -> None:
    """Make of a file what version 4 would have written."""
    db.execute("ALTER TABLE objects DROP COLUMN last_name")
    db.execute("PRAGMA user_version = 4")


def as_version_3(db: sqlite3.Connection) -> None:
    """Make of a file without rows of policies what version 3 would have written."""
    as_version_4(db)
    assert db.execute("SELECT count(*) FROM policies").fetchone() == (0,)
    db.execute("DROP TABLE policies")
    db.execute("ALTER TABLE objects DROP COLUMN numbers")
    db.execute("ALTER TABLE objects DROP COLUMN apart")
    db.execute("PRAGMA user_version = 3")


def test_a_database_of_version_1_is_brought_up_to_date(path: Path) -> None:
    strange = OtherPolicy(type_name="TierAcl", settings_json='{"Direction":"In","Name":"x"}')
    unreadable = OtherPolicy(type_name="TierAcl", settings_json='{"Direction":5}')
    other = OtherPolicy(type_name="Mystery", settings_json="1")
    with opened(path) as store:
        put(store, Endpoint(id="A", policies=(strange, unreadable, other)))
    with sqlite3.connect(path) as db:
        as_version_3(db)
        db.execute("DROP TABLE settings")
        db.execute("PRAGMA user_version = 1")
    db.close()
    with opened(path) as store:
        tier = TierAcl(name="x", direction=AclDirection.IN)
        assert everything(store) == [Endpoint(id="A", policies=(tier, unreadable, other))]
        store.set_setting("a", {"b": 1})


def test_a_database_of_version_2_keeps_its_objects_and_their_order(path: Path) -> None:
    ids = ["C", "A", "B"]
    with opened(path) as store:
        for object_id in ids:
            put(store, Endpoint(id=object_id))
    with sqlite3.connect(path) as db:
        rows = db.execute("SELECT kind, id, position, boot_id, json FROM objects").fetchall()
        as_version_3(db)
        db.execute("DROP TABLE objects")
        db.execute(
            "CREATE TABLE objects (kind TEXT NOT NULL, id TEXT NOT NULL, position INTEGER NOT NULL, "
            "boot_id TEXT NOT NULL, json BLOB NOT NULL, PRIMARY KEY (kind, id)) WITHOUT ROWID"
        )
        db.executemany("INSERT INTO objects VALUES (?, ?, ?, ?, ?)", rows)
        db.execute("PRAGMA user_version = 2")
    db.close()
    with opened(path) as store:
        put(store, Endpoint(id="D"))
        put(store, Endpoint(id="A", name="new"))
    with opened(path) as store:
        assert [value.id for value in everything(store)] == [*ids, "D"]
        assert store.state.endpoint("A") == Endpoint(id="A", name="new")


def kept_numbers(store: Store) -> tuple[int, ...]:
    endpoint = store.state.endpoint("A")
    assert endpoint is not None
    return tuple(numbered(endpoint.policies).numbers)


def mappings(count: int) -> tuple[PortMapping, ...]:
    return tuple(PortMapping(protocol=6, internal_port=80, external_port=1000 + i) for i in range(count))


@pytest.mark.parametrize("count", [3, MANY, MANY + 1, 200])
def test_a_database_of_version_3_keeps_its_policies(
    path: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = Endpoint(id="A", policies=mappings(count)), Network(id="N", type=NetworkType.L2BRIDGE)
    monkeypatch.setattr(policy_rows, "is_long", lambda _: False)  # as version 3 has it: all with their object
    with opened(path) as store:
        put(store, *wanted)
    with sqlite3.connect(path) as db:
        as_version_3(db)
    db.close()
    monkeypatch.undo()
    with opened(path) as store:
        assert sorted(everything(store), key=lambda value: value.id) == [*wanted]
        assert kept_numbers(store) == tuple(PolicyList(mappings(count)).numbers)
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT count(*) FROM policies").fetchone() == (count if count > MANY else 0,)
    db.close()


@pytest.mark.parametrize("count", [2, MANY + 1, MANY + 2])
def test_the_name_of_the_newest_policy_is_not_given_again_after_a_restart(path: Path, count: int) -> None:
    policies = PolicyList(mappings(count))
    less = policies.edited(gone=[policies.numbers[-1]])
    before, after = (Endpoint(id="A", policies=which) for which in (policies, less))
    with opened(path) as store:
        put(store, before)
        store.commit([Change(Kind.ENDPOINT, "A", before, after)])
    for _ in range(2):
        with opened(path) as store:
            found = store.state.endpoint("A")
            assert found == after
            more = numbered(found.policies).edited(new=[PortMapping(protocol=6)])
            assert name_of(more.numbers[-1]) == count + 1
            store.commit([Change(Kind.ENDPOINT, "A", found, replace(found, name="B"))])
            store.commit([Change(Kind.ENDPOINT, "A", store.state.endpoint("A"), found)])


@pytest.mark.parametrize("count", [2, MANY + 1])
def test_a_database_of_version_4_keeps_its_policies(path: Path, count: int) -> None:
    policies = PolicyList(mappings(count))
    with opened(path) as store:
        put(store, Endpoint(id="A", policies=policies.edited(gone=[policies.numbers[0]])))
    with sqlite3.connect(path) as db:
        as_version_4(db)
    db.close()
    with opened(path) as store:
        assert kept_numbers(store) == tuple(policies.numbers[1:])
        found = store.state.endpoint("A")
        assert found is not None
        assert numbered(found.policies).last_name == count


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM policies WHERE number = (SELECT max(number) FROM policies)",
        "DELETE FROM policies",
        "UPDATE policies SET json = '{}' WHERE number = (SELECT max(number) FROM policies)",
        "UPDATE policies SET id = 'B'",
        "UPDATE objects SET apart = 0",
    ],
)
def test_policies_that_cannot_be_read_are_no_policies_less(path: Path, damage: str) -> None:
    with opened(path) as store:
        put(store, Endpoint(id="A", policies=mappings(MANY + 1)))
    with sqlite3.connect(path) as db:
        db.execute(damage)
    db.close()
    with pytest.raises(StoreError, match=r"\b[AB]\b"):
        Store(path, "boot-1")


def test_a_set_with_very_many_members_is_stored_apart(path: Path) -> None:
    few, many = SetPolicy(set_id="few"), SetPolicy(set_id="many", values="1.1.1.1," * BULKY)
    networks = [
        Network(id="N", type=NetworkType.L2BRIDGE, policies=policies) for policies in ((few,), (few, many))
    ]
    counts = []
    for before, after in ((None, networks[0]), *pairwise([*networks, networks[0]])):
        with opened(path) as store:
            store.commit([Change(Kind.NETWORK, "N", before, after)])
        with opened(path) as store:
            assert everything(store) == [after]
        with contextlib.closing(sqlite3.connect(path)) as db:
            counts += db.execute("SELECT count(*) FROM policies").fetchone()
    assert counts == [0, 2, 0]


def test_numbers_that_do_not_fit_their_policies_are_damage(path: Path) -> None:
    policies = PolicyList(mappings(3))
    with opened(path) as store:
        put(store, Endpoint(id="A", policies=policies.edited(gone=[policies.numbers[0]])))
    with sqlite3.connect(path) as db:
        db.execute("UPDATE objects SET numbers = '[1]'")
    db.close()
    with pytest.raises(StoreError, match="2 policies have 1 numbers"):
        Store(path, "boot-1")


def test_one_policy_more_writes_one(path: Path) -> None:
    policies = PolicyList(mappings(1000))
    with opened(path) as store:
        before = Endpoint(id="A", policies=policies)
        put(store, before)
        extra = PortMapping(protocol=17, internal_port=1, external_port=1)
        after = Endpoint(id="A", policies=policies.edited([policies.numbers[500]], [extra]))
        change = Change(Kind.ENDPOINT, "A", before, after)
        assert [len(str(args[-1])) < 300 for _, args in statements(change)] == [True, True]
        store.commit([change])
    with opened(path) as store:
        assert everything(store) == [after]
        assert kept_numbers(store) == tuple(numbered(after.policies).numbers)


def test_blocks_of_numbers_are_never_given_twice(path: Path) -> None:
    with opened(path) as store:
        assert [store.reserve_numbers("balancing", 10) for _ in range(2)] == [1, 11]
    with opened(path) as store:
        store.skip_numbers("balancing", 30)
        store.skip_numbers("balancing", 5)
        assert store.reserve_numbers("balancing", 10) == 31
        with pytest.raises(Exhausted):
            store.reserve_numbers("balancing", store_module.MAX_NUMBER)


def test_settings_are_kept(path: Path) -> None:
    with opened(path) as store:
        assert store.setting("a") is None
        store.set_setting("a", {"b": [1]})
    with opened(path) as store:
        assert store.setting("a") == {"b": [1]}
        store.set_setting("a", None)
        assert store.setting("a") is None
