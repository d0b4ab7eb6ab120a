"""From flat tokens to padded batches: sorted by length where that saves padding, in an order the seed fixes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from budget_search.data.tokenization import EncodedSplit, EncodedTask

# Examples of similar length are gathered from this many batches' worth of shuffled examples: enough to save most of
# the padding, few enough that a batch stays a random sample of the task.
BATCHES_PER_BUCKET = 32


@dataclass(frozen=True)
class SoftTargets:
    """What another model said of every example, logits (examples, classes), and what share of the loss that makes."""

    logits: torch.Tensor
    weight: float


@dataclass(frozen=True)
class DeviceSplit:
    """A split on the device: all tokens end to end, without padding, and where each example lies.

    Shapes: tokens and segments (total_tokens,), starts and labels (examples,); ``lengths`` stays on the host, so that
    choosing a batch's padded length never waits for the device. ``soft`` targets, where there are any, are learnt
    beside the labels.
    """

    tokens: torch.Tensor
    segments: torch.Tensor | None
    starts: torch.Tensor
    sizes: torch.Tensor
    labels: torch.Tensor
    lengths: np.ndarray
    pad_token: int
    pad_segment: int
    pad_left: bool
    soft: SoftTargets | None = None

    @classmethod
    def of(cls, task: EncodedTask, split: EncodedSplit, device: str) -> DeviceSplit:
        lengths = np.diff(split.offsets)
        regression = split.labels.dtype.kind == "f"
        return cls(
            tokens=torch.from_numpy(split.tokens.astype(np.int64)).to(device),
            segments=None if split.segments is None else torch.from_numpy(split.segments.astype(np.int64)).to(device),
            starts=torch.from_numpy(split.offsets[:-1].astype(np.int64)).to(device),
            sizes=torch.from_numpy(lengths.astype(np.int64)).to(device),
            labels=torch.from_numpy(split.labels.astype(np.float32 if regression else np.int64)).to(device),
            lengths=lengths,
            pad_token=task.pad_token,
            pad_segment=task.pad_segment,
            pad_left=task.pad_left,
        )

    @property
    def examples(self) -> int:
        return len(self.lengths)

    @cached_property
    def vocabulary(self) -> torch.Tensor:
        """The token numbers that occur, ascending: int64 (kinds,), padding among them."""
        return torch.cat([self.tokens, self.tokens.new_tensor([self.pad_token])]).unique()

    def inputs(self, rows: torch.Tensor, length: int) -> dict[str, torch.Tensor]:
        """The model's inputs for these examples, padded to a length: each (batch, length).

        ``rows`` are example numbers on the device, int64 (batch,). Nothing here waits for the device or reads from the
        host, so that a graph can hold it. The length is at least that of the longest example.
        """
        sizes = self.sizes[rows, None]
        place = torch.arange(length, device=self.tokens.device)[None, :]
        if self.pad_left:
            place = place - (length - sizes)
        real = (place >= 0) & (place < sizes)
        where = (self.starts[rows, None] + place).clamp(0, len(self.tokens) - 1)
        inputs = {
            "input_ids": torch.where(real, self.tokens[where], self.pad_token),
            "attention_mask": real.long(),
        }
        if self.segments is not None:
            inputs["token_type_ids"] = torch.where(real, self.segments[where], self.pad_segment)
        return inputs

    def soft_of(self, rows: torch.Tensor) -> SoftTargets | None:
        return self.soft and SoftTargets(self.soft.logits[rows], self.soft.weight)

    def longest(self, indices: np.ndarray) -> int:
        return int(self.lengths[indices].max())

    def rows(self, indices: np.ndarray) -> torch.Tensor:
        """Example numbers on the device; copied from pinned memory, so that the host does not wait for the device."""
        numbers = torch.from_numpy(indices)
        if self.tokens.is_cuda:
            return numbers.pin_memory().to(self.tokens.device, non_blocking=True)
        return numbers.to(self.tokens.device)

    def batch(self, indices: np.ndarray) -> dict[str, torch.Tensor]:
        """The model's inputs for these examples, padded to the longest of them: each (batch, length)."""
        return self.inputs(self.rows(indices), self.longest(indices))


def training_order(lengths: np.ndarray, batch_size: int, seed: int) -> Iterator[np.ndarray]:
    """Batches of example numbers without end, epoch after epoch; the same for the same seed.

    An epoch shows every example once. Neighbours in length share a batch; the order of batches is random.
    """
    generator = np.random.default_rng(seed)
    while True:
        shuffled = generator.permutation(len(lengths))
        bucket = batch_size * BATCHES_PER_BUCKET
        batches: list[np.ndarray] = []
        for start in range(0, len(shuffled), bucket):
            members = shuffled[start : start + bucket]
            members = members[np.argsort(lengths[members], kind="stable")]
            batches.extend(members[low : low + batch_size] for low in range(0, len(members), batch_size))
        for position in generator.permutation(len(batches)):
            yield batches[position]


def reading_order(lengths: np.ndarray, tokens_per_batch: int) -> Iterator[np.ndarray]:
    """Every example once, longest first, in batches of at most this many padded tokens (one example at least)."""
    longest_first = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(longest_first):
        size = max(1, tokens_per_batch // max(1, int(lengths[longest_first[start]])))
        yield longest_first[start : start + size]
        start += size
