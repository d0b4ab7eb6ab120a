"""Parse a label column into class numbers with names, or into scores. All other labels are rejected."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from budget_search.core.config import REGRESSION_METRICS
from budget_search.core.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

MOST_DECIMAL_CLASSES = 10
"""Without --metric, decimal labels that are whole numbers (1.0, 2.0) are classes if there are at most so many."""
_WHOLE = re.compile(r"[+-]?\d+", flags=re.ASCII)


def read_scores(columns: Mapping[str, Sequence[Any]], column: str) -> dict[str, np.ndarray]:
    """Labels as scores by split, float32 (examples,).

    Raises UsageError if a label is missing or not a number, or if all labels of a split are equal.
    """
    import numpy as np

    _refuse_lists(columns, column)
    refuse_missing(columns, column)
    parsed = {}
    for split, values in columns.items():
        numbers = [_parse_number(value) for value in values]
        if None in numbers:
            wrong = values[numbers.index(None)]
            raise UsageError(
                f"--label-column {column}: {wrong!r} in {split} is not a number, which a correlation needs; "
                f"for classes use --metric accuracy, f1 or matthews"
            )
        parsed[split] = np.array(numbers, dtype=np.float32)
        if len(set(numbers)) == 1:
            raise UsageError(
                f"--label-column {column}: all {len(numbers)} labels in {split} are {values[0]!r}; "
                f"a correlation needs scores that differ"
            )
    return parsed


def read_classes(
    columns: Mapping[str, Sequence[Any]], column: str, names: Sequence[str] = (), metric_named: bool = True
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Labels as class numbers by split, int64 (examples,), and the class names in the order of the numbers.

    With ``names``, a label is a name or its position. Without, the class names are the labels of train, sorted (whole
    numbers by value). Raises UsageError if a label is missing, hidden (-1), not in train or not a class, or if there
    are fewer than two classes.
    """
    import numpy as np

    _refuse_lists(columns, column)
    refuse_missing(columns, column)
    label_texts = {split: [label_text(value) for value in values] for split, values in columns.items()}
    for split, texts in label_texts.items():
        refuse_hidden(texts, column, split)
    _refuse_decimals(columns, column, metric_named)
    names = tuple(names) or _class_names(label_texts["train"], column)
    numbers = numbers_of(names)
    for split, texts in label_texts.items():
        unknown = Counter(text for text in texts if text not in numbers)
        if unknown:
            raise UsageError(
                f"--label-column {column}: {unknown.total()} labels in {split} are not among the classes, "
                f"such as {next(iter(unknown))!r}; allowed: {format_names(names)}"
            )
    coded = {split: np.array([numbers[text] for text in texts], dtype=np.int64) for split, texts in label_texts.items()}
    for split, values in coded.items():
        if len(values) and (values == values[0]).all():
            raise UsageError(
                f"--label-column {column}: all {len(values)} labels in {split} are {names[values[0]]!r}; "
                f"at least two classes are needed"
            )
    return coded, names


def check_metrics(metrics: Sequence[str], label_names: Sequence[str]) -> None:
    """Raises UsageError if a metric does not fit the labels; no ``label_names`` means scores."""
    for metric in metrics:
        if bool(label_names) == (metric in REGRESSION_METRICS):
            raise UsageError(
                f"--metric {metric} does not fit labels that are {'classes' if label_names else 'numbers'}"
            )
        if metric == "f1" and len(label_names) != 2:
            raise UsageError(
                f"--metric f1 needs two classes, the second being the positive one; there are {len(label_names)}: "
                f"{format_names(label_names)}. Use accuracy or matthews"
            )


def sorted_names(distinct: Collection[str]) -> tuple[str, ...]:
    """Label names in order, whole numbers by value."""
    if all(_WHOLE.fullmatch(text) for text in distinct):
        return tuple(sorted(distinct, key=lambda text: (int(text), text)))
    return tuple(sorted(distinct))


def numbers_of(names: Sequence[str]) -> dict[str, int]:
    """The number of each name, and of each position unless the names are numbers themselves."""
    numbers = {name: number for number, name in enumerate(names)}
    if not all(_WHOLE.fullmatch(name) for name in names):
        numbers |= {str(number): number for number in range(len(names)) if str(number) not in numbers}
    return numbers


def _class_names(texts: Sequence[str], column: str) -> tuple[str, ...]:
    distinct = set(texts)
    if len(distinct) > 2 and len(distinct) > len(texts) / 2:
        raise UsageError(
            f"--label-column {column} holds {len(distinct)} different labels in {len(texts)} examples, such as "
            f"{texts[0]!r}: not classes. Is it the right column? To predict numbers, name a --metric: "
            f"{', '.join(REGRESSION_METRICS)}"
        )
    return sorted_names(distinct)


def refuse_missing(columns: Mapping[str, Sequence[Any]], column: str) -> None:
    """Raises UsageError if a label is missing."""
    for split, values in columns.items():
        missing = [row for row, value in enumerate(values, start=1) if is_missing(value)]
        if missing:
            raise UsageError(
                f"--label-column {column}: {len(missing)} of {len(values)} labels in {split} are missing, "
                f"the first in example {missing[0]}; fill them in, or leave such examples out with --skip-incomplete"
            )


def refuse_hidden(texts: Sequence[str], column: str, split: str) -> None:
    hidden = sum(text == "-1" for text in texts)
    if hidden:
        raise UsageError(
            f"--label-column {column}: {hidden} of {len(texts)} labels in {split} are -1, which stands for a hidden "
            f"label (as in GLUE's test files); use a file with labels. A class of that name must be written as a word"
        )


def _refuse_decimals(columns: Mapping[str, Sequence[Any]], column: str, metric_named: bool) -> None:
    """Whole numbers written as decimals, such as 1.0, are classes if the metric says so or if few differ."""
    for split, values in columns.items():
        decimals = [v for v in values if isinstance(v, float) or (isinstance(v, str) and _is_decimal(v))]
        fractions = [value for value in decimals if not float(value).is_integer()]
        few = len(set(map(float, decimals))) <= MOST_DECIMAL_CLASSES
        if fractions or not (metric_named or few):
            raise UsageError(
                f"--label-column {column} holds decimals, such as {(fractions or decimals)[0]} in {split}: name the "
                f"--metric ({', '.join(REGRESSION_METRICS)} for scores, accuracy for classes that are whole numbers)"
            )


def _refuse_lists(columns: Mapping[str, Sequence[Any]], column: str) -> None:
    for split, values in columns.items():
        found = next((value for value in values if isinstance(value, list | tuple | dict)), None)
        if found is not None:
            raise UsageError(
                f"--label-column {column} holds lists or records, such as {found!r} in {split}: this metric needs one "
                "label per example, a text, a number or a boolean; several labels per text are --kind multi-label, a "
                "tag per word is --kind token-classification, an answer in a context is --kind question-answering"
            )


def _is_decimal(text: str) -> bool:
    number = _parse_number(text)
    return number is not None and "." in text


def is_missing(value: Any) -> bool:
    """Whether a label is None, NaN or empty: csv reads an empty cell as ""; pandas writes a missing number as "nan"."""
    if isinstance(value, str):
        return value.strip().lower() in ("", "nan")
    return value is None or (isinstance(value, float) and math.isnan(value))


def _parse_number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def label_text(value: Any) -> str:
    """A label as text; whole numbers are written without decimals."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, str) and _is_decimal(value) and float(value).is_integer():
        return str(int(float(value)))
    return str(value).strip()


def format_names(names: Sequence[str]) -> str:
    """The first ten names, for a message."""
    shown = [repr(name) for name in names[:10]]
    return ", ".join(shown) + (", …" if len(names) > 10 else "")
