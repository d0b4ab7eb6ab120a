"""Make padded batches from flat tokens: grouped by length to save padding, in an order fixed by the seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from budget_search.data.kinds.kind import IGNORED

if TYPE_CHECKING:
    from budget_search.data.tokenization import EncodedSplit, EncodedTask

# Examples of similar length are gathered from this many batches' worth of shuffled examples: enough to save most of
# the padding, few enough that a batch stays a random sample of the task.
BATCHES_PER_BUCKET = 32


@dataclass(frozen=True)
class SoftTargets:
    """A teacher's logits (examples, classes) for every example, and their weight in the loss."""

    logits: torch.Tensor
    weight: float


@dataclass(frozen=True)
class DeviceSplit:
    """A split on the device: all tokens concatenated without padding, and the start of each example.

    An example here is one input of the model.

    Shapes: tokens and segments (total_tokens,), starts (examples,); labels (examples,), (examples, labels) or, with
    ``per_token``, (total_tokens,) or (total_tokens, 2). ``lengths`` stays on the host, so that choosing a batch's
    padded length never waits for the device. ``soft`` are targets from distillation, if any.
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
    per_token: bool = False

    @classmethod
    def of(cls, task: EncodedTask, split: EncodedSplit, device: str) -> DeviceSplit:
        lengths = np.diff(split.offsets)
        real = split.labels.dtype.kind == "f"
        return cls(
            tokens=torch.from_numpy(split.tokens.astype(np.int64)).to(device),
            segments=None if split.segments is None else torch.from_numpy(split.segments.astype(np.int64)).to(device),
            starts=torch.from_numpy(split.offsets[:-1].astype(np.int64)).to(device),
            sizes=torch.from_numpy(lengths.astype(np.int64)).to(device),
            labels=torch.from_numpy(split.labels.astype(np.float32 if real else np.int64)).to(device),
            lengths=lengths,
            pad_token=task.pad_token,
            pad_segment=task.pad_segment,
            pad_left=task.pad_left,
            per_token=task.kind.per_token,
        )

    @property
    def examples(self) -> int:
        return len(self.lengths)

    @cached_property
    def vocabulary(self) -> torch.Tensor:
        """The token numbers that occur, padding included, ascending: int64 (kinds,)."""
        return torch.cat([self.tokens, self.tokens.new_tensor([self.pad_token])]).unique()

    @cached_property
    def outputs_each(self) -> torch.Tensor:
        """How many rows of outputs each example has: one, or one per labelled token; int64 (examples,)."""
        if not self.per_token:
            return torch.ones_like(self.starts)
        labelled = (self.labels != IGNORED).view(len(self.tokens), -1)[:, 0]
        until = torch.nn.functional.pad(labelled.cumsum(0), (1, 0))
        return until[self.starts + self.sizes] - until[self.starts]

    def part(self, indices: np.ndarray) -> DeviceSplit:
        """A view of some examples of the split; tokens are not copied."""
        rows = torch.from_numpy(indices).to(self.starts.device)
        return replace(
            self,
            starts=self.starts[rows],
            sizes=self.sizes[rows],
            labels=self.labels if self.per_token else self.labels[rows],
            lengths=self.lengths[indices],
        )

    def _places(self, rows: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """For examples padded to a length: the positions of real tokens, and their indices; each (batch, length)."""
        sizes = self.sizes[rows, None]
        place = torch.arange(length, device=self.tokens.device)[None, :]
        if self.pad_left:
            place = place - (length - sizes)
        real = (place >= 0) & (place < sizes)
        return real, (self.starts[rows, None] + place).clamp(0, len(self.tokens) - 1)

    def inputs(self, rows: torch.Tensor, length: int) -> dict[str, torch.Tensor]:
        """The model's inputs for these examples, padded to a length: each (batch, length).

        ``rows`` are example numbers on the device, int64 (batch,). Nothing here waits for the device or copies from the
        host, so that a graph can capture it. The length is at least that of the longest example.
        """
        real, where = self._places(rows, length)
        inputs = {
            "input_ids": torch.where(real, self.tokens[where], self.pad_token),
            "attention_mask": real.long(),
        }
        if self.segments is not None:
            inputs["token_type_ids"] = torch.where(real, self.segments[where], self.pad_segment)
        return inputs

    def labels_of(self, rows: torch.Tensor, length: int) -> torch.Tensor:
        """The labels of these examples: (batch,), (batch, labels), or those of the tokens, (batch, length) or (batch,
        length, 2)."""
        if not self.per_token:
            return self.labels[rows]
        real, where = self._places(rows, length)
        labels = self.labels[where]
        return labels.where(real if labels.dim() == 2 else real[..., None], IGNORED)

    def labelled(self, rows: torch.Tensor, length: int) -> torch.Tensor:
        """Which tokens of these examples have a label, bool (batch, length); with ``per_token``."""
        labelled = self.labels_of(rows, length) != IGNORED
        return labelled if labelled.dim() == 2 else labelled[..., 0]

    def weights(self, rows: torch.Tensor, filled: torch.Tensor | None = None) -> torch.Tensor:
        """The weights (batch,) of these examples' losses in the batch's loss.

        That is their mean: over the examples, or over all tags. ``filled`` is 1 for the examples that count and 0 for
        the others; all count by default.
        """
        counted = torch.ones_like(rows, dtype=torch.float32) if filled is None else filled
        terms = self.outputs_each[rows] if self.labels.dim() == 1 else 1
        return counted / (terms * counted).sum().clamp_min(1.0)

    def in_order(self, outputs: torch.Tensor, indices: np.ndarray) -> np.ndarray:
        """Outputs of all examples, given in the order ``indices``, as an array in the order of the split."""
        each = self.outputs_each.cpu().numpy()
        first, read = np.cumsum(each) - each, each[indices]
        # The place of every row: that of its example's first row, plus its number within the example.
        places = np.repeat(first[indices] - (np.cumsum(read) - read), read) + np.arange(read.sum())
        values = outputs.cpu().numpy()
        in_order = np.empty_like(values)
        in_order[places] = values
        return in_order

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
