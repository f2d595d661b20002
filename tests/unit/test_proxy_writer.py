"""The proxy's view of the HNS service."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from samewire.hcn.loadbalancers import LoadBalancer
from samewire.hcn.service import HnsService
from samewire.hcn.store import Store
from samewire.proxy.compile import Settings, compile_service
from samewire.proxy.ids import OWNER
from samewire.proxy.writer import HnsWriter, choose_addresses
from tests.support.hcn import FakeSwitch, overlay
from tests.support.kube_services import PLACE, endpoint, endpoint_slice, service

ADDRESSES = ["192.0.2.1", "10.0.0.1", "2001:db8::1", "fd00::1"]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (["primary"], ("192.0.2.1", "2001:db8::1")),
        (["10.0.0.0/8"], ("10.0.0.1",)),
        (["fd00::/8", "192.0.2.0/24"], ("fd00::1", "192.0.2.1")),
        (["primary", "0.0.0.0/0"], ("192.0.2.1", "2001:db8::1", "10.0.0.1")),
        (["172.16.0.0/12"], ()),
    ],
)
def test_node_port_addresses(wanted: list[str], found: tuple[str, ...]) -> None:
    assert choose_addresses(wanted, ADDRESSES) == found


@pytest.fixture
def hns(tmp_path: Path) -> Iterator[HnsService]:
    store = Store(tmp_path / "samewire.db")
    yield HnsService(store, FakeSwitch())
    store.close()


async def test_the_network_may_come_later(hns: HnsService) -> None:
    assert HnsWriter(hns).network_id() == ""
    writer = HnsWriter(hns, "vxlan0")
    assert writer.network_id() is None
    network = await hns.create_network(overlay())
    assert writer.network_id() == network.id


async def test_node_ports_everywhere_or_at_some_addresses(hns: HnsService) -> None:
    assert HnsWriter(hns).node_port_addresses() is None
    assert HnsWriter(hns, node_ports=["primary"], addresses=lambda: ADDRESSES).node_port_addresses() == (
        "192.0.2.1",
        "2001:db8::1",
    )
    assert HnsWriter(hns, node_ports=["primary"]).node_port_addresses() == ()


def load_balancers(name: str = "web", ip: str = "10.96.0.10") -> list[LoadBalancer]:
    pieces = [endpoint_slice(endpoint("10.244.2.1"), of=name)]
    value = service(name, ips=(ip,))
    return list(compile_service(value.key, value, pieces, Settings(PLACE), lambda _: None).load_balancers)


async def test_what_is_written_is_found_as_it_was_wanted(hns: HnsService) -> None:
    writer = HnsWriter(hns)
    (wanted,) = load_balancers()
    assert await writer.write([wanted], []) == {}
    assert writer.get(wanted.id) == wanted
    assert list(writer.owned()) == [wanted]
    assert await writer.write([], [wanted.id, wanted.id]) == {}
    assert writer.get(wanted.id) is None


async def test_an_address_that_another_has(hns: HnsService) -> None:
    theirs = await hns.create_load_balancer(
        msgspec.structs.replace(load_balancers()[0], id="", owner="somebody")
    )
    writer = HnsWriter(hns)
    (clashing,), (other,) = load_balancers(), load_balancers("other", "10.96.0.11")
    failed = await writer.write([clashing, other], [])
    assert set(failed) == {clashing.id}
    assert writer.get(other.id) == other
    assert [lb.owner for lb in writer.owned()] == [OWNER]
    assert hns.view.load_balancer(theirs.id) == theirs
