"""Where a smaller model got worse and which answers flipped, from both models' outputs; pure, without torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import Literal

import numpy as np

from budget_search.core.layers import LayerSet
from budget_search.data.metrics import predictions
from budget_search.layer_search.verdict import POINTS, judge
from budget_search.report.entries import Direction, Flip, PredictionChanges, Slice

Texts = Callable[[int], tuple[str, ...]]
"""The texts of the example of this number."""
By = Literal["label", "length"]

# Half of what a two-sided interval of 95 % leaves out.
TWO_SIDED = 0.975
FEWEST_IN_A_SLICE = 20
MOST_LABELS = 8
LENGTH_SLICES = 4
SCORE_SLICES = 3
MOST_DIRECTIONS = 6
FLIPS_EACH_WAY = 3


def changes(
    baseline: Sequence[np.ndarray],
    smaller: Sequence[np.ndarray],
    labels: np.ndarray,
    lengths: np.ndarray,
    *,
    label_names: Sequence[str],
    split: str,
    texts: Texts,
) -> PredictionChanges:
    """Compare the outputs (examples, classes or 1) of two models, one array per seed, seeds in the same order.

    ``label_names`` is empty for a regression task; ``lengths`` (examples,) are in tokens.
    """
    regression = not label_names
    before, after = (np.stack([predictions(outputs) for outputs in model]) for model in (baseline, smaller))
    # In points, larger is better; an error as wide as all labels counts as much as a wrong answer.
    unit = -float(np.ptp(labels)) / POINTS if regression else 1.0
    good, still_good = (
        np.abs(told - labels) / unit if regression else POINTS * (told == labels) for told in (before, after)
    )
    right_before, right_after = before == labels, after == labels
    moved = _moved(before, after, regression)
    pairs = [_moved(one, other, regression).mean() for one, other in combinations(before, 2)]
    return PredictionChanges(
        split=split,
        examples=len(labels),
        regression=regression,
        slices=tuple(
            _slice(by, name, good[:, mask], still_good[:, mask], unit)
            for by, name, mask in _groups(labels, lengths, label_names)
            if mask.sum() >= FEWEST_IN_A_SLICE
        ),
        churn=float(moved.mean()),
        churn_between_seeds=float(np.mean(pairs)) if pairs else None,
        lost=None if regression else float((right_before & ~right_after).mean()),
        won=None if regression else float((~right_before & right_after).mean()),
        directions=() if regression else tuple(_directions(before, after, label_names)),
        flips=tuple(_flips(before, after, labels, label_names, texts)),
    )


def _moved(before: np.ndarray, after: np.ndarray, regression: bool) -> np.ndarray:
    """Per example 1 where the answer differs and 0 elsewhere, or by how much two scores differ."""
    return np.asarray(np.abs(before - after) if regression else before != after, dtype=np.float64)


def _groups(
    labels: np.ndarray, lengths: np.ndarray, label_names: Sequence[str]
) -> Iterator[tuple[By, str, np.ndarray]]:
    """What the examples have in common, its name, and which they are: every label or band of scores, then lengths."""
    if label_names:
        counts = np.bincount(labels, minlength=len(label_names))
        common = np.argsort(-counts, kind="stable")[:MOST_LABELS]
        yield from (("label", label_names[label], labels == label) for label in map(int, sorted(common)))
    else:
        yield from (("label", f"{low:g} to {high:g}", band) for low, high, band in _bands(labels, SCORE_SLICES))
    yield from (("length", f"{low:g} to {high:g} tokens", band) for low, high, band in _bands(lengths, LENGTH_SLICES))


def _bands(values: np.ndarray, count: int) -> Iterator[tuple[float, float, np.ndarray]]:
    """Up to ``count`` ranges that hold about as many examples each: lowest and highest value, and which they are."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, count + 1)[1:-1], method="higher"))
    band = np.searchsorted(edges, values, side="right")
    for number in np.unique(band):
        inside = values[band == number]
        yield float(inside.min()), float(inside.max()), band == number


def _slice(by: By, name: str, before: np.ndarray, after: np.ndarray, unit: float) -> Slice:
    """``before`` and ``after`` are seeds x examples, in points, larger is better; ``unit``: what one point is."""
    anyone = LayerSet((0,), 1)
    judged = judge(before, {anyone: after}, TWO_SIDED)[anyone]
    width = None if judged.upper is None else judged.upper - judged.degradation
    return Slice(
        by=by,
        name=name,
        examples=before.shape[1],
        baseline=unit * float(before.mean()),
        score=unit * float(after.mean()),
        worse=abs(unit) * judged.degradation,
        low=None if width is None else abs(unit) * (judged.degradation - width),
        high=None if width is None else abs(unit) * (judged.degradation + width),
    )


def _directions(before: np.ndarray, after: np.ndarray, label_names: Sequence[str]) -> list[Direction]:
    """Most frequent first."""
    classes = len(label_names)
    counts = np.bincount((before * classes + after).ravel(), minlength=classes**2).reshape(classes, classes)
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[:MOST_DIRECTIONS]
    ways = [divmod(int(place), classes) for place in order]
    shares = counts / before.size
    return [Direction(label_names[a], label_names[b], float(shares[a, b])) for a, b in ways if counts[a, b]]


def _flips(
    before: np.ndarray, after: np.ndarray, labels: np.ndarray, label_names: Sequence[str], texts: Texts
) -> Iterator[Flip]:
    """A few that went wrong and a few that came right with every seed; of scores, those that moved farthest."""
    if label_names:
        right_before, right_after = before == labels, after == labels
        went_wrong = np.flatnonzero((right_before & ~right_after).all(axis=0))
        came_right = np.flatnonzero((~right_before & right_after).all(axis=0))
        chosen = [*went_wrong[:FLIPS_EACH_WAY], *came_right[:FLIPS_EACH_WAY]]
    else:
        further = (np.abs(after - labels) - np.abs(before - labels)).mean(axis=0)
        order = np.argsort(-further, kind="stable")
        chosen = [*order[:FLIPS_EACH_WAY], *order[::-1][:FLIPS_EACH_WAY]]
    for example in map(int, chosen):
        if label_names:
            # Wrong answers may differ between seeds; the first seed's stands for them.
            told = [label_names[int(model[example])] for model in (labels, before[0], after[0])]
        else:
            means = (model[:, example].mean() for model in (before, after))
            told = [f"{value:.3g}" for value in (labels[example], *means)]
        yield Flip(texts(example), *told)
