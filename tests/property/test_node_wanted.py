"""Several endpoints change at once, their long ACL lists edited, and any write may fail: wanted stays the kernel."""

from __future__ import annotations

from random import Random
from typing import Final

import pytest

from samewire.hcn.policies import ACL, AclAction, AclDirection, SetPolicy
from samewire.hcn.schema import Network, NetworkType
from samewire.node.planning import endpoint_owner
from samewire.node.wanted import Changes, Wanted, judged_again
from samewire.vfp.address import NO_MAC, ZERO
from samewire.vfp.compile.acl import compile_acl
from samewire.vfp.compile.acl_table import Known
from samewire.vfp.compile.builder import Builder
from samewire.vfp.compile.sets import compile_sets
from samewire.vfp.diff import Operation, Put, apply
from samewire.vfp.model import Compiled, HostBinding
from samewire.vfp.record import Record
from samewire.vfp.tables import AclSpace, Id, Port

DIRECTIONS: Final = (AclDirection.IN, AclDirection.OUT)
ADDRESSES: Final = ("", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.1.2.3", "10.1.0.0/16,10.2.0.0/16")
PORTS: Final = ("", "80", "80,443", "1-1024", "1000-65535")
SHORTEST: Final = 66  # one rule less is still a list that is edited

Rules = list[ACL]


def rule(direction: AclDirection, action: AclAction, priority: int, addresses: str, ports: str) -> ACL:
    return ACL(
        action=action,
        direction=direction,
        priority=priority,
        remote_addresses=addresses,
        local_ports=ports if direction is AclDirection.IN else "",
        remote_ports=ports if direction is AclDirection.OUT else "",
        protocols="6",
    )


def any_rule(random: Random, direction: AclDirection) -> ACL:
    action = random.choice(list(AclAction))
    return rule(direction, action, random.randint(1, 4), random.choice(ADDRESSES), random.choice(PORTS))


def long_list(direction: AclDirection) -> Rules:
    return [
        rule(direction, AclAction.BLOCK, i % 5, f"192.0.2.{i}", str(5000 + i)) for i in range(SHORTEST + 2)
    ]


def changed(random: Random, rules: Rules, direction: AclDirection) -> Rules:
    """One rule more, less or another; or a list that has little in common with it."""
    where = random.randrange(len(rules))
    new = any_rule(random, direction)
    how = random.choice(["more", "less", "another", "another", "others"])
    if how == "more":
        return [*rules[:where], new, *rules[where:]]
    if how == "less" and len(rules) > SHORTEST:
        return [*rules[:where], *rules[where + 1 :]]
    if how == "others":
        return [*(any_rule(random, direction) for _ in range(random.randint(0, 6))), *long_list(direction)]
    return [*rules[:where], new, *rules[where + 1 :]]


class Node:
    """What the switch does with its tables for a change, and a kernel that may refuse any operation."""

    def __init__(self) -> None:
        self.wanted = Wanted({})
        self.kernel: dict[str, dict[Record, Record]] = {}
        self.generation = 0
        self.taken_back: list[Operation] = []

    def compiled(self, port: int, policies: Rules, known: Known) -> Compiled:
        builder = Builder()
        both = compile_acl(builder, "NET", (), policies, known=known)
        self.generation += 1
        tables, words, shapes = ((both[0].table, both[1].table), (both[0].words, both[1].words),
                                 (both[0].shape, both[1].shape))  # fmt: skip
        value = Port(
            1,
            1,
            0,
            NO_MAC,
            NO_MAC,
            (ZERO, ZERO),
            (ZERO, ZERO),
            self.generation,
            tables,
            0,
            0,
            words,
            shapes,
            1500,
        )
        builder.put("sw_ports", Id(port), value)
        return builder.compiled(HostBinding())

    def change(self, lists: dict[int, Rules], random: Random, *, fails: bool) -> None:
        """An empty list: the endpoint goes."""
        changes, before = Changes(), []
        for port, policies in lists.items():
            owner = endpoint_owner(str(port))
            compiled = (
                self.compiled(port, policies, self.wanted.acl_tables(owner)) if policies else Compiled({})
            )
            before.append((owner, self.wanted.held(owner)))
            self.wanted.replace(owner, compiled, changes)
        operations = self.operations(changes)
        self.kernel = apply(operations[: random.randint(0, len(operations)) if fails else None], self.kernel)
        if fails:
            back = Changes()
            for owner, compiled in reversed(before):
                self.generation += 1
                self.wanted.replace(owner, judged_again(compiled, self.generation), back)
            back.enter(self.wanted.left_over(changes))
            self.taken_back = self.operations(back)
            self.kernel = apply(self.taken_back, self.kernel)

    @staticmethod
    def operations(changes: Changes) -> list[Operation]:
        return [*changes.puts(), *changes.removals()]


@pytest.mark.parametrize("seed", range(3, 10))
def test_wanted_is_the_kernel(seed: int) -> None:
    """After every change, made or taken back. Tables have vectors in common: one's edit writes or needs what the
    other's change removes or has still to write.
    """
    random, node = Random(seed), Node()
    lists = {port: {direction: long_list(direction) for direction in DIRECTIONS} for port in (1, 2, 3)}
    for _ in range(40):
        after: dict[int, dict[AclDirection, Rules]] = {}
        for port in random.sample(sorted(lists), random.randint(1, 3)):
            after[port] = {
                direction: lists[random.randint(1, 3)][direction]
                if random.random() < 0.3
                else changed(random, lists[port][direction], direction)
                for direction in DIRECTIONS
            }
        fails = random.random() < 0.3
        gone = {port for port in after if random.random() < 0.1}
        policies = {
            port: [] if port in gone else [*rules[AclDirection.IN], *rules[AclDirection.OUT]]
            for port, rules in after.items()
        }
        node.change(policies, random, fails=fails)
        if not fails:
            lists |= after
        assert node.kernel == node.wanted.entries.tables()


def test_a_change_is_taken_back_as_it_was_made() -> None:
    """What was there before the last change but one has no part in it: that rule is not for a moment in force again."""
    node, rules = Node(), long_list(AclDirection.IN)
    first, second = (
        rule(AclDirection.IN, action, 0, "10.1.2.3", "80") for action in (AclAction.ALLOW, AclAction.BLOCK)
    )
    node.change({1: [*rules, first]}, Random(1), fails=False)
    node.change({1: [*rules, second]}, Random(1), fails=False)
    before = node.kernel["sw_acl_rules"]
    node.change({1: [*rules[:-1], second]}, Random(1), fails=True)
    assert node.kernel == node.wanted.entries.tables()
    written = {step.key for step in node.taken_back if isinstance(step, Put) and step.table == "sw_acl_rules"}
    assert written <= before.keys()
    assert written


def test_sets_that_are_taken_back() -> None:
    """What was judged by members that are gone again is judged again."""
    wanted, owner = Wanted({}), ("sets", "NET")
    spaces = []
    for generation, values in enumerate(("10.0.0.1", "10.0.0.1,10.0.0.2"), 1):
        network = Network(
            id="NET", type=NetworkType.OVERLAY, policies=(SetPolicy(set_id="a", values=values),)
        )
        before = wanted.held(owner)
        wanted.replace(owner, compile_sets(network, generation), Changes())
    changes = Changes()
    wanted.replace(owner, judged_again(before, 3), changes)
    for step in changes.removals():
        if isinstance(step, Put) and isinstance(step.value, AclSpace):
            spaces.append(step.value.generation)
    assert spaces == [3]


def test_endpoints_with_one_list_keep_one_table() -> None:
    """When the list changes for all of them, as a network's does: the last is not left with the old table, edited."""
    node, rules = Node(), long_list(AclDirection.IN)
    for number in range(4):
        rules = [*rules, rule(AclDirection.IN, AclAction.BLOCK, 4, "10.1.2.3", str(8000 + number))]
        node.change(dict.fromkeys((1, 2, 3), rules), Random(1), fails=False)
        ports = [port for port in node.kernel["sw_ports"].values() if isinstance(port, Port)]
        assert len({port.acl_table for port in ports}) == 1
        assert len(node.kernel["sw_acl_rules"]) == len(rules)
