"""Whatever comes in: the plugin answers with CNI's JSON, never breaks, and leaves nothing behind an error."""

from __future__ import annotations

import asyncio
import json
import tempfile
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from samewire.cni.errors import CniCode, CniError
from samewire.cni.result import (
    SUPPORTED_VERSIONS,
    Dns,
    Interface,
    IpConfig,
    Result,
    Route,
    decode_result,
    encode_result,
)
from samewire.cni.verbs import CniPlugin, Reply
from samewire.cni.wire import decode_request
from tests.support.cni import FakeBackend, variables

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False),
    st.text(max_size=20),
    st.sampled_from(
        ("10.1.0.5", "10.1.0.5/24", "fd00::1/64", "host-local", "EndpointPolicy", "0e:2a:00:00:00:01")
    ),
)
KEYS = st.one_of(
    st.sampled_from(
        (
            *(
                "cniVersion",
                "name",
                "type",
                "ipam",
                "dns",
                "args",
                "cni",
                "runtimeConfig",
                "prevResult",
                "policies",
            ),
            *(
                "mtu",
                "ipMasq",
                "ipMasqNetwork",
                "isDefaultGateway",
                "network",
                "value",
                "Type",
                "Settings",
                "ips",
            ),
            *(
                "mac",
                "portMappings",
                "bandwidth",
                "hostPort",
                "containerPort",
                "protocol",
                "hostIP",
                "address",
            ),
            *(
                "interface",
                "interfaces",
                "routes",
                "dst",
                "gw",
                "ranges",
                "subnet",
                "gateway",
                "nameservers",
                "ip4",
            ),
            *(
                "cni.dev/valid-attachments",
                "containerID",
                "ifname",
                "servers",
                "searches",
                "Exceptions",
                "search",
            ),
        )
    ),
    st.text(max_size=6),
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=25,
)
BASES: tuple[dict[str, Any], ...] = (
    {"cniVersion": "1.1.0", "name": "net"},
    {"cniVersion": "0.3.1", "name": "net", "type": "samewire"},
    {"name": "net"},
    {},
)
VERBS = ("ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION", "", "add")
ENVIRONMENTS = st.fixed_dictionaries(
    {
        "CNI_COMMAND": st.sampled_from(VERBS),
        "CNI_CONTAINERID": st.one_of(st.just("pod1"), st.text(max_size=8)),
        "CNI_IFNAME": st.one_of(st.just("eth0"), st.text(max_size=8)),
        "CNI_NETNS": st.one_of(st.just("/run/netns/x"), st.text(max_size=8)),
        "CNI_ARGS": st.one_of(st.just(""), st.just("IgnoreUnknown=1;IP=10.1.0.9"), st.text(max_size=12)),
    }
)


def call(plugin: CniPlugin, env: dict[str, str], stdin: bytes) -> Reply:
    return asyncio.run(plugin.handle(env, stdin))


def check(reply: Reply) -> None:
    assert reply.status in (0, 1)
    output: Any = json.loads(reply.output) if reply.output else None
    if reply.status:
        assert set(output) <= {"cniVersion", "code", "msg", "details"}
        assert output["msg"]
        assert output["cniVersion"] in SUPPORTED_VERSIONS
        assert output["code"] == reply.code
        assert output["code"] != CniCode.INTERNAL, "a bug"


@settings(max_examples=400)
@given(ENVIRONMENTS, st.sampled_from(BASES), st.dictionaries(KEYS, JSON, max_size=6))
def test_any_configuration(env: dict[str, str], base: dict[str, Any], more: dict[str, Any]) -> None:
    backend = FakeBackend()
    reply = call(CniPlugin(backend), env, json.dumps({**more, **base}).encode("utf-8", "surrogatepass"))
    check(reply)
    if reply.status and env["CNI_COMMAND"] == "ADD":
        assert backend.attachments == {}


@settings(max_examples=200)
@given(st.sampled_from(VERBS), st.one_of(st.binary(max_size=60), JSON.map(lambda v: json.dumps(v).encode())))
def test_any_stdin(verb: str, stdin: bytes) -> None:
    check(call(CniPlugin(FakeBackend()), variables(verb), stdin))


@settings(max_examples=150)
@given(st.dictionaries(KEYS, JSON, max_size=5))
def test_any_host_local_configuration(ipam: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        fixed = {"type": "host-local", "dataDir": directory}
        conf = {**BASES[0], "ipam": {"subnet": "10.1.0.0/24", **ipam, **fixed}}
        backend = FakeBackend()
        reply = call(CniPlugin(backend), variables("ADD"), json.dumps(conf).encode("utf-8", "surrogatepass"))
        check(reply)
        if reply.status:
            files = {path.name for path in Path(directory).rglob("*") if path.is_file()}
            assert not {name for name in files if name != "lock" and "last_reserved" not in name}


@settings(max_examples=300)
@given(
    st.binary(max_size=200) | st.lists(st.sampled_from((b"CNI_", b"=", b"\0", b"A", b"\xff"))).map(b"".join)
)
def test_any_request(data: bytes) -> None:
    try:
        found, stdin = decode_request(data)
    except CniError:
        return
    assert data.endswith(b"\0" + stdin)
    assert all(name.startswith("CNI_") for name in found)


NUMBERS = st.none() | st.integers(0, 2**32 - 1)
TEXTS = st.lists(st.text(min_size=1, max_size=8), max_size=3).map(tuple)
V4 = st.ip_addresses(v=4).map(str)
V6 = st.ip_addresses(v=6).map(str).filter(lambda ip: IPv6Address(ip).ipv4_mapped is None)
INTERFACES = st.builds(
    Interface,
    st.text(min_size=1, max_size=8),
    st.text(max_size=4),
    st.integers(0, 65535),
    st.text(max_size=8),
)


def ips(interfaces: int) -> st.SearchStrategy[IpConfig]:
    index = st.none() | st.integers(0, interfaces - 1) if interfaces else st.none()
    return st.builds(IpConfig, V4.map(lambda ip: f"{ip}/24"), V4 | st.just(""), index) | st.builds(
        IpConfig, V6.map(lambda ip: f"{ip}/64"), V6 | st.just(""), index
    )


ROUTES = st.builds(Route, st.just("10.0.0.0/8"), V4 | st.just(""), NUMBERS, NUMBERS) | st.builds(
    Route, st.just("::/0"), V6 | st.just("")
)
RESULTS = st.lists(INTERFACES, max_size=3).flatmap(
    lambda interfaces: st.builds(
        Result,
        st.just(tuple(interfaces)),
        st.lists(ips(len(interfaces)), max_size=4).map(tuple),
        st.lists(ROUTES, max_size=3).map(tuple),
        st.builds(Dns, TEXTS, st.text(max_size=5), TEXTS, TEXTS),
    )
)


@given(RESULTS, st.sampled_from(SUPPORTED_VERSIONS))
def test_results_of_every_version_are_read_back(result: Result, version: str) -> None:
    try:
        value = encode_result(result, version)
    except CniError:
        assert version in ("0.1.0", "0.2.0")
        assert not result.ips
        return
    found = decode_result(json.loads(json.dumps(value)), "1.1.0", "result")
    assert encode_result(found, version) == value
    assert found == result or version != "1.1.0"
