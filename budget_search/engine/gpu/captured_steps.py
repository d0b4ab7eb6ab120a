"""Training steps of one model shape, captured once per padded length and replayed for every candidate of that shape.

A graph reads and writes fixed addresses. So the weights, the optimiser's moments and everything that changes from step
to step live in buffers here: a candidate's weights are copied in, trained, and copied out again. Which layers they came
from and which seed is used makes no difference to the graph.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import numpy as np
import torch
from transformers import PreTrainedModel

from budget_search.core.config import Recipe
from budget_search.engine.batches import DeviceSplit
from budget_search.engine.device import Device
from budget_search.engine.gpu.host_values import CaptureRefusedError, HostValues
from budget_search.engine.gpu.length_buckets import LengthBuckets, choose_buckets
from budget_search.engine.loss import logits_of, loss_of
from budget_search.engine.optimizer import CLIP_NORM
from budget_search.engine.schedule import Schedule

# Distance between the weights after a captured step and after the same eager step, as a share of the step's length.
# The same kernels run on the same numbers; what differs is the order of sums in the gradients of embeddings.
MOST_DIFFERENCE = 0.05
CHECK_SEED = 0


class Recorder(Protocol):
    """Captures a function's work on the device; ``cuda.GraphRecorder`` does, tests use one that calls the function."""

    def active(self) -> AbstractContextManager[None]:
        """Inside, this thread's work goes to the recorder's stream, after what went to the thread's own before."""
        ...

    def alone(self) -> AbstractContextManager[None]:
        """Inside, no other lane seeds or draws random numbers, and this lane's own are drawn."""
        ...

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        """What repeats the function's work. Raises CaptureRefusedError."""
        ...

    def seed(self, seed: int) -> None:
        """Fix the random numbers that the steps draw from here on."""
        ...


class CapturedSteps:
    """The buffers and graphs of one model shape; implements ``Steps`` while a candidate is trained."""

    def __init__(
        self, model: PreTrainedModel, train: DeviceSplit, recipe: Recipe, device: Device, recorder: Recorder
    ) -> None:
        self._model = copy.deepcopy(model)
        self._train, self._device, self._recorder = train, device, recorder
        self._batch_size = min(recipe.batch_size, train.examples)
        self._buckets = choose_buckets(train.lengths, recipe.batch_size)
        # Learning rate, number of real examples, example numbers: what changes from step to step, in one vector.
        self._control = torch.zeros(2 + self._batch_size, dtype=torch.float64, device=device.name)
        self._loss = torch.zeros((), device=device.name)
        self._rate = torch.zeros((), device=device.name)
        self._trained: list[torch.Tensor] = [each for each in self._model.parameters() if each.requires_grad]
        self._optimizer = torch.optim.AdamW(
            self._trained, lr=self._rate, weight_decay=0.0, fused=True, capturable=device.kind == "cuda"
        )
        self._replays: dict[int, Callable[[], None]] = {}
        self._plan: torch.Tensor | None = None
        self._lengths: tuple[int, ...] = ()

    @property
    def buckets(self) -> LengthBuckets:
        return self._buckets

    def prepare(self, schedule: Schedule) -> None:
        """Capture the steps that a schedule needs and that are not captured yet; the first is compared with the same
        step run eagerly.

        Raises CaptureRefusedError where the model cannot be captured or the two steps differ.
        """
        for batch in schedule.batches:
            length = self._buckets.holding(self._train.longest(batch))
            if length not in self._replays:
                with self._recorder.alone():
                    self._replays[length] = self._captured(batch, length, max(schedule.rates))

    @contextmanager
    def training(self, model: PreTrainedModel, schedule: Schedule, seed: int) -> Iterator[CapturedSteps]:
        """Inside, ``run`` trains a copy of the model's weights; they are the model's afterwards.

        ``prepare`` has been called for this schedule.
        """
        self._copy_weights(model, self._model)
        self._reset()
        self._recorder.seed(seed)
        self._plan = self._planned(schedule)
        self._lengths = tuple(self._buckets.holding(self._train.longest(batch)) for batch in schedule.batches)
        yield self
        self._copy_weights(self._model, model)

    def run(self, number: int) -> None:
        assert self._plan is not None
        self._control.copy_(self._plan[number])
        self._replays[self._lengths[number]]()

    def loss(self) -> float:
        """The sum of all steps' losses: not a number as soon as one is not."""
        return self._loss.item()

    def _step(self, length: int) -> None:
        """The step itself, run eagerly or captured: gather, forward, loss, backward, clipping, update."""
        self._rate.copy_(self._control[0])
        count, rows = self._control[1], self._control[2:].long()
        # A batch that is not full is filled with rows of weight zero.
        filled = (torch.arange(self._batch_size, device=rows.device) < count).float()
        with self._device.autocast():
            logits = logits_of(self._model(**self._train.inputs(rows, length)))
        labels, weights = self._train.labels_of(rows, length), self._train.weights(rows, filled)
        loss = loss_of(logits, labels, self._train.soft_of(rows), weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._trained, CLIP_NORM)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._loss += loss.detach()

    def _captured(self, batch: np.ndarray, length: int, rate: float) -> Callable[[], None]:
        """The replay of a step; weights, moments and random numbers are afterwards as they were before."""
        self._model.train()
        self._control.copy_(self._planned(Schedule((batch,), (rate,)))[0])
        weights = [weight.detach().clone() for weight in self._trained]
        self._recorder.seed(CHECK_SEED)
        host_values = HostValues.seen_in(lambda: self._step(length))
        expected = [weight.detach().clone() for weight in self._trained]
        self._restore(weights)
        with host_values.given():
            replay = self._recorder.capture(lambda: self._step(length))
        self._restore(weights)
        if not self._replays:
            self._recorder.seed(CHECK_SEED)
            replay()
            self._compare(weights, expected)
            self._restore(weights)
        return replay

    def _compare(self, before: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> None:
        length = _distance(before, expected)
        difference = _distance(expected, self._trained)
        if not difference <= MOST_DIFFERENCE * length:
            raise CaptureRefusedError(
                f"a captured step changes the weights differently from an eager step (by {difference / length:.0%} "
                "of its length)"
            )

    def _planned(self, schedule: Schedule) -> torch.Tensor:
        """The control vectors of all steps, on the device: float64 (steps, 2 + batch size)."""
        plan = np.zeros((schedule.steps, len(self._control)))
        for step, (batch, rate) in enumerate(zip(schedule.batches, schedule.rates, strict=True)):
            plan[step, 0], plan[step, 1] = rate, len(batch)
            plan[step, 2 : 2 + len(batch)] = batch
        return torch.from_numpy(plan).to(self._control.device)

    @torch.no_grad()
    def _restore(self, weights: Sequence[torch.Tensor]) -> None:
        torch._foreach_copy_(self._trained, list(weights))
        self._reset()

    @torch.no_grad()
    def _reset(self) -> None:
        """A new optimiser, at the addresses of the old one."""
        self._loss.zero_()
        for state in self._optimizer.state.values():
            for value in state.values():
                value.zero_()

    @staticmethod
    @torch.no_grad()
    def _copy_weights(source: PreTrainedModel, target: PreTrainedModel) -> None:
        """All weights and buffers; both models have the same names and shapes."""
        values = dict(source.named_parameters()) | dict(source.named_buffers())
        for name, value in (*target.named_parameters(), *target.named_buffers()):
            value.copy_(values[name])


def _distance(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> float:
    squares = [(a.detach().double() - b.detach().double()).square().sum() for a, b in zip(one, other, strict=True)]
    return float(torch.stack(squares).sum().sqrt())
