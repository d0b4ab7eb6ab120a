"""What `pretrain.py` teaches: the objectives of BERT and of XLNet, on batches of any text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from tokenizers import BertWordPieceTokenizer
from torch.nn.functional import cross_entropy
from transformers import (
    BertConfig,
    BertForPreTraining,
    BertTokenizer,
    PreTrainedTokenizerBase,
    XLNetConfig,
    XLNetLMHeadModel,
    XLNetTokenizer,
)

IGNORED = -100  # the label of a position that is not guessed
HEAD_SIZE = 64
# In a fresh BERT: radians from one place to the next in the fastest and the slowest pair of dimensions,
# the size of these waves in the table of places, how strongly heads match them.
PHASES, PLACES_SCALE, MATCHING = (1.5, 0.03), 0.04, 1.2
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


class Bert:
    """Masked words, and which of two segments belong together."""

    exchanged = 0.5
    model_class: ClassVar = BertForPreTraining
    tokenizer_class: ClassVar = BertTokenizer
    saved_as = torch.float16

    @staticmethod
    def train_tokenizer(texts: Iterator[str], size: int, max_length: int) -> BertTokenizer:
        """An uncased WordPiece vocabulary of at most `size` entries."""
        trainer = BertWordPieceTokenizer(lowercase=True)
        trainer.train_from_iterator(texts, vocab_size=size, min_frequency=2, show_progress=False)
        return BertTokenizer(vocab=trainer.get_vocab(), do_lower_case=True, model_max_length=max_length)

    @staticmethod
    def fresh(tokenizer: PreTrainedTokenizerBase, layers: int, width: int) -> BertForPreTraining:
        """Random weights, but for a first idea of what stands beside what. No dropout, for no text is read often."""
        config = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=width // HEAD_SIZE,
            intermediate_size=4 * width,
            max_position_embeddings=tokenizer.model_max_length,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        model = BertForPreTraining(config)
        Bert.look_beside(model)
        return model

    @staticmethod
    @torch.no_grad()
    def look_beside(model: BertForPreTraining) -> None:
        """Every head begins by looking at a neighbour: the first one back, the second one ahead, then two, and so on.

        BERT learns its places from nothing, and in a short training hardly gets beyond how frequent words are before it
        has found out which places are neighbours. So the places begin as waves, as in the first transformer (Vaswani et
        al., 2017), and what a head asks for matches the waves of a place so far away (an idea akin to the mimetic
        initialisation of Trockman and Kolter, 2023). All of it is trained on.
        """
        places = model.bert.embeddings.position_embeddings.weight
        count, width = places.shape
        phases = torch.linspace(*PHASES, width // 2)
        angles = torch.arange(count)[:, None] * phases
        places.copy_(PLACES_SCALE * torch.stack([angles.sin(), angles.cos()], -1).flatten(1))
        heads = model.config.num_attention_heads
        # (heads, HEAD_SIZE, width): the dimensions, in pairs, that each head looks at.
        seen = torch.eye(width).view(-1, heads, 2, width).transpose(0, 1).reshape(heads, -1, width)
        offsets = [(1 + head // 2) * (1 if head % 2 else -1) for head in range(heads)]
        shifted = torch.cat([part @ _turned(phases * offset) for part, offset in zip(seen, offsets, strict=True)])
        for layer in model.bert.encoder.layer:
            layer.attention.self.query.weight += MATCHING * seen.reshape(-1, width)
            layer.attention.self.key.weight += MATCHING * shifted

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


def _turned(angles: torch.Tensor) -> torch.Tensor:
    """The matrix that turns each pair (sine, cosine) of dimensions back by its angle."""
    sines, cosines = angles.sin(), angles.cos()
    blocks = torch.stack([torch.stack([cosines, -sines], -1), torch.stack([sines, cosines], -1)], -2)
    return torch.block_diag(*blocks)


class XLNet:
    """Some words of each passage, each given all the others and those of the some that come before it in a drawn order.

    Yang et al. 2019, section 2.3: the last words of a permutation are predicted, by the stream that knows the place of
    a word but not the word.
    """

    exchanged = 0.0
    model_class: ClassVar = XLNetLMHeadModel
    tokenizer_class: ClassVar = XLNetTokenizer
    saved_as = torch.float32  # the XLNet of transformers does not run in half precision

    @staticmethod
    def train_tokenizer(texts: Iterator[str], size: int, max_length: int) -> XLNetTokenizer:
        """An uncased unigram vocabulary of at most `size` entries."""
        names = BertTokenizer.model_input_names  # the segments too
        empty = XLNetTokenizer(do_lower_case=True, model_max_length=max_length, model_input_names=names)
        return empty.train_new_from_iterator(texts, size, show_progress=False)

    @staticmethod
    def fresh(tokenizer: PreTrainedTokenizerBase, layers: int, width: int) -> XLNetLMHeadModel:
        """Random weights; what stands beside what is in its attention. No dropout, for no text is read often."""
        config = XLNetConfig(
            vocab_size=len(tokenizer),
            d_model=width,
            n_layer=layers,
            n_head=width // HEAD_SIZE,
            d_inner=4 * width,
            dropout=0.0,
            summary_last_dropout=0.0,
            pad_token_id=tokenizer.pad_token_id,
        )
        return XLNetLMHeadModel(config)

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
