"""Layer sets and the paper's families of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from budget_search.core.errors import UsageError
from budget_search.core.layers import FAMILIES, LayerSet, even_alternate, odd_alternate, symmetric, top

layer_sets = st.integers(1, 30).flatmap(
    lambda total: st.sets(st.integers(0, total - 1), min_size=1).map(lambda kept: LayerSet(tuple(sorted(kept)), total))
)


@given(layer_sets)
def test_printed_sets_are_read_back(layers: LayerSet) -> None:
    assert LayerSet.parse(layers.compact, layers.total) == layers
    assert str(layers) == f"{layers.compact} of {layers.total}"


@given(layer_sets)
def test_kept_and_dropped_are_the_model(layers: LayerSet) -> None:
    assert sorted((*layers.kept, *layers.dropped)) == list(range(layers.total))
    assert LayerSet.dropping(layers.dropped, layers.total) == layers
    assert layers.depth + len(layers.dropped) == layers.total


@given(layer_sets)
def test_dropping_and_adding_a_layer_undo_each_other(layers: LayerSet) -> None:
    for smaller in layers.smaller():
        (gone,) = set(layers.kept) - set(smaller.kept)
        assert smaller.add(gone) == layers
    assert len(list(layers.smaller())) == (layers.depth if layers.depth > 1 else 0)


def test_runs_are_joined_when_printed() -> None:
    assert LayerSet((0, 1, 2, 3, 4, 7), 12).compact == "0-4,7"


@pytest.mark.parametrize(
    ("kept", "reason"),
    [
        ((), "empty"),
        ((0, 0), "repeated"),
        ((2, 1), "not ascending"),
        ((0, 12), "out of range"),
        ((-1, 2), "out of range"),
        ((0, 1.5), "whole numbers"),
        ((False, True), "whole numbers"),
    ],
)
def test_sets_that_are_none_are_refused_with_the_reason(kept: tuple[int, ...], reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        LayerSet(kept, 12)
    assert "0 to 11" in str(caught.value)


@pytest.mark.parametrize("text", ["", "a", "3-1", "0,,1", "0-", "0 1", "1e3", "٣", "0-4,7-", "-1"])
def test_texts_that_are_no_sets_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="layer set"):
        LayerSet.parse(text, 12)


def test_families_are_those_of_the_paper() -> None:
    """Section 4, its layers numbered from 1: K = 2 of 12 drops top 11, 12; even 10, 12; odd 9, 11; symmetric 6, 7."""
    assert top(12, 2) == LayerSet.dropping({10, 11}, 12)
    assert even_alternate(12, 2) == LayerSet.dropping({9, 11}, 12)
    assert odd_alternate(12, 2) == LayerSet.dropping({8, 10}, 12)
    assert odd_alternate(12, 4) == LayerSet.dropping({4, 6, 8, 10}, 12)
    assert even_alternate(12, 4) == LayerSet.dropping({5, 7, 9, 11}, 12)
    assert symmetric(12, 2) == LayerSet.dropping({5, 6}, 12)
    assert symmetric(12, 6) == LayerSet.dropping(range(3, 9), 12)


def test_symmetric_keeps_the_odd_layer_at_the_bottom() -> None:
    assert symmetric(12, 3) == LayerSet.dropping({5, 6, 7}, 12)


@pytest.mark.parametrize("total", [1, 2, 6, 7, 12, 24])
@pytest.mark.parametrize("name", FAMILIES)
def test_families_drop_as_many_as_asked_or_none(name: str, total: int) -> None:
    for dropped in range(total + 2):
        layers = FAMILIES[name](total, dropped)
        possible = 0 < dropped < total and ("alternate" not in name or dropped <= total // 2)
        assert (layers is not None) == possible
        if layers is not None:
            assert len(layers.dropped) == dropped
