"""What a search and its report need to know about confirmed layer sets, whoever evaluated them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Protocol

import numpy as np

from budget_search.core.errors import StudyError
from budget_search.core.formatting import plural
from budget_search.core.layers import LayerSet
from budget_search.core.trial import FULL_RUNG, TrialKey
from budget_search.layer_search.learning import Gain, gain_over_constant
from budget_search.layer_search.settings import History
from budget_search.layer_search.verdict import Judgement, judge
from budget_search.report.entries import PredictionChanges
from budget_search.storage.study_folder import StudyFolder


class Evidence(Protocol):
    """The results of confirmed models, compared on one split at a time. Scores are in points."""

    def examples(self, split: str) -> int:
        """The number of examples with a result of their own; 1 where only scores are known."""
        ...

    def compare(
        self, layers: LayerSet, split: str, confidence: float, among: Iterable[LayerSet] = ()
    ) -> Judgement | None:
        """A confirmed set against the baseline; sets in ``among`` help to estimate the noise of seeds. None where the
        split was not scored."""
        ...

    def gain(self, split: str) -> Gain | None:
        """What the baseline has learnt beyond the best constant answer; None where that is unknown."""
        ...

    def held_out_scores(self, layers: LayerSet) -> list[float]:
        """The primary metric on held_out, one value per seed; empty where it was not scored."""
        ...

    def means(self, layers: LayerSet) -> dict[str, float]:
        """Every metric on certification, the mean over seeds."""
        ...

    def changes(self, layers: LayerSet, split: str) -> PredictionChanges | None:
        """Where a confirmed set is worse than the baseline; None where predictions are unknown."""
        ...


class ObjectiveEvidence:
    """What an objective of the user's own returned: scores, and results per example where it gave them."""

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

    def compare(
        self, layers: LayerSet, split: str, confidence: float, among: Iterable[LayerSet] = ()
    ) -> Judgement | None:
        if split != "certification":
            return None
        baseline = self._of_all_seeds(self._full)
        arrays = {each: self._of_all_seeds(each) for each in dict.fromkeys([layers, *among])}
        for each, array in arrays.items():
            if array.shape != baseline.shape:
                raise StudyError(
                    f"layers {each} have {plural(array.shape[1], 'result')} per seed and the full model has "
                    f"{baseline.shape[1]}: per_example must hold the same examples for every layer set; mend the "
                    "objective and choose another study name"
                )
        return judge(baseline, arrays, confidence)[layers]

    def gain(self, split: str) -> Gain | None:
        if self._constant_score is None:
            return None
        baseline = self._of_all_seeds(self._full)
        return gain_over_constant(baseline, np.full(baseline.shape[1], self._constant_score))

    def held_out_scores(self, layers: LayerSet) -> list[float]:
        return []

    def means(self, layers: LayerSet) -> dict[str, float]:
        runs = [trial for seed in self._seeds if (trial := self._trials.find(TrialKey(layers, FULL_RUNG, seed)))]
        names = dict.fromkeys(name for trial in runs for name in trial.metrics)
        return {name: fmean(trial.metrics[name] for trial in runs if name in trial.metrics) for name in names}

    def changes(self, layers: LayerSet, split: str) -> PredictionChanges | None:
        return None

    def _of_all_seeds(self, layers: LayerSet) -> np.ndarray:
        """Shape (seeds, examples), or (seeds, 1) with the scores alone."""
        keys = [TrialKey(layers, FULL_RUNG, seed) for seed in self._seeds]
        paths = [self._folder.outputs(key, "certification") for key in keys]
        if all(path.exists() for path in paths):
            rows = [self._read(path) for path in paths]
            if len({len(row) for row in rows}) == 1:
                return np.stack(rows)
        return np.array([[trial.score] for key in keys if (trial := self._trials.find(key))], dtype=np.float64)


def _read(path: Path) -> np.ndarray:
    try:
        return np.asarray(np.load(path), dtype=np.float64)
    except (OSError, ValueError, EOFError) as error:
        raise StudyError(
            f"{path.name} in artifacts of the study is damaged ({type(error).__name__}); restore it, or choose another "
            "study name and search again"
        ) from error
