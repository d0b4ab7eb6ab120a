"""Searches on a CSV file from Python, shows the answers as a data frame, and exports the smaller model.

    python examples/own_csv.py reviews.csv distilbert-base-uncased

The file has the columns ``text`` and ``stars``; any strings or whole numbers can be labels.
"""

from __future__ import annotations

import sys
from typing import Any

import budget_search as bs


def main(table: str, model: str, output: str = "smaller", **options: Any) -> None:
    report = bs.search(
        task=table, text_columns=["text"], label_column="stars", model=model, deltas=[0.01, 0.02], **options
    )
    print(report)
    answers = report.to_frame()
    print(answers[["delta", "depth", "score", "degradation", "degradation_upper", "verdict"]].round(2))
    exported = report.export(output, delta=0.02)
    print(f"{exported.folder.name}: {exported.held_out_score:.2f} points on {exported.examples} held-out examples")


if __name__ == "__main__":
    main(*sys.argv[1:])
