"""Address managers that are executables: found, understood, bounded, and their errors passed on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from samewire.cni.conf import decode_conf
from samewire.cni.environment import decode_environment
from samewire.cni.errors import CniCode, CniError
from samewire.cni.result import IpConfig, Result, Route
from samewire.cni.verbs import CniPlugin
from samewire.errors import Unavailable
from samewire.ipam import execute as execution
from samewire.ipam.api import IpamRequest
from samewire.ipam.delegate import Delegate
from samewire.ipam.execute import execute
from tests.support.cni import FakeBackend, Runtime, valid_attachments, variables

PREAMBLE = """#!/bin/sh
echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME $CNI_NETNS $CNI_ARGS" >> {log}
cat > {stdin}
if [ "$CNI_COMMAND" = VERSION ]; then echo '{{"cniVersion":"1.0.0","supportedVersions":{versions}}}'; exit; fi
"""


class Plugin:
    """A plugin written for a test; ``body`` is shell."""

    def __init__(self, directory: Path, body: str, versions: str = '["1.0.0","1.1.0"]') -> None:
        self.directory = directory
        self._log, self._stdin = directory / "log", directory / "stdin"
        text = PREAMBLE.format(log=self._log, stdin=self._stdin, versions=versions) + body
        path = directory / "test-ipam"
        path.write_text(text + "\n")
        path.chmod(0o755)

    def calls(self) -> list[str]:
        """The verbs it was called with, and the rest of its environment, but for VERSION."""
        if not self._log.exists():
            return []
        return [line for line in self._log.read_text().splitlines() if not line.startswith("VERSION")]

    def stdin(self) -> Any:
        """The configuration of the last call."""
        return json.loads(self._stdin.read_text())


def no_thread(_: Thread) -> None:
    raise RuntimeError("can't start new thread")


def request(path: Path | str, verb: str = "ADD", kind: str = "test-ipam", **keys: Any) -> IpamRequest:
    conf = {"cniVersion": "1.1.0", "name": "net", "ipam": {"type": kind}, **keys}
    env = variables(verb, CNI_PATH=f"/nowhere:{path}", CNI_ARGS="IgnoreUnknown=1;X=1")
    return IpamRequest(decode_conf(json.dumps(conf).encode()), decode_environment(env))


async def failure(plugin: Plugin) -> CniError:
    with pytest.raises(CniError) as caught:
        await Delegate("test-ipam").add(request(plugin.directory))
    return caught.value


RESULT = '{"cniVersion":"1.1.0","ips":[{"address":"10.1.0.9/24","gateway":"10.1.0.1"}],"routes":[{"dst":"10.0.0.0/8"}]}'


async def test_add(tmp_path: Path) -> None:
    plugin = Plugin(tmp_path, f"echo '{RESULT}'")
    found = await Delegate("test-ipam").add(request(tmp_path, extra={"a": [1]}))
    assert found == Result((), (IpConfig("10.1.0.9/24", "10.1.0.1"),), (Route("10.0.0.0/8"),))
    assert plugin.calls() == ["ADD pod1 eth0 /run/netns/pod1 IgnoreUnknown=1;X=1"]
    assert plugin.stdin() == {
        "cniVersion": "1.1.0",
        "name": "net",
        "ipam": {"type": "test-ipam"},
        "extra": {"a": [1]},
    }


async def test_a_plugin_is_waited_for_without_a_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Plugin(tmp_path, f"echo '{RESULT}'")
    with monkeypatch.context() as patched:
        patched.setattr(Thread, "start", no_thread)
        found = await Delegate("test-ipam").add(request(tmp_path))
    assert found.ips == (IpConfig("10.1.0.9/24", "10.1.0.1"),)


async def test_each_verb_in_its_turn(tmp_path: Path) -> None:
    plugin, delegate = Plugin(tmp_path, "exit 0"), Delegate("test-ipam")
    await delegate.delete(request(tmp_path))
    await delegate.check(request(tmp_path))
    await delegate.status(request(tmp_path))
    await delegate.collect(request(tmp_path), frozenset({("b", "eth0"), ("a", "eth1")}))
    assert [line.split()[0] for line in plugin.calls()] == ["DEL", "CHECK", "STATUS", "GC"]
    listed = [{"containerID": "a", "ifname": "eth1"}, {"containerID": "b", "ifname": "eth0"}]
    assert plugin.stdin()["cni.dev/valid-attachments"] == plugin.stdin()["cni.dev/attachments"] == listed


async def test_a_plugin_of_an_older_version(tmp_path: Path) -> None:
    answer = '{"cniVersion":"0.4.0","ips":[{"version":"4","address":"10.1.0.9/24"}]}'
    plugin = Plugin(tmp_path, f"echo '{answer}'", '["0.3.1","0.4.0"]')
    delegate = Delegate("test-ipam")
    assert (await delegate.add(request(tmp_path))).ips == (IpConfig("10.1.0.9/24"),)
    assert plugin.stdin()["cniVersion"] == "0.4.0"
    await delegate.collect(request(tmp_path), frozenset())
    await delegate.status(request(tmp_path))
    assert [line.split()[0] for line in plugin.calls()] == ["ADD"]


async def test_check_needs_a_plugin_that_has_it(tmp_path: Path) -> None:
    plugin = Plugin(tmp_path, "exit 1", '["0.3.1"]')
    await Delegate("test-ipam").check(request(tmp_path))
    assert plugin.calls() == []


async def test_versions_are_asked_once_for_a_file(tmp_path: Path) -> None:
    Plugin(tmp_path, "exit 0")
    for _ in range(3):
        await Delegate("test-ipam").delete(request(tmp_path))
    assert (tmp_path / "log").read_text().count("VERSION") == 1
    (tmp_path / "test-ipam").unlink()
    plugin = Plugin(tmp_path, "exit 0 # another", '["0.4.0"]')
    await Delegate("test-ipam").delete(request(tmp_path))
    assert plugin.stdin()["cniVersion"] == "0.4.0"


async def test_versions_are_asked_again_where_there_was_no_answer(tmp_path: Path) -> None:
    """Go's plugins end so when they get no thread. Taken for one without VERSION it would never work again."""
    path = tmp_path / "test-ipam"
    path.write_text(
        f"#!/bin/sh\n[ -e {tmp_path}/asked ] || {{ touch {tmp_path}/asked; echo no thread >&2; exit 2; }}\n"
        "exec /usr/lib/cni/static\n"
    )
    path.chmod(0o755)
    ipam = {"type": "test-ipam", "addresses": [{"address": "10.1.0.9/24"}]}
    with pytest.raises(CniError, match="incompatible CNI versions"):
        await Delegate("test-ipam").add(request(tmp_path, ipam=ipam))
    assert (await Delegate("test-ipam").add(request(tmp_path, ipam=ipam))).ips == (IpConfig("10.1.0.9/24"),)


async def test_a_plugin_that_does_not_know_version_gets_what_came(tmp_path: Path) -> None:
    plugin = Plugin(tmp_path, f"echo '{RESULT}'", "nonsense")
    await Delegate("test-ipam").add(request(tmp_path))
    assert plugin.stdin()["cniVersion"] == "1.1.0"


async def test_its_error_is_passed_on(tmp_path: Path) -> None:
    body = """echo '{"code":103,"msg":"no more","details":"pool x"}'; exit 7"""
    error = await failure(Plugin(tmp_path, body))
    assert (error.code, error.message, error.details) == (103, "no more", "pool x")
    error = await failure(Plugin(tmp_path, """echo '{"code":11,"msg":"later"}'; exit 1"""))
    assert (error.code, error.message, error.details) == (11, "later", "from IPAM plugin test-ipam")


@pytest.mark.parametrize(
    ("body", "message", "details"),
    [
        ("echo oops >&2; exit 3", "IPAM plugin test-ipam failed at ADD with status 3", "oops"),
        ("kill -9 $$", "IPAM plugin test-ipam failed at ADD with status -9", ""),
        ("""echo '{"code":"x"}'; exit 1""", "IPAM plugin test-ipam failed at ADD with status 1", ""),
        ("echo nonsense", "IPAM plugin test-ipam printed no CNI result", "JSON is malformed"),
        ("""echo '{"ips":[{}]}'""", "IPAM plugin test-ipam printed no CNI result", "result.ips[0].address"),
        ("printf '\\377'", "IPAM plugin test-ipam printed no CNI result", ""),
    ],
)
async def test_it_fails_without_a_cni_error(tmp_path: Path, body: str, message: str, details: str) -> None:
    error = await failure(Plugin(tmp_path, body))
    assert (error.code, error.message) == (CniCode.IPAM_PLUGIN, message)
    assert details in error.details


async def test_it_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CniError, match="IPAM plugin 'absent' not found in /nowhere:"):
        await Delegate("absent").add(request(tmp_path, kind="absent"))
    (tmp_path / "test-ipam").write_text("no program")
    (tmp_path / "test-ipam").chmod(0o755)
    with pytest.raises(CniError) as caught:
        await Delegate("test-ipam").add(request(tmp_path))
    assert caught.value.code == CniCode.IPAM_PLUGIN
    assert "Exec format error" in caught.value.details


@pytest.mark.parametrize(
    "script", ["sleep {0} & {1}; wait", "sleep {0} & {1}", "setsid sleep {0} & {1}; wait"]
)
async def test_a_hanging_plugin_is_killed_with_its_children(tmp_path: Path, script: str) -> None:
    """Also those that keep its output open when it has ended itself. Nobody waits for one that got away."""
    plugin = Plugin(tmp_path, script.format(60, f"echo $! > {tmp_path}/child"))
    delegate = Delegate("test-ipam")
    await delegate._versions_of(str(tmp_path / "test-ipam"), request(tmp_path).environment)
    note = tmp_path / "child"
    for timeout_s in (0.3, 1.5, 7.5):  # until it gets as far on this machine
        delegate._timeout_s = timeout_s
        with pytest.raises(Unavailable, match=rf"no answer in {timeout_s} s"):
            async with asyncio.timeout(30):  # which is no Unavailable
                await delegate.add(request(tmp_path))
        if note.exists() and note.read_text().endswith("\n"):
            break
    assert plugin.calls()
    child = int(note.read_text())
    if script.startswith("setsid"):
        os.kill(child, signal.SIGKILL)
    for _ in range(500):
        if not alive(child):
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the child lives on")


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


async def test_a_hanging_plugin_does_not_block_others(tmp_path: Path) -> None:
    wait = f"while [ ! -e {tmp_path}/go ]; do sleep 0.01; done"
    Plugin(tmp_path, f"if [ $CNI_CONTAINERID = slow ]; then {wait}; fi; echo '{RESULT}'")
    slow_env = variables("ADD", "slow", CNI_PATH=str(tmp_path))
    conf = request(tmp_path).conf
    slow = asyncio.ensure_future(Delegate("test-ipam").add(IpamRequest(conf, decode_environment(slow_env))))
    await Delegate("test-ipam").add(request(tmp_path))
    assert not slow.done()
    (tmp_path / "go").touch()
    await slow


async def test_too_much_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "MAX_OUTPUT", 1000)
    body = "i=0; while [ $i -lt 200 ]; do echo 0123456789012345678901234567890123456789; i=$((i+1)); done"
    error = await failure(Plugin(tmp_path, body))
    assert error.message.endswith("printed more than 1000 bytes")


async def test_a_plugin_that_reads_nothing(tmp_path: Path) -> None:
    path = tmp_path / "deaf"
    path.write_text("#!/bin/sh\nexec 0<&-\necho done\n")
    path.chmod(0o755)
    done = await execute(str(path), b"x" * 1_000_000, {"PATH": os.environ["PATH"]}, 10)
    assert (done.status, done.output) == (0, b"done\n")


async def test_debians_static_with_a_1_1_configuration(tmp_path: Path) -> None:
    """Debian's plugins stop at CNI 1.0.0."""
    addresses = [{"address": "10.1.0.9/24", "gateway": "10.1.0.1"}]
    conf = {
        "cniVersion": "1.1.0",
        "name": "net",
        "ipam": {"type": "static", "addresses": addresses, "routes": [{"dst": "0.0.0.0/0"}]},
    }
    backend = FakeBackend()
    runtime = Runtime(CniPlugin(backend), conf)
    result = await runtime.ok("ADD")
    assert result["cniVersion"] == "1.1.0"
    assert result["ips"] == [{"address": "10.1.0.9/24", "gateway": "10.1.0.1", "interface": 1}]
    await runtime.ok("CHECK", prevResult=result)
    result["ips"][0]["gateway"] = "10.1.0.3"
    assert (await runtime.error("CHECK", prevResult=result))["details"] == "from IPAM plugin static"
    await runtime.ok("STATUS")
    await runtime.ok("GC", **valid_attachments())
    assert backend.attachments == {}
    await runtime.ok("DEL")


async def test_a_failed_attachment_is_told_to_the_plugin(tmp_path: Path) -> None:
    plugin, backend = Plugin(tmp_path, f"[ $CNI_COMMAND = DEL ] || echo '{RESULT}'"), FakeBackend()
    runtime = Runtime(
        CniPlugin(backend), {"cniVersion": "1.1.0", "name": "net", "ipam": {"type": "test-ipam"}}
    )
    backend.fail["attach"] = Unavailable("switch", "busy")
    await runtime.error("ADD", env={"CNI_PATH": str(tmp_path)})
    assert [line.split()[0] for line in plugin.calls()] == ["ADD", "DEL"]


async def test_no_addresses_is_a_failure(tmp_path: Path) -> None:
    plugin, backend = Plugin(tmp_path, "echo '{}'"), FakeBackend()
    runtime = Runtime(
        CniPlugin(backend), {"cniVersion": "1.1.0", "name": "net", "ipam": {"type": "test-ipam"}}
    )
    found = await runtime.error("ADD", env={"CNI_PATH": str(tmp_path)})
    assert found["msg"] == "IPAM plugin test-ipam returned no addresses"
    assert [line.split()[0] for line in plugin.calls()] == ["ADD", "DEL"]


async def test_gc_frees_the_addresses_of_what_it_removes_with_old_plugins(tmp_path: Path) -> None:
    plugin = Plugin(tmp_path, f"[ $CNI_COMMAND = DEL ] || echo '{RESULT}'", '["1.0.0"]')
    runtime = Runtime(
        CniPlugin(FakeBackend()), {"cniVersion": "1.1.0", "name": "net", "ipam": {"type": "test-ipam"}}
    )
    env = {"CNI_PATH": str(tmp_path)}
    await runtime.ok("ADD", "a", env=env)
    await runtime.ok("GC", "", "", env=env, **valid_attachments())
    assert [line.rstrip() for line in plugin.calls()] == ["ADD a eth0 /run/netns/a", "DEL a eth0"]
