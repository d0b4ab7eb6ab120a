"""Multi-label classification: any number of labels per text or pair of texts, each predicted independently."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from budget_search.core.errors import UsageError
from budget_search.data import metrics
from budget_search.data.kinds.kind import Answers, Kind, LabelCells, LabelsBySplit, Names, Truth
from budget_search.data.labels import format_names, is_missing, label_text, numbers_of, refuse_missing, sorted_names

_FLAGS = {"0": False, "1": True, "false": False, "true": True}


def read_labels(raw: LabelCells) -> tuple[LabelsBySplit, Names]:
    """Zeros and ones, float32 (examples, labels), from one column of lists or from one column of 0 and 1 per label.

    A list holds names or numbers of labels, or a 0 or 1 for every label. Raises UsageError if a cell is missing or of
    another form, if a label does not occur in train, or if there are fewer than two labels.
    """
    if len(raw.columns) > 1:
        coded = {split: _flags(rows, raw.columns, split) for split, rows in raw.cells.items()}
        names = raw.columns
    else:
        coded, names = _from_lists(raw)
    for split, values in coded.items():
        if (values == values[0]).all():
            raise UsageError(f"--label-column {raw.column}: all {len(values)} examples in {split} have the same labels")
    return coded, names


def _flags(rows: Iterable[Sequence[Any]], columns: Sequence[str], split: str) -> np.ndarray:
    coded = [[_FLAGS.get(label_text(cell).lower()) for cell in row] for row in rows]
    for number, (row, cells) in enumerate(zip(coded, rows, strict=True), start=1):
        if None in row:
            place = row.index(None)
            what = "missing" if is_missing(cells[place]) else repr(cells[place])
            raise UsageError(
                f"--label-column {columns[place]}: the label of example {number} in {split} is {what}; with several "
                "label columns each holds 0 or 1 (or false or true)"
            )
    return np.array(coded, dtype=np.float32)


def _from_lists(raw: LabelCells) -> tuple[LabelsBySplit, Names]:
    column, cells = raw.column, raw.single
    refuse_missing(cells, column)
    for split, values in cells.items():
        other = next((value for value in values if not isinstance(value, list | tuple)), None)
        if other is not None:
            raise UsageError(
                f"--label-column {column}: {other!r} in {split} is not a list of labels; give jsonl or parquet with "
                "lists, or one column of 0 and 1 per label: --label-column a,b,c"
            )
    texts = {split: [[label_text(label) for label in labels] for labels in values] for split, values in cells.items()}
    if width := _flags_each(texts):
        names = raw.names if len(raw.names) == width else tuple(map(str, range(width)))
        return {split: np.array(rows, dtype=np.float32) for split, rows in texts.items()}, names
    names = raw.names or sorted_names({label for labels in texts["train"] for label in labels})
    if len(names) < 2:
        raise UsageError(f"--label-column {column} holds the labels {format_names(names) or 'none'}; two are needed")
    numbers = numbers_of(names)
    coded = {}
    for split, rows in texts.items():
        unknown = next((label for labels in rows for label in labels if label not in numbers), None)
        if unknown is not None:
            raise UsageError(
                f"--label-column {column}: the label {unknown!r} in {split} is not among the labels; "
                f"allowed: {format_names(names)}"
            )
        coded[split] = np.zeros((len(rows), len(names)), dtype=np.float32)
        for row, labels in zip(coded[split], rows, strict=True):
            row[[numbers[label] for label in labels]] = 1
    return coded, names


def _flags_each(texts: dict[str, list[list[str]]]) -> int:
    """How many labels the lists hold a 0 or 1 for; 0 if they hold labels, which no list names twice."""
    rows = [row for each in texts.values() for row in each]
    widths = {len(row) for row in rows}
    if len(widths) > 1 or not {label for row in rows for label in row} <= {"0", "1"}:
        return 0
    return widths.pop() if any(len(set(row)) < len(row) for row in rows) else 0


def strata(train: np.ndarray, classes: int) -> tuple[Callable[[np.ndarray], np.ndarray], int]:
    """The label of an example that is rarest in train, or none; so rare labels are in every split."""
    rarest_first = np.argsort(train.sum(axis=0), kind="stable")

    def of(labels: np.ndarray) -> np.ndarray:
        ordered = labels[:, rarest_first] > 0
        return np.where(ordered.any(axis=1), rarest_first[ordered.argmax(axis=1)], classes)

    return of, classes + 1


def measure(names: Sequence[str], outputs: np.ndarray, truth: Truth) -> dict[str, float]:
    """F1 over all labels of all examples (micro), or the mean of every label's F1 (macro), as in scikit-learn.

    A label is predicted if its logit is above 0. The F1 of a label that is neither predicted nor true is 0. Raises
    ValueError if an output is not finite.
    """
    metrics.require_finite(outputs)
    return {name: float(100 * metrics.ratio(*_f1_terms(name, outputs, truth)).mean()) for name in names}


def contributions(metric: str, outputs: np.ndarray, truth: Truth) -> np.ndarray:
    """F1 is a ratio of means over examples; a mean of such ratios has the mean of their contributions."""
    return np.asarray(100 * metrics.ratio_contributions(*_f1_terms(metric, outputs, truth)).mean(axis=1))


def _f1_terms(metric: str, outputs: np.ndarray, truth: Truth) -> tuple[np.ndarray, np.ndarray]:
    """Twice the right labels, and the predicted plus the true ones: (examples, labels), or (examples, 1) for micro."""
    predicted, labelled = outputs > 0, truth.labels > 0
    right, both = 2.0 * (predicted & labelled), predicted.astype(np.float64) + labelled
    if metric == "macro_f1":
        return right, both
    return right.sum(axis=1, keepdims=True), both.sum(axis=1, keepdims=True)


def constant_outputs(metric: str, truth: Truth) -> np.ndarray:
    """The best set of labels for all: the most frequent ones for micro-F1, every label for macro-F1."""
    counts = truth.labels.sum(axis=0, dtype=np.float64)
    frequent_first = np.argsort(-counts, kind="stable")
    many = len(counts)
    if metric == "micro_f1":
        sizes = np.arange(1, many + 1)
        scores = 2 * np.cumsum(counts[frequent_first]) / (len(truth.labels) * sizes + counts.sum())
        many = int(np.argmax(scores)) + 1
    outputs = np.full(truth.labels.shape, -1.0, dtype=np.float32)
    outputs[:, frequent_first[:many]] = 1.0
    return outputs


def mean_loss(outputs: np.ndarray, truth: Truth) -> float:
    """Mean binary cross-entropy in nats, per label of an example."""
    logits = outputs.astype(np.float64)
    return float(np.mean(np.logaddexp(0, logits) - logits * truth.labels))


def collapsed(outputs: np.ndarray, truth: Truth) -> bool:
    """Whether (nearly) all examples get the same labels."""
    said = answers([outputs], truth)
    return metrics.nearly_constant(said.models[0], said.labels)


def label_shares(truth: Truth) -> dict[str, float]:
    """The share of the examples that have each label."""
    return dict(zip(truth.names, truth.labels.mean(axis=0, dtype=np.float64).tolist(), strict=True))


def answers(outputs: Sequence[np.ndarray], truth: Truth) -> Answers:
    """Every set of labels that occurs is an answer of its own."""
    stacked = np.stack([truth.labels > 0, *(each > 0 for each in outputs)])
    sets, numbers = np.unique(stacked.reshape(-1, stacked.shape[-1]), axis=0, return_inverse=True)
    labels, *models = numbers.reshape(stacked.shape[:2])
    names = tuple(", ".join(np.array(truth.names)[chosen]) or "none" for chosen in sets)
    return Answers(labels, models, names)


def probe_targets(labels: np.ndarray, classes: int) -> np.ndarray:
    """1 for each label that an example has and -1 for the others."""
    return np.asarray(2.0 * labels - 1.0)


KIND = Kind(
    auto_model="AutoModelForSequenceClassification",
    problem_type="multi_label_classification",
    pipeline="text-classification",
    pipeline_options=", top_k=None",
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
