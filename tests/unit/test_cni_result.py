"""Results of every version of CNI, both ways; errors."""

from __future__ import annotations

from typing import Any

import pytest

from samewire.cni.errors import CniCode, CniError, to_cni_error
from samewire.cni.result import (
    SUPPORTED_VERSIONS,
    Dns,
    Interface,
    IpConfig,
    Result,
    Route,
    decode_result,
    encode_error,
    encode_result,
)
from samewire.errors import (
    Conflict,
    Exhausted,
    Invalid,
    KernelError,
    NotFound,
    SamewireError,
    Unavailable,
    Unsupported,
)
from samewire.hcn.errors import HcnCode, HcnError

FULL = Result(
    (
        Interface("sw1", "0e:00:00:00:00:01", 1450),
        Interface("eth0", "0e:2a:0a:01:00:05", 1450, "/run/netns/a", "/run/vhost.sock", "0000:00:1f.6"),
    ),
    (IpConfig("10.1.0.5/24", "10.1.0.1", 1), IpConfig("fd00:1::5/64", "fd00:1::1", 1)),
    (
        Route("0.0.0.0/0", "10.1.0.1"),
        Route("::/0", "fd00:1::1", mtu=1400, advmss=1360, priority=5, table=100, scope=0),
    ),
    Dns(("10.96.0.10",), "cluster.local", ("a.cluster.local", "cluster.local"), ("ndots:5",)),
)


def test_latest_version_says_everything() -> None:
    assert encode_result(FULL, "1.1.0") == {
        "cniVersion": "1.1.0",
        "interfaces": [
            {"name": "sw1", "mac": "0e:00:00:00:00:01", "mtu": 1450},
            {
                "name": "eth0",
                "mac": "0e:2a:0a:01:00:05",
                "mtu": 1450,
                "sandbox": "/run/netns/a",
                "socketPath": "/run/vhost.sock",
                "pciID": "0000:00:1f.6",
            },
        ],
        "ips": [
            {"address": "10.1.0.5/24", "gateway": "10.1.0.1", "interface": 1},
            {"address": "fd00:1::5/64", "gateway": "fd00:1::1", "interface": 1},
        ],
        "routes": [
            {"dst": "0.0.0.0/0", "gw": "10.1.0.1"},
            {
                "dst": "::/0",
                "gw": "fd00:1::1",
                "mtu": 1400,
                "advmss": 1360,
                "priority": 5,
                "table": 100,
                "scope": 0,
            },
        ],
        "dns": {
            "nameservers": ["10.96.0.10"],
            "domain": "cluster.local",
            "search": ["a.cluster.local", "cluster.local"],
            "options": ["ndots:5"],
        },
    }


def test_1_0_0_has_no_mtu_and_plain_routes() -> None:
    value = encode_result(FULL, "1.0.0")
    assert value["interfaces"][1] == {
        "name": "eth0",
        "mac": "0e:2a:0a:01:00:05",
        "sandbox": "/run/netns/a",
    }
    assert value["routes"] == [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}, {"dst": "::/0", "gw": "fd00:1::1"}]
    assert "version" not in value["ips"][0]


@pytest.mark.parametrize("version", ["0.3.0", "0.3.1", "0.4.0"])
def test_0_3_and_0_4_name_the_ip_version(version: str) -> None:
    value = encode_result(FULL, version)
    assert value["cniVersion"] == version
    assert value["ips"] == [
        {"version": "4", "address": "10.1.0.5/24", "gateway": "10.1.0.1", "interface": 1},
        {"version": "6", "address": "fd00:1::5/64", "gateway": "fd00:1::1", "interface": 1},
    ]


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_0_2_has_one_address_of_each_family(version: str) -> None:
    more = Result((), (*FULL.ips, IpConfig("10.2.0.9/24")), FULL.routes, FULL.dns)
    assert encode_result(more, version) == {
        "cniVersion": version,
        "ip4": {
            "ip": "10.1.0.5/24",
            "gateway": "10.1.0.1",
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}],
        },
        "ip6": {"ip": "fd00:1::5/64", "gateway": "fd00:1::1", "routes": [{"dst": "::/0", "gw": "fd00:1::1"}]},
        "dns": encode_result(FULL, "1.1.0")["dns"],
    }


def test_0_2_needs_an_address() -> None:
    with pytest.raises(CniError) as caught:
        encode_result(Result(FULL.interfaces), "0.2.0")
    assert caught.value.code == CniCode.INCOMPATIBLE_VERSION


@pytest.mark.parametrize("version", SUPPORTED_VERSIONS)
def test_every_version_is_read_back(version: str) -> None:
    found = decode_result(encode_result(FULL, version), "1.1.0", "prevResult")
    again = encode_result(found, version)
    assert again == encode_result(FULL, version)
    assert [ip.address for ip in found.ips] == ["10.1.0.5/24", "fd00:1::5/64"]
    assert found.dns == FULL.dns
    assert bool(found.interfaces) == (version not in ("0.1.0", "0.2.0"))
    assert found == FULL or version != "1.1.0"


def test_result_without_a_version_has_that_of_the_configuration() -> None:
    value = {"ip4": {"ip": "10.1.0.5/24"}}
    assert decode_result(value, "0.2.0", "r").ips == (IpConfig("10.1.0.5/24"),)
    assert decode_result(value, "1.0.0", "r").ips == ()


def test_empty_parts_are_left_out() -> None:
    assert encode_result(Result(), "1.1.0") == {"cniVersion": "1.1.0"}
    assert decode_result({"ips": None, "dns": {}, "routes": []}, "1.1.0", "r") == Result()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "prevResult: expected an object, got a list"),
        (
            {"cniVersion": "9.9.9"},
            "prevResult.cniVersion: '9.9.9' is not a version of CNI that Samewire knows",
        ),
        (
            {"ips": [{"address": "10.1.0.5"}]},
            "prevResult.ips[0].address: '10.1.0.5' is not an address with a",
        ),
        ({"ips": [{"address": "10.1.0.500/8"}]}, "prevResult.ips[0].address: '10.1.0.500/8'"),
        ({"ips": [{"address": "10.1.0.5/24", "interface": 0}]}, "prevResult.ips[0].interface: 0 is not the"),
        ({"ips": [{}]}, "prevResult.ips[0].address: is required"),
        ({"ips": {}}, "prevResult.ips: expected a list, got an object"),
        ({"interfaces": [{"name": 5}]}, "prevResult.interfaces[0].name: expected a string, got the number 5"),
        ({"routes": [{"dst": "10.0.0.0/8", "gw": "::1"}]}, "prevResult.routes[0].gw: ::1 and dst 10.0.0.0/8"),
        (
            {"routes": [{"dst": "10.0.0.0/8", "mtu": True}]},
            "prevResult.routes[0].mtu: expected a whole number",
        ),
        ({"dns": {"search": [1]}}, "prevResult.dns.search[0]: expected a string"),
    ],
)
def test_faults_name_their_key(value: Any, message: str) -> None:
    with pytest.raises(CniError) as caught:
        decode_result(value, "1.1.0", "prevResult")
    assert caught.value.code == CniCode.INVALID_CONFIG
    assert caught.value.message.startswith(message)


def test_error_object() -> None:
    error = CniError(CniCode.TRY_AGAIN, "busy", "the pool")
    assert encode_error(error, "0.4.0") == {
        "cniVersion": "0.4.0",
        "code": 11,
        "msg": "busy",
        "details": "the pool",
    }
    assert "details" not in encode_error(CniError(7, "bad"), "1.1.0")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Invalid("$.x", "bad"), CniCode.INVALID_CONFIG),
        (NotFound("network", "n"), CniCode.NOT_FOUND),
        (Conflict("there"), CniCode.CONFLICT),
        (Exhausted("pool", "full"), CniCode.EXHAUSTED),
        (Unsupported("x", "y"), CniCode.UNSUPPORTED),
        (Unavailable("x", "y"), CniCode.TRY_AGAIN),
        (KernelError("create veth", 12), CniCode.HOST_FAILURE),
        (HcnError(HcnCode.INVALID_POLICY, "bad"), CniCode.HNS_REFUSED),
        (SamewireError("other"), CniCode.HOST_FAILURE),
    ],
)
def test_every_class_of_errors_has_a_code(error: SamewireError, code: CniCode) -> None:
    found = to_cni_error(error)
    assert found.code == code
    assert str(error) in found.message
    assert to_cni_error(found) is found


def test_no_code_that_makes_the_runtime_skip_del() -> None:
    every = [to_cni_error(kind("a", "b")).code for kind in (NotFound, Unavailable, Exhausted)]
    assert CniCode.UNKNOWN_CONTAINER not in every
