"""``budget-search tasks``: the built-in tasks, one line each."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

HELP = "list the built-in tasks: columns, metric, sizes"
DESCRIPTION = HELP


def add_options(parser: argparse.ArgumentParser) -> None:
    del parser


def run(arguments: argparse.Namespace, received: Sequence[str]) -> int:
    print(tasks_table())
    return 0


def tasks_table() -> str:
    """One line per built-in task."""
    from tabulate import tabulate

    from budget_search.core.config import KINDS
    from budget_search.data.tasks import TASKS

    rows = [
        (
            spec.name,
            " ".join(spec.text_columns),
            spec.label_column,
            " ".join((spec.metric, *spec.also)),
            *(f"{count:,}" for count in spec.examples or ()),
        )
        for spec in TASKS.values()
    ]
    headers = ("task", "texts", "label", "metric (first: primary)", "train", "held-out")
    return tabulate(rows, headers=headers, tablefmt="simple", disable_numparse=True) + (
        "\n\nAlso: hub:org/name[:config], or a csv, tsv, jsonl or parquet file or folder with --text-columns, "
        "or CoNLL text.\nKinds of task (--kind) and their metrics: "
        + "; ".join(f"{kind}: {' '.join(metrics)}" for kind, metrics in KINDS.items())
        + "."
    )
