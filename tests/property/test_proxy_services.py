"""Random services and slices: what is built step by step is what is built at once, and the rules hold."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samewire.hcn.loadbalancers import BackendFlags, LoadBalancer, LoadBalancerBackend, NoEndpointsAction
from samewire.hcn.normalise_lb import check_load_balancer
from samewire.kube.model import (
    Endpoint,
    EndpointConditions,
    EndpointHints,
    EndpointPort,
    EndpointSlice,
    Hint,
    Protocol,
    Service,
    ServicePort,
    SliceLabels,
    SliceMetadata,
)
from samewire.proxy.compile import Settings, compile_service
from samewire.proxy.controller import ServiceProxy
from samewire.proxy.frontends import VipKind, frontends, rules
from samewire.proxy.members import collect
from samewire.proxy.topology import Member, choose
from tests.support.kube_services import HERE, PLACE, THERE, service
from tests.support.proxy import FakeSource, FakeWriter
from tests.support.waiting import until

NAMES = ("a", "b", "c")
DRAINING = int(BackendFlags.DRAINING)
LOCAL_ONLY = int(BackendFlags.LOCAL_POLICY_ONLY)
SETTINGS = Settings(PLACE)
PORTS: Final[tuple[tuple[str, Protocol, int], ...]] = (
    ("http", "TCP", 80),
    ("dns", "UDP", 53),
    ("sip", "SCTP", 5060),
)

flags = st.sampled_from([None, True, False])
hints = st.none() | st.builds(
    EndpointHints,
    st.lists(st.sampled_from(["zone-1", "zone-2"]).map(Hint), max_size=2, unique_by=lambda h: h.name).map(
        tuple
    ),
    st.lists(st.sampled_from([HERE, THERE]).map(Hint), max_size=1).map(tuple),
)


def endpoints(six: bool) -> st.SearchStrategy[Endpoint]:
    address = st.integers(1, 6).map(lambda n: f"fd44::{n}" if six else f"10.244.0.{n}")
    return st.builds(
        Endpoint,
        address.map(lambda text: (text,)),
        st.builds(EndpointConditions, flags, flags, flags),
        st.sampled_from([HERE, THERE, None]),
        st.none(),
        hints,
    )


@st.composite
def slices(draw: st.DrawFn, of: str) -> EndpointSlice:
    six = draw(st.booleans())
    ports = draw(st.lists(st.sampled_from(PORTS), min_size=1, max_size=2, unique=True))
    return EndpointSlice(
        SliceMetadata(
            name=f"{draw(st.sampled_from(NAMES))}-{draw(st.integers(0, 1))}",
            namespace="shop",
            labels=SliceLabels(service_name=of),
        ),
        "IPv6" if six else "IPv4",
        tuple(draw(st.lists(endpoints(six), min_size=1, max_size=4))),
        tuple(
            EndpointPort(name, protocol, draw(st.sampled_from([8080, 9090]))) for name, protocol, _ in ports
        ),
    )


@st.composite
def services(draw: st.DrawFn, name: str) -> Service:
    number = NAMES.index(name) + 1
    ips = draw(
        st.sampled_from(
            [(f"10.96.0.{number}",), (f"fd96::{number}",), (f"10.96.0.{number}", f"fd96::{number}")]
        )
    )
    chosen = draw(st.lists(st.sampled_from(PORTS), min_size=1, max_size=2, unique=True))
    kind = draw(st.sampled_from(["ClusterIP", "NodePort", "LoadBalancer"]))
    base = 30000 + 10 * number
    ports = tuple(
        ServicePort(port, port_name, protocol, base + index if kind != "ClusterIP" else 0)
        for index, (port_name, protocol, port) in enumerate(chosen)
    )
    return service(
        name,
        ips=ips,
        ports=ports,
        type=kind,
        ingress=(f"203.0.113.{number}", f"2001:db8::{number}") if kind == "LoadBalancer" else (),
        internal_traffic_policy=draw(st.sampled_from(["Cluster", "Local"])),
        external_traffic_policy=draw(st.sampled_from(["Cluster", "Local"])) if kind != "ClusterIP" else "",
        affinity_s=draw(st.none() | st.integers(1, 86400)),
    )


one_service = st.sampled_from(NAMES).flatmap(services)
one_slice = st.sampled_from(NAMES).flatmap(slices)
steps = st.tuples(
    st.tuples(*(services(name).map(lambda value: ("put", value)) for name in NAMES)),
    st.lists(
        st.tuples(st.just("put"), one_slice)
        | st.tuples(st.just("put"), one_service)
        | st.tuples(st.just(EndpointSlice), st.integers(0, 3))
        | st.tuples(st.just(Service), st.integers(0, 8)),
        max_size=12,
    ),
).map(lambda parts: [*parts[0], *parts[1]])


def without_draining(value: LoadBalancer) -> Any:
    backends = tuple(b for b in value.backends if not b.flags & DRAINING)
    return (value.id, value.frontend_vips, value.flags, value.no_endpoints_action, frozenset(backends))


async def settle(proxy: ServiceProxy) -> None:
    await asyncio.sleep(0)
    await until(lambda: proxy.idle)
    for _ in range(5):
        await asyncio.sleep(0)


def apply(source: FakeSource, step: tuple[Any, Any]) -> None:
    """Put an object, or remove one of a kind: the one at that place, if there are so many."""
    what, value = step
    if what == "put":
        source.put(value)
    elif value < len(source.objects(what)):
        source.remove(list(source.objects(what).values())[value])


async def run(
    script: list[Any],
    refuse: Callable[[LoadBalancer], str] = lambda value: "",
    *,
    one_by_one: bool = True,
    rebuild: bool = False,
) -> FakeWriter:
    """What is written after a script; ``rebuild``: by a proxy that only ever sees how it ends."""
    source, writer = FakeSource(), FakeWriter()
    if rebuild:
        for step in script:
            apply(source, step)
        script = []
    writer.refuse = refuse
    proxy = ServiceProxy(source, writer, HERE)
    proxy.start()
    try:
        await source.start()
        for step in script:
            apply(source, step)
            if one_by_one:
                await settle(proxy)
        await settle(proxy)
    finally:
        await proxy.close()
    return writer


def shown(writer: FakeWriter) -> dict[str, Any]:
    return {lb_id: without_draining(value) for lb_id, value in writer.objects.items()}


@settings(max_examples=80)
@given(steps)
def test_step_by_step_is_all_at_once_and_a_full_rebuild(script: list[Any]) -> None:
    stepwise = asyncio.run(run(script))
    at_once = asyncio.run(run(script, one_by_one=False))
    rebuilt = asyncio.run(run(script, rebuild=True))
    assert shown(stepwise) == shown(rebuilt)
    assert shown(at_once) == shown(rebuilt)


@settings(max_examples=40)
@given(steps, st.sampled_from(NAMES))
def test_one_bad_service_blocks_no_other(script: list[Any], bad: str) -> None:
    def refuse(value: LoadBalancer) -> str:
        return "no" if value.service_name.startswith(f"shop/{bad}") else ""

    def others(writer: FakeWriter) -> dict[str, Any]:
        return {key: value for key, value in shown(writer).items() if not refuse(writer.objects[key])}

    good = asyncio.run(run(script))
    hampered = asyncio.run(run(script, refuse))
    assert others(hampered) == others(good)
    assert len(others(hampered)) == len(hampered.objects)


@settings(max_examples=100)
@given(
    st.sampled_from(NAMES).flatmap(lambda name: st.tuples(services(name), st.lists(slices(name), max_size=3)))
)
def test_load_balancers_are_sound(made: tuple[Service, list[EndpointSlice]]) -> None:
    value, pieces = made
    found = compile_service(value.key, value, pieces, SETTINGS, lambda lb_id: None).load_balancers
    assert len({lb.id for lb in found}) == len(found) == len(frontends(value))
    members = collect(pieces, HERE)
    for lb in found:
        assert check_load_balancer(lb) == lb  # canonical already: a restart compares equal
        assert all((":" in b.ip_address) == lb.is_ipv6 for b in lb.backends)
        assert all((":" in vip) == lb.is_ipv6 for vip in lb.frontend_vips)
        assert len({(b.ip_address, b.port) for b in lb.backends}) == len(lb.backends)
        if lb.no_endpoints_action is NoEndpointsAction.REJECT:
            assert not lb.backends
        assert not any(b.flags & DRAINING for b in lb.backends)
        for backend in lb.backends:
            assert any(
                (member.address, member.port) == (backend.ip_address, backend.port)
                for of_port in members.values()
                for member in of_port
            )


@settings(max_examples=100)
@given(
    st.sampled_from(NAMES).flatmap(
        lambda name: st.tuples(
            services(name), st.lists(slices(name), max_size=3), st.lists(slices(name), max_size=3)
        )
    )
)
def test_draining_backends_were_there_and_still_are(
    made: tuple[Service, list[EndpointSlice], list[EndpointSlice]],
) -> None:
    value, pieces, later = made
    before = {
        lb.id: lb for lb in compile_service(value.key, value, pieces, SETTINGS, lambda _: None).load_balancers
    }
    known = {(m.address, m.port) for of_port in collect(later, HERE).values() for m in of_port}
    for lb in compile_service(value.key, value, later, SETTINGS, before.get).load_balancers:
        old = {(b.ip_address, b.port) for b in before[lb.id].backends}
        fresh: dict[tuple[str, int], LoadBalancerBackend] = {}
        for backend in lb.backends:
            at = (backend.ip_address, backend.port)
            assert at not in fresh
            fresh[at] = backend
            if backend.flags & DRAINING:
                assert at in old & known


def kube_proxy(
    members: list[Member], *, uses_cluster: bool, uses_local: bool
) -> tuple[set[str], set[str], bool]:
    """The rules again, as a list of sentences: kube-proxy's documentation read literally."""
    ready = [m for m in members if m.ready]
    ending = [m for m in members if not m.ready and m.serving and m.terminating]
    cluster: set[str] = set()
    if uses_cluster:
        pool = ready
        if ready and all(m.for_nodes for m in ready) and any(PLACE.node in m.for_nodes for m in ready):
            pool = [m for m in ready if PLACE.node in m.for_nodes]
        elif ready and all(m.for_zones for m in ready) and any(PLACE.zone in m.for_zones for m in ready):
            pool = [m for m in ready if PLACE.zone in m.for_zones]
        cluster = {m.address for m in (pool or ending)}
    local: set[str] = set()
    if uses_local:
        local = {m.address for m in ready if m.local} or {m.address for m in ending if m.local}
    any_usable = bool(cluster) or (uses_local and bool(ready or ending))
    return cluster, local, any_usable


@settings(max_examples=200)
@given(st.lists(endpoints(False), max_size=6), st.booleans(), st.booleans())
def test_the_rules_read_literally(found: list[Endpoint], uses_cluster: bool, uses_local: bool) -> None:
    piece = EndpointSlice(
        SliceMetadata(name="a-1", namespace="shop", labels=SliceLabels(service_name="a")),
        "IPv4",
        tuple(found),
        (EndpointPort("http", "TCP", 8080),),
    )
    members = list(collect([piece], HERE).get(("http", "TCP", 4), ()))
    choice = choose(members, PLACE, uses_cluster=uses_cluster, uses_local=uses_local)
    cluster, local, any_usable = kube_proxy(members, uses_cluster=uses_cluster, uses_local=uses_local)
    assert {m.address for m in choice.cluster or ()} == cluster
    assert {m.address for m in choice.local or ()} == local
    assert choice.any_usable is any_usable


@pytest.mark.parametrize("kind", list(VipKind))
def test_kinds_are_part_of_ids(kind: VipKind) -> None:
    assert kind.value in (
        "cluster",
        "node-port",
        "external",
        "ingress",
    )  # stored in databases: never change them


def test_rules_of_a_plain_service() -> None:
    assert rules(service()) == (False, False, 0, ({}, ()), False, 0)
