"""One training step, as plain code: forward, loss, backward, clipping, update."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from transformers import PreTrainedModel

from budget_search.core.config import Recipe
from budget_search.engine.batches import DeviceSplit
from budget_search.engine.cpu_kernels import cpu_kernels
from budget_search.engine.device import Device
from budget_search.engine.loss import logits_of, loss_of
from budget_search.engine.optimizer import Rounded, clipped_adamw, sum_in_fp32
from budget_search.engine.schedule import Schedule

# The largest micro-batch that fitted, per device and batch size, so that later fine-tunes start with it.
_fitted: dict[tuple[str, int], int] = {}


class Steps(Protocol):
    """Runs the steps of a fine-tune, in order."""

    def run(self, number: int) -> None:
        """Run the step of this number (0-based); it may still be running on the device when this returns."""
        ...

    def loss(self) -> float:
        """The last step's loss; not a finite number if any step's was not. Waits for the device."""
        ...


class EagerSteps:
    """Training steps run eagerly, one operation after the other; the seed fixes dropout.

    Raises MemoryError from ``run`` when one example at a time does not fit.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        train: DeviceSplit,
        recipe: Recipe,
        schedule: Schedule,
        seed: int,
        device: Device,
        rounded: Rounded,
    ) -> None:
        self._model, self._train, self._schedule, self._device = model, train, schedule, device
        self._rounded, self._optimizer = rounded, clipped_adamw(model, rounded, recipe.lr, device)
        torch.manual_seed(seed)
        self._kernels = cpu_kernels(device, seed)
        self._loss = torch.zeros((), device=device.name)

    def run(self, number: int) -> None:
        indices = self._schedule.batches[number]
        length = self._train.longest(indices)
        rows = self._train.rows(indices)
        self._optimizer.param_groups[0]["lr"] = self._schedule.rates[number]
        self._loss = self._backward(rows, length)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def loss(self) -> float:
        return self._loss.item()

    def _backward(self, rows: torch.Tensor, length: int) -> torch.Tensor:
        """Add the gradients of the batch's mean loss; if memory is short, in micro-batches."""
        remembered = (self._device.name, len(rows))
        micro = _fitted.get(remembered, len(rows))
        while True:
            try:
                return self._accumulate(rows, length, micro)
            except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                if micro == 1:
                    raise MemoryError(f"out of memory with one example of {length} tokens") from error
            # The traceback held the activations; only now can they be freed.
            self._optimizer.zero_grad()
            if self._device.kind == "cuda":
                torch.cuda.empty_cache()
            micro = math.ceil(micro / 2)
            _fitted[remembered] = micro

    def _accumulate(self, rows: torch.Tensor, length: int, micro: int) -> torch.Tensor:
        total = torch.zeros((), device=self._device.name)
        weights = self._train.weights(rows)
        for part, own in zip(rows.split(micro), weights.split(micro), strict=True):
            with self._kernels, self._device.autocast():
                logits = logits_of(self._model(**self._train.inputs(part, length)))
            loss = loss_of(logits, self._train.labels_of(part, length), self._train.soft_of(part), own)
            loss.backward()
            if micro < len(rows):
                sum_in_fp32(self._rounded)
            total += loss.detach()
        return total


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception means out of memory, on the device or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)
