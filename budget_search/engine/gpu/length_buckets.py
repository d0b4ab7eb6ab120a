"""Choose the padded lengths of graphs: few, so that each is captured once, with little added padding.

A graph holds one padded length. Batches are padded to the smallest bucket that holds them. The buckets are those with
the fewest padded tokens among multiples of 16 (of 8 where texts are so short that 16 would waste too much), found by
dynamic programming over the lengths of the task's own batches.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from functools import cache
from itertools import islice

import numpy as np

from budget_search.engine.batches import training_order

UNITS = (16, 8)
MOST_BUCKETS = 11
# Tokens added by padding batches to a bucket, as a share of their tokens padded to their own longest.
MOST_PADDING = 0.15


@dataclass(frozen=True)
class LengthBuckets:
    """Padded lengths in tokens, ascending; ``padding`` is the share of tokens that they add to the task's batches."""

    lengths: tuple[int, ...]
    padding: float

    def holding(self, length: int) -> int:
        """The smallest bucket for a batch whose longest example has so many tokens.

        Raises ValueError for a length above all buckets.
        """
        index = bisect_left(self.lengths, length)
        if index == len(self.lengths):
            raise ValueError(f"no bucket holds {length} tokens; the longest has {self.lengths[-1]}")
        return self.lengths[index]


def choose_buckets(lengths: np.ndarray, batch_size: int) -> LengthBuckets:
    """The fewest buckets that keep the added padding within 15 %; if more than 11 are needed, the best 11.

    ``lengths`` are the examples' tokens (examples,). Batches are those of one epoch; any other order of the same
    examples fits too, since the last bucket holds the longest example.
    """
    longest = int(lengths.max())
    epoch = islice(training_order(lengths, batch_size, 0), math.ceil(len(lengths) / batch_size))
    batches = np.sort([int(lengths[batch].max()) for batch in epoch])
    chosen = [
        buckets
        for unit in UNITS
        for count in range(1, MOST_BUCKETS + 1)
        if (buckets := _best(batches, _candidates(longest, unit), count)).padding <= MOST_PADDING
    ]
    if chosen:
        return chosen[0]
    return min(
        (_best(batches, _candidates(longest, unit), MOST_BUCKETS) for unit in UNITS), key=lambda each: each.padding
    )


def _candidates(longest: int, unit: int) -> tuple[int, ...]:
    """Multiples of the unit; the last is the longest example itself, which a model's positions are sure to hold."""
    return (*range(unit, longest, unit), longest)


def _best(batches: np.ndarray, candidates: tuple[int, ...], count: int) -> LengthBuckets:
    """The buckets, at most so many, that add the fewest tokens to batches of these longest examples (ascending)."""
    # How many batches each candidate holds, smaller ones included.
    held = np.searchsorted(batches, candidates, side="right")

    @cache
    def cheapest(last: int, left: int) -> tuple[int, tuple[int, ...]]:
        """Padded length summed over the batches that the candidate at ``last`` holds, and the buckets for it."""
        whole = (int(held[last]) * candidates[last], (candidates[last],))
        if left == 1:
            return whole
        split = (
            (tokens + int(held[last] - held[before]) * candidates[last], (*chosen, candidates[last]))
            for before in range(last)
            for tokens, chosen in [cheapest(before, left - 1)]
        )
        return min(split, default=whole, key=lambda each: each[0]) if last else whole

    tokens, chosen = min(
        (cheapest(len(candidates) - 1, left) for left in range(1, count + 1)), key=lambda each: each[0]
    )
    return LengthBuckets(chosen, tokens / int(batches.sum()) - 1)
