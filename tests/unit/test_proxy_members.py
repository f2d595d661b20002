"""Members of a service out of its slices."""

from __future__ import annotations

import pytest

from samewire.kube.model import EndpointPort, SliceLabels
from samewire.kube.source import Change
from samewire.proxy.members import collect, local_ready_addresses
from samewire.proxy.table import ServiceTable
from tests.support.kube_services import HERE, endpoint, endpoint_slice, service

HTTP = ("http", "TCP", 4)


def test_target_ports_differ_by_slice_and_members_are_in_order() -> None:
    one = endpoint_slice(endpoint("10.244.1.9"), ports=(EndpointPort(name="http", port=80),))
    two = endpoint_slice(
        endpoint("10.244.1.2", node=HERE), name="web-2", ports=(EndpointPort(name="http", port=8080),)
    )
    found = collect([one, two], HERE)[HTTP]
    assert [(m.address, m.port, m.local) for m in found] == [
        ("10.244.1.2", 8080, True),
        ("10.244.1.9", 80, False),
    ]


def test_ports_by_name_protocol_and_family() -> None:
    ports = (
        EndpointPort(name="dns", protocol="UDP", port=53),
        EndpointPort(name="dns-tcp", protocol="TCP", port=53),
    )
    four = endpoint_slice(endpoint("10.244.1.9"), ports=ports)
    six = endpoint_slice(endpoint("fd00::9"), name="web-6", ports=ports)
    found = collect([four, six], HERE)
    assert set(found) == {
        (name, protocol, family)
        for name, protocol in (("dns", "UDP"), ("dns-tcp", "TCP"))
        for family in (4, 6)
    }
    assert [m.address for m in found[("dns", "UDP", 6)]] == ["fd00::9"]


def test_what_cannot_be_behind_a_vip_is_left_out() -> None:
    every_port = endpoint_slice(endpoint("10.244.1.9"), ports=(EndpointPort(name="http", port=None),))
    nameless = endpoint_slice(endpoint("10.244.1.9"), ports=(EndpointPort(name=None, port=80),))
    names = endpoint_slice(endpoint("example.org"), family="FQDN")
    wrong_family = endpoint_slice(endpoint("fd00::9"), family="IPv4")
    no_port = [
        endpoint_slice(endpoint("10.244.1.9"), ports=(EndpointPort(name="http", port=n),))
        for n in (0, -1, 1 << 16)
    ]
    assert not any(collect([every_port, nameless, names, wrong_family, *no_port], HERE).values())


@pytest.mark.parametrize(
    "address",
    [
        *("0.0.0.0", "127.0.0.1", "127.8.9.10", "169.254.1.1", "224.0.0.1", "239.255.0.1", "255.255.255.255"),
        *("10.0.0.256", "10.0.0", "nonsense", "", "10.0.0.1%eth0"),
        *("::", "::1", "fe80::1", "febf::1", "fe80::1%eth0", "ff02::1", "::ffff:a00:1", "fd00::x"),
    ],
)
def test_an_address_of_no_machine_is_left_out_alone(address: str) -> None:
    """As no API server takes it, the switch takes no load balancer with it: the others must not go with it."""
    six = ":" in address
    good = "fd00::9" if six else "10.244.1.9"
    piece = endpoint_slice(endpoint(address), endpoint(good), family="IPv6" if six else "IPv4")
    unfit: dict[str, None] = {}
    found = collect([piece], HERE, unfit)
    assert [m.address for m in found["http", "TCP", 6 if six else 4]] == [good]
    assert list(unfit) == [address]


@pytest.mark.parametrize(
    "address",
    [
        *("0.1.2.3", "1.1.1.1", "126.0.0.1", "128.0.0.1", "169.253.0.1", "223.1.1.1", "240.0.0.1"),
        *("::2", "::1.2.3.4", "64:ff9b::1", "fec0::1", "fe00::1", "fd00::9", "2001:db8::7"),
    ],
)
def test_an_address_of_a_machine_counts(address: str) -> None:
    unfit: dict[str, None] = {}
    piece = endpoint_slice(endpoint(address), family="IPv6" if ":" in address else "IPv4")
    assert any(collect([piece], HERE, unfit).values())
    assert not unfit


def test_an_endpoint_in_two_slices_counts_once() -> None:
    leaving = endpoint_slice(endpoint("10.244.1.9", ready=False), name="a")
    joining = endpoint_slice(endpoint("10.244.1.9"), name="b")
    for order in ([leaving, joining], [joining, leaving]):
        assert [m.ready for m in collect(order, HERE)[HTTP]] == [True]


@pytest.mark.parametrize(
    "text",
    ["fd44::1", "FD44::1", "fd44:0::1", "fd44:0:0:0:0:0:0:1", "fd44::0:1", "fd44::0001", "fd44::0.0.0.1"],
)
def test_an_ipv6_address_is_one_however_it_is_written(text: str) -> None:
    """Else it would be another backend than the one that is in the switch: gone, and not draining."""
    slices = [
        endpoint_slice(endpoint(text), name="one"),
        endpoint_slice(endpoint("fd44::1"), name="two"),
        endpoint_slice(endpoint("1:2:3::5:6:7:8"), name="three"),
    ]
    found = collect(slices, HERE)["http", "TCP", 6]
    assert [member.address for member in found] == ["1:2:3:0:5:6:7:8", "fd44::1"]


def test_leading_zeros_of_an_address_are_decimal() -> None:
    padded = endpoint_slice(endpoint("010.244.001.009"), endpoint("10.244.1.0"), endpoint("fd00::10"))
    assert [m.address for m in collect([padded], HERE)[HTTP]] == ["10.244.1.0", "10.244.1.9"]


def test_absent_conditions() -> None:
    unknown = endpoint_slice(endpoint("10.244.1.9", ready=None))
    found = collect([unknown], HERE)[HTTP][0]
    assert (found.ready, found.serving, found.terminating) == (True, True, False)


def test_an_endpoint_that_does_not_say_whether_it_serves_does() -> None:
    """The API's word: absent means true, though it is not ready. So it is the last resort while it ends."""
    ending = endpoint("10.244.1.9", ready=False, terminating=True)
    assert ending.serving
    assert collect([endpoint_slice(ending)], HERE)[HTTP][0].last_resort


def test_a_health_check_counts_addresses_not_ports() -> None:
    ports = (EndpointPort(name="http", port=80), EndpointPort(name="admin", port=81))
    piece = endpoint_slice(
        endpoint("10.244.1.1", node=HERE),
        endpoint("10.244.1.2", node=HERE, ready=False, serving=True, terminating=True),
        endpoint("10.244.2.1"),
        ports=ports,
    )
    assert local_ready_addresses(collect([piece], HERE), 4) == 1
    assert local_ready_addresses(collect([piece], HERE), 6) == 0


def test_the_table_follows_a_slice_from_service_to_service() -> None:
    table = ServiceTable()
    table.change_services([Change(("shop", "web"), None, service())])
    first = endpoint_slice(endpoint("10.244.1.1"), name="s")
    moved = endpoint_slice(endpoint("10.244.1.1"), name="s", of="other")
    assert table.change_slices([Change(("shop", "s"), None, first)]) == [("shop", "web")]
    assert table.slices(("shop", "web")) == (first,)
    assert table.change_slices([Change(("shop", "s"), first, moved)]) == [("shop", "web"), ("shop", "other")]
    assert table.slices(("shop", "web")) == ()
    assert table.slices(("shop", "other")) == (moved,)
    assert table.change_slices([Change(("shop", "s"), moved, None)]) == [("shop", "other")]
    assert table.slices(("shop", "other")) == ()


def test_slices_of_another_proxy_and_of_nobody_are_not_there() -> None:
    table = ServiceTable()
    for labels in (
        SliceLabels(service_name="web", service_proxy_name="mesh"),
        SliceLabels(service_name="web", headless=""),
        SliceLabels(),
    ):
        assert table.change_slices([Change(("shop", "s"), None, endpoint_slice(labels=labels))]) == []
    assert table.slices(("shop", "web")) == ()
