"""Very many SDNRoutes of a network: after any changes as if compiled one by one, and one more is one entry."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from samewire.hcn.numbered import Numbered
from samewire.hcn.policies import VSID, Policy, RemoteSubnetRoute, SDNRoute
from samewire.hcn.schema import Ipam, Network, NetworkType, RouteEntry, Subnet
from samewire.vfp.address import parse_prefix
from samewire.vfp.compile import compile_network
from samewire.vfp.compile import route as compiler
from samewire.vfp.compile.builder import route_key
from samewire.vfp.compile.plan import network_context
from samewire.vfp.diff import Put, Remove, apply
from samewire.vfp.model import Compiled, Entries
from samewire.vfp.numbers import MemoryNumbers
from samewire.vfp.ownership import Ownership
from tests.unit.test_vfp_endpoint import FACTS

PREFIXES = (
    *("10.0.0.0/8", "10.1.0.0/16", "10.244.2.0/24", "10.250.0.0/16", "0.0.0.0/0", "2001:db8::/32", "::/0"),
    *("192.168.1.0/24", "10.244.1.0/24"),  # the underlay's, and the subnet
)
HOPS = {4: ("", "192.168.1.77", "192.168.1.78", "10.244.2.7"), 6: ("", "fd00:1::77", "fd00:1::78")}
PADDING = [SDNRoute(destination_prefix=f"100.64.{i}.0/24", next_hop="192.168.1.77") for i in range(64)]
REMOTE = RemoteSubnetRoute(
    destination_prefix="10.244.2.0/24",
    isolation_id=4096,
    provider_address="192.168.1.11",
    distributed_router_mac_address="02-AA-00-00-00-02",
)
HERS = RouteEntry(destination_prefix="10.250.0.0/16", next_hop="192.168.1.77")

some = st.sampled_from(PREFIXES).flatmap(
    lambda prefix: st.builds(
        SDNRoute,
        destination_prefix=st.just(prefix),
        next_hop=st.sampled_from(HOPS[6 if ":" in prefix else 4]),
    )
)
states = st.lists(st.tuples(st.lists(some, max_size=6), st.booleans(), st.booleans()), min_size=1, max_size=7)


def network(policies: Numbered[Policy]) -> Network:
    subnets = (
        Subnet(ip_address_prefix="10.244.1.0/24", policies=(VSID(isolation_id=4096),), routes=(HERS,)),
        Subnet(ip_address_prefix="fd00:244::/64", policies=(VSID(isolation_id=4096),)),
    )
    return Network(id="NET", type=NetworkType.OVERLAY, ipams=(Ipam(subnets=subnets),), policies=policies)


def compiled(policies: Numbered[Policy], numbers: MemoryNumbers) -> Compiled:
    return compile_network(network(policies), FACTS, numbers)


def one_by_one(policies: list[Policy], numbers: MemoryNumbers) -> Compiled:
    """As few are compiled, however many they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "_FEW", len(policies))
        return compiled(Numbered(policies), numbers)


@settings(max_examples=60)
@given(states)
@example([([SDNRoute(destination_prefix="10.244.2.0/24")], True, True), ([], True, True), ([], False, True)])
def test_as_if_compiled_one_by_one(changes: list[tuple[list[SDNRoute], bool, bool]]) -> None:
    """Also below the number from which it is done so and back, with remote subnets and routes of subnets beside."""
    numbers, owned = MemoryNumbers(), Ownership()
    compiler._LAST.clear()
    last: Numbered[Policy] = Numbered(())
    kernel: Entries = {}
    for routes, remote, many in changes:
        wanted: list[Policy] = [*([REMOTE] if remote else ()), *(PADDING if many else PADDING[:60]), *routes]
        last = last.updated(wanted)
        result, plain = compiled(last, numbers), one_by_one(wanted, numbers)
        assert {table: dict(rows) for table, rows in result.entries.items()} == {
            table: dict(rows) for table, rows in plain.entries.items()
        }
        assert result.binding == plain.binding
        kernel = apply(owned.replace("net", result.entries), kernel)
        assert kernel == {table: dict(rows) for table, rows in plain.entries.items()}


def test_one_more_is_one_entry() -> None:
    numbers, owned = MemoryNumbers(), Ownership()
    first: Numbered[Policy] = Numbered([*PADDING, SDNRoute(destination_prefix="10.1.0.0/16")])
    owned.replace("net", compiled(first, numbers).entries)
    second = first.edited(new=[SDNRoute(destination_prefix="10.2.0.0/16", next_hop="192.168.1.77")])
    (put,) = owned.replace("net", compiled(second, numbers).entries)
    assert isinstance(put, Put)
    scope = network_context(network(second), FACTS, numbers).scope
    assert put.key == route_key(scope, parse_prefix("10.2.0.0/16"))
    assert owned.replace("net", compiled(first, numbers).entries) == [Remove("sw_routes", put.key)]
