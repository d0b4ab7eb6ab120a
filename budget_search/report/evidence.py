"""The interface to results of confirmed layer sets, for the search and its report, with any evaluator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Protocol

import numpy as np

from budget_search.core.errors import StudyError
from budget_search.core.formatting import plural
from budget_search.core.layers import LayerSet
from budget_search.core.trial import FULL_RUNG, Trial, TrialKey
from budget_search.layer_search.learning import Gain, gain_over_constant
from budget_search.layer_search.settings import History
from budget_search.layer_search.verdict import POINTS, Judgement, judge
from budget_search.report.entries import PredictionChanges
from budget_search.storage.study_folder import StudyFolder


class Evidence(Protocol):
    """The results of confirmed models, compared on one split at a time. Scores are in points.

    Where a method takes ``seeds``, they are the seeds of the set; by default, those that all sets share.
    """

    def examples(self, split: str) -> int:
        """The number of examples with individual results; 1 if only scores are known."""
        ...

    def example_weight(self, split: str) -> float:
        """The least that an example of the rarest class contributes to a score, in points."""
        ...

    def compare(
        self,
        layers: LayerSet,
        split: str,
        confidence: float,
        seeds: tuple[int, ...] | None = None,
        among: Mapping[LayerSet, tuple[int, ...]] | None = None,
    ) -> Judgement | None:
        """A confirmed set against the baseline; sets in ``among``, with their seeds, help to estimate the noise of
        seeds. None where the split was not scored."""
        ...

    def gain(self, split: str) -> Gain | None:
        """What the baseline has learnt beyond the best constant prediction; None where that is unknown."""
        ...

    def held_out_scores(self, layers: LayerSet, seeds: tuple[int, ...] | None = None) -> list[float]:
        """The primary metric on held_out, one value per seed; empty where it was not scored."""
        ...

    def means(self, layers: LayerSet, seeds: tuple[int, ...] | None = None) -> dict[str, float]:
        """Every metric on certification, the mean over seeds."""
        ...

    def changes(self, layers: LayerSet, split: str) -> PredictionChanges | None:
        """Where a confirmed set is worse than the baseline; None where predictions are unknown."""
        ...


class ObjectiveEvidence:
    """The results returned by a user's objective: scores, and results per example if there are any."""

    def __init__(
        self, folder: StudyFolder, trials: History, total: int, seeds: Sequence[int], constant_score: float | None
    ) -> None:
        self._folder = folder
        self._trials = trials
        self._full = LayerSet.full(total)
        self._seeds = seeds
        self._constant_score = constant_score
        self._read = lru_cache(maxsize=None)(_read)

    def examples(self, split: str) -> int:
        return self._of_all_seeds(self._full).shape[1]

    def example_weight(self, split: str) -> float:
        return POINTS  # The labels are unknown.

    def compare(
        self,
        layers: LayerSet,
        split: str,
        confidence: float,
        seeds: tuple[int, ...] | None = None,
        among: Mapping[LayerSet, tuple[int, ...]] | None = None,
    ) -> Judgement | None:
        if split != "certification":
            return None
        baseline, own = (self._of_all_seeds(each, seeds) for each in (self._full, layers))
        if own.shape != baseline.shape:
            raise StudyError(
                f"layers {layers} have {plural(own.shape[1], 'result')} per seed and the full model has "
                f"{baseline.shape[1]}: per_example must hold the same examples for every layer set; fix the objective "
                "and choose another study name"
            )
        others = [self._scores(each, other) for each, other in (among or {}).items() if each != layers]
        return judge(baseline, {layers: own}, confidence, others)[layers]

    def gain(self, split: str) -> Gain | None:
        if self._constant_score is None:
            return None
        baseline = self._of_all_seeds(self._full)
        return gain_over_constant(baseline, np.full(baseline.shape[1], self._constant_score))

    def held_out_scores(self, layers: LayerSet, seeds: tuple[int, ...] | None = None) -> list[float]:
        return []

    def means(self, layers: LayerSet, seeds: tuple[int, ...] | None = None) -> dict[str, float]:
        runs = self._runs(layers, seeds)
        names = dict.fromkeys(name for trial in runs for name in trial.metrics)
        return {name: fmean(trial.metrics[name] for trial in runs if name in trial.metrics) for name in names}

    def changes(self, layers: LayerSet, split: str) -> PredictionChanges | None:
        return None

    def _runs(self, layers: LayerSet, seeds: Sequence[int] | None = None) -> list[Trial]:
        keys = [TrialKey(layers, FULL_RUNG, seed) for seed in seeds or self._seeds]
        return [trial for key in keys if (trial := self._trials.find(key))]

    def _scores(self, layers: LayerSet, seeds: Sequence[int] | None = None) -> np.ndarray:
        """Shape (seeds,)."""
        return np.array([trial.score for trial in self._runs(layers, seeds)], dtype=np.float64)

    def _of_all_seeds(self, layers: LayerSet, seeds: Sequence[int] | None = None) -> np.ndarray:
        """Shape (seeds, examples), or (seeds, 1) with the scores alone."""
        paths = [self._folder.outputs(trial.key, "certification") for trial in self._runs(layers, seeds)]
        rows = [self._read(path) for path in paths if path.exists()]
        if len(rows) == len(paths) and len(set(map(len, rows))) == 1:
            return np.stack(rows)
        return self._scores(layers, seeds)[:, None]


def _read(path: Path) -> np.ndarray:
    try:
        return np.asarray(np.load(path), dtype=np.float64)
    except (OSError, ValueError, EOFError) as error:
        raise StudyError(
            f"{path.name} in artifacts of the study is damaged ({type(error).__name__}); restore it, or choose another "
            "study name and search again"
        ) from error
