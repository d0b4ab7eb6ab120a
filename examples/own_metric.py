"""Your own measure: search by a metric that is built in, then ask what you care about of the exported model.

    python examples/own_metric.py reviews.csv validation.csv distilbert-base-uncased

The search needs a metric it can bound (accuracy f1 matthews pearson spearman pearson_spearman); here it is F1 of the
second label. What counts at the end is anything that can be computed from predictions; here the worst class's recall.
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
    told = [answer["label"] for answer in pipeline("text-classification", output)(rows["text"].tolist())]
    worst: float = recall_score(rows["stars"], told, average=None, zero_division=0.0).min()
    print(f"{report.answer_sentence(report.results[0])} Recall of its worst class: {100 * worst:.2f}.")
    return worst


if __name__ == "__main__":
    main(*sys.argv[1:])
