"""Compare per-example outputs of confirmed models: paired comparisons for the verdict, and changed predictions.

``PairedOutputs`` reads them from disk; ``prediction_changes`` compares two models and is pure.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import combinations
from statistics import fmean
from typing import Literal

import numpy as np

from budget_search.core.errors import StudyError
from budget_search.core.layers import LayerSet
from budget_search.core.trial import FULL_RUNG, TrialKey
from budget_search.data.kinds.kind import Answers
from budget_search.data.tokenization import EncodedTask, decoder
from budget_search.layer_search.learning import Gain, gain_over_constant
from budget_search.layer_search.verdict import POINTS, Judgement, judge, judge_checkpoint
from budget_search.report.entries import Direction, Flip, PredictionChanges, Slice
from budget_search.storage.study_folder import StudyFolder

Texts = Callable[[int], tuple[str, ...]]
"""Maps the number of an example to its texts."""
By = Literal["label", "length"]

TWO_SIDED = 0.975
"""The one-sided level of a two-sided 95 % interval."""
MIN_SLICE_EXAMPLES = 20
MAX_LABELS = 8
LENGTH_SLICES = 4
SCORE_SLICES = 3
MAX_DIRECTIONS = 6
FLIPS_EACH_WAY = 3
MAX_TEXT_LENGTH = 200
"""Characters that a report shows of an example's text."""


class PairedOutputs:
    """The outputs of a study's confirmed models for these seeds, compared on one split at a time.

    Where a method takes ``seeds``, they are the seeds of the set; by default, those that all sets share.
    """

    def __init__(self, folder: StudyFolder, task: EncodedTask, total: int, seeds: tuple[int, ...]) -> None:
        self._folder = folder
        self._task = task
        self._seeds = seeds
        self._full = LayerSet.full(total)
        self._contributions = lru_cache(maxsize=None)(self._read_contributions)

    def examples(self, split: str) -> int:
        return self._task.splits[split].examples

    def example_weight(self, split: str) -> float:
        return self._task.example_weight(split)

    def compare(
        self,
        layers: LayerSet,
        split: str,
        confidence: float,
        seeds: tuple[int, ...] | None = None,
        among: Mapping[LayerSet, tuple[int, ...]] | None = None,
    ) -> Judgement:
        """A confirmed set against the baseline; sets in ``among``, with their seeds, help to estimate the noise of
        seeds."""
        others = {each: own for each, own in (among or {}).items() if each != layers}
        scores = [self._of_all_seeds(each, split, own).mean(axis=1) for each, own in others.items()]
        arrays = {layers: self._of_all_seeds(layers, split, seeds)}
        baseline, weight = self._of_all_seeds(self._full, split, seeds), self.example_weight(split)
        return judge(baseline, arrays, confidence, scores, weight)[layers]

    def compare_reference(self, reference: PairedOutputs, split: str, confidence: float) -> Judgement:
        """A reference model, with the same seeds on the same examples, against this baseline."""
        others = {reference._full: reference._of_all_seeds(reference._full, split)}
        baseline, weight = self._of_all_seeds(self._full, split), self.example_weight(split)
        return judge(baseline, others, confidence, weight=weight)[reference._full]

    def compare_checkpoint(self, layers: LayerSet, seed: int, split: str, confidence: float) -> Judgement:
        """The model that was fine-tuned with this seed, against the baseline's mean over seeds."""
        baseline, checkpoint = self._of_all_seeds(self._full, split), self._contributions(layers, split, seed)
        return judge_checkpoint(baseline, checkpoint, confidence, self.example_weight(split))

    def gain(self, split: str) -> Gain:
        """What the baseline has learnt beyond the best constant prediction."""
        constant = self._task.contributions(split, self._task.constant_outputs(split))
        return gain_over_constant(self._of_all_seeds(self._full, split), constant, self.example_weight(split))

    def metrics(self, layers: LayerSet, split: str, seeds: tuple[int, ...] | None = None) -> dict[str, list[float]]:
        """Every metric of the task in points, one value per seed; the primary one first."""
        outputs = [self._outputs(layers, split, seed) for seed in seeds or self._seeds]
        per_seed = [self._task.measure(split, each) for each in outputs]
        return {name: [metrics[name] for metrics in per_seed] for name in self._task.metrics}

    def held_out_scores(self, layers: LayerSet, seeds: tuple[int, ...] | None = None) -> list[float]:
        """The primary metric on held_out, one value per seed."""
        return self.metrics(layers, "held_out", seeds)[self._task.metric]

    def means(self, layers: LayerSet, seeds: tuple[int, ...] | None = None) -> dict[str, float]:
        """Means over the seeds: every metric on certification, the primary one on further held-out splits."""
        means = {name: fmean(values) for name, values in self.metrics(layers, "certification", seeds).items()}
        for split in self._task.held_out_splits:
            if split != "held_out":
                means[f"{self._task.metric}_{split}"] = fmean(self.metrics(layers, split, seeds)[self._task.metric])
        return means

    def changes(self, layers: LayerSet, split: str) -> PredictionChanges:
        """Where a confirmed set is worse than the baseline, and which of its predictions differ."""
        examples = self._task.splits[split]
        read = decoder(self._folder.tokenizer)

        def texts(number: int) -> tuple[str, ...]:
            tokens = examples.tokens[slice(*examples.example_offsets[number : number + 2])]
            return tuple(textwrap.shorten(text, MAX_TEXT_LENGTH, placeholder=" ...") for text in read(tokens))

        outputs = [self._outputs(each, split, seed) for each in (self._full, layers) for seed in self._seeds]
        answers = self._task.kind.answers(outputs, self._task.truth(split))
        return prediction_changes(answers, examples.lengths, split=split, texts=texts)

    def _of_all_seeds(self, layers: LayerSet, split: str, seeds: tuple[int, ...] | None = None) -> np.ndarray:
        return np.stack([self._contributions(layers, split, seed) for seed in seeds or self._seeds])

    def _read_contributions(self, layers: LayerSet, split: str, seed: int) -> np.ndarray:
        return self._task.contributions(split, self._outputs(layers, split, seed))

    def _outputs(self, layers: LayerSet, split: str, seed: int) -> np.ndarray:
        path = self._folder.outputs(TrialKey(layers, FULL_RUNG, seed), split)
        try:
            return np.asarray(np.load(path))
        except (OSError, ValueError, EOFError) as error:
            raise StudyError(
                f"{path.name} in artifacts of the study {self._folder.path.name} is damaged or gone "
                f"({type(error).__name__}); restore it, or move the study's folder away and search again"
            ) from error


def prediction_changes(answers: Answers, lengths: np.ndarray, *, split: str, texts: Texts) -> PredictionChanges:
    """Compare the predictions of two models: the first half of the answers is the baseline's, one array per seed, the
    second half the smaller model's, with seeds in the same order. ``lengths`` (examples,) are in tokens.
    """
    labels, label_names = answers.labels, answers.names
    regression = not label_names
    before, after = np.split(np.stack(answers.models), 2)
    # An error as large as the range of the labels counts as much as a wrong label.
    unit = -float(np.ptp(labels)) / POINTS if regression else 1.0
    quality_before, quality_after = (_quality(predicted, labels, unit) for predicted in (before, after))
    right_before, right_after = before == labels, after == labels
    changed = _differences(before, after, regression)
    pairs = [_differences(one, other, regression).mean() for one, other in combinations(before, 2)]
    return PredictionChanges(
        split=split,
        examples=len(labels),
        regression=regression,
        slices=tuple(
            _slice(by, name, quality_before[:, mask], quality_after[:, mask], unit)
            for by, name, mask in _groups(labels, lengths, label_names)
            if mask.sum() >= MIN_SLICE_EXAMPLES
        ),
        churn=float(changed.mean()),
        churn_between_seeds=float(np.mean(pairs)) if pairs else None,
        lost=None if regression else float((right_before & ~right_after).mean()),
        won=None if regression else float((~right_before & right_after).mean()),
        directions=() if regression else tuple(_directions(before, after, label_names)),
        flips=tuple(_flips(before, after, labels, label_names, texts)),
    )


def _quality(predicted: np.ndarray, labels: np.ndarray, unit: float) -> np.ndarray:
    """Per seed and example, in points, larger is better; a negative ``unit`` stands for a regression task."""
    return np.abs(predicted - labels) / unit if unit < 0 else POINTS * (predicted == labels)


def _differences(before: np.ndarray, after: np.ndarray, regression: bool) -> np.ndarray:
    """Per seed and example: 1 for another label and 0 for the same, or the absolute difference of two scores."""
    return np.asarray(np.abs(before - after) if regression else before != after, dtype=np.float64)


def _groups(
    labels: np.ndarray, lengths: np.ndarray, label_names: Sequence[str]
) -> Iterator[tuple[By, str, np.ndarray]]:
    """Groups of examples, each with its kind, its name and a mask: by label or range of scores, then by length."""
    if label_names:
        counts = np.bincount(labels, minlength=len(label_names))
        common = np.argsort(-counts, kind="stable")[:MAX_LABELS]
        yield from (("label", label_names[label], labels == label) for label in map(int, sorted(common)))
    else:
        yield from (
            ("label", f"{low:g} to {high:g}", mask) for low, high, mask in _quantile_ranges(labels, SCORE_SLICES)
        )
    yield from (
        ("length", f"{low:g} to {high:g} tokens", mask) for low, high, mask in _quantile_ranges(lengths, LENGTH_SLICES)
    )


def _quantile_ranges(values: np.ndarray, count: int) -> Iterator[tuple[float, float, np.ndarray]]:
    """Up to ``count`` ranges of about as many examples each: the lowest value, the highest value, and a mask."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, count + 1)[1:-1], method="higher"))
    ranges = np.searchsorted(edges, values, side="right")
    for number in np.unique(ranges):
        mask = ranges == number
        yield float(values[mask].min()), float(values[mask].max()), mask


def _slice(by: By, name: str, before: np.ndarray, after: np.ndarray, unit: float) -> Slice:
    """``before`` and ``after`` are seeds x examples in points, larger is better; a point is ``unit`` of the label."""
    any_set = LayerSet((0,), 1)
    judged = judge(before, {any_set: after}, TWO_SIDED)[any_set]
    width = None if judged.upper is None else judged.upper - judged.degradation
    return Slice(
        by=by,
        name=name,
        examples=before.shape[1],
        baseline=unit * float(before.mean()),
        score=unit * float(after.mean()),
        worse=abs(unit) * judged.degradation,
        low=None if width is None else abs(unit) * (judged.degradation - width),
        high=None if width is None else abs(unit) * (judged.degradation + width),
    )


def _directions(before: np.ndarray, after: np.ndarray, label_names: Sequence[str]) -> list[Direction]:
    """The most frequent changes of label first."""
    changed = before != after
    ways, counts = np.unique(np.stack([before[changed], after[changed]]), axis=1, return_counts=True)
    most = np.argsort(-counts, kind="stable")[:MAX_DIRECTIONS]
    pairs = zip(*ways[:, most].tolist(), strict=True)
    shares = (counts[most] / before.size).tolist()
    return [Direction(label_names[a], label_names[b], share) for (a, b), share in zip(pairs, shares, strict=True)]


def _flips(
    before: np.ndarray, after: np.ndarray, labels: np.ndarray, label_names: Sequence[str], texts: Texts
) -> Iterator[Flip]:
    """A few examples that went wrong and a few that came right with every seed; for scores, the largest changes."""
    if label_names:
        right_before, right_after = before == labels, after == labels
        went_wrong = np.flatnonzero((right_before & ~right_after).all(axis=0))
        came_right = np.flatnonzero((~right_before & right_after).all(axis=0))
        chosen = [*went_wrong[:FLIPS_EACH_WAY], *came_right[:FLIPS_EACH_WAY]]
    else:
        further = (np.abs(after - labels) - np.abs(before - labels)).mean(axis=0)
        order = np.argsort(-further, kind="stable")
        chosen = [*order[:FLIPS_EACH_WAY], *order[::-1][:FLIPS_EACH_WAY]]
    for example in map(int, chosen):
        if label_names:
            # Wrong predictions may differ between seeds; the first seed stands for all.
            shown = [label_names[int(model[example])] for model in (labels, before[0], after[0])]
        else:
            means = (model[:, example].mean() for model in (before, after))
            shown = [f"{value:.3g}" for value in (labels[example], *means)]
        yield Flip(texts(example), *shown)
