"""Measure the rebuilt model: parameters, FLOPs, inference time and memory.

Savings are measured, not derived from the number of layers. The baseline and its candidates take turns on the same
inputs, so that other load on the machine affects all of them, and the interval is that of the ratio within a turn.
"""

from __future__ import annotations

import inspect
import math
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from budget_search.engine.batches import DeviceSplit

Batch = Mapping[str, torch.Tensor]
"""A model's keyword inputs; ``input_ids`` and the rest of shape (examples, tokens)."""

Inputs = Mapping[str, torch.Tensor | bool]

# Batch sizes that inference is timed with; 32 is the paper's (Table 3).
TIMED_BATCHES = (1, 32)
TIMED_SECONDS = 20.0
WARM_UP_ROUNDS = 2
FEWEST_ROUNDS = 6  # the fewest for which an interval of the median at 95 % exists


@dataclass(frozen=True)
class Timing:
    """One model on one batch of inputs: milliseconds per forward pass, with the 10 % and 90 % quantiles.

    ``saved`` is the fraction of the baseline's time saved and its 95 % interval (value, low, high); None for the
    baseline itself. ``threads`` is None off the CPU; ``peak_bytes``, weights included, None off CUDA.
    """

    batch: int
    length: int
    median_ms: float
    low_ms: float
    high_ms: float
    saved: tuple[float, float, float] | None
    device: str
    dtype: str
    threads: int | None
    rounds: int
    peak_bytes: int | None


@dataclass(frozen=True)
class Throughput:
    """The speed of one model on ``examples`` examples in batches of ``batch``, each padded to its longest.

    ``saved`` is the fraction of the baseline's time saved per batch, median and 95 % interval (value, low, high); None
    for the baseline itself.
    """

    batch: int
    examples: int
    seconds: float
    saved: tuple[float, float, float] | None


def parameters(model: PreTrainedModel) -> int:
    """The number of parameters; shared ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def flops(model: PreTrainedModel, batch: Batch) -> int:
    """Floating-point operations of a forward pass, per example (a multiply and an add are two)."""
    inputs = _inputs(model, batch)
    # The counter does not see the CPU's fused attention; the plain one has the same arithmetic. Nor can it follow a
    # weight that is handed from module to module without gradients, as DeBERTa's positions are.
    with (
        _evaluating([model]),
        torch.inference_mode(False),
        torch.enable_grad(),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        model(**inputs)
    total: int = counter.get_total_flops()
    return round(total / len(batch["input_ids"]))


def measure_inference(
    models: Mapping[str, PreTrainedModel],
    batches: Sequence[Batch],
    *,
    rounds: int = 30,
    budget_seconds: float = 60.0,
) -> dict[str, tuple[Timing, ...]]:
    """Time every model on every batch; the first model is the baseline, all are on one device.

    In each round every model has one turn. After ``budget_seconds`` (shared among the batches) no further round
    starts, except that there are always at least six. Raises ValueError without models, or on different devices.
    """
    devices = {model.device for model in models.values()}
    if len(devices) != 1:
        raise ValueError(f"models to compare must be on one device, received {sorted(map(str, devices)) or 'none'}")
    found: dict[str, list[Timing]] = {name: [] for name in models}
    with _evaluating(models.values()):
        for batch in batches:
            prepared = {name: (model, _inputs(model, batch)) for name, model in models.items()}
            peaks = {name: _warm_up(model, inputs) for name, (model, inputs) in prepared.items()}
            seconds = _take_turns(prepared, max(rounds, FEWEST_ROUNDS), budget_seconds / len(batches))
            baseline = next(iter(seconds.values()))
            for index, (name, model) in enumerate(models.items()):
                reference = None if index == 0 else baseline
                found[name].append(_timing(model, batch, seconds[name], reference, peaks[name]))
    return {name: tuple(timings) for name, timings in found.items()}


def replayed_seconds(model: PreTrainedModel, batch: Batch) -> float | None:
    """Seconds of a forward pass replayed as one CUDA graph, without launching each kernel from the host.

    None off CUDA, and for a model that cannot be captured.
    """
    if model.device.type != "cuda":
        return None
    from budget_search.engine.gpu.cuda import replay_seconds

    inputs = _inputs(model, batch)
    with _evaluating([model]):
        return replay_seconds(lambda: model(**inputs), str(model.device))


def launch_share(seconds: float, replayed: float | None) -> float | None:
    """The share of a forward pass in which a GPU waits for kernel launches: the time that a graph replay saves."""
    return None if replayed is None else max(0.0, 1 - replayed / seconds)


def measure_throughput(
    models: Mapping[str, PreTrainedModel], batches: Iterable[Batch], *, budget_seconds: float = 60.0
) -> dict[str, Throughput]:
    """Measure every model's throughput on a data set (Poor Man's BERT, Table 3: QQP's 40.4 k in batches of 32).

    The first model is the baseline. All models process every batch, in turns. After ``budget_seconds`` no further
    batch starts, so the batches must be in random order. Returns nothing for fewer than six batches.
    """
    seconds: dict[str, list[float]] = {name: [] for name in models}
    sizes: list[int] = []
    deadline = time.perf_counter() + budget_seconds
    with _evaluating(models.values()):
        for batch in batches:
            if len(sizes) >= FEWEST_ROUNDS and time.perf_counter() > deadline:
                break
            prepared = {name: (model, _inputs(model, batch)) for name, model in models.items()}
            if not sizes:
                for model, inputs in prepared.values():
                    _warm_up(model, inputs)
            names = list(prepared)[:: -1 if len(sizes) % 2 else 1]
            for name in names:
                seconds[name].append(_forward_seconds(*prepared[name]))
            sizes.append(len(batch["input_ids"]))
    if len(sizes) < FEWEST_ROUNDS:
        return {}
    baseline = next(iter(seconds.values()))
    return {
        name: Throughput(max(sizes), sum(sizes), sum(own), None if own is baseline else saving(own, baseline))
        for name, own in seconds.items()
    }


def saving(candidate: Sequence[float], baseline: Sequence[float]) -> tuple[float, float, float]:
    """Median fraction of the baseline's time saved, over paired rounds (at least six), and its 95 % interval.

    The interval is the distribution-free one for a median: two of the paired ratios, chosen by rank so that the median
    lies between them with 95 % probability.
    """
    saved = sorted(1 - ours / theirs for ours, theirs in zip(candidate, baseline, strict=True))
    outside = _ranks_outside(len(saved))
    return statistics.median(saved), saved[outside], saved[-1 - outside]


def _ranks_outside(samples: int) -> int:
    """How many values to leave out at each end of a sorted sample so that the rest spans the true median (95 %)."""
    probability, index = 2.0**-samples, 0
    while probability + math.comb(samples, index + 1) * 2.0**-samples <= 0.025:
        index += 1
        probability += math.comb(samples, index) * 2.0**-samples
    return index


def _take_turns(
    prepared: Mapping[str, tuple[PreTrainedModel, Inputs]], rounds: int, budget_seconds: float
) -> dict[str, list[float]]:
    """Seconds per forward pass: for each model one number per round."""
    seconds: dict[str, list[float]] = {name: [] for name in prepared}
    names = list(prepared)
    deadline = time.perf_counter() + budget_seconds
    for done in range(rounds):
        if done >= FEWEST_ROUNDS and time.perf_counter() > deadline:
            break
        for name in names:
            seconds[name].append(_forward_seconds(*prepared[name]))
        names.reverse()  # so that no model always runs after the same other one
    return seconds


def _forward_seconds(model: PreTrainedModel, inputs: Inputs) -> float:
    _synchronise(model.device)
    start = time.perf_counter()
    model(**inputs)
    _synchronise(model.device)
    return time.perf_counter() - start


def _warm_up(model: PreTrainedModel, inputs: Inputs) -> int | None:
    """Run the first passes, which allocate memory and choose kernels; returns the peak memory in bytes."""
    on_cuda = model.device.type == "cuda"
    if on_cuda:
        torch.cuda.reset_peak_memory_stats(model.device)
        before = torch.cuda.memory_allocated(model.device)
    for _ in range(WARM_UP_ROUNDS):
        _forward_seconds(model, inputs)
    if not on_cuda:
        return None
    # The other models are on the device too, so only the growth is this model's, and its own weights.
    growth = torch.cuda.max_memory_allocated(model.device) - before
    return growth + sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def _timing(
    model: PreTrainedModel,
    batch: Batch,
    seconds: Sequence[float],
    baseline: Sequence[float] | None,
    peak_bytes: int | None,
) -> Timing:
    deciles = statistics.quantiles(seconds, n=10, method="inclusive")
    examples, length = batch["input_ids"].shape
    device = model.device
    return Timing(
        batch=examples,
        length=length,
        median_ms=1000 * statistics.median(seconds),
        low_ms=1000 * deciles[0],
        high_ms=1000 * deciles[-1],
        saved=None if baseline is None else saving(seconds, baseline),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        dtype=str(model.dtype).removeprefix("torch."),
        threads=torch.get_num_threads() if device.type == "cpu" else None,
        rounds=len(seconds),
        peak_bytes=peak_bytes,
    )


def _inputs(model: PreTrainedModel, batch: Batch) -> Inputs:
    """The batch on the model's device, with the caches of text generation switched off (XLNet's mems, key-value)."""
    accepted = inspect.signature(model.forward).parameters
    switched_off = {name: False for name in ("use_mems", "use_cache") if name in accepted}
    return {**{name: tensor.to(model.device) for name, tensor in batch.items()}, **switched_off}


def _synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


@contextmanager
def _evaluating(models: Iterable[PreTrainedModel]) -> Iterator[None]:
    """Inside, no dropout and no gradients; each model's mode is restored afterwards."""
    were_training = [(model, model.training) for model in models]
    for model, _ in were_training:
        model.train(False)
    try:
        with torch.inference_mode():
            yield
    finally:
        for model, training in were_training:
            model.train(training)


def timed_batch(split: DeviceSplit, size: int) -> dict[str, torch.Tensor]:
    """Real examples of about the median length, padded to the longest of them as in real use."""
    middle = np.argsort(split.lengths, kind="stable")
    start = max(0, (len(middle) - size) // 2)
    return split.batch(middle[start : start + size])
