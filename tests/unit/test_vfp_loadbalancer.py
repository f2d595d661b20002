"""Load balancers compiled: which scopes see what, which backends, and which numbers stay."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from msgspec.structs import replace

from samewire.errors import Invalid
from samewire.hcn.loadbalancers import (
    BackendFlags,
    DistributionType,
    LoadBalancerFlags,
    LoadBalancerPortMapping,
    NoEndpointsAction,
    PortMappingFlags,
    direct_mac,
)
from samewire.hcn.policies import SDNRoute
from samewire.hcn.schema import Endpoint, EndpointFlags, IpConfiguration, Network, NetworkType
from samewire.vfp.address import ZERO, parse_address, parse_interface
from samewire.vfp.compile.balanced import FREE, ID, backends_by_service, highest_number
from samewire.vfp.compile.loadbalancer import adopt, compile_load_balancer
from samewire.vfp.compile.places import Places
from samewire.vfp.constants import (
    SCOPE_ANY,
    SCOPE_HOST,
    SCOPE_OUTSIDE,
    SCOPE_UPLINK,
    BackendFlag,
    ServiceFlag,
)
from samewire.vfp.numbers import MemoryNumbers
from samewire.vfp.tables import DirectKey, Portmap, SourceRangeKey
from tests.support import worlds
from tests.support.balancers import FACTS, VIP, Balancing, backend, balancer, pod_network, port_of

NETWORK = pod_network()
LOCAL, DRAINING, LOCAL_ONLY = BackendFlags.LOCAL, BackendFlags.DRAINING, BackendFlags.LOCAL_POLICY_ONLY
FAR = ("10.244.2.5", "10.244.2.6", "10.244.2.7")


def pod(address: str, network: Network = NETWORK, **fields: Any) -> Endpoint:
    return Endpoint(
        **{
            "id": f"E-{address}",
            "network_id": network.id,
            "mac_address": "0E-2A-0A-F4-01-05",
            "ip_configurations": (IpConfiguration(ip_address=address, prefix_length=24),),
            **fields,
        }
    )


def mapping(**fields: Any) -> LoadBalancerPortMapping:
    return LoadBalancerPortMapping(**{"protocol": 6, "internal_port": 8080, "external_port": 80, **fields})


def packed(text: str) -> bytes:
    return parse_address(text, "$").packed


def test_a_cluster_ip_for_all_networks() -> None:
    node = Balancing(NETWORK)
    node.put(balancer(*map(backend, FAR)))
    ((key, service),) = node.services().items()
    assert key == (VIP, 80, SCOPE_ANY)
    assert node.names(service) == {f"{address}:8080" for address in FAR}
    assert (service.chunks, service.flags, service.affinity_ticks) == (1, ServiceFlag.REJECT, 0)
    rows = node.table("sw_backends").values()
    assert {(row.scope, row.service, row.flags, row.direct) for row in rows} == {(1, service.service, 0, 0)}


@pytest.mark.parametrize(
    ("fields", "flags", "scopes"),
    [
        ({"network_id": NETWORK.id}, 0, {1, SCOPE_HOST}),
        ({"network_id": NETWORK.id}, PortMappingFlags.VIP_EXTERNAL_IP, {1, SCOPE_HOST, SCOPE_OUTSIDE}),
        ({}, PortMappingFlags.USE_MUX, {SCOPE_ANY, SCOPE_OUTSIDE}),
        ({"frontend_vips": ()}, 0, {SCOPE_ANY, SCOPE_OUTSIDE}),
        ({"frontend_vips": ()}, PortMappingFlags.INTERNAL_LOAD_BALANCER, {SCOPE_ANY}),
    ],
)
def test_who_sees_it(fields: dict[str, Any], flags: int, scopes: set[int]) -> None:
    node = Balancing(NETWORK)
    node.put(balancer(port_mappings=(mapping(flags=flags),), **fields))
    assert {scope for _, _, scope in node.services()} == scopes


def test_a_network_without_the_node() -> None:
    tenant = replace(NETWORK, policies=tuple(p for p in NETWORK.policies if type(p).__name__ != "HostRoute"))
    node = Balancing(tenant)
    node.put(balancer(network_id=tenant.id))
    assert {scope for _, _, scope in node.services()} == {1}
    node.put(
        balancer(network_id=tenant.id, port_mappings=(mapping(flags=PortMappingFlags.LOCAL_ROUTED_VIP),))
    )
    assert {scope for _, _, scope in node.services()} == {1, SCOPE_HOST}


def test_a_bridged_network_is_in_the_scope_of_the_underlay() -> None:
    network = worlds.bridged(NetworkType.L2BRIDGE)
    node = Balancing(network)
    node.put(balancer(network_id=network.id))
    assert {scope for _, _, scope in node.services()} == {SCOPE_UPLINK, SCOPE_HOST}


def test_where_backends_are_and_who_speaks_for_the_node() -> None:
    node = Balancing(NETWORK, endpoints=(pod("10.244.1.5"),))
    node.put(balancer(backend("192.168.1.11", 6443), backend("10.244.1.5"), backend("203.0.113.9")))
    scopes = {name: node.table("sw_backends")[key].scope for key, name in _ids(node).items()}
    assert scopes == {
        "192.168.1.11:6443": SCOPE_UPLINK,
        "10.244.1.5:8080": 1,
        "203.0.113.9:8080": SCOPE_UPLINK,
    }
    assert {service.source for service in node.services().values()} == {packed("10.244.1.1")}
    node.put(balancer(backend("192.168.1.11", 6443)))
    assert {service.source for service in node.services().values()} == {ZERO}
    node.put(balancer(backend("10.244.1.5"), source_vip="10.244.1.9"))
    assert {service.source for service in node.services().values()} == {packed("10.244.1.9")}


def _ids(node: Balancing) -> dict[Any, str]:
    names = {number: name for name, number in node.backends().items()}
    return {key: names[key.value] for key in node.table("sw_backends")}


def test_endpoints_as_members() -> None:
    far = pod("10.244.2.9", flags=EndpointFlags.REMOTE_ENDPOINT)
    node = Balancing(NETWORK, endpoints=(pod("10.244.1.5"), far))
    node.put(
        balancer(
            network_id=NETWORK.id,
            endpoint_ids=("E-10.244.1.5", "E-10.244.2.9"),
            external_traffic_policy_local=True,
            port_mappings=(mapping(flags=PortMappingFlags.VIP_EXTERNAL_IP),),
        )
    )
    services = node.services()
    assert node.names(services[VIP, 80, 1]) == {"10.244.1.5:8080", "10.244.2.9:8080"}
    assert node.names(services[VIP, 80, SCOPE_OUTSIDE]) == {"10.244.1.5:8080"}


def test_members_that_are_called_local_or_drain() -> None:
    ids = ("E-10.244.1.5", "E-10.244.1.6")
    node = Balancing(NETWORK, endpoints=(pod("10.244.1.5"), pod("10.244.1.6")))
    value = balancer(network_id=NETWORK.id, endpoint_ids=ids, local_endpoint_ids=ids[1:])
    node.put(replace(value, internal_traffic_policy_local=True))
    assert {frozenset(node.names(service)) for service in node.services().values()} == {
        frozenset({"10.244.1.6:8080"})
    }
    before = node.backends()
    node.put(replace(value, draining_endpoint_ids=ids[1:]))
    assert {frozenset(node.names(service)) for service in node.services().values()} == {
        frozenset({"10.244.1.5:8080"})
    }
    assert node.backends() == before
    assert {row.flags for row in node.table("sw_backends").values()} == {0, BackendFlag.DRAINING}


def test_traffic_policies() -> None:
    node = Balancing(NETWORK, endpoints=(pod("10.244.1.5"), pod("10.244.1.6"), pod("10.244.1.7")))
    backends = (
        backend("10.244.1.5", flags=LOCAL),
        backend("10.244.2.5"),
        backend("10.244.1.6", flags=LOCAL | LOCAL_ONLY),
        backend("10.244.1.7", flags=LOCAL | DRAINING),
    )
    outside = (mapping(flags=PortMappingFlags.VIP_EXTERNAL_IP),)
    everybody = {"10.244.1.5:8080", "10.244.2.5:8080"}
    local = {"10.244.1.5:8080", "10.244.1.6:8080"}
    for internal, external in ((False, False), (False, True), (True, False), (True, True)):
        node.put(
            balancer(
                *backends,
                port_mappings=outside,
                internal_traffic_policy_local=internal,
                external_traffic_policy_local=external,
            )
        )
        services = node.services()
        assert node.names(services[VIP, 80, SCOPE_ANY]) == (local if internal else everybody)
        assert node.names(services[VIP, 80, SCOPE_OUTSIDE]) == (local if external else everybody)
        assert bool(services[VIP, 80, SCOPE_ANY].flags & ServiceFlag.LOCAL) == internal
        assert bool(services[VIP, 80, SCOPE_OUTSIDE].flags & ServiceFlag.LOCAL) == external
        assert len(node.backends()) == 4
        assert Counter(row.flags for row in node.table("sw_backends").values()) == {
            0: 2,
            BackendFlag.LOCAL_ONLY: 1,
            BackendFlag.DRAINING: 1,
        }
        used = {service.set for service in services.values()}
        assert {key.set for key in node.table("sw_backend_sets")} == used


def test_what_the_flags_say() -> None:
    node = Balancing(NETWORK)
    for fields, flag in (
        ({"no_endpoints_action": NoEndpointsAction.DROP}, 0),
        ({"source_ranges": ("192.0.2.0/24",)}, ServiceFlag.REJECT | ServiceFlag.SOURCE_RANGES),
        ({"flags": LoadBalancerFlags.ENABLE_DIRECT_SERVER_RETURN}, ServiceFlag.REJECT | ServiceFlag.DSR),
        (
            {"port_mappings": (mapping(distribution_type=DistributionType.SOURCE_IP),)},
            ServiceFlag.REJECT | ServiceFlag.BY_CLIENT,
        ),
        (
            {"port_mappings": (mapping(distribution_type=DistributionType.SOURCE_IP_PROTOCOL),)},
            ServiceFlag.REJECT | ServiceFlag.BY_PROTOCOL,
        ),
        (
            {"port_mappings": (mapping(flags=PortMappingFlags.PRESERVE_DIP),)},
            ServiceFlag.REJECT | ServiceFlag.PRESERVE,
        ),
    ):
        node.put(balancer(**fields))
        assert {service.flags for service in node.services().values()} == {flag}


def test_affinity_is_by_client_only() -> None:
    node = Balancing(NETWORK)
    by_client = mapping(distribution_type=DistributionType.SOURCE_IP)
    for mappings, timeout, ticks in (
        ((by_client,), 10800, 10059),
        ((by_client,), 8, 8),  # 7 ticks are 7.5 s
        ((by_client,), 1, 1),
        ((by_client,), 2**32 - 1, 4000000000),
        ((mapping(),), 60, 0),
    ):
        node.put(balancer(port_mappings=mappings, affinity_timeout=timeout))
        assert {service.affinity_ticks for service in node.services().values()} == {ticks}
        assert not any(service.flags & ServiceFlag.BY_CLIENT for service in node.services().values())


def test_source_ranges_of_the_family() -> None:
    node = Balancing(NETWORK)
    node.put(balancer(source_ranges=("192.0.2.0/24", "2001:db8::/32", "198.51.100.7")))
    (service,) = node.services().values()
    assert set(node.table("sw_source_ranges")) == {
        SourceRangeKey(64 + 24, service.service, 4, packed("192.0.2.0")),
        SourceRangeKey(64 + 32, service.service, 4, packed("198.51.100.7")),
    }


def test_survivors_keep_their_ids() -> None:
    node = Balancing(NETWORK)
    node.put(balancer(*map(backend, FAR)))
    ids = node.backends()
    (before,) = node.services().values()
    node.put(balancer(backend("10.244.2.9"), backend(FAR[2]), backend(FAR[0])))
    (after,) = node.services().values()
    assert (after.service, after.set) == (before.service, before.set)
    assert {name: number for name, number in node.backends().items() if name in ids} == {
        name: ids[name] for name in (f"{FAR[0]}:8080", f"{FAR[2]}:8080")
    }
    back = balancer(*map(backend, FAR))
    node.put(back)
    assert node.backends()[f"{FAR[1]}:8080"] not in ids.values()


def test_another_one_behind_an_address_gets_another_id() -> None:
    node = Balancing(NETWORK)
    node.put(balancer(backend(FAR[0]), backend(FAR[1], target_id="one")))
    before = node.backends()
    node.put(balancer(backend(FAR[0], target_id="known now"), backend(FAR[1], target_id="one")))
    assert node.backends() == before, "whoever is there may always have been"
    node.put(balancer(backend(FAR[0], target_id="another"), backend(FAR[1], target_id="one")))
    after = node.backends()
    assert after[f"{FAR[0]}:8080"] > max(before.values())
    assert after[f"{FAR[1]}:8080"] == before[f"{FAR[1]}:8080"]


def test_one_backend_more_touches_one_chunk() -> None:
    node = Balancing(NETWORK)
    many = [backend(f"10.244.2.{i}") for i in range(1, 101)]
    node.put(balancer(*many))
    before = {table: dict(rows) for table, rows in node.rows.items()}
    node.put(balancer(*many[:50], backend("10.244.2.200"), *many[51:]))
    changed = {
        table: {key for key in rows.keys() | before[table].keys() if rows.get(key) != before[table].get(key)}
        for table, rows in node.rows.items()
    }
    assert {table: len(keys) for table, keys in changed.items() if keys} == {
        "sw_backends": 2,
        "sw_backend_sets": 1,
    }


def test_who_is_in_two_places_is_in_one_afterwards() -> None:
    """As after a crash in the middle of a change with a chunk less: who is in that one has another place already."""
    node = Balancing(pod_network())
    value = balancer(*(backend(f"10.244.2.{number}") for number in range(1, 98)))
    node.put(value)
    first, *_, last = sorted(node.rows["sw_backend_sets"])
    sets, place = node.rows["sw_backend_sets"], len(FREE)
    sets[first] = sets[last][:place] + sets[first][place:]
    node.put(value)
    (service,) = node.services().values()
    found = b"".join(sets[key] for key in sorted(sets))
    places = [found[i : i + ID.size] for i in range(0, len(found), place)]
    assert sorted(filter(any, places)) == sorted(node.rows["sw_backends"])
    assert len(node.members(service)) == 97


def test_thousands_of_backends() -> None:
    node = Balancing(NETWORK)
    many = [backend(f"203.{i >> 8}.113.{i & 255}") for i in range(2500)]
    node.put(balancer(*many))
    (service,) = node.services().values()
    assert service.chunks == 157
    seeds = node.members(service)
    assert len(seeds) == len(set(seeds.values())) == 2500
    node.put(balancer(*many[:3]))
    (service,) = node.services().values()
    assert (service.chunks, len(node.members(service))) == (1, 3)


def test_seeds_are_the_same_on_all_nodes() -> None:
    one, two = Balancing(NETWORK), Balancing(NETWORK)
    two.put(balancer(backend("10.244.2.77"), id="B", frontend_vips=("10.96.0.99",)))
    seeds = []
    for node in (one, two):
        node.put(balancer(*map(backend, FAR)))
        names = {number: name for name, number in node.backends().items()}
        members = node.members(node.services()[VIP, 80, SCOPE_ANY])
        seeds.append({names[number]: seed for number, seed in members.items()})
    assert seeds[0] == seeds[1]


def test_a_pod_that_is_not_here_is_no_backend() -> None:
    node = Balancing(NETWORK)
    value = balancer(backend("10.244.1.5"), backend("10.244.2.5"))
    node.put(value)
    assert set(node.backends()) == {"10.244.2.5:8080"}
    node.endpoints["E1"] = pod("10.244.1.5", id="E1")
    node.put(value)
    ids = node.backends()
    assert set(ids) == {"10.244.1.5:8080", "10.244.2.5:8080"}
    # Another pod gets its address: the first one's connections are not for it.
    node.endpoints = {"E2": pod("10.244.1.5", id="E2")}
    node.put(value)
    assert node.backends()["10.244.1.5:8080"] != ids["10.244.1.5:8080"]
    assert node.backends()["10.244.2.5:8080"] == ids["10.244.2.5:8080"]


def test_an_address_of_the_subnet_behind_the_node_is_a_backend_without_an_endpoint() -> None:
    guest = SDNRoute(destination_prefix="10.244.1.5/32", need_encap=True)
    node = Balancing(pod_network(guest))
    node.put(balancer(backend("10.244.1.5"), backend("10.244.1.6")))
    assert set(node.backends()) == {"10.244.1.5:8080"}


def test_what_an_endpoint_gets_by_dsr() -> None:
    endpoint = pod("10.244.1.5")
    node = Balancing(NETWORK, endpoints=(endpoint,))
    node.ports[endpoint.id] = port_of(endpoint, 9)
    mac = port_of(endpoint, 9).mac
    value = balancer(
        backend("10.244.1.5"),
        backend("10.244.2.5", provider_address="192.168.1.11", mac_address="0E-2A-0A-F4-02-05"),
        flags=LoadBalancerFlags.ENABLE_DIRECT_SERVER_RETURN,
    )
    node.put(value)
    own, known = (
        DirectKey(packed(VIP), 80, 6, 4, name) for name in (mac, direct_mac(packed("10.244.1.5")[:4]))
    )
    row = Portmap(9, 1, 8080, packed("10.244.1.5"))
    assert node.table("sw_direct") == {own: row, known: row}, "by its own MAC, and by that of its address"
    assert sorted(row.direct for row in node.table("sw_backends").values()) == [0, 77]
    node.put(replace(value, port_mappings=(mapping(flags=PortMappingFlags.PRESERVE_DIP),)))
    assert set(node.table("sw_direct").values()) == {Portmap(9, 1, 80, packed(VIP))}
    node.ports.clear()
    node.put(value)
    assert node.table("sw_direct") == {}


def test_the_tunnels_port_is_not_taken() -> None:
    node = Balancing(NETWORK)
    tunnel = mapping(protocol=17, external_port=4789)
    node.put(balancer(port_mappings=(tunnel,)))
    with pytest.raises(Invalid, match="tunnels"):
        node.put(balancer(frontend_vips=(), port_mappings=(tunnel,)))


def test_several_ports_and_vips() -> None:
    node = Balancing(NETWORK)
    node.put(
        balancer(
            backend("10.244.2.5", 0),
            frontend_vips=(VIP, "10.96.0.11"),
            port_mappings=(mapping(), mapping(protocol=17, internal_port=53, external_port=53)),
        )
    )
    services = node.services()
    assert set(services) == {(vip, port, SCOPE_ANY) for vip in (VIP, "10.96.0.11") for port in (80, 53)}
    assert len({service.service for service in services.values()}) == 2
    assert set(node.backends()) == {"10.244.2.5:8080", "10.244.2.5:53"}


def test_ipv6() -> None:
    node = Balancing()
    node.put(balancer(backend("fd00:244:2::5"), frontend_vips=("fd00:96::10",)))
    node.put(balancer(backend("fd00:244:2::5"), id="B", frontend_vips=(), flags=2))
    assert {(vip, scope) for vip, _, scope in node.services()} == {
        ("fd00:96::10", SCOPE_ANY),
        ("", SCOPE_ANY),
        ("", SCOPE_OUTSIDE),
    }
    assert {key.family for key in node.table("sw_services")} == {6}


def test_a_restart_finds_all_numbers_again() -> None:
    endpoint = pod("10.244.1.5")
    node = Balancing(NETWORK, endpoints=(endpoint,))
    values = [
        balancer(backend("10.244.1.5", flags=LOCAL), *map(backend, FAR), external_traffic_policy_local=True),
        balancer(
            backend(FAR[0], target_id="one"), id="B", frontend_vips=(), external_traffic_policy_local=True
        ),
        balancer(backend(FAR[0]), id="C", frontend_vips=("10.96.0.12",), internal_traffic_policy_local=True),
        balancer(id="D", frontend_vips=("10.96.0.13",), source_ranges=("192.0.2.0/24",)),
    ]
    values[0] = replace(values[0], port_mappings=(mapping(flags=PortMappingFlags.VIP_EXTERNAL_IP),))
    for value in values:
        node.put(value)
    assert highest_number(node.rows) == node._count.__next__() - 1
    by_service = backends_by_service(node.rows["sw_backends"])
    for value in values:
        env = node.environment(value)
        compiled = compile_load_balancer(value, env, adopt(value, env, by_service))
        for table, rows in zip(node.rows, compiled.rows, strict=True):
            assert rows.items() <= node.rows[table].items()
        assert compiled.held == node.held[value.id]


def test_what_new_facts_about_the_node_mean_for_addresses() -> None:
    networks = (NETWORK, worlds.bridged(NetworkType.L2BRIDGE))
    before = Places(networks, FACTS, MemoryNumbers())
    renumbered = replace(FACTS, addresses=(parse_interface("192.168.1.12/24"), FACTS.addresses[1]))
    assert before.same(Places(networks, renumbered, MemoryNumbers()))
    on_the_bridge = replace(FACTS, addresses=(parse_interface("192.168.9.3/24"),))
    assert not before.same(Places(networks, on_the_bridge, MemoryNumbers()))


@pytest.mark.parametrize(
    ("vips", "port_flags", "lb_flags", "scopes", "flags"),
    [
        ((VIP,), 0, 0, {1, SCOPE_HOST}, 0),  # ClusterIP
        ((VIP,), 0, 1, {1, SCOPE_HOST}, ServiceFlag.DSR),  # ClusterIP with enableDSR
        ((), 2 | 16, 0, {1, SCOPE_HOST, SCOPE_OUTSIDE}, 0),  # NodePort
        ((VIP,), 16, 0, {1, SCOPE_HOST, SCOPE_OUTSIDE}, 0),  # ExternalIP
        (
            (VIP,),
            16,
            1,
            {1, SCOPE_HOST, SCOPE_OUTSIDE},
            ServiceFlag.DSR,
        ),  # ingress, externalTrafficPolicy Local
        (
            (VIP,),
            16 | 4 | 8,
            1,
            {1, SCOPE_HOST, SCOPE_OUTSIDE},
            ServiceFlag.DSR | ServiceFlag.PRESERVE,
        ),  # ingress, preserve-destination
        ((VIP,), 4 | 8, 0, {1, SCOPE_HOST, SCOPE_OUTSIDE}, ServiceFlag.PRESERVE),  # health check
    ],
)
def test_the_load_balancers_of_kube_proxy_on_windows(
    vips: tuple[str, ...], port_flags: int, lb_flags: int, scopes: set[int], flags: int
) -> None:
    far = pod("10.244.2.9", flags=EndpointFlags.REMOTE_ENDPOINT)
    node = Balancing(NETWORK, endpoints=(pod("10.244.1.5"), far))
    node.put(
        balancer(
            network_id=NETWORK.id,
            endpoint_ids=("E-10.244.1.5", "E-10.244.2.9"),
            source_vip="10.244.1.2",
            frontend_vips=vips,
            port_mappings=(mapping(flags=port_flags),),
            flags=lb_flags,
        )
    )
    services = node.services()
    assert {scope for _, _, scope in services} == scopes
    for service in services.values():
        assert service.flags == flags | ServiceFlag.REJECT
        assert service.source == packed("10.244.1.2")
        assert node.names(service) == {"10.244.1.5:8080", "10.244.2.9:8080"}
