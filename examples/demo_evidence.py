"""Measures the benefit of the demo model's pre-training and the effect of dropping its top layers.

    python examples/demo_evidence.py

Fine-tunes with the demo's recipe and three seeds each, scored on certification. For comparison, the accuracy of a
linear model on words and pairs of words. These are the figures in studies/LOG.md. Takes about five minutes on two
cores.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from tabulate import tabulate
from transformers import AutoConfig, AutoTokenizer, BertForPreTraining

from budget_search.app.create_study import create
from budget_search.app.request import Request
from budget_search.app.resolve import resolve_request
from budget_search.cli.progress import Console
from budget_search.core.layers import FAMILIES, LayerSet
from budget_search.core.trial import FULL_RUNG, Job, TrialKey
from budget_search.data import demo_task as demo
from budget_search.engine.device import resolve_device
from budget_search.engine.evaluation import EvaluationContext
from budget_search.engine.parallel.workers import Workers
from budget_search.models.pretrained import MODEL_DIR

SEEDS = (42, 43, 44)
DROPPED_FROM_THE_TOP = (1, 2, 3, 4, 6, 8, 11)


def random_weights(folder: Path) -> Path:
    """The demo model with random weights."""
    torch.manual_seed(0)
    BertForPreTraining(AutoConfig.from_pretrained(MODEL_DIR)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(MODEL_DIR).save_pretrained(folder)
    return folder


def scores(model: str, sets: list[LayerSet], studies: Path) -> dict[LayerSet, list[float]]:
    """Scores on certification in points, by layer set, one per seed."""
    resolved = resolve_request(Request(task="demo", model=model, studies_dir=str(studies)))
    device = resolve_device("auto", "auto")
    create(resolved, device, Console(quiet=True))
    context = EvaluationContext(
        resolved.folder, resolved.pretrained.folder, resolved.pretrained.name, resolved.config.recipe, device
    )
    jobs = [Job(TrialKey(layers, FULL_RUNG, seed), "certification") for layers in sets for seed in SEEDS]
    result: dict[LayerSet, list[float]] = {layers: [] for layers in sets}
    for trial in Workers(context, 2).run(jobs):
        result[trial.layers].append(trial.score if trial.score is not None else float("nan"))
    return result


def linear_score() -> float:
    """Accuracy of a logistic regression on the words of both texts and on all pairs of a word from each."""
    rows = {split: demo.examples(split) for split in ("train", "validation")}
    vectorizer = CountVectorizer(binary=True).fit([row["premise"] for row in rows["train"]])

    def features(split: str) -> csr_matrix:
        premise, hypothesis = (
            vectorizer.transform([row[column] for row in rows[split]]) for column in ("premise", "hypothesis")
        )
        words = premise.shape[1]
        pairs = [np.add.outer(p.indices * words, h.indices).ravel() for p, h in zip(premise, hypothesis, strict=True)]
        starts = np.cumsum([0, *map(len, pairs)])
        indices = np.concatenate(pairs)
        crossed = csr_matrix((np.ones(len(indices)), indices, starts), shape=(len(pairs), words * words))
        return csr_matrix(hstack([premise, hypothesis, crossed]))

    labels = {split: [row["label"] for row in rows[split]] for split in rows}
    model = LogisticRegression(max_iter=300).fit(features("train"), labels["train"])
    return 100 * float(model.score(features("validation"), labels["validation"]))


def main() -> None:
    full = LayerSet.full(12)
    sets = [full, *(layers for k in DROPPED_FROM_THE_TOP if (layers := FAMILIES["top"](12, k)) is not None)]
    with tempfile.TemporaryDirectory() as folder:
        trained = scores("demo", sets, Path(folder) / "studies")
        untrained = scores(str(random_weights(Path(folder) / "random-demo")), [full], Path(folder) / "studies")
    rows = [("pre-trained", layers.compact, values) for layers, values in trained.items()]
    rows.append(("random weights", full.compact, untrained[full]))
    table = [(*row[:2], f"{fmean(row[2]):.1f}", f"{min(row[2]):.1f}-{max(row[2]):.1f}") for row in rows]
    print(tabulate(table, headers=("weights", "layers kept", "accuracy", "lowest-highest"), disable_numparse=True))
    print(f"\nlinear model on words and pairs of words, {len(demo.examples('train')):,} rows: {linear_score():.1f}")


if __name__ == "__main__":
    main()
