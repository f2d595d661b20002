"""The built-in host-local against Debian's: the same calls, on directories of their own and on a common one."""

from __future__ import annotations

import asyncio
import json
import subprocess
import tempfile
from collections.abc import Sequence
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from samewire.cni.conf import decode_conf
from samewire.cni.environment import decode_environment
from samewire.cni.result import Result, decode_result
from samewire.errors import SamewireError
from samewire.ipam.api import IpamRequest
from samewire.ipam.host_local import HostLocal
from samewire.ipam.ranges import decode_host_local
from tests.support.cni import variables

REFERENCE = "/usr/lib/cni/host-local"
SUBNETS = ("10.1.0.0/29", "10.1.0.8/30", "10.2.0.0/28", "fd00::/125", "fd00::8/126")

Op = tuple[str, str, str, str, bool]
"""Verb, container, interface, address asked for, whether the built-in does it on the common directory."""


@st.composite
def spans(draw: st.DrawFn, subnet: str) -> dict[str, str]:
    network = ip_network(subnet)
    addresses = [str(network[number]) for number in range(network.num_addresses)]
    span = {"subnet": subnet}
    low, high = sorted((draw(st.integers(0, len(addresses) - 1)), draw(st.integers(0, len(addresses) - 1))))
    if draw(st.booleans()):
        span["rangeStart"] = addresses[low]
        # The reference plugin takes a start behind the default end, and then gives out nonsense.
        assume(network.version == 6 or low < len(addresses) - 1)
    if draw(st.booleans()):
        span["rangeEnd"] = addresses[high]
    if draw(st.booleans()):
        span["gateway"] = draw(st.sampled_from(addresses))
    return span


@st.composite
def ranges(draw: st.DrawFn) -> list[list[dict[str, str]]]:
    subnets = draw(st.lists(st.sampled_from(SUBNETS), min_size=1, max_size=4))
    found: list[list[dict[str, str]]] = [[]]
    for subnet in subnets:
        span = draw(spans(subnet))
        another = draw(st.booleans())
        if found[-1] and another:
            found.append([])
        found[-1].append(span)
    return found


OPS = st.lists(
    st.tuples(
        st.sampled_from(("ADD", "ADD", "ADD", "DEL", "CHECK")),
        st.sampled_from("abcdef"),
        st.sampled_from(("eth0", "eth1")),
        st.sampled_from(
            ("", "", "", "10.1.0.3", "10.1.0.4", "10.2.0.1", "fd00::3", "10.9.9.9", "fd00:0:0::0004")
        ),
        st.booleans(),
    ),
    min_size=1,
    max_size=14,
)


def reference(env: dict[str, str], stdin: bytes) -> Result | bool:
    done = subprocess.run([REFERENCE], env=env, input=stdin, capture_output=True, check=False, timeout=20)
    if done.returncode:
        assert "code" in json.loads(done.stdout)
        return False
    return decode_result(json.loads(done.stdout), "1.0.0", "result") if done.stdout else True


def built_in(host_local: HostLocal, env: dict[str, str], stdin: bytes) -> Result | bool:
    async def run() -> Result | bool:
        request = IpamRequest(decode_conf(stdin), decode_environment(env))
        verbs = {"ADD": host_local.add, "DEL": host_local.delete, "CHECK": host_local.check}
        return await verbs[env["CNI_COMMAND"]](request) or True

    try:
        return asyncio.run(run())
    except SamewireError:
        return False


def stdin_of(directory: str, sets: Any, asked: str, channel: int) -> tuple[str, bytes]:
    conf: dict[str, Any] = {
        "cniVersion": "1.0.0",
        "name": "net",
        "ipam": {
            "type": "host-local",
            "ranges": sets,
            "dataDir": directory,
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    if asked and channel == 0:
        return f"IgnoreUnknown=1;IP={asked}", json.dumps(conf).encode()
    if asked and channel == 1:
        conf["args"] = {"cni": {"ips": [asked]}}
    elif asked:
        conf["runtimeConfig"] = {"ips": [f"{asked}/24" if "." in asked else asked]}
    return "IgnoreUnknown=1", json.dumps(conf).encode()


def accepted(sets: Any) -> bool:
    """Whether a configuration is good: with a bad one the built-in's DEL still frees, the reference's not."""
    try:
        decode_host_local(decode_conf(stdin_of("/x", sets, "", 0)[1]))
    except SamewireError:
        return False
    return True


def content(directory: str) -> dict[str, bytes]:
    path = Path(directory) / "net"
    return {item.name: item.read_bytes() for item in path.iterdir()} if path.exists() else {}


@settings(max_examples=30)
@given(ranges(), OPS, st.booleans())
def test_same_answers_same_files(sets: Any, ops: Sequence[Op], old: bool) -> None:
    assume(accepted(sets))
    # The reference plugin releases once for each set, and so takes an old file and new ones with several.
    old = old and len(sets) == 1
    with (
        tempfile.TemporaryDirectory() as theirs,
        tempfile.TemporaryDirectory() as ours,
        tempfile.TemporaryDirectory() as common,
    ):
        alone, beside = HostLocal(), HostLocal()
        if old:
            for directory in (theirs, ours, common):
                (Path(directory) / "net").mkdir()
                (Path(directory) / "net" / "10.1.0.4").write_text("a\n")
        held: set[tuple[str, str]] = {("a", "eth0"), ("a", "eth1")} if old else set()
        for index, (verb, container, interface, asked, mine) in enumerate(ops):
            # Asked for a second address, the reference plugin gives it, or frees the first: not to be copied.
            asked = "" if verb != "ADD" or (container, interface) in held else asked
            answers = []
            for directory, manager in ((theirs, None), (ours, alone), (common, beside if mine else None)):
                args, stdin = stdin_of(directory, sets, asked, index % 3)
                env = variables(verb, container, interface, CNI_ARGS=args)
                answers.append(built_in(manager, env, stdin) if manager else reference(env, stdin))
            assert answers[1] == answers[0]
            assert answers[2] == answers[0]
            if verb == "ADD" and answers[0]:
                held.add((container, interface))
            wanted = content(theirs)
            for directory in (ours, common):
                found = content(directory)
                assert {k: v for k, v in found.items() if k != "lock"} == {
                    k: v for k, v in wanted.items() if k != "lock"
                }


@settings(max_examples=80)
@given(ranges())
def test_same_configurations_are_refused(sets: Any) -> None:
    with tempfile.TemporaryDirectory() as theirs, tempfile.TemporaryDirectory() as ours:
        answers = []
        for directory, manager in ((theirs, None), (ours, HostLocal())):
            args, stdin = stdin_of(directory, sets, "", 0)
            env = variables("ADD", "a", "eth0", CNI_ARGS=args)
            answers.append(built_in(manager, env, stdin) if manager else reference(env, stdin))
        assert answers[0] == answers[1]
