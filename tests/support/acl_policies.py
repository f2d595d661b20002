"""Random ACL policies, sets and packets over a small universe, in which most things meet."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from samewire.hcn.policies import (
    ACL,
    AclAction,
    AclDirection,
    NetworkACL,
    Policy,
    SetPolicy,
    SetType,
    TierAcl,
    TierAclRule,
)
from tests.support.acl_oracle import Packet

HOSTS4 = [f"10.0.0.{i}" for i in range(4)]
HOSTS6 = [f"fd00::{i}" for i in range(4)]
PREFIXES = [*HOSTS4, *HOSTS6, "10.0.0.0/30", "10.0.0.2/31", "0.0.0.0/0", "fd00::/127", "::/0", "10.0.0.3/8"]
PROTOCOLS = [1, 6, 17, 58, 132, 47]
FLAT = ["red", "green", "blue"]
NESTED = ["warm", "all"]

_PORT = st.one_of(st.integers(0, 9), st.sampled_from([80, 1023, 1024, 8080, 65535]))
_PORTS = st.lists(
    st.one_of(_PORT.map(str), st.tuples(_PORT, _PORT).map(lambda p: f"{min(p)}-{max(p)}")), max_size=3
).map(",".join)
# With these a list is long: the rules that take any answer stand apart in its table.
MANY = [
    ACL(
        action=AclAction.BLOCK if i % 3 else AclAction.ALLOW,
        direction=direction,
        protocols="6",
        remote_addresses=f"10.0.0.{i},fd00::{i:x}",
        remote_ports=str(i % 10),
        priority=i % 4,
    )
    for i in range(65)
    for direction in AclDirection
]
_ACTIONS = st.sampled_from([AclAction.ALLOW, AclAction.ALLOW, AclAction.BLOCK, AclAction.PASS])
_DIRECTIONS = st.sampled_from(AclDirection)


def _fields(prefixes: list[str]) -> dict[str, st.SearchStrategy[Any]]:
    addresses = st.lists(st.sampled_from([*prefixes, *FLAT, *NESTED]), max_size=3).map(",".join)
    return {
        "protocols": st.lists(st.sampled_from([*map(str, PROTOCOLS[:5]), "256"]), max_size=2).map(",".join),
        "local_addresses": st.just("") | addresses,
        "remote_addresses": st.just("") | addresses,
        "local_ports": st.just("") | _PORTS,
        "remote_ports": st.just("") | _PORTS,
        "priority": st.integers(0, 3),
    }


def acls(prefixes: list[str]) -> st.SearchStrategy[ACL]:
    """Rules of an endpoint."""
    return st.builds(ACL, action=_ACTIONS, direction=_DIRECTIONS, **_fields(prefixes))


def tiers(prefixes: list[str]) -> st.SearchStrategy[TierAcl]:
    """Tiers of an endpoint."""
    rule = st.builds(TierAclRule, tier_acl_rule_action=_ACTIONS, **_fields(prefixes))
    return st.builds(
        TierAcl,
        name=st.just("tier"),
        direction=_DIRECTIONS,
        order=st.integers(0, 2),
        tier_acl_rules=st.lists(rule, max_size=3).map(tuple),
    )


@st.composite
def sets(draw: st.DrawFn, prefixes: list[str]) -> list[SetPolicy]:
    """The three flat and the two nested sets."""
    flat = [
        SetPolicy(set_id=name, values=",".join(draw(st.lists(st.sampled_from(prefixes), max_size=4))))
        for name in FLAT
    ]
    nested = [
        SetPolicy(
            set_id=name,
            policy_type=SetType.NESTEDIPSET,
            values=",".join(draw(st.lists(st.sampled_from(FLAT), max_size=2))),
        )
        for name in NESTED
    ]
    return [*flat, *nested]


def network_policies(prefixes: list[str] = PREFIXES) -> st.SearchStrategy[list[Policy]]:
    """A network's: sets, and some rules."""
    rules = st.builds(NetworkACL, action=_ACTIONS, direction=_DIRECTIONS, **_fields(prefixes))
    return st.tuples(sets(prefixes), st.lists(rules, max_size=2)).map(lambda pair: [*pair[0], *pair[1]])


def endpoint_policies(prefixes: list[str] = PREFIXES) -> st.SearchStrategy[list[Policy]]:
    """An endpoint's: rules and tiers in any order, and now and then very many."""
    some = st.lists(st.one_of(acls(prefixes), acls(prefixes), tiers(prefixes)), max_size=6)
    return st.tuples(some, st.sampled_from([[], [], MANY])).map(lambda pair: [*pair[0], *pair[1]])


packets = st.sampled_from([HOSTS4, HOSTS6]).flatmap(
    lambda hosts: st.builds(
        Packet,
        protocol=st.sampled_from(PROTOCOLS),
        source=st.sampled_from([*hosts, "192.0.2.9" if "." in hosts[0] else "2001:db8::9"]),
        destination=st.sampled_from(hosts),
        source_port=_PORT,
        destination_port=_PORT,
    )
)
