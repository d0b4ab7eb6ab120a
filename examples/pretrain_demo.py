"""Pre-train the small BERT of the demo, or one like it on any text, on the CPU.

    python examples/pretrain_demo.py --output FOLDER                      the language of the demo task, made on the way
    python examples/pretrain_demo.py --output FOLDER --text a.txt b.txt   any text

In a text file every line is a passage; a tab parts its two segments, if it has two. The objectives are those of BERT:
masked words and, for passages of two segments, whether the second one belongs to the first or was exchanged with a
neighbour's. Runs for `--minutes` and saves a checkpoint every few minutes on the way, so it may be killed at any time.
The result is a stock `BertForPreTraining` in half precision with its tokenizer and `pretraining.json`, the record of
the run.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from random import Random
from typing import Any

import torch
from tokenizers import BertWordPieceTokenizer
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForPreTraining, BertTokenizer

from budget_search import demo

MAX_LENGTH = 64
ATTENTION = "eager"  # for short sequences on a CPU faster than the fused kernel
IGNORED = -100  # the label of a position that is not masked
Passage = tuple[str, str]


@dataclass
class Batch:
    """Padded token ids with some of them masked, and what stood there."""

    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor
    exchanged: torch.Tensor  # 0: the second segment belongs to the first, 1: it does not (as BERT counts)

    @property
    def tokens(self) -> int:
        return int(self.inputs["attention_mask"].sum())


def read_passages(files: list[Path]) -> tuple[list[Passage], list[Passage]]:
    """The lines of text files, every hundredth one set aside to measure the loss on."""
    lines = [line.rstrip("\n") for file in files for line in file.open(encoding="utf-8") if line.strip()]
    passages = [(first, second) for first, _, second in (line.partition("\t") for line in lines)]
    held_out = passages[::100]
    return [passage for number, passage in enumerate(passages) if number % 100], held_out


def endless(passages: list[Passage], rng: Random) -> Iterator[Passage]:
    """The passages again and again, each time in another order."""
    while True:
        yield from rng.sample(passages, len(passages))


def train_tokenizer(passages: list[Passage], size: int) -> BertTokenizer:
    """An uncased WordPiece vocabulary of at most `size` entries."""
    trainer = BertWordPieceTokenizer(lowercase=True)
    trainer.train_from_iterator(
        (segment for passage in passages for segment in passage), vocab_size=size, min_frequency=2, show_progress=False
    )
    return BertTokenizer(vocab=trainer.get_vocab(), do_lower_case=True, model_max_length=MAX_LENGTH)


class Masker:
    """Turns passages into masked batches, as in BERT, but rare words are masked more often than frequent ones.

    A short text is mostly made of words like "the" and of full stops, which say little about who did what. The chance
    of a token is proportional to its frequency to the power -1/2, and twice as high in the second segment as in the
    first, so that there usually is enough left to work out what is missing.
    """

    def __init__(self, tokenizer: BertTokenizer, sample: list[Passage], share: float, generator: torch.Generator):
        self.tokenizer, self.generator = tokenizer, generator
        counts = Counter(token for ids in self._encode(sample)["input_ids"] for token in ids)
        self.frequency = torch.tensor([float(counts[token]) for token in range(len(tokenizer))])
        self.frequency[tokenizer.all_special_ids] = 0
        self.frequency /= self.frequency.sum()
        weight = self.frequency.clamp(min=1e-5).pow(-0.5)
        weight[tokenizer.all_special_ids] = 0
        self.chance = share * weight / (self.frequency * weight).sum()

    def _encode(self, passages: list[Passage], **options: str) -> dict[str, Any]:
        first, second = (list(segments) for segments in zip(*passages, strict=True))
        pairs = second if any(second) else None
        return self.tokenizer(first, pairs, truncation=True, max_length=MAX_LENGTH, padding=bool(options), **options)

    def batch(self, rows: list[tuple[Passage, int]]) -> Batch:
        """Mask a share of the tokens: 80 % become [MASK], 10 % a random token, 10 % stay."""
        passages, exchanged = [passage for passage, _ in rows], torch.tensor([label for _, label in rows])
        inputs = dict(self._encode(passages, return_tensors="pt"))
        ids = inputs["input_ids"]
        chance = self.chance[ids] * torch.where(inputs["token_type_ids"] == 1, 4 / 3, 2 / 3)
        chosen = self._uniform(ids) < chance.clamp(max=0.5)
        labels = ids.masked_fill(~chosen, IGNORED)
        # There is no telling the words of a second segment that belongs elsewhere.
        elsewhere = (exchanged == 1)[:, None] & (inputs["token_type_ids"] == 1)
        labels = labels.masked_fill(elsewhere, IGNORED)
        fate = self._uniform(ids)
        random = torch.multinomial(self.frequency, ids.numel(), replacement=True, generator=self.generator).view_as(ids)
        ids = ids.masked_fill(chosen & (fate < 0.8), self.tokenizer.mask_token_id)
        inputs["input_ids"] = torch.where(chosen & (fate >= 0.9), random, ids)
        return Batch(inputs, labels, exchanged)

    def _uniform(self, like: torch.Tensor) -> torch.Tensor:
        return torch.rand(like.shape, generator=self.generator)

    def unigram_loss(self, batches: list[Batch]) -> float:
        """Cross entropy, at the masked positions, of guessing by word frequency alone: the loss to beat."""
        labels = torch.cat([batch.labels[batch.labels != IGNORED] for batch in batches])
        frequency = torch.bincount(labels, minlength=len(self.frequency)) / len(labels)
        return float(-(frequency[labels]).log().mean())


def exchange(stream: Iterator[Passage], share: float, rng: Random) -> Iterator[tuple[Passage, int]]:
    """Passages, and whether their second segment is another's: a share of the neighbours exchange theirs."""
    for (first, second), (other_first, other_second) in zip(stream, stream, strict=False):
        exchanged = second != other_second and rng.random() < share
        if exchanged:
            second, other_second = other_second, second
        yield (first, second), int(exchanged)
        yield (other_first, other_second), int(exchanged)


def batches(masker: Masker, rows: Iterator[tuple[Passage, int]], size: int, rng: Random) -> Iterator[Batch]:
    """Batches of passages of similar length, so that hardly any padding is computed."""
    while pool := list(islice(rows, 50 * size)):
        pool.sort(key=lambda row: sum(map(len, row[0])) + rng.random())
        starts = list(range(0, len(pool), size))
        for start in rng.sample(starts, len(starts)):
            yield masker.batch(pool[start : start + size])


def losses(model: BertForPreTraining, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Both losses and which guesses were right; logits of words are computed at the masked positions only."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        encoded = model.bert(**batch.inputs)
        masked = batch.labels != IGNORED
        words, following = model.cls(encoded.last_hidden_state[masked], encoded.pooler_output)
    labels = batch.labels[masked]
    word_loss, next_loss = cross_entropy(words.float(), labels), cross_entropy(following.float(), batch.exchanged)
    return word_loss, next_loss, words.argmax(-1) == labels, following.argmax(-1) == batch.exchanged


@torch.no_grad()
def evaluate(model: BertForPreTraining, held_out: list[Batch]) -> dict[str, float]:
    """Losses and shares of right guesses on passages kept aside."""
    model.eval()
    results = [losses(model, batch) for batch in held_out]
    model.train()
    word_losses, next_losses, words, following = zip(*results, strict=True)
    weights = torch.tensor([float(len(right)) for right in words])
    values = {
        "word_loss": (torch.stack(word_losses) * weights).sum() / weights.sum(),
        "word_accuracy": torch.cat(words).float().mean(),
        "next_segment_loss": torch.stack(next_losses).mean(),
        "next_segment_accuracy": torch.cat(following).float().mean(),
    }
    return {name: round(float(value), 4) for name, value in values.items()}


def learning_rate(peak: float, step: int, elapsed: float) -> float:
    """Warm-up over 500 steps, then constant, then linear decay over the last 30 % of the time (`elapsed`: 0 to 1)."""
    return peak * min(1.0, step / 500) * min(1.0, (1 - elapsed) / 0.3)


def save(model: BertForPreTraining, tokenizer: BertTokenizer, record: dict[str, Any], folder: Path) -> None:
    """The model in half precision, the tokenizer, and the record of the run; the model in memory stays as it is."""
    half = BertForPreTraining(model.config)
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "pretraining.json").write_text(json.dumps(record, indent=2) + "\n")


def pretrain(args: argparse.Namespace) -> None:
    """Everything from text to a saved model."""
    rng = Random(args.seed)
    torch.manual_seed(args.seed)
    if args.text:
        lines, aside = read_passages(args.text)
        sample, stream = lines[:20_000], endless(lines, rng)
    else:
        sample = list(islice(demo.passages(seed=args.seed), 20_000))
        aside = list(islice(demo.passages(seed=args.seed + 1), 500))
        stream = demo.passages(seed=args.seed + 2)
    if args.start_from:
        tokenizer = BertTokenizer.from_pretrained(args.start_from)
        model = BertForPreTraining.from_pretrained(args.start_from, dtype=torch.float32, attn_implementation=ATTENTION)
    else:
        tokenizer = train_tokenizer(sample, args.vocab_size)
        model = new_model(tokenizer, args.layers)
    generator = torch.Generator().manual_seed(args.seed)
    masker = Masker(tokenizer, sample, args.mask_share, generator)
    held_out = list(batches(masker, exchange(iter(aside), 0.5, rng), args.batch_size, rng))
    words_only = batches(masker, exchange(stream, 0.0, rng), args.batch_size, rng)
    both = batches(masker, exchange(stream, 0.5, rng), args.batch_size, rng)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.01, fused=True)
    unigram = masker.unigram_loss(held_out)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{len(tokenizer)} word pieces, {parameters / 1e6:.2f} M parameters, unigram loss {unigram:.3f}", flush=True)

    start = checkpoint = time.monotonic()
    tokens = 0
    for step in count():
        now = time.monotonic()
        elapsed = (now - start) / (60 * args.minutes)
        over = elapsed >= 1
        due = over or now - checkpoint > 60 * args.checkpoint_minutes
        if due or step % args.report_every == 0:
            record = {
                "parameters": parameters,
                "vocabulary": len(tokenizer),
                "steps": step,
                "tokens": tokens,
                "minutes": round((now - start) / 60, 1),
                "unigram_loss": round(unigram, 4),
                **evaluate(model, held_out),
            }
            print(json.dumps(record), flush=True)
        if due:
            save(model, tokenizer, record, args.output)
            checkpoint = now
        if over:
            return
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(args.learning_rate, step, elapsed)
        batch = next(words_only if elapsed < args.words_first else both)
        word_loss, next_loss, _, _ = losses(model, batch)
        (word_loss + next_loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        tokens += batch.tokens


def new_model(tokenizer: BertTokenizer, layers: int) -> BertForPreTraining:
    """A BERT of the demo's shape with random weights, without dropout: the text is made anew all the time."""
    model = BertForPreTraining(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            num_hidden_layers=layers,
            num_attention_heads=2,
            intermediate_size=512,
            max_position_embeddings=MAX_LENGTH,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )
    model.set_attn_implementation(ATTENTION)
    return model


def main() -> None:
    """Read the command line and start."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--text", type=Path, nargs="+", default=[], help="text files instead of the demo language")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--checkpoint-minutes", type=float, default=4.0)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--vocab-size", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--start-from", type=Path, help="go on from a saved model")
    parser.add_argument("--words-first", type=float, default=0.3, help="share of the time with masked words only")
    parser.add_argument("--mask-share", type=float, default=0.2)
    parser.add_argument("--report-every", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pretrain(args)


if __name__ == "__main__":
    main()
