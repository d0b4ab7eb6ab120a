"""The schedule of a fine-tune: the examples and the learning rate of each step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice

import numpy as np

from budget_search.core.config import Recipe
from budget_search.engine.batches import training_order


@dataclass(frozen=True)
class Schedule:
    """One entry per step: example numbers, int64 (at most the batch size,), and the learning rate."""

    batches: tuple[np.ndarray, ...]
    rates: tuple[float, ...]

    @property
    def steps(self) -> int:
        return len(self.batches)

    @classmethod
    def of(cls, recipe: Recipe, lengths: np.ndarray, rung: float, seed: int) -> Schedule:
        """A fraction ``rung`` of the recipe's steps, with a complete warm-up and decay of its own."""
        steps = recipe.steps(len(lengths), rung)
        order = training_order(lengths, recipe.batch_size, seed)
        return cls.over(tuple(islice(order, steps)), recipe)

    @classmethod
    def over(cls, batches: tuple[np.ndarray, ...], recipe: Recipe) -> Schedule:
        """These batches in this order, at the recipe's learning rates."""
        warmup = math.ceil(recipe.warmup * len(batches))
        shares = (linear_warmup_and_decay(step, warmup, len(batches)) for step in range(len(batches)))
        return cls(batches, tuple(recipe.lr * share for share in shares))


def linear_warmup_and_decay(step: int, warmup: int, steps: int) -> float:
    """The share of the peak learning rate at a step (0-based), as in transformers' get_linear_schedule_with_warmup."""
    if step < warmup:
        return step / warmup
    return (steps - step) / max(1, steps - warmup)
