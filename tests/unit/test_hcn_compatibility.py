"""docs/compatibility.md says of every object, field, policy and code what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from samewire.hcn.codec import INTERNAL
from samewire.hcn.errors import HcnCode
from samewire.hcn.normalise_policies import ALLOWED, Scope
from samewire.hcn.policies import KNOWN_POLICIES, NOT_ENFORCED, PolicyBase
from samewire.hcn.schema import STRUCTS, Kind

PAGE = (Path(__file__).parents[2] / "docs" / "compatibility.md").read_text(encoding="utf-8")
SECTIONS = {
    Kind.NETWORK: "Networks",
    Kind.ENDPOINT: "Endpoints",
    Kind.NAMESPACE: "Namespaces",
    Kind.ROUTE: "Routes and load balancers",
    Kind.LOADBALANCER: "Routes and load balancers",
}
WORDS = {Scope.NETWORK: "network", Scope.SUBNET: "subnet", Scope.ENDPOINT: "endpoint"}


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def names_of(struct: type[msgspec.Struct]) -> list[str]:
    return [field.encode_name for field in msgspec.structs.fields(struct) if field.name not in INTERNAL]


@pytest.mark.parametrize("kind", list(Kind))
def test_every_field_is_in_the_table(kind: Kind) -> None:
    text = section(SECTIONS[kind])
    assert [name for name in names_of(STRUCTS[kind]) if f"`{name}`" not in text] == []


def rows() -> dict[str, list[str]]:
    lines = [line for line in section("Policies").splitlines() if line.startswith("| `")]
    return {
        re.findall("`(.*?)`", line)[0]: [cell.strip() for cell in line.strip("|").split("|")]
        for line in lines
    }


@pytest.mark.parametrize("policy", KNOWN_POLICIES.values(), ids=lambda policy: policy.__name__)
def test_every_policy_is_in_the_table(policy: type[PolicyBase]) -> None:
    row = rows()[policy.__name__]
    wanted = "stored" if policy in NOT_ENFORCED else "enforced"
    assert row[3].startswith(wanted), f"{policy.__name__} is {wanted}: say so in docs/compatibility.md"
    scopes = {WORDS[scope] for scope, policies in ALLOWED.items() if policy in policies}
    assert set(row[2].split(", ")) == scopes
    assert [name for name in names_of(policy) if f"`{name}`" not in row[3]] == []


def test_no_policy_in_the_table_is_unknown() -> None:
    assert {name.lower() for name in rows()} - {"isolation"} == set(KNOWN_POLICIES)


def test_every_code_is_in_the_table() -> None:
    text = section("Error codes")
    assert [code.name for code in HcnCode if f"`{code.name}`" not in text] == []
