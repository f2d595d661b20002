"""Every layer and every drop reason is explained."""

from __future__ import annotations

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
