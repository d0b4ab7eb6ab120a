"""Searches with a built-in metric, then evaluates the exported model with a custom metric.

    python examples/own_metric.py reviews.csv validation.csv distilbert-base-uncased

A search needs a built-in metric, which has a confidence bound (`budget-search tasks` lists them), here the F1 of the
second label. The exported model can be evaluated with any metric, here the lowest recall of a class.
"""

from __future__ import annotations

import sys
from typing import Any

import pandas as pd
from sklearn.metrics import recall_score
from transformers import pipeline

import budget_search as bs


def main(table: str, validation: str, model: str, output: str = "smaller-by-f1", **options: Any) -> float:
    report = bs.search(
        task=table, validation=validation, text_columns=["text"], label_column="stars", metric="f1", model=model,
        deltas=[0.02], **options,
    )  # fmt: skip
    report.export(output)
    rows = pd.read_csv(validation, dtype=str)
    predicted = [answer["label"] for answer in pipeline("text-classification", output)(rows["text"].tolist())]
    worst: float = recall_score(rows["stars"], predicted, average=None, zero_division=0.0).min()
    print(f"{report.answer_sentence(report.results[0])} Lowest recall of a class: {100 * worst:.2f}.")
    return worst


if __name__ == "__main__":
    main(*sys.argv[1:])
