"""What a label column says: class numbers with their names, or scores. Everything that is neither is refused."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from budget_search.core.config import REGRESSION_METRICS
from budget_search.core.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

_WHOLE = re.compile(r"[+-]?\d+", flags=re.ASCII)


def scores(columns: Mapping[str, Sequence[Any]], column: str) -> dict[str, np.ndarray]:
    """Labels as scores, per split: float32 (examples,).

    Raises UsageError for a label that is missing or no number, and when all of a split's are equal.
    """
    import numpy as np

    _refuse_missing(columns, column)
    read = {}
    for split, values in columns.items():
        numbers = [_number(value) for value in values]
        if None in numbers:
            wrong = values[numbers.index(None)]
            raise UsageError(
                f"--label-column {column}: {wrong!r} in {split} is not a number, which a correlation needs; "
                f"for classes use --metric accuracy, f1 or matthews"
            )
        read[split] = np.array(numbers, dtype=np.float32)
        if len(set(numbers)) == 1:
            raise UsageError(
                f"--label-column {column}: all {len(numbers)} labels in {split} are {values[0]!r}; "
                f"a correlation needs scores that differ"
            )
    return read


def classes(
    columns: Mapping[str, Sequence[Any]], column: str, names: Sequence[str] = (), metric_named: bool = True
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Labels as class numbers, per split: int64 (examples,), and the classes' names in that order.

    With ``names``, labels are their positions or the names themselves; else the labels found in train, sorted
    (whole numbers by value) are the names. Raises UsageError for a label that is missing, hidden (-1), not in train
    or not a class, and for fewer than two classes.
    """
    import numpy as np

    _refuse_missing(columns, column)
    written = {split: [_written(value) for value in values] for split, values in columns.items()}
    for split, texts in written.items():
        _refuse_hidden(texts, column, split)
    _refuse_decimals(columns, column, metric_named)
    names = tuple(names) or _names(written["train"], column)
    numbers = {name: number for number, name in enumerate(names)}
    if not all(_WHOLE.fullmatch(name) for name in names):
        numbers |= {str(number): number for number in range(len(names)) if str(number) not in numbers}
    for split, texts in written.items():
        unknown = Counter(text for text in texts if text not in numbers)
        if unknown:
            raise UsageError(
                f"--label-column {column}: {unknown.total()} labels in {split} are not among the classes, "
                f"such as {next(iter(unknown))!r}; allowed: {_listed(names)}"
            )
    coded = {split: np.array([numbers[text] for text in texts], dtype=np.int64) for split, texts in written.items()}
    for split, values in coded.items():
        if len(values) and (values == values[0]).all():
            raise UsageError(
                f"--label-column {column}: all {len(values)} labels in {split} are {names[values[0]]!r}; "
                f"at least two classes are needed"
            )
    return coded, names


def check_metrics(metrics: Sequence[str], label_names: Sequence[str]) -> None:
    """Raises UsageError when a metric cannot score these classes (none: scores)."""
    for metric in metrics:
        if bool(label_names) == (metric in REGRESSION_METRICS):
            raise UsageError(f"--metric {metric} does not fit {'classes' if label_names else 'scores'}")
        if metric == "f1" and len(label_names) != 2:
            raise UsageError(
                f"--metric f1 is for two classes, the second being the positive one; there are {len(label_names)}: "
                f"{_listed(label_names)}. Use accuracy or matthews"
            )


def _names(texts: Sequence[str], column: str) -> tuple[str, ...]:
    found = set(texts)
    if len(found) > 2 and len(found) > len(texts) / 2:
        raise UsageError(
            f"--label-column {column} holds {len(found)} different labels in {len(texts)} examples, such as "
            f"{texts[0]!r}: not classes. Is it the right column? For scores name a --metric: "
            f"{', '.join(REGRESSION_METRICS)}"
        )
    if all(_WHOLE.fullmatch(text) for text in found):
        return tuple(sorted(found, key=lambda text: (int(text), text)))
    return tuple(sorted(found))


def _refuse_missing(columns: Mapping[str, Sequence[Any]], column: str) -> None:
    for split, values in columns.items():
        missing = [row for row, value in enumerate(values, start=1) if _is_missing(value)]
        if missing:
            raise UsageError(
                f"--label-column {column}: {len(missing)} of {len(values)} labels in {split} are missing, "
                f"the first in example {missing[0]}; fill them in or leave these examples out"
            )


def _refuse_hidden(texts: Sequence[str], column: str, split: str) -> None:
    hidden = sum(text == "-1" for text in texts)
    if hidden:
        raise UsageError(
            f"--label-column {column}: {hidden} of {len(texts)} labels in {split} are -1, which stands for a hidden "
            f"label (as in GLUE's test files); use a file with labels. A class of that name must be written as a word"
        )


def _refuse_decimals(columns: Mapping[str, Sequence[Any]], column: str, metric_named: bool) -> None:
    for split, values in columns.items():
        for value in values:
            decimal = isinstance(value, float) or (isinstance(value, str) and _is_decimal(value))
            if decimal and not (metric_named and float(value).is_integer()):
                raise UsageError(
                    f"--label-column {column} holds decimals, such as {value} in {split}: name the --metric "
                    f"({', '.join(REGRESSION_METRICS)} for scores)"
                )


def _is_decimal(text: str) -> bool:
    number = _number(text)
    return number is not None and "." in text


def _is_missing(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip().lower() in ("", "nan")  # what csv makes of an empty cell, and pandas of a missing number
    return value is None or (isinstance(value, float) and math.isnan(value))


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _written(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, str) and _is_decimal(value) and float(value).is_integer():
        return str(int(float(value)))
    return str(value).strip()


def _listed(names: Sequence[str]) -> str:
    shown = [repr(name) for name in names[:10]]
    return ", ".join(shown) + (", …" if len(names) > 10 else "")
