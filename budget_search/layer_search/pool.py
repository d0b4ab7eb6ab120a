"""The layer sets that a decision chooses from, with what it asks of thousands of them at once as arrays."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np

from budget_search.core.layers import LayerSet
from budget_search.layer_search.surrogate import features


@dataclass(frozen=True, eq=False)
class Pool:
    """Different layer sets of one model.

    ``depths`` (sets,) are their numbers of layers, ``rows`` (sets, features) their ``features`` for the surrogate.
    ``numbers`` (sets,) ascend; they are the positions in the pool from which this one was selected, whose ``index``
    gives the position of every set.
    """

    sets: tuple[LayerSet, ...]
    depths: np.ndarray
    rows: np.ndarray
    numbers: np.ndarray
    index: dict[LayerSet, int]

    @classmethod
    def of(cls, sets: Sequence[LayerSet], total: int) -> Pool:
        """These sets of a model with ``total`` layers."""
        depths = np.array([layers.depth for layers in sets], dtype=np.int64)
        index = {layers: position for position, layers in enumerate(sets)}
        return cls(tuple(sets), depths, features(sets, total), np.arange(len(sets)), index)

    def where(self, chosen: np.ndarray) -> Pool:
        """Those of the sets for which ``chosen`` (sets,) is true."""
        sets = tuple(compress(self.sets, chosen.tolist()))
        return Pool(sets, self.depths[chosen], self.rows[chosen], self.numbers[chosen], self.index)

    def find(self, few: Collection[LayerSet]) -> Iterator[tuple[int, LayerSet]]:
        """The position in this pool of each of these sets that is in it."""
        for layers in few:
            number = self.index.get(layers)
            position = len(self.sets) if number is None else int(np.searchsorted(self.numbers, number))
            if position < len(self.sets) and self.numbers[position] == number:
                yield position, layers

    def among(self, few: Collection[LayerSet]) -> np.ndarray:
        """Which of the sets are among these few; (sets,)."""
        mask = np.zeros(len(self.sets), dtype=bool)
        mask[[position for position, _ in self.find(few)]] = True
        return mask
