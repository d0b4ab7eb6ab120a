"""What a smaller model answers otherwise than the baseline, as the report keeps it: slices, flips, examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Slice:
    """Examples that have their label or about their length in common.

    ``baseline`` and ``score`` are means over seeds of the share that was answered rightly, in points, or for a
    regression task of the absolute error, in units of the label. ``worse`` is by how much the smaller model does
    worse (fewer points, a larger error), from ``low`` to ``high`` with 95 % confidence; None where one seed shows
    no spread.
    """

    by: Literal["label", "length"]
    name: str
    examples: int
    baseline: float
    score: float
    worse: float
    low: float | None
    high: float | None

    @property
    def title(self) -> str:
        return f"label {self.name}" if self.by == "label" else self.name


@dataclass(frozen=True)
class Direction:
    """A share of all examples: those that the baseline called ``before`` and the smaller model calls ``after``."""

    before: str
    after: str
    share: float


@dataclass(frozen=True)
class Flip:
    """An example that the baseline and the smaller model answer otherwise, whatever the seed.

    ``texts`` are shortened and as the tokenizer gives them back; ``label`` is the right answer.
    """

    texts: tuple[str, ...]
    label: str
    before: str
    after: str


@dataclass(frozen=True)
class Changes:
    """Where a smaller model got worse, and how often it answers otherwise than the baseline with the same seed.

    ``churn`` is the share of the examples whose answer differs, the mean over seeds; ``churn_between_seeds`` that of
    two baselines that differ in their seed alone: what would change anyhow. ``lost`` of ``churn`` went from right to
    wrong, ``won`` from wrong to right. For a regression task the first two are the mean absolute difference of two
    predictions, in units of the label, and the last two None.
    """

    split: str
    examples: int
    regression: bool
    slices: tuple[Slice, ...]
    churn: float
    churn_between_seeds: float | None
    lost: float | None
    won: float | None
    directions: tuple[Direction, ...] = ()
    flips: tuple[Flip, ...] = ()
