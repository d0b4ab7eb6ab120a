"""Per-example results of a study's confirmations, as the verdict needs them; read from disk, without torch."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from functools import lru_cache
from statistics import fmean

import numpy as np

from budget_search.core.errors import StudyError
from budget_search.core.layers import LayerSet
from budget_search.core.trial import FULL_RUNG, TrialKey
from budget_search.data.metrics import contributions, measure
from budget_search.data.tokenization import EncodedTask, decoder
from budget_search.layer_search.verdict import Judgement, judge, judge_checkpoint
from budget_search.report.entries import PredictionChanges
from budget_search.report.prediction_churn import changes
from budget_search.storage.study_folder import StudyFolder

# Characters that a report shows of an example's text.
LONGEST_TEXT = 200


class PairedOutputs:
    """What the outputs of confirmed models say about a split, for these seeds."""

    def __init__(self, folder: StudyFolder, task: EncodedTask, total: int, seeds: tuple[int, ...]) -> None:
        self._folder = folder
        self._task = task
        self._seeds = seeds
        self._full = LayerSet.full(total)
        self._contributions = lru_cache(maxsize=None)(self._read_contributions)

    def examples(self, split: str) -> int:
        return self._task.splits[split].examples

    def compare(self, layers: LayerSet, split: str, confidence: float, among: Iterable[LayerSet] = ()) -> Judgement:
        """A confirmed set against the baseline on a split; ``among`` are sets whose seeds show the noise as well."""
        sets = dict.fromkeys([layers, *among])
        arrays = {each: self._of_all_seeds(each, split) for each in sets}
        return judge(self._of_all_seeds(self._full, split), arrays, confidence)[layers]

    def compare_reference(self, reference: PairedOutputs, split: str, confidence: float) -> Judgement:
        """Another model's full runs, with the same seeds on the same examples, against this baseline."""
        theirs = reference._of_all_seeds(reference._full, split)
        return judge(self._of_all_seeds(self._full, split), {reference._full: theirs}, confidence)[reference._full]

    def compare_checkpoint(self, layers: LayerSet, seed: int, split: str, confidence: float) -> Judgement:
        """The one model that this seed made of a set, against the mean of the baseline's."""
        return judge_checkpoint(
            self._of_all_seeds(self._full, split), self._contributions(layers, split, seed), confidence
        )

    def metrics(self, layers: LayerSet, split: str) -> dict[str, list[float]]:
        """Every metric of the task in points, one value per seed; the primary one first."""
        names = (self._task.metric, *self._task.also)
        per_seed = [measure(names, self._outputs(layers, split, seed), self._labels(split)) for seed in self._seeds]
        return {name: [metrics[name] for metrics in per_seed] for name in names}

    def means(self, layers: LayerSet) -> dict[str, float]:
        """Every metric on certification, and the primary one on held-out splits beyond the main one; over the seeds."""
        found = {name: fmean(values) for name, values in self.metrics(layers, "certification").items()}
        for split in self._task.held_out_splits:
            if split != "held_out":
                found[f"{self._task.metric}_{split}"] = fmean(self.metrics(layers, split)[self._task.metric])
        return found

    def changes(self, layers: LayerSet, split: str) -> PredictionChanges:
        """Where a confirmed set got worse than the baseline, and what it answers otherwise."""
        examples = self._task.splits[split]
        read = decoder(self._folder.tokenizer)

        def texts(number: int) -> tuple[str, ...]:
            tokens = examples.tokens[examples.offsets[number] : examples.offsets[number + 1]]
            return tuple(textwrap.shorten(text, LONGEST_TEXT, placeholder=" ...") for text in read(tokens))

        return changes(
            [self._outputs(self._full, split, seed) for seed in self._seeds],
            [self._outputs(layers, split, seed) for seed in self._seeds],
            examples.labels,
            examples.lengths,
            label_names=self._task.label_names,
            split=split,
            texts=texts,
        )

    def _of_all_seeds(self, layers: LayerSet, split: str) -> np.ndarray:
        return np.stack([self._contributions(layers, split, seed) for seed in self._seeds])

    def _read_contributions(self, layers: LayerSet, split: str, seed: int) -> np.ndarray:
        return contributions(self._task.metric, self._outputs(layers, split, seed), self._labels(split))

    def _outputs(self, layers: LayerSet, split: str, seed: int) -> np.ndarray:
        path = self._folder.outputs(TrialKey(layers, FULL_RUNG, seed), split)
        try:
            return np.asarray(np.load(path))
        except (OSError, ValueError, EOFError) as error:
            raise StudyError(
                f"{path.name} in artifacts of the study {self._folder.path.name} is damaged or gone "
                f"({type(error).__name__}); restore it, or begin anew: move the study's folder away"
            ) from error

    def _labels(self, split: str) -> np.ndarray:
        return self._task.splits[split].labels
