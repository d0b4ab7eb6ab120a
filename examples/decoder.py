"""Finds how few layers of a decoder keep its perplexity on your documents within 1, 2 and 3 per cent.

    python examples/decoder.py documents.txt HuggingFaceTB/SmolLM2-135M

Blank lines separate the documents. The score is the mean log-likelihood of a token in hundredths of a nat, averaged
over documents: a point is 1 % of the perplexity. A decoder with a classification head needs no script:
``budget-search --task sst2 --model HuggingFaceTB/SmolLM2-135M``.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, get_linear_schedule_with_warmup

import budget_search as bs

SHARES = {"selection": 0.15, "certification": 0.25}
"""Of the documents; the others are trained on."""


@dataclass(frozen=True)
class Perplexity:
    """The objective: continue training on the documents, then measure the log-likelihood of unseen ones."""

    documents: Path
    model: str
    steps: int = 200
    batch_size: int = 8
    lr: float = 5e-5
    length: int = 256

    def __call__(self, kept: bs.LayerSet, seed: int, fraction: float, split: str) -> bs.Outcome:
        torch.manual_seed(seed)
        model = bs.keep_layers(self.pretrained, kept.kept)
        self.train(model, max(1, round(fraction * self.steps)), seed)
        with torch.no_grad():
            losses = np.array([loss(model, [tokens]).item() for tokens in self.splits[split]])
        points = -100 * losses
        perplexity = math.exp(losses.mean())
        return bs.Outcome(points.mean(), points, metrics={"loss": losses.mean(), "perplexity": perplexity})

    @cached_property
    def pretrained(self) -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(self.model, dtype=torch.float32)

    @cached_property
    def splits(self) -> dict[str, list[torch.Tensor]]:
        """Tokens of every document, at least two."""
        tokenizer = AutoTokenizer.from_pretrained(self.model)
        texts = [text for text in self.documents.read_text("utf8").split("\n\n") if text.strip()]
        encoded = [torch.tensor(tokenizer(text)["input_ids"][: self.length]) for text in texts]
        encoded = [tokens for tokens in encoded if len(tokens) > 1]
        order = np.random.default_rng(0).permutation(len(encoded))
        ends = np.cumsum([round(share * len(order)) for share in SHARES.values()])
        parts = np.split(order, ends)
        return {name: [encoded[row] for row in rows] for name, rows in zip((*SHARES, "train"), parts, strict=True)}

    def train(self, model: PreTrainedModel, steps: int, seed: int) -> None:
        documents, generator = self.splits["train"], np.random.default_rng(seed)
        optimizer = torch.optim.AdamW(model.parameters(), lr=self.lr)
        schedule = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
        model.train()
        for _ in range(steps):
            rows = generator.integers(len(documents), size=self.batch_size)
            loss(model, [documents[row] for row in rows]).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        model.eval()

    def measure(self, kept: bs.LayerSet) -> bs.Measured:
        model = bs.keep_layers(self.pretrained, kept.kept)
        return bs.Measured(parameters=sum(each.numel() for each in model.parameters()))


def loss(model: PreTrainedModel, documents: list[torch.Tensor]) -> torch.Tensor:
    """Mean negative log-likelihood of a token, in nats."""
    tokens = torch.nn.utils.rnn.pad_sequence(documents, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(each) for each in documents], batch_first=True)
    logits = model(input_ids=tokens, attention_mask=mask).logits[:, :-1]
    targets = tokens[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def main(documents: str, model: str, steps: int = 200, lr: float = 5e-5, **options: Any) -> None:
    objective = Perplexity(Path(documents), model, steps, lr=lr)
    name = Path(model).name
    report = bs.minimize_layers(
        objective,
        layers=objective.pretrained.config.num_hidden_layers,
        study=f"{Path(documents).stem}-{name}",
        model=name,
        metric="log-likelihood",
        measure=objective.measure,
        **options,
    )
    for result in report.results:
        print(report.answer_sentence(result))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("documents")
    parser.add_argument("model")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--lr", type=float, default=5e-5)
    main(**vars(parser.parse_args()))
