"""Stratified random choice of example groups, so that labels and lengths are distributed as in other examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from budget_search.data.loading import Examples

LENGTH_BINS = 10
SCORE_BINS = 5
# The least number of reference examples per bin, so that the share of a bin is estimated well enough.
EXAMPLES_PER_BIN = 20
# A split takes at most this share of the available examples of a cell; the rest stays for the next split and training.
MAX_CELL_SHARE = 0.5
# A smaller split with the right distribution is better than a larger one without it, down to half the wanted size.
MIN_FILL = 0.9
MIN_SHARE_OF_WANTED = 0.5


def assign_cells(like: Examples, examples: Examples, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Assign examples to cells by label and length, with bins from the quantiles of ``like``.

    ``classes`` is 0 for scores. Returns the cell of each of ``examples``, int64 (examples,), and the share of ``like``
    in each cell, float (cells,).
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
    """The number of examples per cell, summing to ``wanted``, by the largest-remainder method."""
    exact = shares * wanted
    whole: np.ndarray = np.floor(exact).astype(np.int64)
    largest = np.argsort(whole - exact, kind="stable")[: wanted - whole.sum()]
    whole[largest] += 1
    return whole


def attainable_quotas(shares: np.ndarray, available: np.ndarray, wanted: int) -> np.ndarray:
    """Quotas for the largest split, up to ``wanted``, that the ``available`` examples per cell can fill."""
    most = np.floor(MAX_CELL_SHARE * available).astype(np.int64)
    fewest = int(MIN_SHARE_OF_WANTED * wanted)
    while True:
        capped = np.minimum(quotas(shares, wanted), most)
        if capped.sum() >= MIN_FILL * wanted or wanted <= fewest:
            return capped
        wanted = max(fewest, int(0.98 * wanted))


def pick_groups(
    groups: Sequence[Sequence[int]], order: np.ndarray, cell_of: np.ndarray, quota: np.ndarray
) -> list[int]:
    """Greedily pick groups that fit into the remaining ``quota`` of every cell; returns positions in ``groups``.

    The groups are tried in ``order``. A quota that they cannot fill stays partly empty.
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
    """The number of words of each example over all its texts, int64 (examples,)."""
    words = [[len(text.split()) for text in column] for column in examples.texts]
    return np.array(words, dtype=np.int64).sum(axis=0, keepdims=True)[0]


def _edges(values: np.ndarray, bins: int) -> np.ndarray:
    """Inner edges of non-empty quantile bins; there are fewer edges if values repeat."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1]))
    return np.asarray(edges[edges > values.min()])
