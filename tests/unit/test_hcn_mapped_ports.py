"""Mappings that leave the node's port to the service."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from samewire.errors import Exhausted
from samewire.hcn.errors import HcnError
from samewire.hcn.loadbalancers import LoadBalancer, LoadBalancerPortMapping
from samewire.hcn.modify import ModifySettingRequest, PolicySettings, RequestType
from samewire.hcn.plan import endpoints, mapped_ports
from samewire.hcn.policies import QOS, NatFlags, Policy, PortMapping, mapping_family, select
from samewire.hcn.schema import Endpoint, Kind, Network
from samewire.hcn.service import HnsService
from samewire.hcn.store import Store
from tests.support.hcn import FakeSwitch, overlay

FIRST = mapped_ports.FIRST_PORT


@pytest.fixture
async def network(service: HnsService) -> Network:
    one, two = overlay(), overlay(prefix="fd00:244:1::/64")
    return await service.create_network(replace(one, ipams=(*one.ipams, *two.ipams)))


def mapping(external: int = 0, **fields: Any) -> PortMapping:
    return PortMapping(**{"protocol": 6, "internal_port": 80, "external_port": external, **fields})


def ports(endpoint: Endpoint) -> list[int]:
    return [policy.external_port for policy in select(endpoint.policies, PortMapping)]


async def create(service: HnsService, network: Network, *policies: Policy) -> Endpoint:
    return await service.create_endpoint(Endpoint(network_id=network.id, policies=policies))


async def modify(service: HnsService, value: Endpoint, how: RequestType, *policies: Policy) -> Endpoint:
    request = ModifySettingRequest(request_type=how, settings=PolicySettings(policies=policies))
    made = await service.modify(Kind.ENDPOINT, value.id, request)
    assert isinstance(made, Endpoint)
    return made


async def test_each_gets_a_port_of_its_own(service: HnsService, network: Network) -> None:
    one = await create(service, network, mapping(), mapping(FIRST + 1), mapping(internal_port=81))
    assert ports(one) == [FIRST, FIRST + 1, FIRST + 2]
    assert ports(await create(service, network, mapping())) == [FIRST + 3]
    other = await create(service, network, mapping(protocol=17))
    assert ports(other) == [FIRST + 4], "ports are given in rotation, whatever the protocol"


async def test_what_others_have_is_not_given(
    service: HnsService, switch: FakeSwitch, network: Network
) -> None:
    await create(service, network, mapping(FIRST), mapping(FIRST + 1, vip="192.168.1.10"))
    for number, vips in ((2, ()), (3, ("192.168.1.10",)), (4, ("10.96.0.1",))):
        where = LoadBalancerPortMapping(protocol=6, internal_port=80, external_port=FIRST + number)
        await service.create_load_balancer(
            LoadBalancer(network_id=network.id, frontend_vips=vips, port_mappings=(where,))
        )
    switch.ports_in_use = {(6, FIRST + 4), (17, FIRST + 5)}
    assert ports(await create(service, network, mapping())) == [FIRST + 5]


async def test_a_port_is_free_again_but_not_at_once(service: HnsService, network: Network) -> None:
    one = await create(service, network, mapping())
    await service.delete(Kind.ENDPOINT, one.id)
    assert ports(await create(service, network, mapping())) == [FIRST + 1]


async def test_nobody_has_reserved_a_port_that_was_not_known(service: HnsService, network: Network) -> None:
    flags = NatFlags.EXTERNAL_PORT_RESERVED | NatFlags.LOCAL_ROUTED_VIP
    made = await create(service, network, mapping(flags=flags), mapping(8080, flags=flags))
    assert [policy.flags for policy in select(made.policies, PortMapping)] == [1, 5]


async def test_who_says_the_same_again_changes_nothing(service: HnsService, network: Network) -> None:
    one = await create(service, network, mapping(), mapping())
    assert ports(await modify(service, one, RequestType.UPDATE, mapping(), mapping(), QOS())) == ports(one)
    given = (mapping(FIRST), mapping(), mapping(), QOS())
    assert ports(await modify(service, one, RequestType.UPDATE, *given)) == [FIRST, FIRST + 1, FIRST + 2]
    assert ports(await modify(service, one, RequestType.ADD, mapping()))[3:] == [FIRST + 3]
    assert ports(await modify(service, one, RequestType.UPDATE, mapping(internal_port=81))) == [FIRST + 4]


async def test_who_says_very_much_again_is_answered_at_once(
    service: HnsService, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In whichever order: each is looked up, and not compared with all the others."""
    internal = range(1, 301)
    one = await create(service, network, *(mapping(internal_port=number) for number in internal))
    copies = 0
    replace = mapped_ports._replace

    def counted(value: Any, **changes: Any) -> Any:
        nonlocal copies
        copies += 1
        return replace(value, **changes)

    monkeypatch.setattr(mapped_ports, "_replace", counted)
    again = (mapping(internal_port=number) for number in reversed(internal))
    assert sorted(ports(await modify(service, one, RequestType.UPDATE, *again))) == ports(one)
    assert copies <= 3 * len(internal)


async def test_what_the_kernel_keeps_back_is_read_once_for_all(
    service: HnsService, switch: FakeSwitch, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    usable = switch.usable_ports

    def counted() -> Callable[[int, int], bool]:
        nonlocal asked
        asked += 1
        return usable()

    monkeypatch.setattr(switch, "usable_ports", counted)
    one = await create(service, network, *(mapping(internal_port=number) for number in range(1, 101)))
    assert ports(one) == list(range(FIRST, FIRST + 100))
    assert asked == 1


@pytest.mark.parametrize("kept", [{}, {"vip": "fd00::9"}, {"flags": 2}])
async def test_one_port_at_very_many_addresses_is_not_compared_with_itself(
    service: HnsService, network: Network, monkeypatch: pytest.MonkeyPatch, kept: dict[str, Any]
) -> None:
    """Neither when all come at once, nor when one comes beside them."""
    asked = 0
    family = mapping_family

    def counted(*of: Any) -> int:
        nonlocal asked
        asked += 1
        return family(*of)

    monkeypatch.setattr(endpoints, "mapping_family", counted)
    several = [mapping(80, vip=f"10.9.{number}.1") for number in range(200)]
    six = mapping(80, **kept) if kept else mapping(81)
    one = await create(service, network, *several, six)
    assert asked <= 4 * len(several)
    asked = 0
    await modify(service, one, RequestType.ADD, mapping(80, vip="10.10.0.1"))
    assert asked <= 3
    for taken in (several[7], mapping(80)):
        with pytest.raises(HcnError, match="port 80 of protocol 6 is mapped to port 80 of endpoint"):
            await modify(service, one, RequestType.ADD, taken)
        with pytest.raises(HcnError, match="port 80 of protocol 6 is mapped to port 80 of endpoint"):
            await create(service, network, taken)


@pytest.mark.parametrize(
    ("how", "given", "place"),
    [
        (RequestType.ADD, (mapping(82), mapping(80)), 1),
        (RequestType.ADD, (mapping(81, vip="10.9.0.1"), mapping(82)), 0),
        (RequestType.UPDATE, (QOS(), mapping(81), mapping(82), mapping(80)), 3),
        (RequestType.UPDATE, (mapping(80), mapping(81)), 0),
    ],
)
async def test_a_clash_is_where_the_caller_put_it(
    service: HnsService, network: Network, how: RequestType, given: tuple[Policy, ...], place: int
) -> None:
    await create(service, network, mapping(80))
    one = await create(service, network, QOS(), mapping(81))
    with pytest.raises(HcnError) as caught:
        await modify(service, one, how, *given)
    assert caught.value.message.startswith(f"$.Settings.Policies[{place}].Settings.ExternalPort: port 8")
    assert service.get(Kind.ENDPOINT, one.id) == one
    with pytest.raises(HcnError) as caught:
        await create(service, network, QOS(), mapping(83), mapping(80))
    assert caught.value.message.startswith("$.Policies[2].Settings.ExternalPort: port 80")


async def test_when_there_is_none_left(
    service: HnsService, switch: FakeSwitch, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped_ports, "LAST_PORT", FIRST + 1)
    switch.ports_in_use = {(6, FIRST)}
    one = await create(service, network, mapping())
    with pytest.raises(Exhausted, match="mapped, reserved or in use"):
        await create(service, network, mapping())
    with pytest.raises(Exhausted):
        await modify(service, one, RequestType.ADD, mapping())
    assert len(service.view.endpoints()) == 1
    assert ports(await create(service, network, mapping(protocol=17))) == [FIRST]
    await service.delete(Kind.ENDPOINT, one.id)
    assert ports(await create(service, network, mapping())) == [FIRST + 1]


async def test_a_restart_keeps_what_was_given(tmp_path: Path) -> None:
    store = Store(tmp_path / "own.db")
    before = HnsService(store, FakeSwitch())
    network = await before.create_network(overlay())
    one = await create(before, network, mapping())
    store.close()
    store = Store(tmp_path / "own.db")
    try:
        after = HnsService(store, FakeSwitch())
        assert after.get(Kind.ENDPOINT, one.id) == one
        assert ports(await create(after, network, mapping())) == [FIRST + 1]
    finally:
        store.close()
