"""The interface of a user's objective: its arguments and its return values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from budget_search.core.layers import LayerSet


@dataclass(frozen=True)
class Outcome:
    """One evaluation of a layer set by an objective.

    ``score`` is in points, higher is better: multiply a score between 0 and 1 by 100, negate an error. ``per_example``
    holds the contribution of every example of the split to the score, in points and always in the same order; their
    mean is the score (for accuracy: 100 or 0). ``metrics`` are further figures for the report; ``loss``, the mean loss
    per example, also guides the search. ``seconds`` is the training time; None counts the whole call.
    """

    score: float
    per_example: Sequence[float] | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None


@dataclass(frozen=True)
class Measured:
    """The size and the speed of one layer set's model: ``latency_ms`` for ``batch`` examples at once; None: unknown."""

    parameters: int | None = None
    latency_ms: float | None = None
    batch: int = 1


Objective = Callable[[LayerSet, int, float, str], "Outcome | float"]
"""``objective(kept, seed, fraction, split)``: train the model that keeps these layers, with this seed and this fraction
of the whole training, and score it on ``split`` (``selection`` or ``certification``)."""

Measure = Callable[[LayerSet], Measured]
