"""Which kind of task it is: the one that the user names, or the one that the columns of a file show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from budget_search.core.config import KINDS
from budget_search.core.errors import UsageError
from budget_search.data.kinds import kind_name

if TYPE_CHECKING:
    from budget_search.data.tables import Table


def named_kind(kind: str | None, metric: str | None) -> str | None:
    """The kind by ``--kind`` or else by ``--metric``; None without both. Raises UsageError if they do not fit."""
    if kind is not None and kind not in KINDS:
        raise UsageError(f"unknown --kind {kind}; allowed: {' '.join(KINDS)}")
    if metric is None:
        return kind
    if kind not in (None, kind_name(metric)):
        raise UsageError(
            f"--metric {metric} belongs to --kind {kind_name(metric)}; the metrics of {kind} are: "
            f"{' '.join(KINDS[str(kind)])}"
        )
    return kind_name(metric)


def kind_shown_by(table: Table, text_columns: Sequence[str], label_column: str) -> str:
    """The kind by the columns of a file: lists of words are tagged, a list of labels or several columns are labels."""
    if any(map(table.holds_lists, text_columns)):
        return "token-classification"
    several = "," in label_column and label_column not in table.columns
    return "multi-label" if several or table.holds_lists(label_column) else "classification"
