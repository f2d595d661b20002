"""Every layer and every drop reason is explained."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from samewire.trace.reasons import LAYERS, REASONS, explain
from samewire.vfp.constants import Layer, Reason


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_has_a_meaning_and_a_remedy(reason: Reason) -> None:
    found = explain(reason)
    assert found is REASONS[reason]
    for text in (found.meaning, found.remedy):
        assert text.endswith((".", "?"))
        assert len(text) > 15
        assert "  " not in text


def test_no_two_reasons_say_the_same() -> None:
    assert len({found.meaning for found in REASONS.values()}) == len(Reason)


@pytest.mark.parametrize("layer", list(Layer))
def test_every_layer_is_described(layer: Layer) -> None:
    assert LAYERS[layer]


def test_a_reason_of_a_newer_switch() -> None:
    assert "200" in explain(200).meaning


def test_the_guide_has_the_same_words() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "troubleshooting.md").read_text()
    for reason, found in REASONS.items():
        if reason is not Reason.NONE:
            assert f"| `{reason.name.lower()}` | {found.meaning} | {found.remedy} |\n" in guide
    for layer, text in LAYERS.items():
        assert f"| `{layer.name.lower()}` | {text} |\n" in guide


def test_the_guide_knows_every_check_of_the_doctor() -> None:
    root = Path(__file__).parents[2]
    guide = (root / "docs" / "guides" / "troubleshooting.md").read_text()
    sources = "".join(file.read_text() for file in (root / "src/samewire/trace").glob("doctor*.py"))
    checks = set(re.findall(r'Level\.\w+,\s+"([a-z-]+)",', sources))
    assert len(checks) > 15
    for check in checks:
        assert f"`{check}`" in guide
