"""Regression: one score per text or pair of texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from budget_search.data import metrics
from budget_search.data.kinds import classification
from budget_search.data.kinds.kind import Answers, LabelCells, LabelsBySplit, Names, Truth
from budget_search.data.labels import read_scores


def read_labels(raw: LabelCells) -> tuple[LabelsBySplit, Names]:
    """Scores, float32 (examples,), and no names. Raises as ``read_scores`` does."""
    return read_scores(raw.single, raw.column), ()


def strata(train: np.ndarray, classes: int) -> tuple[Callable[[np.ndarray], np.ndarray], int]:
    """The scores themselves, which are put into bins."""
    return lambda labels: labels, 0


def mean_loss(outputs: np.ndarray, truth: Truth) -> float:
    return metrics.mean_loss(outputs, truth.labels, regression=True)


def collapsed(outputs: np.ndarray, truth: Truth) -> bool:
    return metrics.collapsed(outputs, truth.labels, regression=True)


def label_shares(truth: Truth) -> dict[str, float]:
    """Scores have none."""
    return {}


def answers(outputs: Sequence[np.ndarray], truth: Truth) -> Answers:
    return Answers(truth.labels, [metrics.predictions(each) for each in outputs], ())


def probe_targets(labels: np.ndarray, classes: int) -> np.ndarray:
    """The scores, (rows, 1)."""
    return labels[:, None].astype(np.float64)


KIND = replace(
    classification.KIND,
    problem_type="regression",
    read_labels=read_labels,
    strata=strata,
    mean_loss=mean_loss,
    collapsed=collapsed,
    label_shares=label_shares,
    answers=answers,
    probe_targets=probe_targets,
)
