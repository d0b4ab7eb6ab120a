"""One short fine-tune, from top to bottom: no callbacks, no checkpoints, nothing that outlives it but the weights."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax, mse_loss
from transformers import PreTrainedModel, get_linear_schedule_with_warmup

from budget_search.core.config import Recipe
from budget_search.engine.batches import DeviceSplit, SoftTargets, reading_order, training_order
from budget_search.engine.cpu_kernels import Kernels, cpu_kernels
from budget_search.engine.device import Device
from budget_search.engine.optimizer import clipped_adamw, rounded_weights
from budget_search.engine.used_embeddings import only_occurring_rows
from budget_search.models.layer_training import skipping_layers

# At which soft targets are compared: it brings out what the other model thinks of the classes it does not choose.
TEMPERATURE = 2.0
# How many steps may pass before a loss that is no longer a number is noticed: looking at it waits for the device.
STEPS_BETWEEN_CHECKS = 25
# Padded tokens of an evaluation batch: larger than a training batch, since no gradients are kept; on a CPU no larger
# than what its caches hold.
EVALUATION_TOKENS = {"cpu": 1_024, "cuda": 65_536, "mps": 16_384}

# The largest micro-batch that fitted, per device and batch size, so that later fine-tunes start with it.
_fitted: dict[tuple[str, int], int] = {}


class DivergedError(Exception):
    """The loss became infinite or not a number."""


@dataclass(frozen=True)
class FineTuned:
    """What a fine-tune cost; ``tokens`` are the real ones it was trained on, without padding."""

    seconds: float
    steps: int
    tokens: int


def fine_tune(
    model: PreTrainedModel, train: DeviceSplit, recipe: Recipe, rung: float, seed: int, device: Device
) -> FineTuned:
    """Train ``model`` in place on a fraction ``rung`` of the recipe's steps, with a complete schedule of its own.

    The seed fixes the order of the data and dropout, that of whole layers too. Parameters that require no gradient stay
    as they are. Raises DivergedError; MemoryError when one example at a time does not fit; UnsupportedModelError for a
    model that cannot skip layers.
    """
    started = time.perf_counter()
    with (
        skipping_layers(model, recipe.layer_drop),
        only_occurring_rows(model, train.vocabulary),
        rounded_weights(model, device) as rounded,
    ):
        optimizer = clipped_adamw(model, rounded, recipe.lr, device)
        steps, tokens = _train(model, train, recipe, rung, seed, device, optimizer)
    device.synchronize()
    return FineTuned(time.perf_counter() - started, steps, tokens)


def _train(
    model: PreTrainedModel,
    train: DeviceSplit,
    recipe: Recipe,
    rung: float,
    seed: int,
    device: Device,
    optimizer: torch.optim.Optimizer,
) -> tuple[int, int]:
    """The loop itself: how many steps it took, on how many tokens."""
    steps = recipe.steps(train.examples, rung)
    schedule = get_linear_schedule_with_warmup(optimizer, math.ceil(recipe.warmup * steps), steps)
    torch.manual_seed(seed)
    kernels = cpu_kernels(device, seed)
    model.train()
    tokens = 0
    for step, indices in enumerate(islice(training_order(train.lengths, recipe.batch_size, seed), steps), start=1):
        loss = _backward(model, train, indices, device, kernels)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        tokens += int(train.lengths[indices].sum())
        if (step % STEPS_BETWEEN_CHECKS == 0 or step == steps) and not math.isfinite(loss.item()):
            raise DivergedError(f"the loss was {loss.item()} after {step} of {steps} steps")
    return steps, tokens


def predict(model: PreTrainedModel, split: DeviceSplit, device: Device) -> np.ndarray:
    """Logits of every example, in order: float32 (examples, classes), or (examples, 1) for regression."""
    model.eval()
    tokens_per_batch = EVALUATION_TOKENS[device.kind]
    order: list[np.ndarray] = []
    logits: list[torch.Tensor] = []
    with torch.inference_mode(), cpu_kernels(device), device.autocast():
        for indices in reading_order(split.lengths, tokens_per_batch):
            order.append(indices)
            logits.append(model(**split.batch(indices)).logits.float())
    outputs = torch.cat(logits).cpu().numpy()
    in_order = np.empty_like(outputs)
    in_order[np.concatenate(order)] = outputs
    return in_order


def loss_of(logits: torch.Tensor, labels: torch.Tensor, soft: SoftTargets | None = None) -> torch.Tensor:
    """Mean cross-entropy, or mean squared error for regression, in fp32; mixed with the distance to soft targets."""
    regression = labels.is_floating_point()
    hard = mse_loss(logits.float().squeeze(-1), labels) if regression else cross_entropy(logits.float(), labels)
    if soft is None:
        return hard
    return (1 - soft.weight) * hard + soft.weight * _distance(logits.float(), soft.logits, regression)


def _distance(logits: torch.Tensor, wanted: torch.Tensor, regression: bool) -> torch.Tensor:
    """From soft targets: the mean Kullback-Leibler divergence at a temperature, times its square so that gradients are
    of the size of the labels' (Hinton et al., 2015, 2.1); the mean squared error for regression."""
    if regression:
        return mse_loss(logits, wanted)
    own, theirs = (log_softmax(each / TEMPERATURE, dim=-1) for each in (logits, wanted))
    return kl_div(own, theirs, reduction="batchmean", log_target=True) * TEMPERATURE**2


def _backward(
    model: PreTrainedModel, train: DeviceSplit, indices: np.ndarray, device: Device, kernels: Kernels
) -> torch.Tensor:
    """Add the gradients of the batch's mean loss; on a device short of memory, piece by piece."""
    remembered = (device.name, len(indices))
    micro = _fitted.get(remembered, len(indices))
    while True:
        try:
            return _accumulate(model, train, indices, micro, device, kernels)
        except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if micro == 1:
                longest = int(train.lengths[indices].max())
                raise MemoryError(f"out of memory with one example of {longest} tokens") from error
        # The traceback held the activations; only now can they be freed.
        model.zero_grad()
        if device.kind == "cuda":
            torch.cuda.empty_cache()
        micro = math.ceil(micro / 2)
        _fitted[remembered] = micro


def _accumulate(
    model: PreTrainedModel, train: DeviceSplit, indices: np.ndarray, micro: int, device: Device, kernels: Kernels
) -> torch.Tensor:
    total = torch.zeros((), device=device.name)
    for start in range(0, len(indices), micro):
        part = indices[start : start + micro]
        with kernels, device.autocast():
            logits = model(**train.batch(part)).logits
        # Weighted so that the sum over the parts is the mean over the batch.
        loss = loss_of(logits, train.labels_of(part), train.soft_of(part)) * (len(part) / len(indices))
        loss.backward()
        total += loss.detach()
    return total


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory ran out, on the device or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)
