"""Determine the kind of task and its columns from the options, or else from the columns of a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from budget_search.core.config import KINDS
from budget_search.core.errors import UsageError
from budget_search.data import conll
from budget_search.data.kinds import kind_name

if TYPE_CHECKING:
    from budget_search.data.tables import Table


SQUAD = ("question", "context")
ANSWERS = "answers"
"""The columns of SQuAD as the library datasets has it."""


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


def columns_of(
    text_columns: Sequence[str], label_column: str | None, kind: str | None, table: Table | None = None
) -> tuple[tuple[str, ...], str]:
    """The text and label columns: those named, else the usual ones for the kind or file."""
    texts = tuple(text_columns)
    if table and table.kind in conll.EXTENSIONS:
        return texts or (conll.WORDS,), label_column or conll.TAGS
    named = texts or label_column
    shown = table is not None and not named and {*SQUAD, ANSWERS} <= {*table.columns}
    if kind == "question-answering" or (kind is None and shown):
        return texts or SQUAD, label_column or ANSWERS
    return texts, label_column or "label"


def kind_shown_by(table: Table, text_columns: Sequence[str], label_column: str) -> str:
    """The kind inferred from the columns of a file: lists of words mean tagging, lists of labels or several label
    columns mean multi-label, and records mean question answering."""
    if any(table.holds(column, list) for column in text_columns):
        return "token-classification"
    if len(text_columns) == 2 and table.holds(label_column, dict):
        return "question-answering"
    several = "," in label_column and label_column not in table.columns
    return "multi-label" if several or table.holds(label_column, list) else "classification"
