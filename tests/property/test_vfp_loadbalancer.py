"""Random histories of load balancers: the tables always say exactly what is wanted, and members that stay keep their
ids, whatever else comes and goes.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from samewire.hcn.loadbalancers import BackendFlags, LoadBalancer, LoadBalancerBackend, PortMappingFlags
from samewire.vfp.compile.balanced import backends_by_service
from samewire.vfp.compile.loadbalancer import adopt, compile_load_balancer
from samewire.vfp.constants import SCOPE_ANY, SCOPE_OUTSIDE
from samewire.vfp.simulate.balance import heaviest
from samewire.vfp.simulate.state import State
from tests.support.balancers import Balancing, backend, balancer, pod_network

NETWORK = pod_network()
LOCAL, DRAINING, LOCAL_ONLY = BackendFlags.LOCAL, BackendFlags.DRAINING, BackendFlags.LOCAL_POLICY_ONLY

_addresses = st.builds("10.244.2.{}".format, st.integers(1, 60))
_backends = st.lists(
    st.builds(backend, _addresses, st.sampled_from([8080, 8081]), st.integers(0, 7)),
    unique_by=lambda item: (item.ip_address, item.port),
    max_size=50,
)


@st.composite
def balancers(draw: st.DrawFn) -> LoadBalancer:
    number = draw(st.integers(0, 3))
    mapping = balancer().port_mappings[0]
    outside = draw(st.booleans())
    flags = PortMappingFlags.VIP_EXTERNAL_IP if outside else 0
    return balancer(
        *draw(_backends),
        id=f"LB{number}",
        frontend_vips=(f"10.96.0.{number}",),
        port_mappings=(type(mapping)(protocol=6, internal_port=1, external_port=80, flags=flags),),
        internal_traffic_policy_local=draw(st.booleans()),
        external_traffic_policy_local=draw(st.booleans()),
    )


_histories = st.lists(balancers() | st.integers(0, 3), min_size=1, max_size=8)


def names(backends: tuple[LoadBalancerBackend, ...], *, local: bool) -> set[str]:
    """Who should get new connections."""
    found = set()
    for item in backends:
        wanted = item.flags & LOCAL if local else not item.flags & LOCAL_ONLY
        if wanted and not item.flags & DRAINING:
            found.add(f"{item.ip_address}:{item.port}")
    return found


def check(node: Balancing, present: dict[str, LoadBalancer]) -> None:
    services = node.services()
    assert len({service.service for service in services.values()}) == len(present)
    used = set()
    for value in present.values():
        (vip,) = value.frontend_vips
        scopes = {SCOPE_ANY: value.internal_traffic_policy_local}
        if value.port_mappings[0].flags:
            scopes[SCOPE_OUTSIDE] = value.external_traffic_policy_local
        for scope, local in scopes.items():
            service = services.pop((vip, 80, scope))
            assert own(node, service.service, node.members(service)) == names(value.backends, local=local)
            used |= {(service.set, chunk) for chunk in range(service.chunks)}
    assert not services
    assert {(key.set, key.chunk) for key in node.table("sw_backend_sets")} == used
    assert len(node.rows["sw_backends"]) == sum(len(value.backends) for value in present.values())


def own(node: Balancing, service: int, members: dict[int, int]) -> set[str]:
    """The members' names; all of them must be the service's own, which keeps them apart from other services'."""
    rows = {key.value: row for key, row in node.table("sw_backends").items()}
    assert {rows[number].service for number in members} <= {service}
    return {f"10.244.2.{rows[number].address[3]}:{rows[number].port}" for number in members}


def ids(node: Balancing, value: LoadBalancer) -> dict[tuple[str, int], int]:
    (port,) = node.held[value.id].ports
    return {
        (f"10.244.2.{row[3]}", int.from_bytes(row[16:18])): int.from_bytes(key, "little")
        for key in port.backends
        for row in (node.rows["sw_backends"][key],)
    }


@given(_histories)
def test_tables_are_what_is_wanted(history: list[LoadBalancer | int]) -> None:
    node = Balancing(NETWORK)
    present: dict[str, LoadBalancer] = {}
    given_out: set[int] = set()
    for step in history:
        before = {value.id: ids(node, value) for value in present.values()}
        if isinstance(step, int):
            node.remove(f"LB{step}")
            present.pop(f"LB{step}", None)
        else:
            node.put(step)
            present[step.id] = step
        check(node, present)
        for value in present.values():
            now, then = ids(node, value), before.get(value.id, {})
            assert {target: now[target] for target in now.keys() & then.keys()} == {
                target: then[target] for target in now.keys() & then.keys()
            }
            new = {number for target, number in now.items() if target not in then}
            assert not new & given_out
            given_out |= new


@given(_histories)
def test_a_restart_changes_nothing(history: list[LoadBalancer | int]) -> None:
    node = Balancing(NETWORK)
    present: dict[str, LoadBalancer] = {}
    for step in history:
        if not isinstance(step, int):
            node.put(step)
            present[step.id] = step
    by_service = backends_by_service(node.rows["sw_backends"])
    for value in present.values():
        env = node.environment(value)
        compiled = compile_load_balancer(value, env, adopt(value, env, by_service))
        for table, rows in zip(node.rows, compiled.rows, strict=True):
            assert rows.items() <= node.rows[table].items()


@given(
    balancers().filter(lambda value: bool(value.backends)),
    st.lists(st.integers(0, 2**32 - 1), max_size=40),
    st.data(),
)
def test_connections_go_to_members_and_only_those_of_one_that_goes_move(
    value: LoadBalancer, connections: list[int], data: st.DataObject
) -> None:
    node = Balancing(NETWORK)
    node.put(value)
    before = [chosen(node, connection) for connection in connections]
    local = value.internal_traffic_policy_local
    assert set(before) <= (names(value.backends, local=local) or {""})
    going = data.draw(st.sampled_from(value.backends))
    name = f"{going.ip_address}:{going.port}"
    rest = tuple(item for item in value.backends if item is not going)
    node.put(replace(value, backends=rest))
    after = [chosen(node, connection) for connection in connections]
    assert set(after) <= (names(rest, local=local) or {""})
    assert [item for item in before if item != name] == [
        item for item, then in zip(after, before, strict=True) if then != name
    ]


def chosen(node: Balancing, connection: int) -> str:
    """The backend of a connection with this hash, as the simulator chooses; "" = refused."""
    (service,) = {service for (_, _, scope), service in node.services().items() if scope == SCOPE_ANY}
    number = heaviest(State(node.tables(), 0), service, connection)
    return {number: name for name, number in node.backends().items()}.get(number, "")
