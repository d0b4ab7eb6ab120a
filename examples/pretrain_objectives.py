"""The pre-training objectives of BERT and XLNet, for `pretrain.py`."""

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

IGNORED = -100  # the label of a position that is not predicted
HEAD_SIZE = 64
# Initialisation of a new BERT: radians per position in the fastest and the slowest pair of dimensions, the amplitude of
# these waves in the position embeddings, and how strongly attention heads match them.
PHASES, POSITION_SCALE, MATCHING = (1.5, 0.03), 0.04, 1.2
Passage = tuple[str, str]


@dataclass
class Batch:
    """The inputs of the model and its targets."""

    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor  # (rows, length): the token to predict, or IGNORED
    exchanged: torch.Tensor  # (rows,): 0: the second segment belongs to the first, 1: it does not (as BERT counts)

    @property
    def tokens(self) -> int:
        return int(self.inputs["attention_mask"].sum())


@dataclass
class Predictions:
    """The predictions of one objective on one batch: logits (positions, classes) and labels (positions,)."""

    logits: torch.Tensor
    labels: torch.Tensor

    @property
    def loss(self) -> torch.Tensor:
        return cross_entropy(self.logits.float(), self.labels)

    @property
    def right(self) -> torch.Tensor:
        return self.logits.argmax(-1) == self.labels


class Words:
    """The vocabulary, and the choice of the words to predict: rare words more often than frequent ones.

    A short text consists mostly of words such as "the", which carry little meaning. The probability of a token is
    proportional to its frequency to the power -1/2, and twice as high in the second segment as in the first, so that
    enough context is left.
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
        """The positions to predict, as a boolean tensor of the shape of `ids`."""
        chance = self.chance[ids] * torch.where(segments == 1, 4 / 3, 2 / 3)
        return self.uniform(ids.shape) < chance.clamp(max=0.5)

    def uniform(self, shape: torch.Size) -> torch.Tensor:
        return torch.rand(shape, generator=self.generator)

    def draw(self, shape: torch.Size) -> torch.Tensor:
        """Random tokens, sampled by frequency."""
        drawn = torch.multinomial(self.frequency, shape.numel(), replacement=True, generator=self.generator)
        return drawn.view(shape)

    def unigram_loss(self, batches: list[Batch]) -> float:
        """Cross entropy of predicting by word frequency alone: the loss to beat."""
        labels = torch.cat([batch.labels[batch.labels != IGNORED] for batch in batches])
        frequency = torch.bincount(labels, minlength=len(self.frequency)) / len(labels)
        return float(-(frequency[labels]).log().mean())


class Bert:
    """Masked language modelling and next-sentence prediction."""

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
        """A model with random weights and initialised position embeddings. No dropout, because texts rarely repeat."""
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
        Bert.initialise_positions(model)
        return model

    @staticmethod
    @torch.no_grad()
    def initialise_positions(model: BertForPreTraining) -> None:
        """Make every head attend to a neighbour at first: one position back, one ahead, two back, two ahead, and so on.

        BERT learns its position embeddings from scratch. In a short training it learns little more than word
        frequencies before it knows which positions are neighbours. So the embeddings start as sine waves (Vaswani et
        al., 2017), and queries match the keys of a position at a fixed offset, similar to mimetic initialisation
        (Trockman and Kolter, 2023). All of these weights are trained further.
        """
        positions = model.bert.embeddings.position_embeddings.weight
        count, width = positions.shape
        phases = torch.linspace(*PHASES, width // 2)
        angles = torch.arange(count)[:, None] * phases
        positions.copy_(POSITION_SCALE * torch.stack([angles.sin(), angles.cos()], -1).flatten(1))
        heads = model.config.num_attention_heads
        # (heads, HEAD_SIZE, width): the dimensions, in pairs, that each head looks at.
        seen = torch.eye(width).view(-1, heads, 2, width).transpose(0, 1).reshape(heads, -1, width)
        offsets = [(1 + head // 2) * (1 if head % 2 else -1) for head in range(heads)]
        shifted = torch.cat([part @ _rotation(phases * offset) for part, offset in zip(seen, offsets, strict=True)])
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
    def guess(model: BertForPreTraining, batch: Batch) -> dict[str, Predictions]:
        """Logits of words are computed at the masked positions only."""
        encoded = model.bert(**batch.inputs)
        masked = batch.labels != IGNORED
        words, following = model.cls(encoded.last_hidden_state[masked], encoded.pooler_output)
        return {
            "word": Predictions(words, batch.labels[masked]),
            "next_segment": Predictions(following, batch.exchanged),
        }


def _rotation(angles: torch.Tensor) -> torch.Tensor:
    """The matrix that rotates each pair (sine, cosine) of dimensions back by its angle."""
    sines, cosines = angles.sin(), angles.cos()
    blocks = torch.stack([torch.stack([cosines, -sines], -1), torch.stack([sines, cosines], -1)], -2)
    return torch.block_diag(*blocks)


class XLNet:
    """Permutation language modelling with partial prediction (Yang et al., 2019, section 2.3).

    The last words in a random order are predicted, each from all words before it in that order, by the query stream,
    which sees the position of a word but not the word.
    """

    exchanged = 0.0
    model_class: ClassVar = XLNetLMHeadModel
    tokenizer_class: ClassVar = XLNetTokenizer
    saved_as = torch.float32  # the XLNet of transformers does not run in half precision

    @staticmethod
    def train_tokenizer(texts: Iterator[str], size: int, max_length: int) -> XLNetTokenizer:
        """An uncased unigram vocabulary of at most `size` entries."""
        names = BertTokenizer.model_input_names  # includes token_type_ids
        empty = XLNetTokenizer(do_lower_case=True, model_max_length=max_length, model_input_names=names)
        return empty.train_new_from_iterator(texts, size, show_progress=False)

    @staticmethod
    def fresh(tokenizer: PreTrainedTokenizerBase, layers: int, width: int) -> XLNetLMHeadModel:
        """A model with random weights; its attention has relative positions. No dropout: texts rarely repeat."""
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
        """Add `perm_mask` (rows, length, length) and `target_mapping` (rows, predictions, length)."""
        order = words.uniform(chosen.shape).masked_fill(~chosen, -1.0)  # words that are not predicted come first
        hidden = chosen[:, None, :] & (order[:, :, None] <= order[:, None, :])
        places = torch.zeros(len(chosen), int(chosen.sum(1).max()), chosen.shape[1])
        row, place = chosen.nonzero(as_tuple=True)
        places[row, chosen.cumsum(1)[row, place] - 1, place] = 1.0
        return {**inputs, "perm_mask": hidden.float(), "target_mapping": places}

    @staticmethod
    def guess(model: XLNetLMHeadModel, batch: Batch) -> dict[str, Predictions]:
        """Rows of `target_mapping` that a passage does not use are left out."""
        encoded = model.transformer(**batch.inputs, use_mems=False).last_hidden_state
        used = batch.inputs["target_mapping"].any(-1)
        return {"word": Predictions(model.lm_loss(encoded[used]), batch.labels[batch.labels != IGNORED])}


Architecture = type[Bert] | type[XLNet]
ARCHITECTURES: dict[str, Architecture] = {"bert": Bert, "xlnet": XLNet}
