"""Pre-train a small BERT or XLNet on any text, on the CPU; without text, the BERT of the demo.

    python examples/pretrain.py --output FOLDER                          the language of the demo task, made on the way
    python examples/pretrain.py --output FOLDER --text a.txt b.parquet   any text
    python examples/pretrain.py --output FOLDER --text a.txt --architecture xlnet

A line of a text file is a passage; a tab parts its two segments, if it has two. Of a Parquet file the column `text` is
read, and neighbouring sentences make the two segments. The objectives are those of the papers: for BERT masked words
and, for passages of two segments, whether the second one belongs to the first or was exchanged with a neighbour's; for
XLNet the words in an order drawn anew for each passage. Runs for `--minutes` and saves a checkpoint every few minutes
on the way, so it may be killed at any time. The result is a stock `BertForPreTraining` or `XLNetLMHeadModel` in half
precision with its tokenizer and `pretraining.json`, the record of the run and its curve.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import pyarrow.parquet as pq
import torch
from tokenizers import BertWordPieceTokenizer
from torch.nn.functional import cross_entropy
from transformers import (
    BertConfig,
    BertForPreTraining,
    BertTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    XLNetConfig,
    XLNetLMHeadModel,
    XLNetTokenizer,
)

from budget_search import demo

IGNORED = -100  # the label of a position that is not guessed
HEAD_SIZE = 64
SENTENCE_CHARACTERS = range(31, 220)  # of a Parquet text: neither a heading nor a list without full stops
Passage = tuple[str, str]


@dataclass
class Batch:
    """What the model is given, and what it shall guess."""

    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor  # (rows, length): the token to guess, or IGNORED
    exchanged: torch.Tensor  # (rows,): 0: the second segment belongs to the first, 1: it does not (as BERT counts)

    @property
    def tokens(self) -> int:
        return int(self.inputs["attention_mask"].sum())


@dataclass
class Guesses:
    """One objective on one batch: logits (guesses, classes) and what they should have been (guesses,)."""

    logits: torch.Tensor
    labels: torch.Tensor

    @property
    def loss(self) -> torch.Tensor:
        return cross_entropy(self.logits.float(), self.labels)

    @property
    def right(self) -> torch.Tensor:
        return self.logits.argmax(-1) == self.labels


class Bert:
    """Masked words, and which of two segments belong together."""

    exchanged = 0.5
    model_class: ClassVar = BertForPreTraining
    tokenizer_class: ClassVar = BertTokenizer

    @staticmethod
    def train_tokenizer(texts: Iterator[str], size: int, max_length: int) -> BertTokenizer:
        """An uncased WordPiece vocabulary of at most `size` entries."""
        trainer = BertWordPieceTokenizer(lowercase=True)
        trainer.train_from_iterator(texts, vocab_size=size, min_frequency=2, show_progress=False)
        return BertTokenizer(vocab=trainer.get_vocab(), do_lower_case=True, model_max_length=max_length)

    @staticmethod
    def config(tokenizer: PreTrainedTokenizerBase, layers: int, width: int) -> BertConfig:
        """Without dropout: no text is read often."""
        return BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=width // HEAD_SIZE,
            intermediate_size=4 * width,
            max_position_embeddings=tokenizer.model_max_length,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )

    @staticmethod
    def hide(inputs: dict[str, torch.Tensor], chosen: torch.Tensor, words: Words) -> dict[str, torch.Tensor]:
        """Of the chosen words 80 % become [MASK], 10 % a random token, 10 % stay."""
        ids = inputs["input_ids"]
        fate, random = words.uniform(ids.shape), words.draw(ids.shape)
        ids = ids.masked_fill(chosen & (fate < 0.8), words.tokenizer.mask_token_id)
        return {**inputs, "input_ids": torch.where(chosen & (fate >= 0.9), random, ids)}

    @staticmethod
    def guess(model: BertForPreTraining, batch: Batch) -> dict[str, Guesses]:
        """Logits of words are computed at the masked positions only."""
        encoded = model.bert(**batch.inputs)
        masked = batch.labels != IGNORED
        words, following = model.cls(encoded.last_hidden_state[masked], encoded.pooler_output)
        return {"word": Guesses(words, batch.labels[masked]), "next_segment": Guesses(following, batch.exchanged)}


class XLNet:
    """Some words of each passage, each given all the others and those of the some that come before it in a drawn order.

    Yang et al. 2019, section 2.3: the last words of a permutation are predicted, by the stream that knows the place of
    a word but not the word.
    """

    exchanged = 0.0
    model_class: ClassVar = XLNetLMHeadModel
    tokenizer_class: ClassVar = XLNetTokenizer

    @staticmethod
    def train_tokenizer(texts: Iterator[str], size: int, max_length: int) -> XLNetTokenizer:
        """An uncased unigram vocabulary of at most `size` entries."""
        names = BertTokenizer.model_input_names  # the segments too
        empty = XLNetTokenizer(do_lower_case=True, model_max_length=max_length, model_input_names=names)
        return empty.train_new_from_iterator(texts, size, show_progress=False)

    @staticmethod
    def config(tokenizer: PreTrainedTokenizerBase, layers: int, width: int) -> XLNetConfig:
        """Without dropout: no text is read often."""
        return XLNetConfig(
            vocab_size=len(tokenizer),
            d_model=width,
            n_layer=layers,
            n_head=width // HEAD_SIZE,
            d_inner=4 * width,
            dropout=0.0,
            summary_last_dropout=0.0,
            pad_token_id=tokenizer.pad_token_id,
        )

    @staticmethod
    def hide(inputs: dict[str, torch.Tensor], chosen: torch.Tensor, words: Words) -> dict[str, torch.Tensor]:
        """Adds who may not see whom (rows, length, length) and the places to guess (rows, guesses, length)."""
        order = words.uniform(chosen.shape).masked_fill(~chosen, -1.0)  # what is not guessed comes first
        hidden = chosen[:, None, :] & (order[:, :, None] <= order[:, None, :])
        places = torch.zeros(len(chosen), int(chosen.sum(1).max()), chosen.shape[1])
        row, place = chosen.nonzero(as_tuple=True)
        places[row, chosen.cumsum(1)[row, place] - 1, place] = 1.0
        return {**inputs, "perm_mask": hidden.float(), "target_mapping": places}

    @staticmethod
    def guess(model: XLNetLMHeadModel, batch: Batch) -> dict[str, Guesses]:
        """A passage with fewer words to guess than another has places left over, which are not guessed."""
        encoded = model.transformer(**batch.inputs, use_mems=False).last_hidden_state
        used = batch.inputs["target_mapping"].any(-1)
        return {"word": Guesses(model.lm_loss(encoded[used]), batch.labels[batch.labels != IGNORED])}


Architecture = type[Bert] | type[XLNet]
ARCHITECTURES: dict[str, Architecture] = {"bert": Bert, "xlnet": XLNet}


def read_passages(files: list[Path]) -> tuple[list[Passage], list[Passage]]:
    """The passages of text and Parquet files, every hundredth one set aside to measure the loss on."""
    passages = [passage for file in files for passage in (parquet if file.suffix == ".parquet" else lines)(file)]
    held_out = passages[::100]
    return [passage for number, passage in enumerate(passages) if number % 100], held_out


def lines(file: Path) -> Iterator[Passage]:
    """Every line that is not blank, parted at its first tab."""
    for line in file.open(encoding="utf-8"):
        if line.strip():
            first, _, second = line.rstrip("\n").partition("\t")
            yield first, second


def parquet(file: Path) -> Iterator[Passage]:
    """The sentences of each line of the column `text`, two and two."""
    for text in pq.read_table(file, columns=["text"])["text"].to_pylist():
        for line in text.split("\n"):
            sentences = [sentence.strip() for sentence in re.split(r"(?<=[.!?]) +(?=[A-Z\"])", line)]
            usable = [sentence for sentence in sentences if len(sentence) in SENTENCE_CHARACTERS]
            yield from zip(usable[::2], usable[1::2], strict=False)


def endless(passages: list[Passage], rng: Random) -> Iterator[Passage]:
    """The passages again and again, each time in another order."""
    while True:
        yield from rng.sample(passages, len(passages))


class Words:
    """The words of a language, and which of them are chosen to be guessed: rare ones more often than frequent ones.

    A short text is mostly made of words like "the" and of full stops, which say little about who did what. The chance
    of a token is proportional to its frequency to the power -1/2, and twice as high in the second segment as in the
    first, so that there usually is enough left to work out what is missing.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, sample: list[Passage], share: float, generator: torch.Generator
    ):
        self.tokenizer, self.generator = tokenizer, generator
        counts = Counter(token for ids in self.encode(sample)["input_ids"] for token in ids)
        self.frequency = torch.tensor([float(counts[token]) for token in range(len(tokenizer))])
        self.frequency[tokenizer.all_special_ids] = 0
        self.frequency /= self.frequency.sum()
        weight = self.frequency.clamp(min=1e-5).pow(-0.5)
        weight[tokenizer.all_special_ids] = 0
        self.chance = share * weight / (self.frequency * weight).sum()

    def encode(self, passages: list[Passage], **options: str) -> dict[str, Any]:
        first, second = (list(segments) for segments in zip(*passages, strict=True))
        pairs = second if any(second) else None
        return dict(self.tokenizer(first, pairs, truncation=True, padding=bool(options), **options))

    def choose(self, ids: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
        """Which positions to guess, as booleans like `ids`."""
        chance = self.chance[ids] * torch.where(segments == 1, 4 / 3, 2 / 3)
        return self.uniform(ids.shape) < chance.clamp(max=0.5)

    def uniform(self, shape: torch.Size) -> torch.Tensor:
        return torch.rand(shape, generator=self.generator)

    def draw(self, shape: torch.Size) -> torch.Tensor:
        """Random tokens, by their frequency."""
        drawn = torch.multinomial(self.frequency, shape.numel(), replacement=True, generator=self.generator)
        return drawn.view(shape)

    def unigram_loss(self, batches: list[Batch]) -> float:
        """Cross entropy, at the chosen positions, of guessing by word frequency alone: the loss to beat."""
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


@dataclass(frozen=True)
class Batches:
    """Turns passages into batches for an architecture."""

    architecture: Architecture
    words: Words
    size: int
    rng: Random

    def __call__(self, passages: Iterator[Passage], exchanged: float) -> Iterator[Batch]:
        """Batches of passages of similar length, so that hardly any padding is computed."""
        rows = exchange(passages, exchanged, self.rng)
        while pool := list(islice(rows, 50 * self.size)):
            pool.sort(key=lambda row: sum(map(len, row[0])) + self.rng.random())
            starts = list(range(0, len(pool), self.size))
            for start in self.rng.sample(starts, len(starts)):
                yield self.batch(pool[start : start + self.size])

    def batch(self, rows: list[tuple[Passage, int]]) -> Batch:
        """Words are chosen and hidden."""
        passages, exchanged = [passage for passage, _ in rows], torch.tensor([label for _, label in rows])
        inputs = self.words.encode(passages, return_tensors="pt")
        ids, segments = inputs["input_ids"], inputs["token_type_ids"]
        chosen = self.words.choose(ids, segments)
        # There is no telling the words of a second segment that belongs elsewhere.
        elsewhere = (exchanged == 1)[:, None] & (segments == 1)
        labels = ids.masked_fill(~chosen | elsewhere, IGNORED)
        return Batch(self.architecture.hide(inputs, chosen, self.words), labels, exchanged)


def guess(architecture: Any, model: PreTrainedModel, batch: Batch) -> dict[str, Guesses]:
    """The guesses of each objective, computed in bfloat16."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return architecture.guess(model, batch)


@torch.no_grad()
def evaluate(architecture: Architecture, model: PreTrainedModel, held_out: list[Batch]) -> dict[str, float]:
    """Losses and shares of right guesses on passages kept aside."""
    model.eval()
    results = [guess(architecture, model, batch) for batch in held_out]
    model.train()
    values = {}
    for objective in results[0]:
        guesses = Guesses(
            torch.cat([result[objective].logits for result in results]),
            torch.cat([result[objective].labels for result in results]),
        )
        values[f"{objective}_loss"] = round(float(guesses.loss), 4)
        values[f"{objective}_accuracy"] = round(float(guesses.right.float().mean()), 4)
    return values


def learning_rate(peak: float, step: int, elapsed: float) -> float:
    """Warm-up over 500 steps, then constant, then linear decay over the last 30 % of the time (`elapsed`: 0 to 1)."""
    return peak * min(1.0, step / 500) * min(1.0, (1 - elapsed) / 0.3)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, record: dict[str, Any], folder: Path) -> None:
    """The model in half precision, the tokenizer, and the record of the run; the model in memory stays as it is."""
    half = type(model)(model.config)
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "pretraining.json").write_text(json.dumps(record, indent=2) + "\n")


def pretrain(args: argparse.Namespace) -> None:
    """Everything from text to a saved model."""
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
        model = architecture.model_class.from_pretrained(args.start_from, dtype=torch.float32)
    else:
        texts = (segment for passage in sample for segment in passage)
        tokenizer = architecture.train_tokenizer(texts, args.vocab_size, args.max_length)
        model = architecture.model_class(architecture.config(tokenizer, args.layers, args.width))
    if architecture is Bert:  # for short sequences on a CPU faster than the fused kernel
        model.set_attn_implementation("eager")
    words = Words(tokenizer, sample, args.mask_share, torch.Generator().manual_seed(args.seed))
    batches = Batches(architecture, words, args.batch_size, rng)
    held_out = list(islice(batches(iter(aside), architecture.exchanged), args.held_out))
    words_only, all_objectives = batches(stream, 0.0), batches(stream, architecture.exchanged)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.01, fused=True)
    unigram = words.unigram_loss(held_out)
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
            save(model, tokenizer, {**sizes, **curve[-1], "curve": curve}, args.output)
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
    """Read the command line and start."""
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
    parser.add_argument("--start-from", type=Path, help="go on from a saved model")
    parser.add_argument("--words-first", type=float, default=0.3, help="share of the time with words only")
    parser.add_argument("--mask-share", type=float, default=0.2, help="share of the words to guess")
    parser.add_argument("--held-out", type=int, default=60, help="batches to measure the loss on, at most")
    parser.add_argument("--report-every", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pretrain(args)


if __name__ == "__main__":
    main()
