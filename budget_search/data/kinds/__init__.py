"""Kinds of task: one module each, with the reading, encoding and scoring of labels and the head that is needed.

Imports ``core`` and, inside ``data``, what reads labels and computes metrics; torch and transformers not at all. Start
with ``kind``: the record that every other module here fills.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from budget_search.core.config import KINDS
from budget_search.core.errors import UsageError

if TYPE_CHECKING:
    from budget_search.data.kinds.kind import Kind


def kind_name(metric: str) -> str:
    """The kind of task that a metric belongs to. Raises KeyError for an unknown metric."""
    return _KIND_OF_METRIC[metric]


@cache
def kind_of(metric: str) -> Kind:
    """The kind of task that a metric belongs to, from the module of its name. Raises KeyError for an unknown metric."""
    kind: Kind = import_module(f"{__name__}.{kind_name(metric).replace('-', '_')}").KIND
    return kind


def require_supported(metric: str, option: str) -> None:
    """Raises UsageError if an option or a command does not work for the kind of task that a metric belongs to."""
    reason = kind_of(metric).refused.get(option)
    if reason:
        raise UsageError(f"{option} does not work for --kind {kind_name(metric)}: {reason}")


_KIND_OF_METRIC = {metric: kind for kind, metrics in KINDS.items() for metric in metrics}
