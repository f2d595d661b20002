"""Tables, and YAML against PyYAML as an independent reader."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from samewire.cli.output import as_json, as_yaml, table
from samewire.counted import counted

SCALARS = st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=25,
)


@given(VALUES)
def test_yaml_means_the_same(value: Any) -> None:
    assert yaml.safe_load(as_yaml(value)) == value


@pytest.mark.parametrize(
    "text",
    [
        "yes",
        "No",
        "~",
        "null",
        "1",
        "0x10",
        "1e3",
        "2026-11-21",
        ":",
        "- a",
        "#",
        "a: b",
        "",
        " x",
        "\x85",
        "é",
        "=",
    ],
)
def test_strings_that_yaml_would_take_for_something_else(text: str) -> None:
    assert yaml.safe_load(as_yaml({text: [text]})) == {text: [text]}


def test_yaml_is_readable() -> None:
    value = {"Name": "web", "Policies": [{"Type": "ACL", "Settings": {"Priority": 100}}, {}], "Flags": [1, 2]}
    assert as_yaml(value).splitlines() == [
        "Name: web",
        "Policies:",
        "  - Type: ACL",
        "    Settings:",
        "      Priority: 100",
        "  - {}",
        "Flags:",
        "  - 1",
        "  - 2",
    ]


def test_json() -> None:
    assert json.loads(as_json({"a": ["ü"]})) == {"a": ["ü"]}
    assert "ü" in as_json("ü")


def test_tables() -> None:
    assert table(["NAME", "ID"], [["web", "1"], ["a-long-name", ""]]).splitlines() == [
        "NAME          ID",
        "web           1",
        "a-long-name   -",
    ]


@pytest.mark.parametrize(
    ("count", "words", "text"),
    [(0, ["pod"], "0 pods"), (1, ["pod"], "1 pod"), (2, ["address", "addresses"], "2 addresses")],
)
def test_counts(count: int, words: list[str], text: str) -> None:
    assert counted(count, *words) == text
