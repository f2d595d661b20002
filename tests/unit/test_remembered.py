"""Results that are remembered: by number, and by how long the texts are that they come from."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from itertools import combinations, islice

import pytest

from samewire.hcn import values
from samewire.hcn.errors import HcnError
from samewire.hcn.normalise_policies import Scope, check_policies
from samewire.hcn.policies import ACL, AclAction, AclDirection, SetPolicy, SetType
from samewire.hcn.query import parse_query
from samewire.remembered import FEW, LONG, remembered
from samewire.vfp.compile.acl_rules import direction_rules

PREFIXES = [f"10.244.{number}.0/24" for number in range(100)]
LEAST_BYTES = 1 << 10  # of one list


def versions() -> Iterator[str]:
    """Long lists of the same addresses, each another one."""
    for left_out in combinations(PREFIXES, 2):
        yield ",".join(prefix for prefix in PREFIXES if prefix not in left_out)


def use_acl(addresses: str) -> None:
    policy = ACL(action=AclAction.ALLOW, direction=AclDirection.IN, remote_addresses=addresses)
    direction_rules(AclDirection.IN, (), check_policies([policy], Scope.ENDPOINT, "$"))


def use_set(addresses: str) -> None:
    policy = SetPolicy(set_id="pods", name="pods", policy_type=SetType.IPSET, values=addresses)
    check_policies([policy], Scope.NETWORK, "$")


def test_few_long_ones_are_kept_and_many_short_ones() -> None:
    calls = []

    @remembered(2 * FEW, len)
    def noted(text: str) -> int:
        calls.append(text)
        return len(text)

    short = [str(number) for number in range(2 * FEW)]
    long = [text.ljust(LONG) for text in short[: FEW + 1]]
    for text in short + long:
        assert noted(text) == len(text)
    assert calls == short + long
    for text in short + long[1:]:
        noted(text)
    assert calls == short + long, "all of these were remembered"
    noted(long[0])
    assert calls[-1] == long[0]


REFUSERS: dict[str, Callable[[str], object]] = {
    "ip": lambda text: values.ip(text, "$"),
    "mac": lambda text: values.mac(text, "$"),
    "prefix": lambda text: values.prefix(text, "$"),
    "destination": lambda text: values.destination(text, "$"),
    "item": lambda text: values.address_or_prefix(text, "$"),
}


@pytest.mark.parametrize("refuse", REFUSERS.values(), ids=REFUSERS)
def test_what_is_refused_is_not_kept(refuse: Callable[[str], object]) -> None:
    tracemalloc.start()
    try:
        for number in range(8):
            with pytest.raises(HcnError):
                refuse(f"{number}" * (1 << 20))
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 1 << 20


def test_of_queries_only_short_ones_are_kept() -> None:
    tracemalloc.start()
    try:
        for number in range(8):
            name = f"{number}" * (1 << 20)
            assert parse_query(f'{{"Name": "{name}"}}').filter == {"name": name}
        del name
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 1 << 20
    assert parse_query('{"Name": "web"}') is parse_query('{"Name": "web"}')


@pytest.mark.parametrize("use", [use_acl, use_set])
def test_lists_that_follow_the_pods_of_a_cluster_do_not_pile_up(use: Callable[[str], None]) -> None:
    lists = versions()
    tracemalloc.start()
    try:
        for addresses in islice(lists, FEW + 100):
            use(addresses)
        before, _ = tracemalloc.get_traced_memory()
        for addresses in islice(lists, FEW):
            use(addresses)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < FEW * LEAST_BYTES
