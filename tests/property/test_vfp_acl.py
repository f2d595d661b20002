"""The expanded ACL list judges every packet as the policies themselves do."""

from __future__ import annotations

import ipaddress
from typing import NamedTuple

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from samewire.hcn.policies import ACL, AclAction, AclDirection
from samewire.vfp.address import Prefix, parse_address
from samewire.vfp.compile.acl import expand_rules
from samewire.vfp.constants import PROTOCOL_ANY
from samewire.vfp.constants import AclAction as Verdict
from samewire.vfp.tables import AclRule

# How long an example takes on a loaded machine is no result.
SETTINGS = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


class Packet(NamedTuple):
    """What an ACL looks at, from the endpoint's side."""

    protocol: int
    local: str
    remote: str
    local_port: int
    remote_port: int


_HOSTS4 = [f"10.0.0.{i}" for i in range(4)]
_HOSTS6 = [f"fd00::{i}" for i in range(4)]
_PROTOCOLS = [1, 6, 17, 58]
_PORTS = st.integers(0, 9)


def _csv(items: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(items, max_size=3).map(",".join)


_ADDRESSES = _csv(
    st.sampled_from([*_HOSTS4, *_HOSTS6, "10.0.0.0/30", "10.0.0.2/31", "0.0.0.0/0", "fd00::/127", "::/0"])
)
_RANGES = _csv(st.one_of(_PORTS.map(str), st.tuples(_PORTS, _PORTS).map(lambda p: f"{min(p)}-{max(p)}")))
_POLICIES = st.builds(
    ACL,
    protocols=_csv(st.sampled_from([*map(str, _PROTOCOLS), "256"])),
    action=st.sampled_from(AclAction),
    direction=st.just(AclDirection.IN),
    local_addresses=_ADDRESSES,
    remote_addresses=_ADDRESSES,
    local_ports=_RANGES,
    remote_ports=_RANGES,
    priority=st.integers(0, 3),
)
_PACKETS = st.sampled_from([_HOSTS4, _HOSTS6]).flatmap(
    lambda hosts: st.builds(
        Packet,
        protocol=st.sampled_from(_PROTOCOLS),
        local=st.sampled_from(hosts),
        remote=st.sampled_from(hosts),
        local_port=_PORTS,
        remote_port=_PORTS,
    )
)


def _listed(text: str) -> list[str]:
    return [item for item in text.split(",") if item]


def _policy_matches(policy: ACL, packet: Packet) -> bool:
    protocols = _listed(policy.protocols)
    if protocols and "256" not in protocols and str(packet.protocol) not in protocols:
        return False
    for text, address in ((policy.local_addresses, packet.local), (policy.remote_addresses, packet.remote)):
        prefixes = [ipaddress.ip_network(item, strict=False) for item in _listed(text)]
        if prefixes and not any(ipaddress.ip_address(address) in prefix for prefix in prefixes):
            return False
    for text, port in ((policy.local_ports, packet.local_port), (policy.remote_ports, packet.remote_port)):
        ranges = [[int(end) for end in item.split("-")] for item in _listed(text)]
        if ranges and not any(ends[0] <= port <= ends[-1] for ends in ranges):
            return False
    return True


def naive(policies: list[ACL], packet: Packet) -> tuple[bool, int]:
    """Whether the packet passes, and the number of the policy that says so (0 = none does)."""
    if not policies:
        return True, 0
    for priority in sorted({policy.priority for policy in policies}):
        matching = [
            (policy.action is not AclAction.BLOCK, number)
            for number, policy in enumerate(policies, 1)
            if policy.priority == priority and _policy_matches(policy, packet)
        ]
        if matching:
            return min(matching)
    return False, 0


def switch(entries: list[AclRule], packet: Packet) -> tuple[bool, int]:
    """What bpf/acl.h does with a set."""
    if not entries:
        return True, 0
    local, remote = parse_address(packet.local), parse_address(packet.remote)
    for entry in entries:
        if entry.protocol not in (PROTOCOL_ANY, packet.protocol):
            continue
        if entry.family and (
            entry.family != local.family
            or local not in Prefix(entry.family, entry.local, entry.local_bits)
            or remote not in Prefix(entry.family, entry.remote, entry.remote_bits)
        ):
            continue
        if (
            entry.local_port_low <= packet.local_port <= entry.local_port_high
            and entry.remote_port_low <= packet.remote_port <= entry.remote_port_high
        ):
            return entry.action == Verdict.ALLOW and entry.rule > 0, entry.rule
    return False, 0


@SETTINGS
@given(policies=st.lists(_POLICIES, max_size=5), packets=st.lists(_PACKETS, min_size=1, max_size=8))
def test_expanded_list_is_the_naive_evaluation(policies: list[ACL], packets: list[Packet]) -> None:
    entries = expand_rules(enumerate(policies))
    assert bool(entries) == bool(policies)
    for packet in packets:
        assert switch(entries, packet) == naive(policies, packet), packet


@SETTINGS
@given(policies=st.lists(_POLICIES, max_size=5))
def test_entries_are_in_order_of_priority(policies: list[ACL]) -> None:
    priorities = [entry.priority for entry in expand_rules(enumerate(policies)) if entry.rule]
    assert priorities == sorted(priorities)
