"""Programs and maps across restarts: pins found again, and layouts that changed."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from platform import machine

import msgspec
import pytest
import pytest_asyncio

from samewire.cni.backend import Address, AttachRequest
from samewire.cni.result import Route
from samewire.hcn.codec import decode_modify, decode_object
from samewire.hcn.policies import OutBoundNAT
from samewire.hcn.schema import Kind, Network
from samewire.kernel.bpf import BpfMap
from samewire.kernel.netns import NetNamespace
from samewire.node import switchboard
from samewire.node.cni_backend import NodeBackend
from samewire.node.config import NodeConfig
from samewire.node.hooks import Hooks
from samewire.node.liverows import LiveRows
from samewire.node.migrate import Migration
from samewire.node.node import Node
from samewire.node.opening import Opening, switch_object
from samewire.node.switchboard import Switchboard
from samewire.trace.flows import flow_rows
from samewire.trace.names import Names
from samewire.vfp.constants import LAYOUT_VERSION, TICK_SHIFT, Counter
from samewire.vfp.record import Record
from samewire.vfp.tables import TABLES, Flow, FlowKey, Port
from tests.support.node import ROUTER_IP, NodeNet, can_ping, overlay, path_of
from tests.support.waiting import until

pytestmark = pytest.mark.root

BPF = Path(__file__).parents[2] / "bpf"
_SERVER = (
    "import socket, threading\n"
    "listener = socket.create_server(('', 7777))\n"
    "print('ready', flush=True)\n"
    "def serve(peer):\n"
    "    while data := peer.recv(100): peer.sendall(data)\n"
    "while True: threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()\n"
)
_CLIENT = (
    "import socket, sys\n"
    "peer = socket.create_connection((sys.argv[1], 7777), 20)\n"
    "peer.settimeout(20)\n"
    "print('ready', flush=True)\n"
    "for line in sys.stdin:\n"
    "    peer.sendall(line.encode()); print(peer.recv(100).decode(), end='', flush=True)\n"
)

Start = Callable[..., Awaitable[Node]]


@pytest.fixture(scope="session")
def larger_object(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The switch with flows and fragments that have one more member, first in the structure or last."""
    directory = tmp_path_factory.mktemp("bpf")
    for source in BPF.iterdir():
        text = source.read_text()
        if source.name == "layout.h":
            text = text.replace(
                "\t__u8 arrival;\t  /* enum sw_arrival of the first packet */\n\t__u8 reserved[2];\n",
                "\t__u8 arrival;\n\t__u8 reserved[2];\n\t__u64 bytes;\n",
            ).replace("struct sw_fragment {\n", "struct sw_fragment {\n\t__u64 first_ns;\n")
            assert text.count("bytes;") - source.read_text().count("bytes;") == 1
            assert "first_ns" in text
        (directory / source.name).write_text(text)
    built = directory / "switch.o"
    flags = [
        "-O2",
        "-g",
        "--target=bpf",
        "-mcpu=v3",
        f"-I/usr/include/{machine()}-linux-gnu",
        f"-I{directory}",
    ]
    subprocess.run(["clang", *flags, "-c", str(directory / "switch.c"), "-o", str(built)], check=True)
    subprocess.run(["llvm-strip", "-g", str(built)], check=True)
    return built


@pytest_asyncio.fixture
async def start(config: NodeConfig) -> AsyncIterator[Start]:
    """Starts the node, ending the one that ran before."""
    running: list[Node] = []

    async def end() -> None:
        while running:
            await running.pop().close()

    async def begin(object_path: Path | None = None, **settings: int | bool) -> Node:
        await end()
        changed = msgspec.structs.replace(config, **settings)
        running.append(await Node.start(changed, lambda _: None, Opening(changed, object_path)))
        return running[0]

    yield begin
    await end()


async def pod(node: Node, net: NodeNet) -> str:
    """A pod at 10.244.0.9 on a new network, translated on its way out."""
    network = decode_object(Kind.NETWORK, overlay())
    assert isinstance(network, Network)
    await node.service.create_network(network)
    name = net.pod()
    await NodeBackend(node).attach(
        AttachRequest(
            network="pods",
            container_id="c",
            interface_name="eth0",
            netns_path=path_of(name),
            addresses=(Address("10.244.0.9", 24, "10.244.0.1"),),
            routes=(Route("0.0.0.0/0", "10.244.0.1"),),
            policies=(OutBoundNAT(),),
        )
    )
    return name


class Talk:
    """TCP connections from a pod to the router, each held open by a process."""

    def __init__(self, net: NodeNet, stack: ExitStack) -> None:
        self._stack = stack
        self._run(net.router, _SERVER)

    def connect(self, name: str) -> subprocess.Popen[str]:
        """A new connection."""
        return self._run(name, _CLIENT, ROUTER_IP)

    def _run(self, name: str, code: str, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            ["nsenter", f"--net={path_of(name)}", sys.executable, "-c", code, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._stack.callback(_end, process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def echo(connection: subprocess.Popen[str], word: str) -> str:
    assert connection.stdin is not None
    assert connection.stdout is not None
    connection.stdin.write(word + "\n")
    connection.stdin.flush()
    return connection.stdout.readline().strip()


@pytest.fixture
def talk(net: NodeNet) -> Iterator[Talk]:
    with ExitStack() as stack:
        yield Talk(net, stack)


def flows(node: Node) -> set[bytes]:
    return {key for key, _ in node.board.maps["sw_flows"].items()}


def slots_agree(node: Node) -> bool:
    """Every flow is found by its slot: else it would never age."""
    slots = node.board.maps["sw_flow_slots"]
    return all(
        slots.lookup(Flow.unpack(value[: Flow.size]).slot.to_bytes(4, "little")) == key
        for key, value in node.board.maps["sw_flows"].items()
    )


def ticks(node: Node) -> int:
    value = node.board.maps["sw_counters"].lookup(int(Counter.AGEING_TICKS).to_bytes(4, "little"))
    assert value is not None
    return sum(
        int.from_bytes(part, "little") for part in node.board.maps["sw_counters"].per_cpu_values(value)
    )


def map_ids(node: Node) -> dict[str, int]:
    return {name: found.id for name, found in node.board.maps.items()}


def program_ids(node: Node) -> dict[str, int]:
    return {name: found.id for name, found in node.board.programs.items()}


async def test_generations_go_on_where_all_maps_are_new(
    net: NodeNet, start: Start, larger_object: Path, talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a flow that was judged before the last change of a policy, and is idle, would be true again."""

    def generation(node: Node) -> int:
        (row,) = node.switch.kernel.tables.read(["sw_ports"])["sw_ports"].values()
        assert isinstance(row, Port)
        return row.generation

    node = await start()
    connection = talk.connect(await pod(node, net))
    (endpoint,) = node.store.state.endpoints()
    settings = {
        "Policies": [{"Type": "ACL", "Settings": {"Action": "Allow", "Direction": "Out", "Priority": 100}}]
    }
    change = {"ResourceType": "Policy", "RequestType": "Add", "Settings": settings}
    await node.service.modify(Kind.ENDPOINT, endpoint.id, decode_modify(Kind.ENDPOINT, change))
    before = generation(node)
    monkeypatch.setattr(switchboard, "LAYOUT_VERSION", LAYOUT_VERSION + 1)
    node = await start(larger_object)
    assert generation(node) > before
    assert echo(connection, "still here") == "still here"


async def test_a_restart_opens_the_pins(net: NodeNet, start: Start, talk: Talk) -> None:
    node = await start()
    name = await pod(node, net)
    connection = talk.connect(name)
    before = map_ids(node), program_ids(node), flows(node)
    node = await start()
    assert (map_ids(node), program_ids(node), flows(node)) == before
    assert not node.board.upgrading
    assert echo(connection, "still") == "still"


async def test_a_missing_program_pin_means_loading_on_the_same_maps(
    net: NodeNet, start: Start, talk: Talk
) -> None:
    node = await start()
    connection = talk.connect(await pod(node, net))
    maps, programs = map_ids(node), program_ids(node)
    (node.config.bpf_dir / "programs" / "sw_ingress").unlink()
    node = await start()
    assert map_ids(node) == maps
    assert not set(program_ids(node).values()) & set(programs.values())
    assert echo(connection, "still") == "still"
    assert await node.auditor.compare() == []


async def test_copies_do_not_outlive_their_number(net: NodeNet, start: Start, talk: Talk) -> None:
    """Numbers of sw_changes begin anew where its pin is missing, and old copies are not to be true again some day."""
    node = await start()
    connection = talk.connect(await pod(node, net))
    before = map_ids(node)
    (node.config.bpf_dir / "maps" / "sw_changes").unlink()
    node = await start()
    kept = {name for name, number in map_ids(node).items() if number == before[name]}
    assert before.keys() - kept == {"sw_changes", "sw_near_ports", "sw_near_nexthops", "sw_near_backends"}
    assert echo(connection, "still") == "still"


async def test_another_layout_keeps_connections(
    net: NodeNet, start: Start, talk: Talk, larger_object: Path
) -> None:
    node = await start()
    name = await pod(node, net)
    connection = talk.connect(name)
    assert echo(connection, "one") == "one"
    maps, kept = map_ids(node), flows(node)
    assert len(kept) >= 2
    for object_path, size in ((larger_object, Flow.size + 8), (switch_object(), Flow.size)):
        node = await start(object_path)
        after = map_ids(node)
        changed = {key for key in after if after[key] != maps[key]}
        by_slot = {"sw_flows", "sw_flow_slots", "sw_flow_counts", "sw_cursors"}
        assert changed == by_slot | {"sw_fragments", "sw_scratch"}
        assert node.board.maps["sw_flows"].value_size == size
        assert flows(node) >= kept
        assert slots_agree(node)
        assert await node.auditor.compare() == []
        assert echo(connection, "two") == "two"
        assert can_ping(name, ROUTER_IP), "new flows can be made"
        assert slots_agree(node)
        before = ticks(node)
        assert can_ping(name, ROUTER_IP, count=2)
        assert ticks(node) > before, "the ageing timer runs on the new maps"
        assert {path.name for path in node.config.bpf_dir.iterdir()} >= {"maps", "programs", "links"}
        assert not (node.config.bpf_dir / "next").exists()
        maps = after


async def test_another_size_keeps_connections(net: NodeNet, start: Start, talk: Talk) -> None:
    node = await start()
    connection = talk.connect(await pod(node, net))
    kept = flows(node)
    node = await start(flow_entries=2048)
    assert node.board.maps["sw_flows"].max_entries == 2048
    assert node.board.maps["sw_flow_slots"].max_entries == 4096
    assert flows(node) >= kept
    assert slots_agree(node)
    assert echo(connection, "still") == "still"
    assert await node.auditor.compare() == []


def counted(node: Node) -> tuple[int | None, int | None]:
    """Packets of the only TCP connection: those of its client, and those of its server."""
    maps = node.board.maps
    flows = {FlowKey.unpack(key): Flow.unpack(value[: Flow.size]) for key, value in maps["sw_flows"].items()}
    tables: dict[str, Mapping[Record, Record]] = {
        "sw_config": LiveRows(TABLES["sw_config"], maps["sw_config"]),
        "sw_flows": {key: flow for key, flow in flows.items() if key.protocol == socket.IPPROTO_TCP},
        "sw_flow_counts": LiveRows(TABLES["sw_flow_counts"], maps["sw_flow_counts"]),
    }
    (row,) = flow_rows(tables, Names((), lambda ifindex: ""), 0)
    return row.initiator.packets, row.target.packets


def segments(name: str) -> tuple[int, int]:
    """TCP segments that a namespace has sent and got."""
    with NetNamespace(path_of(name)) as space:
        lines = space.run(Path("/proc/thread-self/net/snmp").read_text).splitlines()
    names, values = (line.split() for line in lines if line.startswith("Tcp:"))
    found = dict(zip(names, values, strict=True))
    return int(found["OutSegs"]) + int(found["RetransSegs"]), int(found["InSegs"])


async def all_counted(node: Node, name: str) -> None:
    """An ACK may be under way."""
    await until(lambda: counted(node) == segments(name))


async def test_what_is_counted_of_a_flow_outlives_restarts_and_upgrades(
    net: NodeNet, start: Start, talk: Talk, larger_object: Path
) -> None:
    """On the same maps, on smaller ones, with another layout and back: every packet once."""
    node = await start(flow_counters=True)
    name = await pod(node, net)
    connection = talk.connect(name)
    await all_counted(node, name)
    steps: tuple[tuple[Path | None, dict[str, int]], ...] = (
        (None, {}),
        (None, {"flow_entries": 2048}),
        (larger_object, {"flow_entries": 2048}),
        (switch_object(), {"flow_entries": 2048}),
    )
    for number, (object_path, settings) in enumerate(steps):
        before = map_ids(node)["sw_flow_counts"]
        node = await start(object_path, flow_counters=True, **settings)
        assert (map_ids(node)["sw_flow_counts"] == before) == (number == 0)
        assert counted(node) == segments(name)
        assert echo(connection, "word") == "word"
        await all_counted(node, name)
    assert segments(name)[0] >= 6


async def test_what_old_programs_count_between_the_copies_is_counted(
    net: NodeNet, start: Start, talk: Talk, larger_object: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await start(flow_counters=True)
    name = await pod(node, net)
    connection = talk.connect(name)
    attach = Hooks.attach_own

    def attach_own(self: Hooks, tunnel_ifindex: int, host_peer_ifindex: int) -> None:
        assert echo(connection, "between") == "between"
        attach(self, tunnel_ifindex, host_peer_ifindex)

    monkeypatch.setattr(Hooks, "attach_own", attach_own)
    before = segments(name)
    node = await start(larger_object, flow_counters=True)
    assert segments(name)[0] > before[0]
    await all_counted(node, name)


async def test_counting_is_switched_on_and_off_at_a_restart(net: NodeNet, start: Start, talk: Talk) -> None:
    node = await start()
    name = await pod(node, net)
    connection = talk.connect(name)
    maps, programs, kept = map_ids(node), program_ids(node), flows(node)
    assert counted(node) == (None, None)
    uncounted = segments(name)
    node = await start(flow_counters=True)
    changed = {table for table, found in map_ids(node).items() if found != maps[table]}
    assert changed == {"sw_flow_counts"}
    assert not set(program_ids(node).values()) & set(programs.values()), "a constant of the programs"
    assert flows(node) >= kept
    assert echo(connection, "counted") == "counted"

    def gained() -> tuple[int, int]:
        there, back = segments(name)
        return there - uncounted[0], back - uncounted[1]

    await until(lambda: counted(node) == gained())
    assert gained() != (0, 0)
    assert await node.auditor.compare() == []
    node = await start()
    assert node.board.maps["sw_flow_counts"].max_entries == 1
    assert counted(node) == (None, None)
    assert flows(node) >= kept
    assert echo(connection, "still") == "still"
    assert not (node.config.bpf_dir / "next").exists()


@pytest.mark.parametrize("filled", [False, True])
async def test_an_upgrade_that_was_interrupted_is_taken_up(
    net: NodeNet, start: Start, talk: Talk, larger_object: Path, filled: bool
) -> None:
    node = await start()
    connection = talk.connect(await pod(node, net))
    kept = flows(node)
    config = node.config
    with Switchboard(config.bpf_dir, larger_object, config.map_sizes) as board:
        assert board.upgrading
        new_flows = board.maps["sw_flows"].id
        if filled:
            board.maps["sw_flows"].update(bytes(FlowKey.size), bytes(board.maps["sw_flows"].value_size))
    assert echo(connection, "meanwhile") == "meanwhile"
    node = await start(larger_object)
    assert node.board.maps["sw_flows"].id == new_flows, "the maps that were made already are used"
    assert flows(node) >= kept
    assert echo(connection, "still") == "still"
    assert await node.auditor.compare() == []


async def test_a_connection_made_between_the_copies_is_copied(
    net: NodeNet, start: Start, talk: Talk, larger_object: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await start()
    name = await pod(node, net)
    late: list[subprocess.Popen[str]] = []
    known: set[bytes] = set()
    attach = Hooks.attach_own

    def attach_own(self: Hooks, tunnel_ifindex: int, host_peer_ifindex: int) -> None:
        if not late:
            late.append(talk.connect(name))  # by the old programs, after the first copy
            with BpfMap.open_pinned(node.config.bpf_dir / "maps" / "sw_flows") as old:
                known.update(key for key, _ in old.items())
        attach(self, tunnel_ifindex, host_peer_ifindex)

    monkeypatch.setattr(Hooks, "attach_own", attach_own)
    node = await start(larger_object)
    assert known
    assert flows(node) >= known
    assert slots_agree(node)
    assert echo(late[0], "still") == "still"


async def test_a_connection_made_during_the_first_copy_goes_on_through_the_swap(
    net: NodeNet, start: Start, talk: Talk, larger_object: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new programs took its answers for nobody's, and the node reset it."""
    node = await start()
    name = await pod(node, net)
    late: list[subprocess.Popen[str]] = []
    echoes: list[str] = []
    copy, attach = Migration.copy, Hooks.attach_uplink

    def during(self: Migration) -> dict[str, int]:
        copied = copy(self)
        if not late:
            late.append(talk.connect(name))
        return copied

    def attach_uplink(self: Hooks, ifindex: int) -> None:
        attach(self, ifindex)
        # The question by the old programs, the answer by the new ones.
        echoes.append(echo(late[0], "through"))

    monkeypatch.setattr(Migration, "copy", during)
    monkeypatch.setattr(Hooks, "attach_uplink", attach_uplink)
    await start(larger_object)
    assert "through" in echoes
    assert "" not in echoes
    assert echo(late[0], "still") == "still"


async def test_a_full_new_table_takes_what_it_can(net: NodeNet, start: Start, talk: Talk) -> None:
    node = await start(flow_entries=4096)
    flows_map, slots = node.board.maps["sw_flows"], node.board.maps["sw_flow_slots"]
    await pod(node, net)
    for number in range(3000):
        key = number.to_bytes(FlowKey.size - 2, "little") + b"\x04\x06"
        value = bytearray(Flow.size)
        for name, content in (("slot", number), ("seen_tick", time.monotonic_ns() >> TICK_SHIFT)):
            at = next(field.offset for field in Flow.fields if field.name == name)
            value[at : at + 4] = content.to_bytes(4, "little")
        flows_map.update(key, bytes(value))
        slots.update(number.to_bytes(4, "little"), key)
    node = await start(flow_entries=1024)
    assert 900 <= len(flows(node)) <= 1024
    assert slots_agree(node)
