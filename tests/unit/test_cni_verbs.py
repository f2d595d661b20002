"""The verbs on a backend in memory, with the built-in host-local in a temporary directory."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from samewire.cni.backend import NetworkInfo
from samewire.cni.errors import CniCode, CniError
from samewire.cni.result import SUPPORTED_VERSIONS
from samewire.cni.verbs import CniPlugin, version_info
from samewire.errors import KernelError, Unavailable
from tests.support.cni import FakeBackend, Runtime, valid_attachments, variables


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def runtime(backend: FakeBackend, tmp_path: Path) -> Runtime:
    ranges = [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00:1::/64"}]]
    conf = {
        "cniVersion": "1.1.0",
        "name": "net",
        "type": "samewire-cni",
        "ipam": {"type": "host-local", "ranges": ranges, "dataDir": str(tmp_path)},
    }
    return Runtime(CniPlugin(backend), conf)


def taken(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "net").glob("*[.:]*") if "last" not in path.name)


async def test_add(runtime: Runtime, backend: FakeBackend, tmp_path: Path) -> None:
    assert await runtime.ok("ADD") == {
        "cniVersion": "1.1.0",
        "interfaces": [
            {"name": "sw0123456789a", "mac": "0e:00:00:00:00:01", "mtu": 1450},
            {"name": "eth0", "mac": "0e:2a:0a:01:00:02", "mtu": 1450, "sandbox": "/run/netns/pod1"},
        ],
        "ips": [
            {"address": "10.1.0.2/24", "gateway": "10.1.0.1", "interface": 1},
            {"address": "fd00:1::2/64", "gateway": "fd00:1::1", "interface": 1},
        ],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}, {"dst": "::/0", "gw": "fd00:1::1"}],
        "dns": {"nameservers": ["10.96.0.10"], "domain": "net.example"},
    }
    assert backend.calls == ["ensure_network", "refuse_attached", "attach"]
    assert taken(tmp_path) == ["10.1.0.2", "fd00:1::2"]


@pytest.mark.parametrize("version", SUPPORTED_VERSIONS)
async def test_add_in_every_version(runtime: Runtime, version: str) -> None:
    found = await runtime.ok("ADD", cniVersion=version)
    assert found["cniVersion"] == version
    assert "10.1.0.2/24" in json.dumps(found)


async def test_add_without_ipam_takes_what_the_network_gives(runtime: Runtime) -> None:
    found = await runtime.ok("ADD", ipam=None)
    assert found["ips"] == [{"address": "10.1.0.77/24", "gateway": "10.1.0.1", "interface": 1}]


async def test_add_makes_the_network_of_the_configuration(runtime: Runtime, backend: FakeBackend) -> None:
    backend.networks.clear()
    found = await runtime.error("ADD")
    assert (found["code"], found["msg"]) == (CniCode.NOT_FOUND, "network 'net' not found")
    await runtime.ok("ADD", network={"Type": "Overlay"})
    assert backend.created == [{"Type": "Overlay"}]


async def test_add_twice_is_refused_and_harms_nothing(
    runtime: Runtime, backend: FakeBackend, tmp_path: Path
) -> None:
    await runtime.ok("ADD")
    another: dict[str, Any] = {"runtimeConfig": {"ips": ["10.1.0.9"]}}  # which host-local would give
    for wanted in ({}, another):
        found = await runtime.error("ADD", **wanted)
        assert (found["code"], found["msg"]) == (CniCode.CONFLICT, "pod1 has an interface eth0 already")
    assert taken(tmp_path) == ["10.1.0.2", "fd00:1::2"]
    assert list(backend.attachments) == [("pod1", "eth0")]
    await runtime.ok("ADD", interface="eth1")


async def test_add_twice_without_ipam(runtime: Runtime, backend: FakeBackend) -> None:
    await runtime.ok("ADD", ipam=None)
    assert (await runtime.error("ADD", ipam=None))["code"] == CniCode.CONFLICT
    assert list(backend.attachments) == [("pod1", "eth0")]


async def test_a_failed_attachment_gives_the_addresses_back(
    runtime: Runtime, backend: FakeBackend, tmp_path: Path
) -> None:
    backend.fail["attach"] = KernelError("create veth", 12)
    found = await runtime.error("ADD")
    assert (found["code"], found["msg"]) == (
        CniCode.HOST_FAILURE,
        "create veth: ENOMEM (Cannot allocate memory)",
    )
    assert taken(tmp_path) == []
    assert "detach" not in backend.calls


async def test_a_bug_of_the_backend_is_an_internal_error(
    runtime: Runtime, backend: FakeBackend, tmp_path: Path
) -> None:
    backend.fail["attach"] = ZeroDivisionError("oops")
    found = await runtime.error("ADD")
    assert found["code"] == CniCode.INTERNAL
    assert "oops" not in json.dumps(found)
    assert taken(tmp_path) == []


async def test_a_result_that_cannot_be_told_takes_everything_back(
    runtime: Runtime, backend: FakeBackend
) -> None:
    backend.networks["net"] = NetworkInfo(type="Private")  # no subnets, no addresses
    found = await runtime.error("ADD", ipam=None, cniVersion="0.2.0", container="nothing")
    assert found["code"] == CniCode.INCOMPATIBLE_VERSION
    assert backend.attachments == {}
    assert backend.calls[-1] == "detach"


async def test_an_add_that_died_half_way_converges(
    runtime: Runtime, backend: FakeBackend, tmp_path: Path
) -> None:
    """The daemon was killed between IPAM and the attachment."""
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "10.1.0.7").write_text("pod1\r\neth0", newline="")
    found = await runtime.ok("ADD")
    assert found["ips"][0]["address"] == "10.1.0.2/24"
    assert taken(tmp_path) == ["10.1.0.2", "fd00:1::2"]


@pytest.mark.parametrize("asked", ["10.1.0.9", "10.1.0.12"])
async def test_one_that_asked_for_its_address_converges_too(
    runtime: Runtime, tmp_path: Path, asked: str
) -> None:
    """What the dead ADD has left is its own: the address is not taken, and there is no second one."""
    await runtime.ok("ADD", "other")
    (tmp_path / "net" / "10.1.0.9").write_bytes(b"pod1\r\neth0")
    found = await runtime.ok("ADD", runtimeConfig={"ips": [asked]})
    assert [ip["address"] for ip in found["ips"]] == [f"{asked}/24", "fd00:1::3/64"]
    assert taken(tmp_path) == sorted(["10.1.0.2", "fd00:1::2", asked, "fd00:1::3"])


async def test_an_add_takes_a_dead_attachment_away_first(
    runtime: Runtime, backend: FakeBackend, tmp_path: Path
) -> None:
    """As DEL would have: the interface before the address."""
    await runtime.ok("ADD")
    backend.dead = {("pod1", "eth0")}
    backend.attachments.clear()
    backend.calls.clear()
    found = await runtime.ok("ADD", runtimeConfig={"ips": ["10.1.0.2"]})
    assert found["ips"][0]["address"] == "10.1.0.2/24"
    assert backend.calls == ["ensure_network", "refuse_attached", "detach", "attach"]
    assert taken(tmp_path) == ["10.1.0.2", "fd00:1::3"]


async def test_del_repeats_and_needs_no_namespace(
    runtime: Runtime, backend: FakeBackend, tmp_path: Path
) -> None:
    await runtime.ok("ADD")
    for _ in range(3):
        assert await runtime.ok("DEL", env={"CNI_NETNS": ""}) is None
    assert backend.attachments == {}
    assert taken(tmp_path) == []
    assert await runtime.ok("DEL", container="never-there") is None


@pytest.mark.parametrize("length", [256, 4096])
async def test_an_id_too_long_is_refused_before_anything_is_allocated(
    runtime: Runtime, backend: FakeBackend, tmp_path: Path, length: int
) -> None:
    """host-local could not tell by its files that they are this container's, and would never free them."""
    netns = {"CNI_NETNS": "/run/netns/pod1"}
    found = await runtime.error("ADD", length * "a", env=netns)
    assert found["code"] == CniCode.INVALID_ENVIRONMENT
    assert "CNI_CONTAINERID" in found["msg"]
    assert (backend.calls, taken(tmp_path)) == ([], [])
    await runtime.ok("DEL", length * "a", env=netns)
    await runtime.ok("ADD", 255 * "a")
    await runtime.ok("DEL", 255 * "a")
    assert (backend.attachments, taken(tmp_path)) == ({}, [])


async def test_del_works_with_what_only_add_needs_broken(runtime: Runtime, backend: FakeBackend) -> None:
    await runtime.ok("ADD")
    assert (await runtime.error("ADD", policies=5, container="pod2"))["code"] == CniCode.INVALID_CONFIG
    await runtime.ok("DEL", policies=5, prevResult="?", runtimeConfig={"mac": "?"})
    assert backend.attachments == {}


async def test_del_keeps_the_address_while_the_interface_is_there(
    runtime: Runtime, backend: FakeBackend, tmp_path: Path
) -> None:
    await runtime.ok("ADD")
    backend.fail["detach"] = Unavailable("switch", "busy")
    assert (await runtime.error("DEL"))["code"] == CniCode.TRY_AGAIN
    assert taken(tmp_path) == ["10.1.0.2", "fd00:1::2"]
    await runtime.ok("DEL")
    assert taken(tmp_path) == []


async def test_check(runtime: Runtime, backend: FakeBackend, tmp_path: Path) -> None:
    result = await runtime.ok("ADD")
    assert await runtime.ok("CHECK", prevResult=result) is None
    (request,) = backend.checked
    assert [item.cidr for item in request.addresses] == ["10.1.0.2/24", "fd00:1::2/64"]
    assert (await runtime.error("CHECK"))["msg"] == "prevResult: is required for CHECK"
    backend.attachments.clear()
    found = await runtime.error("CHECK", prevResult=result)
    assert (found["code"], found["msg"]) == (CniCode.CHECK_FAILED, "no such interface")
    for path in (tmp_path / "net").iterdir():
        path.unlink()
    found = await runtime.error("CHECK", prevResult=result)
    assert found["msg"] == "host-local has no address for container pod1"


async def test_check_of_an_older_result(runtime: Runtime, backend: FakeBackend) -> None:
    result = await runtime.ok("ADD", cniVersion="0.4.0")
    await runtime.ok("CHECK", cniVersion="0.4.0", prevResult=result)
    assert backend.checked[0].mtu == 0


@pytest.mark.parametrize(
    ("verb", "version"), [("CHECK", "0.3.1"), ("GC", "1.0.0"), ("STATUS", "1.0.0"), ("GC", "0.4.0")]
)
async def test_verbs_that_a_version_lacks(runtime: Runtime, verb: str, version: str) -> None:
    found = await runtime.error(verb, cniVersion=version)
    assert found == {
        "cniVersion": version,
        "code": CniCode.INCOMPATIBLE_VERSION,
        "msg": f"cniVersion {version} does not allow {verb}",
    }


async def test_chained(runtime: Runtime) -> None:
    previous = {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "net0", "sandbox": "/run/netns/pod1"}],
        "ips": [{"address": "192.168.0.5/24", "interface": 0}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "192.168.0.1"}],
    }
    found = await runtime.ok("ADD", prevResult=previous)
    assert [item["name"] for item in found["interfaces"]] == ["net0", "sw0123456789a", "eth0"]
    assert [item["interface"] for item in found["ips"]] == [0, 2, 2]
    assert found["routes"] == [{"dst": "0.0.0.0/0", "gw": "192.168.0.1"}, {"dst": "::/0", "gw": "fd00:1::1"}]


async def test_gc(runtime: Runtime, backend: FakeBackend, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        await runtime.ok("ADD", name)
    (tmp_path / "net" / "10.1.0.200").write_text("gone\r\neth0", newline="")
    (tmp_path / "net" / "10.1.0.201").write_text("")
    valid = [{"containerID": "b", "ifname": "eth0"}, {"containerID": "new", "ifname": "eth0"}]
    assert await runtime.ok("GC", **valid_attachments(*valid)) is None
    assert list(backend.attachments) == [("b", "eth0")]
    assert taken(tmp_path) == ["10.1.0.3", "fd00:1::3"]


async def test_gc_goes_on_past_failures_and_tells_them(
    runtime: Runtime, backend: FakeBackend, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        await runtime.ok("ADD", name)
    backend.fail["detach"] = Unavailable("switch", "busy")
    found = await runtime.error("GC", **valid_attachments())
    assert (found["code"], found["details"]) == (CniCode.TRY_AGAIN, "switch is unavailable: busy")
    assert list(backend.attachments) == [("a", "eth0")]
    await runtime.ok("GC", **valid_attachments())
    assert backend.attachments == {}
    assert taken(tmp_path) == []


async def test_gc_does_not_free_the_address_of_an_interface_that_stayed(
    runtime: Runtime, backend: FakeBackend, tmp_path: Path
) -> None:
    await runtime.ok("ADD")
    backend.fail["detach"] = Unavailable("switch", "busy")
    await runtime.error("GC", **valid_attachments())
    assert taken(tmp_path) == ["10.1.0.2", "fd00:1::2"]


async def test_gc_without_a_list_removes_nothing(runtime: Runtime, backend: FakeBackend) -> None:
    await runtime.ok("ADD")
    assert (await runtime.error("GC"))["code"] == CniCode.INVALID_CONFIG
    assert list(backend.attachments) == [("pod1", "eth0")]


async def test_status(runtime: Runtime, backend: FakeBackend) -> None:
    assert await runtime.ok("STATUS") is None
    backend.fail["status"] = Unavailable("switch", "not loaded")
    found = await runtime.error("STATUS")
    assert (found["code"], found["msg"]) == (CniCode.NOT_AVAILABLE, "switch is unavailable: not loaded")
    backend.fail["status"] = CniError(CniCode.LIMITED_CONNECTIVITY, "uplink down")
    assert (await runtime.error("STATUS"))["code"] == CniCode.LIMITED_CONNECTIVITY


async def test_status_of_a_network_that_is_not_there(runtime: Runtime, backend: FakeBackend) -> None:
    """No pod could be attached, unless the first one makes the network."""
    found = await runtime.error("STATUS", name="absent")
    assert (found["code"], found["msg"]) == (CniCode.NOT_AVAILABLE, "network 'absent' not found")
    assert await runtime.ok("STATUS", name="absent", network={"Type": "Overlay"}) is None
    assert backend.created == []
    assert await runtime.ok("STATUS", name="absent", type="azure-vnet", mode="bridge", ipam=None) is None


async def test_status_asks_ipam(runtime: Runtime, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ipam = {**runtime.conf["ipam"], "dataDir": str(tmp_path / "file")}
    assert (await runtime.error("STATUS", ipam=ipam))["code"] == CniCode.NOT_AVAILABLE
    assert (await runtime.error("STATUS", ipam={"type": "absent"}))["code"] == CniCode.NOT_AVAILABLE


@pytest.mark.parametrize(
    ("stdin", "version"),
    [
        (b'{"cniVersion":"0.4.0"}', "0.4.0"),
        (b'{"cniVersion":"7.0.0"}', "1.1.0"),
        (b"", "1.1.0"),
        (b"\xff", "1.1.0"),
        (b'{"cniVersion":5}', "1.1.0"),
    ],
)
async def test_version(runtime: Runtime, stdin: bytes, version: str) -> None:
    reply = await runtime.plugin.handle({"CNI_COMMAND": "VERSION"}, stdin)
    expected = {"cniVersion": version, "supportedVersions": list(SUPPORTED_VERSIONS)}
    assert (reply.status, json.loads(reply.output)) == (0, expected)
    assert version_info(stdin) == expected


async def test_errors_name_version_code_and_variable(runtime: Runtime) -> None:
    found = await runtime.error("ADD", cniVersion="0.4.0", ipam={"type": "host-local"})
    assert found["cniVersion"] == "0.4.0"
    reply = await runtime.plugin.handle(variables("ADD", CNI_IFNAME="a/b"), b"{}")
    assert json.loads(reply.output) == {
        "cniVersion": "1.1.0",
        "code": CniCode.INVALID_ENVIRONMENT,
        "msg": "CNI_IFNAME 'a/b' cannot be the name of an interface",
    }
    assert (reply.status, reply.verb, reply.container_id, reply.interface_name) == (1, "ADD", "pod1", "a/b")


async def test_same_attachment_one_after_the_other_others_side_by_side(
    runtime: Runtime, backend: FakeBackend, tmp_path: Path
) -> None:
    backend.gate = asyncio.Event()
    calls = [runtime.reply("ADD", f"pod{number}") for number in range(8)]
    calls += [runtime.reply("DEL", "pod0"), runtime.reply("ADD", "pod0"), runtime.reply("DEL", "pod1")]
    work = [asyncio.ensure_future(call) for call in calls]
    for _ in range(8):
        await backend.arrivals.get()
    backend.gate.set()
    replies = await asyncio.gather(*work)
    assert [reply.status for reply in replies] == [0] * len(calls)
    assert (backend.most_active, backend.overlaps) == (8, 0)
    assert sorted(name for name, _ in backend.attachments) == ["pod0", *(f"pod{n}" for n in range(2, 8))]
    assert len(taken(tmp_path)) == 2 * 7


async def test_gc_waits_for_those_at_work_and_keeps_others_out(
    runtime: Runtime, backend: FakeBackend
) -> None:
    backend.gate = asyncio.Event()
    adding = asyncio.ensure_future(runtime.reply("ADD", "pod1"))
    await backend.arrivals.get()
    valid: dict[str, Any] = {"cni.dev/valid-attachments": [{"containerID": "pod1", "ifname": "eth0"}]}
    collecting = asyncio.ensure_future(runtime.reply("GC", **valid))
    later = asyncio.ensure_future(runtime.reply("ADD", "pod2"))
    other = asyncio.ensure_future(runtime.reply("GC", **valid_attachments(), name="other"))
    assert (await other).status == 0
    assert "list_attachments" in backend.calls
    assert not collecting.done()
    assert len(backend.active) == 1
    backend.gate.set()
    replies = await asyncio.gather(adding, collecting, later)
    assert [reply.status for reply in replies] == [0, 0, 0]
    assert sorted(backend.attachments) == [("pod1", "eth0"), ("pod2", "eth0")]


async def test_locks_do_not_pile_up(runtime: Runtime) -> None:
    for number in range(20):
        await runtime.ok("ADD", f"pod{number}")
    locks = runtime.plugin._locks
    assert (locks.gates, locks.locks) == ({}, {})
