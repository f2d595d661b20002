"""Which endpoints carry traffic: kube-proxy's rules, case by case."""

from __future__ import annotations

from typing import Any

import pytest

from samewire.proxy.topology import Distribution, Member, Place, choose, distribution_of

PLACE = Place("node-a", "zone-1")

# Names of members say what they are: here/away, then ready, busy (not ready, not ending), last (ends, still serves),
# gone (ends, does not serve).
STATES: dict[str, dict[str, Any]] = {
    "ready": {"ready": True, "serving": True, "terminating": False},
    "busy": {"ready": False, "serving": False, "terminating": False},
    "unready-serving": {"ready": False, "serving": True, "terminating": False},
    "last": {"ready": False, "serving": True, "terminating": True},
    "gone": {"ready": False, "serving": False, "terminating": True},
}


def member(name: str, **more: Any) -> Member:
    where, state = name.split(":")
    return Member(name, 80, local=where == "here", **STATES[state], **more)


def names(members: tuple[Member, ...] | None) -> list[str] | None:
    return None if members is None else [found.address for found in members]


@pytest.mark.parametrize(
    ("members", "cluster", "local", "any_usable"),
    [
        ([], [], [], False),
        (["here:ready"], ["here:ready"], ["here:ready"], True),
        (["away:ready"], ["away:ready"], [], True),
        (["here:ready", "away:ready"], ["here:ready", "away:ready"], ["here:ready"], True),
        (["here:busy"], [], [], False),
        (["here:gone", "away:gone"], [], [], False),
        (["here:unready-serving"], [], [], False),
        (["here:last"], ["here:last"], ["here:last"], True),
        (["away:last"], ["away:last"], [], True),
        (["here:last", "away:last"], ["here:last", "away:last"], ["here:last"], True),
        # one ready member anywhere is enough to keep the ending ones out of Cluster; Local decides for itself
        (["here:last", "away:ready"], ["away:ready"], ["here:last"], True),
        (["here:ready", "away:last"], ["here:ready"], ["here:ready"], True),
        (["here:last", "here:ready"], ["here:ready"], ["here:ready"], True),
        (["here:busy", "away:ready"], ["away:ready"], [], True),
        (["here:gone", "away:last"], ["away:last"], [], True),
        (["here:busy", "away:busy"], [], [], False),
    ],
)
def test_policies(members: list[str], cluster: list[str], local: list[str], any_usable: bool) -> None:
    found = choose([member(name) for name in members], PLACE, uses_cluster=True, uses_local=True)
    assert names(found.cluster) == cluster
    assert names(found.local) == local
    assert found.any_usable is any_usable


def test_a_policy_that_is_not_used_is_not_computed() -> None:
    members = [member("here:ready"), member("away:ready")]
    only_cluster = choose(members, PLACE, uses_cluster=True, uses_local=False)
    only_local = choose(members, PLACE, uses_cluster=False, uses_local=True)
    assert (only_cluster.local, names(only_cluster.cluster)) == (None, ["here:ready", "away:ready"])
    assert (only_local.cluster, names(only_local.local)) == (None, ["here:ready"])


def test_local_policy_knows_of_members_elsewhere() -> None:
    found = choose([member("away:ready")], PLACE, uses_cluster=False, uses_local=True)
    assert found.local == ()
    assert found.any_usable


HINTED = {"for_zones": ("zone-1",)}
ELSEWHERE = {"for_zones": ("zone-2",)}
ON_NODE = {"for_zones": ("zone-1",), "for_nodes": ("node-a",)}
OFF_NODE = {"for_zones": ("zone-1",), "for_nodes": ("node-b",)}


@pytest.mark.parametrize(
    ("hints", "expected"),
    [
        ([HINTED, ELSEWHERE], Distribution.SAME_ZONE),
        ([HINTED, HINTED], Distribution.SAME_ZONE),
        ([HINTED, {}], Distribution.EVERYWHERE),  # one without a hint: hints do not count
        ([ELSEWHERE, ELSEWHERE], Distribution.EVERYWHERE),  # none for this zone
        ([ON_NODE, OFF_NODE], Distribution.SAME_NODE),
        ([OFF_NODE, OFF_NODE], Distribution.SAME_ZONE),  # none for this node: the zone's hints count
        ([ON_NODE, HINTED], Distribution.SAME_ZONE),  # one without a node's hint
        ([{"for_nodes": ("node-b",)}], Distribution.EVERYWHERE),
        ([{"for_zones": ("zone-1", "zone-2")}, ELSEWHERE], Distribution.SAME_ZONE),
        ([], Distribution.EVERYWHERE),
    ],
)
def test_hints(hints: list[dict[str, tuple[str, ...]]], expected: Distribution) -> None:
    assert distribution_of([member("away:ready", **hint) for hint in hints], PLACE) is expected


def test_hints_of_members_that_are_not_ready_do_not_count() -> None:
    members = [member("away:ready", **HINTED), member("away:last"), member("away:busy", **ELSEWHERE)]
    assert distribution_of(members, PLACE) is Distribution.SAME_ZONE


def test_hints_narrow_the_cluster_policy_and_not_the_local_one() -> None:
    near = Member("near", 80, for_zones=("zone-1",))
    far = Member("far", 80, for_zones=("zone-2",), local=True)
    found = choose([near, far], PLACE, uses_cluster=True, uses_local=True)
    assert found.cluster == (near,)
    assert found.local == (far,)


def test_without_a_zone_label_zone_hints_do_not_count() -> None:
    members = [member("away:ready", **HINTED)]
    assert distribution_of(members, Place("node-a", "")) is Distribution.EVERYWHERE


def test_where_all_end_hints_do_not_count() -> None:
    members = [member("away:last", **ELSEWHERE), member("here:last", **HINTED)]
    found = choose(members, PLACE, uses_cluster=True, uses_local=False)
    assert names(found.cluster) == ["away:last", "here:last"]
