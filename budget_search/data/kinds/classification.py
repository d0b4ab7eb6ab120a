"""Classification of a text or a pair of texts: one of several labels per example."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from budget_search.data import metrics
from budget_search.data.kinds.kind import Answers, Kind, LabelCells, LabelsBySplit, Names, Truth
from budget_search.data.labels import read_classes


def read_labels(raw: LabelCells) -> tuple[LabelsBySplit, Names]:
    """Class numbers, int64 (examples,). Raises as ``read_classes`` does."""
    return read_classes(raw.single, raw.column, raw.names, raw.metric_named)


def strata(train: np.ndarray, classes: int) -> tuple[Callable[[np.ndarray], np.ndarray], int]:
    """The labels themselves."""
    return lambda labels: labels, classes


def measure(names: Sequence[str], outputs: np.ndarray, truth: Truth) -> dict[str, float]:
    return metrics.measure(names, outputs, truth.labels)


def contributions(metric: str, outputs: np.ndarray, truth: Truth) -> np.ndarray:
    return metrics.contributions(metric, outputs, truth.labels)


def constant_outputs(metric: str, truth: Truth) -> np.ndarray:
    return metrics.constant_outputs(metric, truth.labels, len(truth.names))


def mean_loss(outputs: np.ndarray, truth: Truth) -> float:
    return metrics.mean_loss(outputs, truth.labels, regression=False)


def collapsed(outputs: np.ndarray, truth: Truth) -> bool:
    return metrics.collapsed(outputs, truth.labels, regression=False)


def label_shares(truth: Truth) -> dict[str, float]:
    """The share of the rows with each label."""
    counts = np.bincount(truth.labels, minlength=len(truth.names))
    return {name: float(count / len(truth.labels)) for name, count in zip(truth.names, counts, strict=True)}


def answers(outputs: Sequence[np.ndarray], truth: Truth) -> Answers:
    return Answers(truth.labels, [metrics.predictions(each) for each in outputs], truth.names)


def probe_targets(labels: np.ndarray, classes: int) -> np.ndarray:
    """A column of zeros and ones for each class."""
    return np.eye(classes)[labels]


KIND = Kind(
    auto_model="AutoModelForSequenceClassification",
    problem_type="single_label_classification",
    pipeline="text-classification",
    read_labels=read_labels,
    strata=strata,
    measure=measure,
    contributions=contributions,
    constant_outputs=constant_outputs,
    mean_loss=mean_loss,
    collapsed=collapsed,
    label_shares=label_shares,
    answers=answers,
    probe_targets=probe_targets,
)
