"""Choosing groups of examples at random so that they are distributed like other ones, in labels and lengths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from budget_search.data.loading import Examples

LENGTH_BINS = 10
SCORE_BINS = 5
# Fewer examples than this in a bin say little about how many there should be.
EXAMPLES_PER_BIN = 20
# What is scarce is shared: one choice takes no more than this of the examples of a cell, and the rest are left to the
# next choice and to training.
LARGEST_PART = 0.5
# Fewer examples that resemble are better than more that do not, down to half of what was wanted.
FILLED = 0.9
FEWEST_OF_WANTED = 0.5


def cells(like: Examples, examples: Examples, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorts examples by label and length as ``like`` is distributed over them; ``classes`` is 0 for scores.

    Returns the cell of each of ``examples``, int64 (examples,), and the share of ``like`` in each, float (cells,).
    """
    labels_like, labels, kinds = like.labels, examples.labels, classes
    if not classes:
        edges = _edges(like.labels, SCORE_BINS)
        labels_like, labels = (np.searchsorted(edges, part.labels, side="right") for part in (like, examples))
        kinds = len(edges) + 1
    bins = int(np.clip(len(like) / (EXAMPLES_PER_BIN * kinds), 1, LENGTH_BINS))
    edges = _edges(_lengths(like), bins)
    in_like, in_examples = (
        label * (len(edges) + 1) + np.searchsorted(edges, _lengths(part), side="right")
        for label, part in ((labels_like, like), (labels, examples))
    )
    counts = np.bincount(in_like, minlength=kinds * (len(edges) + 1))
    return in_examples.astype(np.int64), counts / len(like)


def quotas(shares: np.ndarray, wanted: int) -> np.ndarray:
    """How many examples of each cell: whole numbers that sum to ``wanted``, by largest remainder."""
    exact = shares * wanted
    whole: np.ndarray = np.floor(exact).astype(np.int64)
    largest = np.argsort(whole - exact, kind="stable")[: wanted - whole.sum()]
    whole[largest] += 1
    return whole


def attainable(shares: np.ndarray, available: np.ndarray, wanted: int) -> np.ndarray:
    """Quotas for the largest number of examples, up to ``wanted``, that those ``available`` in each cell can fill."""
    most = np.floor(LARGEST_PART * available).astype(np.int64)
    fewest = int(FEWEST_OF_WANTED * wanted)
    while True:
        capped = np.minimum(quotas(shares, wanted), most)
        if capped.sum() >= FILLED * wanted or wanted <= fewest:
            return capped
        wanted = max(fewest, int(0.98 * wanted))


def pick(groups: Sequence[Sequence[int]], order: np.ndarray, cell_of: np.ndarray, quota: np.ndarray) -> list[int]:
    """The groups that fit into what is still wanted of every cell, tried in this order; their positions in ``groups``.

    Cells that the groups cannot fill stay short: fewer examples are better than ones that resemble nothing.
    """
    left = dict(enumerate(quota.tolist()))
    missing = int(quota.sum())
    cell = cell_of.tolist()
    picked = []
    for group in order.tolist():
        if not missing:
            break
        needed = Counter(cell[row] for row in groups[group])
        if all(left[kind] >= count for kind, count in needed.items()):
            picked.append(group)
            for kind, count in needed.items():
                left[kind] -= count
                missing -= count
    return picked


def _lengths(examples: Examples) -> np.ndarray:
    """Words of all texts of each example, int64 (examples,)."""
    words = [[len(text.split()) for text in column] for column in examples.texts]
    return np.array(words, dtype=np.int64).sum(axis=0, keepdims=True)[0]


def _edges(values: np.ndarray, bins: int) -> np.ndarray:
    """Inner edges that cut these values into bins of about equal size, none empty; fewer where values repeat."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1]))
    return np.asarray(edges[edges > values.min()])
