"""Pre-trains a small BERT or XLNet on a CPU, on any text or (by default) on the demo language.

    python examples/pretrain.py --output FOLDER                          the language of the demo task, generated
    python examples/pretrain.py --output FOLDER --text a.txt b.parquet   any text
    python examples/pretrain.py --output FOLDER --text a.txt --architecture xlnet

A line of a text file is a passage; a tab separates its two segments, if it has two. Of a Parquet file the column `text`
is read, and neighbouring sentences are the two segments. The objectives are those of the papers: for BERT masked words
and next-sentence prediction (the second segment may be exchanged with a neighbour's), for XLNet permutation language
modelling. Runs for `--minutes` and saves a checkpoint every few minutes, so it may be killed at any time. The result is
a stock `BertForPreTraining` (in half precision) or `XLNetLMHeadModel` with its tokenizer and `pretraining.json`, the
record of the run and its learning curve.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from random import Random
from typing import Any

import pyarrow.parquet as pq
import torch
from pretrain_objectives import ARCHITECTURES, IGNORED, Architecture, Batch, Bert, Passage, Predictions, Words
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from budget_search.data import demo_task as demo

SENTENCE_CHARACTERS = range(31, 220)  # of sentences in Parquet files; others are headings or lists


def read_passages(files: list[Path]) -> tuple[list[Passage], list[Passage]]:
    """The passages of text and Parquet files, every hundredth one held out for evaluation."""
    passages = [passage for file in files for passage in (parquet if file.suffix == ".parquet" else lines)(file)]
    held_out = passages[::100]
    return [passage for number, passage in enumerate(passages) if number % 100], held_out


def lines(file: Path) -> Iterator[Passage]:
    """Every line that is not blank, split at its first tab."""
    for line in file.open(encoding="utf-8"):
        if line.strip():
            first, _, second = line.rstrip("\n").partition("\t")
            yield first, second


def parquet(file: Path) -> Iterator[Passage]:
    """Pairs of neighbouring sentences of each line of the column `text`."""
    for text in pq.read_table(file, columns=["text"])["text"].to_pylist():
        for line in text.split("\n"):
            sentences = [sentence.strip() for sentence in re.split(r"(?<=[.!?]) +(?=[A-Z\"])", line)]
            usable = [sentence for sentence in sentences if len(sentence) in SENTENCE_CHARACTERS]
            yield from zip(usable[::2], usable[1::2], strict=False)


def endless(passages: list[Passage], rng: Random) -> Iterator[Passage]:
    """The passages repeatedly, shuffled for every epoch."""
    while True:
        yield from rng.sample(passages, len(passages))


def exchange(stream: Iterator[Passage], share: float, rng: Random) -> Iterator[tuple[Passage, int]]:
    """Passages, and whether their second segment was exchanged with a neighbour's, which happens to this share."""
    for (first, second), (other_first, other_second) in zip(stream, stream, strict=False):
        exchanged = second != other_second and rng.random() < share
        if exchanged:
            second, other_second = other_second, second
        yield (first, second), int(exchanged)
        yield (other_first, other_second), int(exchanged)


@dataclass(frozen=True)
class Batches:
    """Turns passages into batches for an architecture."""

    architecture: Architecture
    words: Words
    size: int
    rng: Random

    def __call__(self, passages: Iterator[Passage], exchanged: float) -> Iterator[Batch]:
        """Batches of passages of similar length, to reduce padding."""
        rows = exchange(passages, exchanged, self.rng)
        while pool := list(islice(rows, 50 * self.size)):
            pool.sort(key=lambda row: sum(map(len, row[0])) + self.rng.random())
            starts = list(range(0, len(pool), self.size))
            for start in self.rng.sample(starts, len(starts)):
                yield self.batch(pool[start : start + self.size])

    def batch(self, rows: list[tuple[Passage, int]]) -> Batch:
        """Tokenise, choose the words to predict, and mask them."""
        passages, exchanged = [passage for passage, _ in rows], torch.tensor([label for _, label in rows])
        inputs = self.words.encode(passages, return_tensors="pt")
        ids, segments = inputs["input_ids"], inputs["token_type_ids"]
        chosen = self.words.choose(ids, segments)
        # Words of an exchanged segment are not predicted: the context does not determine them.
        elsewhere = (exchanged == 1)[:, None] & (segments == 1)
        labels = ids.masked_fill(~chosen | elsewhere, IGNORED)
        return Batch(self.architecture.hide(inputs, chosen, self.words), labels, exchanged)


def guess(architecture: Any, model: PreTrainedModel, batch: Batch) -> dict[str, Predictions]:
    """The predictions of each objective, computed in bfloat16."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return architecture.guess(model, batch)


@torch.no_grad()
def evaluate(architecture: Architecture, model: PreTrainedModel, held_out: list[Batch]) -> dict[str, float]:
    """Losses and accuracies on held-out passages."""
    model.eval()
    results = [guess(architecture, model, batch) for batch in held_out]
    model.train()
    values = {}
    for objective in results[0]:
        guesses = Predictions(
            torch.cat([result[objective].logits for result in results]),
            torch.cat([result[objective].labels for result in results]),
        )
        values[f"{objective}_loss"] = round(float(guesses.loss), 4)
        values[f"{objective}_accuracy"] = round(float(guesses.right.float().mean()), 4)
    return values


def learning_rate(peak: float, step: int, elapsed: float) -> float:
    """Warm-up over 500 steps, then constant, then linear decay over the last 30 % of the time (`elapsed`: 0 to 1)."""
    return peak * min(1.0, step / 500) * min(1.0, (1 - elapsed) / 0.3)


def save(model: PreTrainedModel, dtype: torch.dtype, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save model and tokenizer; the model in memory is not changed."""
    saved = type(model)(model.config)
    saved.load_state_dict(model.state_dict())
    saved.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def stacked(model: PreTrainedModel, layers: int) -> PreTrainedModel:
    """A deeper model that repeats the layers of this one: progressive stacking (Gong et al., 2019)."""
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = layers
    deep, weights = type(model)(config), model.state_dict()

    def source(name: str) -> str:
        return re.sub(r"(\.layer\.)(\d+)", lambda m: f"{m[1]}{int(m[2]) % model.config.num_hidden_layers}", name)

    deep.load_state_dict({name: weights[source(name)] for name in deep.state_dict()})
    return deep


def pretrain(args: argparse.Namespace) -> None:
    """Pre-train a model as the arguments say, and save it."""
    architecture = ARCHITECTURES[args.architecture]
    rng = Random(args.seed)
    torch.manual_seed(args.seed)
    if args.text:
        passages, aside = read_passages(args.text)
        sample, stream = passages[:20_000], endless(passages, rng)
    else:
        sample = list(islice(demo.passages(seed=args.seed), 20_000))
        aside = list(islice(demo.passages(seed=args.seed + 1), 500))
        stream = demo.passages(seed=args.seed + 2)
    if args.start_from:
        tokenizer = architecture.tokenizer_class.from_pretrained(args.start_from)
        model = stacked(architecture.model_class.from_pretrained(args.start_from, dtype=torch.float32), args.layers)
    else:
        texts = (segment for passage in sample for segment in passage)
        tokenizer = architecture.train_tokenizer(texts, args.vocab_size, args.max_length)
        model = architecture.fresh(tokenizer, args.layers, args.width)
    if architecture is Bert:  # faster than the fused kernel for short sequences on a CPU
        model.set_attn_implementation("eager")
    words = Words(tokenizer, sample, args.mask_share, torch.Generator().manual_seed(args.seed))
    batches = Batches(architecture, words, args.batch_size, rng)
    held_out = list(batches(iter(aside), architecture.exchanged))
    unigram = words.unigram_loss(held_out)  # of all batches: few words would bias it downwards
    held_out = held_out[: args.held_out]
    words_only, all_objectives = batches(stream, 0.0), batches(stream, architecture.exchanged)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.01, fused=True)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{len(tokenizer)} word pieces, {parameters / 1e6:.2f} M parameters, unigram loss {unigram:.3f}", flush=True)

    start = checkpoint = time.monotonic()
    tokens, curve = 0, []
    for step in count():
        now = time.monotonic()
        elapsed = (now - start) / (60 * args.minutes)
        over = elapsed >= 1
        due = over or now - checkpoint > 60 * args.checkpoint_minutes
        if due or step % args.report_every == 0:
            point = {"steps": step, "tokens": tokens, "minutes": round((now - start) / 60, 1)}
            curve.append({**point, **evaluate(architecture, model, held_out)})
            print(json.dumps(curve[-1]), flush=True)
        if due:
            sizes = {"parameters": parameters, "vocabulary": len(tokenizer), "unigram_loss": round(unigram, 4)}
            save(model, architecture.saved_as, tokenizer, args.output)
            record = json.dumps({**sizes, **curve[-1], "curve": curve}, indent=2)
            (args.output / "pretraining.json").write_text(record + "\n")
            checkpoint = now
        if over:
            return
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(args.learning_rate, step, elapsed)
        batch = next(words_only if elapsed < args.words_first else all_objectives)
        torch.stack([guesses.loss for guesses in guess(architecture, model, batch).values()]).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        tokens += batch.tokens


def main() -> None:
    """Parse the command line and start."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--text", type=Path, nargs="+", default=[], help="files of text instead of the demo language")
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="bert")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--checkpoint-minutes", type=float, default=4.0)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=128, help="hidden size, a multiple of 64")
    parser.add_argument("--vocab-size", type=int, default=1000)
    parser.add_argument("--max-length", type=int, default=64, help="tokens of a passage")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--start-from", type=Path, help="continue from a saved model, stacked if it has fewer layers")
    parser.add_argument("--words-first", type=float, default=0.3, help="share of the time with words only")
    parser.add_argument("--mask-share", type=float, default=0.2, help="share of the words to predict")
    parser.add_argument("--held-out", type=int, default=60, help="maximum number of held-out batches")
    parser.add_argument("--report-every", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pretrain(args)


if __name__ == "__main__":
    main()
