"""host-local's configuration and order of allocation."""

from __future__ import annotations

import json
from itertools import islice
from typing import Any

import pytest

from samewire.cni.conf import NetConf, decode_conf
from samewire.cni.errors import CniCode, CniError
from samewire.cni.result import Route
from samewire.ipam.ranges import HostLocalConf, decode_directory, decode_host_local


def conf(version: str = "1.0.0", runtime: dict[str, Any] | None = None, **ipam: Any) -> NetConf:
    value = {"cniVersion": version, "name": "net", "ipam": {"type": "host-local", **ipam}}
    return decode_conf(json.dumps({**value, "runtimeConfig": runtime or {}}).encode())


def decoded(**ipam: Any) -> HostLocalConf:
    return decode_host_local(conf(**ipam))


def fault(found: NetConf) -> str:
    with pytest.raises(CniError) as caught:
        decode_host_local(found)
    assert caught.value.code == CniCode.INVALID_CONFIG
    return caught.value.message


def sets(found: HostLocalConf) -> list[str]:
    return [str(item) for item in found.sets]


def test_defaults_of_a_subnet() -> None:
    found = decoded(subnet="10.1.0.0/24")
    assert sets(found) == ["10.1.0.1-10.1.0.254"]
    assert found.sets[0].ranges[0].gateway == "10.1.0.1"
    assert found.directory == "/var/lib/cni/networks/net"
    assert sets(decoded(subnet="fd00::/120")) == ["fd00::1-fd00::ff"]


def test_everything() -> None:
    found = decoded(
        ranges=[
            [
                {
                    "subnet": "10.1.0.0/24",
                    "rangeStart": "10.1.0.10",
                    "rangeEnd": "10.1.0.20",
                    "gateway": "10.1.0.254",
                },
                {"subnet": "10.2.0.0/24"},
            ],
            [{"subnet": "fd00::/64"}],
        ],
        routes=[{"dst": "0.0.0.0/0"}, {"dst": "10.0.0.0/8", "gw": "10.1.0.9"}],
        dataDir="/tmp/x/",
        resolvConf="/etc/resolv.conf",
    )
    assert sets(found)[0] == "10.1.0.10-10.1.0.20,10.2.0.1-10.2.0.254"
    assert found.sets[0].ranges[0].gateway == "10.1.0.254"
    assert found.routes == (Route("0.0.0.0/0"), Route("10.0.0.0/8", "10.1.0.9"))
    assert (found.directory, found.resolv_conf) == ("/tmp/x/net", "/etc/resolv.conf")


def test_order_of_the_sets() -> None:
    runtime = {"ipRanges": [[{"subnet": "10.3.0.0/24"}]]}
    found = conf(runtime=runtime, subnet="10.1.0.0/24", ranges=[[{"subnet": "10.2.0.0/24"}]])
    assert sets(decode_host_local(found)) == [
        "10.3.0.1-10.3.0.254",
        "10.1.0.1-10.1.0.254",
        "10.2.0.1-10.2.0.254",
    ]


def test_the_network_address_and_the_broadcast_address_on_demand() -> None:
    found = decoded(subnet="10.1.0.0/24", rangeStart="10.1.0.0", rangeEnd="10.1.0.255")
    assert sets(found) == ["10.1.0.0-10.1.0.255"]


@pytest.mark.parametrize(
    ("ipam", "message"),
    [
        ({}, "ipam.ranges: no IP ranges specified"),
        ({"ranges": []}, "ipam.ranges: no IP ranges specified"),
        ({"ranges": [[]]}, "ipam.ranges[0]: empty range set"),
        ({"ranges": [{}]}, "ipam.ranges[0]: expected a list, got an object"),
        ({"ranges": [[{}]]}, "ipam.ranges[0][0].subnet: is required"),
        ({"subnet": "10.1.0.0"}, "ipam.subnet: '10.1.0.0' is not a subnet such as 10.1.0.0/24"),
        ({"subnet": "10.1.0.5/29"}, "ipam.subnet: 10.1.0.5/29 has host bits set"),
        ({"subnet": "10.1.0.0/31"}, "ipam.subnet: network 10.1.0.0/31 too small to allocate from"),
        ({"subnet": "fd00::/127"}, "ipam.subnet: network fd00::/127 too small to allocate from"),
        ({"subnet": "::ffff:10.1.0.0/120"}, "ipam.subnet: '::ffff:10.1.0.0/120' is not a subnet"),
        ({"subnet": "10.1.0.0/24", "rangeStart": "10.2.0.1"}, "ipam.rangeStart: 10.2.0.1 not in network"),
        ({"subnet": "10.1.0.0/24", "rangeEnd": "fd00::1"}, "ipam.rangeEnd: fd00::1 not in network"),
        (
            {"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.20", "rangeEnd": "10.1.0.10"},
            "ipam.rangeStart: the range would start behind its end 10.1.0.10",
        ),
        (
            {"subnet": "10.1.0.0/24", "gateway": "fd00::1"},
            "ipam.gateway: fd00::1 and subnet 10.1.0.0/24 differ",
        ),
        (
            {"ranges": [[{"subnet": "10.1.0.0/24"}, {"subnet": "fd00::/64"}]]},
            "ipam.ranges[0]: mixed address families",
        ),
        (
            {"ranges": [[{"subnet": "10.1.0.0/24"}, {"subnet": "10.1.0.0/25"}]]},
            "ipam.ranges[0]: subnets 10.1.0.1-10.1.0.254 and 10.1.0.1-10.1.0.126 overlap",
        ),
        (
            {"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.1.0.0/25"}]]},
            "ipam.ranges: range set 0 overlaps with 1",
        ),
        (
            {"subnet": "10.1.0.0/24", "dataDir": "relative"},
            "ipam.dataDir: 'relative' is not an absolute path",
        ),
        ({"subnet": "10.1.0.0/24", "routes": [{"dst": "x"}]}, "ipam.routes[0].dst: 'x' is not a prefix"),
    ],
)
def test_faults_name_their_key(ipam: dict[str, Any], message: str) -> None:
    assert fault(conf(**ipam)).startswith(message)


def test_one_address_a_family_before_0_3() -> None:
    two = [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.2.0.0/24"}]]
    assert "CNI 0.2.0 does not support more than 1 address" in fault(conf("0.2.0", ranges=two))
    both = [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64"}]]
    assert len(decode_host_local(conf("0.2.0", ranges=both)).sets) == 2


def walk(found: HostLocalConf, last: str = "") -> list[str]:
    return [ip for ip, _ in found.sets[0].candidates(last)]


def test_the_order_of_allocation() -> None:
    one = decoded(subnet="10.1.0.0/29")
    assert walk(one) == [f"10.1.0.{n}" for n in (2, 3, 4, 5, 6)]
    assert walk(one, "10.1.0.4") == [f"10.1.0.{n}" for n in (5, 6, 2, 3, 4)]
    assert walk(one, "10.1.0.6") == [f"10.1.0.{n}" for n in (2, 3, 4, 5, 6)]
    assert walk(one, "10.9.0.6") == walk(one)
    assert walk(one, "fd00::1") == walk(one)


def test_the_order_goes_on_in_the_next_range() -> None:
    ranges = [
        {"subnet": "10.1.0.0/29", "rangeStart": "10.1.0.2", "rangeEnd": "10.1.0.3"},
        {"subnet": "10.2.0.0/30"},
        {"subnet": "10.3.0.0/30"},
    ]
    found = decoded(ranges=[ranges])
    assert walk(found) == ["10.1.0.2", "10.1.0.3", "10.2.0.2", "10.3.0.2"]
    assert walk(found, "10.2.0.2") == ["10.3.0.2", "10.1.0.2", "10.1.0.3", "10.2.0.2"]
    assert walk(found, "10.1.0.2") == ["10.1.0.3", "10.2.0.2", "10.3.0.2", "10.1.0.2"]


def test_a_big_range_is_walked_lazily() -> None:
    found = decoded(subnet="fd00::/64")
    assert [ip for ip, _ in islice(found.sets[0].candidates("fd00::ffff"), 2)] == ["fd00::1:0", "fd00::1:1"]


def test_the_directory_needs_no_ranges() -> None:
    assert decode_directory(conf(dataDir="/data")) == "/data/net"
