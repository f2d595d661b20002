"""The NAT tree answers every destination as the policies read one after the other do."""

from __future__ import annotations

import ipaddress

from hypothesis import example, given
from hypothesis import strategies as st

from samewire.hcn.policies import NatFlags, OutBoundNAT, nat_families
from samewire.vfp.address import ZERO, Address, parse_address
from samewire.vfp.compile.nat import NO_NAT, NatTree, nat_tree
from samewire.vfp.constants import NatAction, NatFlag
from samewire.vfp.tables import Nat

# A small space, so that prefixes nest and points fall into them.
_POINTS4 = st.integers(0, 255).map(lambda i: f"10.0.{i >> 4}.{(i & 15) << 4}")
_POINTS6 = st.integers(0, 255).map(lambda i: f"fd00::{i >> 4:x}:{(i & 15) << 4:x}")
_PREFIXES = st.one_of(
    st.tuples(_POINTS4, st.integers(18, 32)).map(lambda p: f"{p[0]}/{p[1]}"),
    st.tuples(_POINTS6, st.sampled_from([0, 64, 96, 108, 110, 112, 122, 124, 128])).map(
        lambda p: f"{p[0]}/{p[1]}"
    ),
    st.sampled_from(["0.0.0.0/0", "::/0", "10.0.0.0/8"]),
)
_POLICIES = st.builds(
    OutBoundNAT,
    virtual_ip=st.sampled_from(["", "", "192.0.2.1", "2001:db8::1"]),
    exceptions=st.lists(_PREFIXES, max_size=5).map(tuple),
    destinations=st.one_of(st.just(()), st.lists(_PREFIXES, max_size=4).map(tuple)),
    flags=st.sampled_from([0, 0, int(NatFlags.IPV6)]),
    max_port_pool_usage=st.sampled_from([0, 0, 5]),
)
_NODES = st.sampled_from(
    [
        (parse_address("192.168.1.10").packed, parse_address("fd00:1::10").packed),
        (parse_address("192.168.1.10").packed, ZERO),
        (ZERO, ZERO),
    ]
)


def naive(policies: list[OutBoundNAT], node: tuple[bytes, bytes], text: str) -> Nat:
    """The answer by definition."""
    point = ipaddress.ip_address(text)
    for number, policy in enumerate(policies, 1):
        source = node[point.version == 6]
        if policy.virtual_ip:
            virtual = parse_address(policy.virtual_ip)
            source = virtual.packed if virtual.family == point.version else ZERO
        if point.version not in nat_families(policy) or source == ZERO:
            continue
        destinations = [ipaddress.ip_network(prefix, strict=False) for prefix in policy.destinations]
        exceptions = [ipaddress.ip_network(prefix, strict=False) for prefix in policy.exceptions]
        if destinations and not any(point in prefix for prefix in destinations):
            continue
        if not any(point in prefix for prefix in exceptions):
            flags = NatFlag.EXPLICIT if destinations else 0
            return Nat(NatAction.SNAT, flags, policy.max_port_pool_usage, number, source)
    return NO_NAT


def longest_match(tree: NatTree, point: Address) -> Nat:
    """What the kernel's LPM trie does."""
    found = [(prefix.bits, nat) for prefix, nat in tree.answers if point in prefix]
    return max(found, key=lambda item: item[0])[1] if found else NO_NAT


@given(
    policies=st.lists(_POLICIES, max_size=4), node=_NODES, points=st.lists(_POINTS4 | _POINTS6, min_size=1)
)
@example(
    policies=[OutBoundNAT(exceptions=("10.0.0.0/24",)), OutBoundNAT(destinations=("10.0.0.16/32",))],
    node=(parse_address("192.168.1.10").packed, ZERO),
    points=["10.0.0.16", "10.0.0.32", "10.0.1.0", "fd00::1"],
)
def test_tree_is_the_naive_evaluation(
    policies: list[OutBoundNAT], node: tuple[bytes, bytes], points: list[str]
) -> None:
    tree = nat_tree(tuple(enumerate(policies, 1)), node)
    for text in points:
        assert longest_match(tree, parse_address(text)) == naive(policies, node, text), text


@given(policies=st.lists(_POLICIES, max_size=4), node=_NODES)
def test_tree_is_minimal_and_canonical(policies: list[OutBoundNAT], node: tuple[bytes, bytes]) -> None:
    tree = nat_tree(tuple(enumerate(policies, 1)), node)
    answers = dict(tree.answers)
    assert len(answers) == len(tree.answers)
    for prefix, answer in answers.items():
        assert prefix == prefix.network
        above = [other for other in answers if other != prefix and prefix in other]
        covering = answers[max(above, key=lambda other: other.bits)] if above else NO_NAT
        assert answer != covering, f"{prefix} repeats what covers it"
    assert tree.explicit == any(answer.flags for answer in answers.values())
