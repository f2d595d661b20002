"""What a change of objects touches, the numbers it holds, and how it is taken back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from samewire.errors import Invalid, KernelError
from samewire.hcn.errors import HcnError
from samewire.hcn.policies import (
    VSID,
    AclAction,
    AclDirection,
    DrMacAddress,
    HostRoute,
    L4Proxy,
    NetworkACL,
    Policy,
    ProviderAddress,
    RemoteSubnetRoute,
    SDNRoute,
    SetPolicy,
    VxlanPort,
)
from samewire.hcn.policy_lists import PolicyList
from samewire.hcn.schema import (
    Endpoint,
    EndpointFlags,
    Ipam,
    IpConfiguration,
    Kind,
    Namespace,
    Network,
    NetworkType,
    Object,
    Route,
    RouteEntry,
    SdnRoute,
    Subnet,
)
from samewire.hcn.state import Pending, State
from samewire.hcn.store import Store
from samewire.hcn.switch import Change
from samewire.node.numbers import StoreNumbers
from samewire.node.planning import NODE, Steps, plan_changes, plan_everything
from samewire.node.ports import Ports, PortState
from samewire.node.testhooks import install_fault
from samewire.node.undo import UndoStack
from samewire.vfp.address import parse_interface
from samewire.vfp.model import NodeFacts, PortLink

FACTS = NodeFacts(
    name="n",
    uplink_ifindex=2,
    uplink_mac=b"\2aaaaa",
    uplink_mtu=1500,
    addresses=(parse_interface("192.0.2.1/24"),),
)
REMOTE = RemoteSubnetRoute(
    destination_prefix="10.2.0.0/16",
    isolation_id=4096,
    provider_address="192.0.2.9",
    distributed_router_mac_address="0E-2A-00-00-00-09",
)


def network(*policies: Policy, subnet: str = "10.1.0.0/16") -> Network:
    route = RouteEntry(next_hop="10.1.0.1", destination_prefix="0.0.0.0/0")
    subnets = (Subnet(ip_address_prefix=subnet, routes=(route,), policies=(VSID(isolation_id=4096),)),)
    return Network(
        id="NET", name="net", type=NetworkType.OVERLAY, ipams=(Ipam(subnets=subnets),), policies=policies
    )


def endpoint(name: str, ip: str, *, remote: bool = False, policies: tuple[Policy, ...] = ()) -> Endpoint:
    return Endpoint(
        id=name,
        network_id="NET",
        namespace_id="" if remote else "NS",
        interface_name="" if remote else "eth0",
        ip_configurations=(IpConfiguration(ip_address=ip),),
        mac_address="02-00-00-00-00-01",
        flags=EndpointFlags.REMOTE_ENDPOINT if remote else 0,
        policies=policies,
    )


LOCAL = endpoint("LOCAL", "10.1.0.5")
FAR = endpoint("FAR", "10.1.0.6", remote=True)
FARTHER = endpoint("FARTHER", "10.99.0.6", remote=True)
VIA = SDNRoute(destination_prefix="10.9.0.0/16", next_hop="10.2.0.1")
ROUTED = endpoint("ROUTED", "10.1.0.7", policies=(VIA,))
SPACE = Namespace(id="NS", netns_path="/run/netns/x")
SDN = Route(
    id="ROUTE", network_id="NET", routes=(SdnRoute(destination_prefix="10.8.0.0/16", next_hop="10.2.0.1"),)
)


def state(*objects: tuple[Kind, Object]) -> State:
    made = State()
    made.apply([Change(kind, value.id, None, value) for kind, value in objects])
    return made


FULL = state(
    (Kind.NETWORK, network()),
    (Kind.NAMESPACE, SPACE),
    (Kind.ENDPOINT, LOCAL),
    (Kind.ENDPOINT, FAR),
    (Kind.ENDPOINT, ROUTED),
    (Kind.ROUTE, SDN),
)


def plan(
    changes: list[Change], base: State = FULL, ports: frozenset[str] = frozenset({"LOCAL", "ROUTED"})
) -> Steps:
    return plan_changes(changes, Pending(base, changes), FACTS, ports.__contains__)


def test_a_new_attached_endpoint_gets_a_link() -> None:
    new = endpoint("NEW", "10.1.0.9")
    steps = plan([Change(Kind.ENDPOINT, "NEW", None, new)])
    assert steps == Steps(owners={("endpoint", "NEW"): True}, attach={"NEW": new}, new={"NEW"})


def test_one_that_is_attached_nowhere_has_nothing() -> None:
    new = msgspec.structs.replace(LOCAL, id="NEW", namespace_id="")
    assert plan([Change(Kind.ENDPOINT, "NEW", None, new)]) == Steps(owners={("endpoint", "NEW"): False})


def test_a_remote_endpoint_has_entries_and_no_link() -> None:
    new = msgspec.structs.replace(FAR, id="NEW")
    assert plan([Change(Kind.ENDPOINT, "NEW", None, new)]) == Steps(owners={("endpoint", "NEW"): True})


def test_a_namespace_made_in_the_same_change_counts() -> None:
    space = Namespace(id="NS2", netns_path="/run/netns/y")
    new = msgspec.structs.replace(LOCAL, id="NEW", namespace_id="NS2")
    changes = [Change(Kind.NAMESPACE, "NS2", None, space), Change(Kind.ENDPOINT, "NEW", None, new)]
    assert list(plan(changes).attach) == ["NEW"]


def test_deleting_and_detaching_take_the_link_away() -> None:
    gone = plan([Change(Kind.ENDPOINT, "LOCAL", LOCAL, None)])
    assert gone == Steps(owners={("endpoint", "LOCAL"): False}, detach={"LOCAL": None})
    loose = msgspec.structs.replace(LOCAL, namespace_id="")
    assert plan([Change(Kind.ENDPOINT, "LOCAL", LOCAL, loose)]) == gone


def test_deleting_one_without_a_port_only_forgets_it() -> None:
    assert plan([Change(Kind.ENDPOINT, "FAR", FAR, None)]) == Steps(owners={("endpoint", "FAR"): False})


def test_moving_to_another_namespace_makes_the_link_again() -> None:
    space = Namespace(id="NS2", netns_path="/run/netns/y")
    moved = msgspec.structs.replace(LOCAL, namespace_id="NS2")
    changes = [Change(Kind.NAMESPACE, "NS2", None, space), Change(Kind.ENDPOINT, "LOCAL", LOCAL, moved)]
    steps = plan(changes)
    assert (list(steps.detach), list(steps.attach), steps.relink) == (["LOCAL"], ["LOCAL"], {})


def test_new_policies_keep_the_link() -> None:
    after = msgspec.structs.replace(LOCAL, policies=(SDNRoute(destination_prefix="10.9.0.0/16"),))
    steps = plan([Change(Kind.ENDPOINT, "LOCAL", LOCAL, after)])
    assert steps == Steps(owners={("endpoint", "LOCAL"): True}, relink={"LOCAL": after})


def test_another_nodes_subnet_touches_only_those_who_route_by_it() -> None:
    """FAR is elsewhere: five thousand remote endpoints are no matter of a node that joins."""
    behind = endpoint("BEHIND", "10.2.0.6", remote=True)
    provider = ProviderAddress(provider_address=REMOTE.provider_address)
    by_provider = endpoint("BY_PROVIDER", "10.1.0.8", remote=True, policies=(provider,))
    others = [Change(Kind.ENDPOINT, one.id, None, one) for one in (behind, by_provider)]
    base = state(*((Kind.ENDPOINT, one) for one in (LOCAL, FAR, ROUTED)), (Kind.NETWORK, network()))
    base.apply([*others, Change(Kind.NAMESPACE, "NS", None, SPACE), Change(Kind.ROUTE, "ROUTE", None, SDN)])
    touched = {("network", "NET"), ("endpoint", "BEHIND"), ("endpoint", "ROUTED"), ("route", "ROUTE")}
    touched.add(("remote", "NET/10.2.0.0/16"))
    steps = plan([Change(Kind.NETWORK, "NET", network(), network(REMOTE))], base)
    assert set(steps.owners) == touched | {("endpoint", "BY_PROVIDER")}
    assert list(steps.relink) == ["ROUTED"]
    second = msgspec.structs.replace(REMOTE, destination_prefix="10.3.0.0/16")
    steps = plan([Change(Kind.NETWORK, "NET", network(second), network(second, REMOTE))], base)
    assert set(steps.owners) == touched


def test_a_remote_subnet_touches_no_other_one() -> None:
    """Two thousand of them are no matter of one that comes, moves or goes."""
    others = [
        msgspec.structs.replace(
            REMOTE, destination_prefix=f"10.{100 + i}.0.0/16", provider_address=f"192.0.2.{i}"
        )
        for i in range(20, 40)
    ]
    moved = msgspec.structs.replace(REMOTE, provider_address="192.0.2.10")
    for before, after, there in (
        (network(*others), network(*others, REMOTE), True),
        (network(REMOTE, *others), network(moved, *others), True),
        (network(*others[:5], REMOTE, *others[5:]), network(*others), False),
    ):
        listed = PolicyList(before.policies)
        before = msgspec.structs.replace(before, policies=listed)
        after = msgspec.structs.replace(after, policies=listed.updated(after.policies))
        owners = plan([Change(Kind.NETWORK, "NET", before, after)]).owners
        assert {owner: is_there for owner, is_there in owners.items() if owner[0] == "remote"} == {
            ("remote", "NET/10.2.0.0/16"): there
        }


def test_a_network_takes_its_remote_subnets_with_it() -> None:
    remote = ("remote", "NET/10.2.0.0/16")
    assert plan([Change(Kind.NETWORK, "NET", None, network(REMOTE))]).owners[remote] is True
    assert plan([Change(Kind.NETWORK, "NET", network(REMOTE), None)]).owners[remote] is False
    other = network(REMOTE, subnet="10.1.0.0/17")
    assert plan([Change(Kind.NETWORK, "NET", network(REMOTE), other)]).owners[remote] is True
    assert plan_everything(state((Kind.NETWORK, network(REMOTE))), lambda _: False).owners[remote] is True


def test_a_route_of_the_network_to_the_same_prefix_takes_the_remote_subnets_place() -> None:
    route = SDNRoute(destination_prefix=REMOTE.destination_prefix)
    owners = plan([Change(Kind.NETWORK, "NET", network(REMOTE), network(REMOTE, route))]).owners
    assert owners["remote", "NET/10.2.0.0/16"] is True


def test_a_route_that_names_endpoints_touches_these_alone() -> None:
    named = msgspec.structs.replace(SDN, id="NAMED", endpoint_ids=("LOCAL",))
    for before, after in ((None, named), (named, None)):
        steps = plan([Change(Kind.ROUTE, "NAMED", before, after)])
        assert steps.owners == {("route", "NAMED"): after is not None, ("endpoint", "LOCAL"): True}
    assert plan([Change(Kind.ROUTE, "ALL", None, msgspec.structs.replace(SDN, id="ALL"))]).owners == {
        ("route", "ALL"): True
    }
    watching = (msgspec.structs.replace(SDN.routes[0], automatic_endpoint_monitor=True),)
    watched = msgspec.structs.replace(named, routes=watching)
    assert plan([Change(Kind.ROUTE, "NAMED", None, watched)]).owners == {("route", "NAMED"): True}


def test_what_will_be_shows_the_routes_as_they_will_be() -> None:
    named = msgspec.structs.replace(SDN, id="NAMED", endpoint_ids=("LOCAL",))
    arriving = Pending(FULL, [Change(Kind.ROUTE, "NAMED", None, named)])
    assert arriving.routes_of_endpoint("LOCAL") == [named]
    assert arriving.routes_of_network("NET") == [SDN, named]
    assert Pending(FULL, [Change(Kind.ROUTE, "ROUTE", SDN, None)]).routes_of_network("NET") == []
    moved = Pending(FULL, [Change(Kind.ENDPOINT, "LOCAL", LOCAL, None)])
    assert moved.routes_of_network("NET") == [SDN]
    base = state((Kind.ROUTE, named), (Kind.ENDPOINT, LOCAL))
    assert Pending(base, [Change(Kind.ENDPOINT, "LOCAL", LOCAL, LOCAL)]).routes_of_endpoint("LOCAL") == [
        named
    ]


def test_another_nodes_subnet_touches_the_endpoints_that_a_route_by_it_names() -> None:
    named = msgspec.structs.replace(SDN, id="NAMED", endpoint_ids=("LOCAL",))
    base = state(
        (Kind.NETWORK, network()), (Kind.NAMESPACE, SPACE), (Kind.ENDPOINT, LOCAL), (Kind.ROUTE, named)
    )
    assert ("endpoint", "LOCAL") in plan(
        [Change(Kind.NETWORK, "NET", network(), network(REMOTE))], base
    ).owners


def test_a_wide_subnet_touches_all_remote_endpoints_in_it_and_no_others() -> None:
    wide = msgspec.structs.replace(REMOTE, destination_prefix="10.0.0.0/12", provider_address="192.0.2.77")
    base = state((Kind.NETWORK, network()), *((Kind.ENDPOINT, one) for one in (FAR, FARTHER)))
    owners = plan([Change(Kind.NETWORK, "NET", network(), network(wide))], base).owners
    assert ("endpoint", "FAR") in owners
    assert ("endpoint", "FARTHER") not in owners


def test_another_nodes_subnet_touches_those_who_may_not_talk_with_it() -> None:
    alone = msgspec.structs.replace(LOCAL, flags=EndpointFlags.DISABLE_INTER_COMPUTE_COMMUNICATION)
    base = state((Kind.NETWORK, network()), (Kind.NAMESPACE, SPACE), (Kind.ENDPOINT, alone))
    steps = plan([Change(Kind.NETWORK, "NET", network(), network(REMOTE))], base)
    assert ("endpoint", "LOCAL") in steps.owners


def test_a_proxy_of_the_network_touches_all_its_pods() -> None:
    proxy = L4Proxy(destination="10.1.0.9:3128")
    for before, after in (((), (proxy,)), ((proxy,), ())):
        steps = plan([Change(Kind.NETWORK, "NET", network(*before), network(*after))])
        assert list(steps.relink) == ["LOCAL", "ROUTED"]


def test_a_change_of_the_network_itself_touches_all_its_endpoints() -> None:
    steps = plan([Change(Kind.NETWORK, "NET", network(), network(subnet="10.1.0.0/17"))])
    assert ("endpoint", "LOCAL") in steps.owners
    assert list(steps.relink) == ["LOCAL", "ROUTED"]


def test_a_policy_that_means_nothing_to_endpoints_touches_none_of_them() -> None:
    steps = plan([Change(Kind.NETWORK, "NET", network(), network(DrMacAddress(address="0E-2A-00-00-00-01")))])
    assert ("endpoint", "LOCAL") not in steps.owners


REDS = SetPolicy(set_id="red", values="10.0.0.1")
MORE = SetPolicy(set_id="red", values="10.0.0.1,10.0.0.2")
RULE = NetworkACL(action=AclAction.BLOCK, direction=AclDirection.IN)


def test_ip_sets_touch_nothing_but_themselves() -> None:
    for before, after, compiled in (((), (REDS,), True), ((REDS,), (MORE,), True), ((REDS,), (), False)):
        steps = plan([Change(Kind.NETWORK, "NET", network(*before), network(*after))])
        assert steps == Steps(owners={("sets", "NET"): compiled})
    steps = plan([Change(Kind.NETWORK, "NET", network(REDS), network(REDS))])
    assert steps == Steps()
    gone = [
        Change(Kind.ROUTE, "ROUTE", SDN, None),
        *(Change(Kind.ENDPOINT, value.id, value, None) for value in (LOCAL, FAR, ROUTED)),
        Change(Kind.NETWORK, "NET", network(REDS), None),
    ]
    assert plan(gone).owners["sets", "NET"] is False


def test_a_networks_rules_touch_its_local_endpoints() -> None:
    steps = plan([Change(Kind.NETWORK, "NET", network(), network(RULE))])
    assert set(steps.owners) == {("endpoint", "LOCAL"), ("endpoint", "ROUTED")}


def test_deleting_a_network_forgets_it() -> None:
    changes = [Change(Kind.NETWORK, "NET", network(), None)]
    assert plan(changes, state((Kind.NETWORK, network())), frozenset()) == Steps(
        owners={("network", "NET"): False}
    )


def test_an_endpoint_of_a_changed_network_that_goes_is_not_compiled() -> None:
    changes = [
        Change(Kind.ENDPOINT, "LOCAL", LOCAL, None),
        Change(Kind.NETWORK, "NET", network(), network(subnet="10.1.0.0/17")),
    ]
    assert plan(changes).owners["endpoint", "LOCAL"] is False


def test_an_overlay_on_another_port_is_refused() -> None:
    with pytest.raises(Invalid, match=r"VxlanPort 8472.*4789"):
        plan([Change(Kind.NETWORK, "NET", None, network(VxlanPort(port=8472)))])
    assert plan([Change(Kind.NETWORK, "NET", None, network(VxlanPort(port=4789)))]).owners


def test_everything() -> None:
    steps = plan_everything(FULL, {"LOCAL"}.__contains__)
    assert list(steps.owners) == [
        NODE,
        ("network", "NET"),
        ("endpoint", "LOCAL"),
        ("endpoint", "FAR"),
        ("route", "ROUTE"),
    ]
    assert list(steps.relink) == ["LOCAL"]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "db", boot_id="b")
    yield opened
    opened.close()


def test_a_number_lives_as_long_as_somebody_uses_it(store: Store) -> None:
    numbers = StoreNumbers(store)
    for owner in ("a", "b"):
        numbers.begin()
        assert numbers.number("nat", "digest") == 1
        numbers.hold(owner, numbers.asked())
    numbers.hold("a", {})
    assert store.numbers("nat") == {"digest": 1}
    numbers.hold("b", {})
    assert store.numbers("nat") == {}
    assert numbers.number("nat", "digest") == 2, "a number is never given twice"


def test_what_an_owner_no_longer_asks_for_is_released(store: Store) -> None:
    numbers = StoreNumbers(store)
    for key in ("old", "new"):
        numbers.begin()
        numbers.number("acl", key)
        numbers.hold("a", numbers.asked())
    assert list(store.numbers("acl")) == ["new"]


def test_a_failed_change_releases_only_what_is_new(store: Store) -> None:
    numbers = StoreNumbers(store)
    numbers.begin()
    numbers.number("nat", "shared")
    numbers.hold("a", numbers.asked())
    numbers.begin()
    numbers.number("nat", "shared")
    numbers.number("nat", "mine")
    numbers.forget_unused(numbers.asked())
    assert list(store.numbers("nat")) == ["shared"]


def test_a_start_releases_what_nobody_asked_for(store: Store) -> None:
    store.allocate_number("acl", "left behind")
    numbers = StoreNumbers(store)
    numbers.begin()
    numbers.number("scope", "NET")
    numbers.hold("net", numbers.asked())
    assert numbers.sweep() == 1
    assert (store.numbers("acl"), store.numbers("scope")) == ({}, {"NET": 1})


async def test_undo_runs_backwards_and_past_a_failure() -> None:
    done: list[str] = []
    undo = UndoStack()

    async def later() -> None:
        done.append("second")

    def fails() -> None:
        raise KernelError("undo", 5)

    undo.push("first", lambda: done.append("first"))
    undo.push("second", later)

    def is_wrong() -> None:
        raise LookupError

    undo.push("third", fails)
    undo.push("a bug", is_wrong)
    assert await undo.run() is False
    assert done == ["second", "first"]
    assert await undo.run() is True, "everything is undone once only"


def test_ports_by_both_names() -> None:
    link = PortLink(
        endpoint_id="E",
        host_name="sw1",
        host_mac=b"",
        netns_path="/n",
        interface_name="eth0",
        mac=b"",
        mtu=1500,
        addresses=(),
        routes=(),
        neighbours=(),
    )
    ports = Ports()
    ports.set("E", PortState(7, link, None))
    assert ("E" in ports, ports.endpoint_of(7), len(ports)) == (True, "E", 1)
    ports.set("E", PortState(9, link, (1, 2)))
    assert (ports.endpoint_of(7), ports.endpoint_of(9)) == ("", "E")
    ports.remove("E")
    assert (list(ports), ports.endpoint_of(9), ports.remove("E")) == ([], "", None)


@pytest.mark.parametrize("text", ["", "x", "x|kill", "x|EFOO|1", "x|kill|one", "|kill|1"])
def test_a_malformed_fault_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        install_fault(text)


@pytest.mark.parametrize("subnet", ["192.0.2.0/24", "192.0.0.0/16", "192.0.2.128/25"])
def test_a_subnet_of_the_underlay_cannot_be_bound_to_the_host(subnet: str) -> None:
    wanted = network(HostRoute(), subnet=subnet)
    with pytest.raises(HcnError, match=r"overlaps the node's own 192\.0\.2\.1/24"):
        plan([Change(Kind.NETWORK, "NET", None, wanted)])
    # without the host there is no clash: a tenant may use any addresses
    plan([Change(Kind.NETWORK, "NET", None, network(subnet=subnet))])
    # and an address that the node gets later does not keep the network from being changed
    plan([Change(Kind.NETWORK, "NET", wanted, network(HostRoute(), REMOTE, subnet=subnet))])


@pytest.mark.parametrize(
    ("own", "accepted"),
    [("10.1.0.1/32", True), ("10.1.0.0/32", True), ("10.1.0.7/32", False), ("10.1.0.1/16", False)],
)
def test_the_node_may_have_the_gateways_address_and_the_subnets_first(own: str, accepted: bool) -> None:
    """Those of a bridge and a tunnel whose network this one takes the place of."""
    facts = msgspec.structs.replace(FACTS, addresses=(*FACTS.addresses, parse_interface(own)))
    changes = [Change(Kind.NETWORK, "NET", None, network(HostRoute()))]
    if accepted:
        plan_changes(changes, Pending(FULL, changes), facts, frozenset().__contains__)
        return
    with pytest.raises(HcnError, match="overlaps the node's own"):
        plan_changes(changes, Pending(FULL, changes), facts, frozenset().__contains__)
