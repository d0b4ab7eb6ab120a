"""Finds how few layers of a sentence-embedding model keep the similarities of STS-B within 1, 2 and 3 points.

    python examples/embedding_model.py MODEL glue/stsb              with a short training of every smaller model
    python examples/embedding_model.py MODEL glue/stsb --pairs 0    without

MODEL is a folder or a hub id; the second folder has train.parquet and validation.parquet in STS-B's columns. The score
is Spearman's correlation between cosines and human ratings. A smaller model is trained with in-batch negatives on pairs
of one meaning (van den Oord et al., 2018, InfoNCE), as embedding models are; so is the full model, which it is compared
with. Saves the answer as a folder that sentence-transformers loads.
Needs ``pip install sentence-transformers``.
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sentence_transformers import SentenceTransformer
from transformers import get_linear_schedule_with_warmup

import budget_search as bs

SAME_MEANING = 4.0
"""From this rating (0 to 5) on, two sentences mean the same."""
TEMPERATURE = 0.05


@dataclass(frozen=True)
class Similarity:
    """The objective. ``pairs`` bounds the pairs of one epoch of training; 0: no training."""

    model: str
    data: Path
    pairs: int
    batch_size: int = 32
    lr: float = 5e-5

    def __call__(self, kept: bs.LayerSet, seed: int, fraction: float, split: str) -> bs.Outcome:
        table = self.splits[split]
        cosines = similarities(self.trained(kept, seed, fraction), table)
        contributions = bs.contributions("spearman", cosines[:, None], table["label"].to_numpy())
        return bs.Outcome(float(contributions.mean()), contributions)

    @cached_property
    def splits(self) -> dict[str, pd.DataFrame]:
        """The validation set is for certification; a part of train, which is not trained on, for selection."""
        train = pd.read_parquet(self.data / "train.parquet").sample(frac=1, random_state=0)
        selection, train = train[:1000], train[1000:]
        positives = train[train["label"] >= SAME_MEANING][: self.pairs]
        certification = pd.read_parquet(self.data / "validation.parquet")
        return {"train": positives, "selection": selection, "certification": certification}

    @cached_property
    def pretrained(self) -> SentenceTransformer:
        return SentenceTransformer(self.model, device="cpu", model_kwargs={"dtype": torch.float32})

    def smaller(self, kept: bs.LayerSet) -> SentenceTransformer:
        encoder = copy.deepcopy(self.pretrained)
        encoder[0].model = bs.keep_layers(encoder[0].model, kept.kept)
        return encoder

    def trained(self, kept: bs.LayerSet, seed: int, fraction: float) -> SentenceTransformer:
        encoder, pairs = self.smaller(kept), self.splits["train"]
        steps = round(fraction * len(pairs) / self.batch_size)
        if not steps:
            return encoder
        torch.manual_seed(seed)
        optimizer = torch.optim.AdamW(encoder.parameters(), lr=self.lr)
        schedule = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
        order = np.random.default_rng(seed).permutation(len(pairs))[: steps * self.batch_size]
        encoder.train()
        for rows in np.split(order, steps):
            batch = pairs.iloc[rows]
            first, second = (embedded(encoder, batch[name].tolist()) for name in ("sentence1", "sentence2"))
            scores = first @ second.T / TEMPERATURE
            torch.nn.functional.cross_entropy(scores, torch.arange(len(rows))).backward()
            torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        return encoder.eval()

    def measure(self, kept: bs.LayerSet) -> bs.Measured:
        return bs.Measured(parameters=sum(each.numel() for each in self.smaller(kept).parameters()))


def embedded(encoder: SentenceTransformer, sentences: list[str]) -> torch.Tensor:
    """Shape (sentences, width), each of length 1, with gradients."""
    vectors = encoder(encoder.preprocess(sentences))["sentence_embedding"]
    return torch.nn.functional.normalize(vectors, dim=1)


def similarities(encoder: SentenceTransformer, table: pd.DataFrame) -> np.ndarray:
    """The cosine of every pair, shape (pairs,)."""
    first, second = (
        encoder.encode(table[name].tolist(), normalize_embeddings=True, show_progress_bar=False)
        for name in ("sentence1", "sentence2")
    )
    return np.asarray((first * second).sum(axis=1))


def main(
    model: str, data: str, pairs: int = 1000, lr: float = 5e-5, output: str = "smaller-embeddings", **options: Any
) -> bs.LayerSet:
    objective = Similarity(model, Path(data), pairs, lr=lr)
    total = objective.pretrained[0].model.config.num_hidden_layers
    report = bs.minimize_layers(
        objective,
        layers=total,
        study=f"stsb-{Path(model).name}-{pairs}",
        model=Path(model).name,
        metric="spearman",
        constant_score=0.0,
        measure=objective.measure,
        **options,
    )
    print(report)
    kept = bs.LayerSet(report.best.kept, total)
    seed = report.best.exported_seed
    assert seed is not None
    objective.trained(kept, seed, 1.0).save_pretrained(output)
    print(f"Saved layers {kept} in {output}.")
    return kept


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("data", help="a folder with train.parquet and validation.parquet, in STS-B's columns")
    parser.add_argument("--pairs", type=int, default=1000, help="pairs to train on; 0: no training")
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--output", default="smaller-embeddings")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=3)
    main(**vars(parser.parse_args()))
