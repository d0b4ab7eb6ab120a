"""Fine-tunes a model with fewer layers with Hugging Face's Trainer: ``keep_layers`` before training.

    python examples/trainer.py reviews.csv bert-base-uncased 0-4,7

The file has the columns ``text`` and ``label`` (whole numbers from 0). The Trainer needs ``pip install accelerate``.
"""

from __future__ import annotations

import sys
from typing import Any

from datasets import load_dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

import budget_search as bs


def main(table: str, name: str, layers: str, output: str = "fewer-layers", **arguments: Any) -> None:
    data = load_dataset("csv", data_files=table, split="train").train_test_split(test_size=0.2, seed=0)
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=len(set(data["train"]["label"])))
    kept = bs.LayerSet.parse(layers, model.config.num_hidden_layers)
    model = bs.keep_layers(model, kept.kept)

    data = data.map(lambda rows: tokenizer(rows["text"], truncation=True), batched=True)
    trainer = Trainer(
        model,
        TrainingArguments(output, num_train_epochs=3, learning_rate=3e-5, report_to=[], **arguments),
        train_dataset=data["train"],
        eval_dataset=data["test"],
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model(output)
    print(f"layers {kept}: loss {trainer.evaluate()['eval_loss']:.3f}; loads with from_pretrained({output!r})")


if __name__ == "__main__":
    main(*sys.argv[1:])
