"""Throughput at a batch that fills a GPU.

A GPU takes about as long for one example as for dozens, since it waits for the host to launch kernels or leaves most of
its processors idle. What layers cost there shows in a batch that fills it. A CPU core is full with a few examples.
"""

from __future__ import annotations

from collections.abc import Mapping

from transformers import PreTrainedModel

from budget_search.engine.measurements.cost import FEWEST_ROUNDS, Batch, Timing, measure_inference
from budget_search.engine.sizes import largest_that_pays
from budget_search.engine.training_step import out_of_memory

# How often a batch is repeated; more than 2,048 examples are beyond what some attention kernels take.
REPEATS = (1, 2, 4, 8, 16, 32, 64)
PEAK_SECONDS = 5.0


def measure_peak(
    models: Mapping[str, PreTrainedModel], batch: Batch, *, budget_seconds: float = PEAK_SECONDS
) -> dict[str, Timing]:
    """Time every model on as many copies of a batch as fill the device with the first model, the baseline."""
    baseline = next(iter(models.values()))
    copies = largest_that_pays(REPEATS, lambda count: _examples_per_second(baseline, repeated(batch, count)))
    timings = measure_inference(models, [repeated(batch, copies)], budget_seconds=budget_seconds)
    return {name: timing for name, (timing,) in timings.items()}


def repeated(batch: Batch, copies: int) -> Batch:
    """The examples of a batch, each so many times: (copies x examples, tokens)."""
    return {name: tensor.repeat(copies, 1) for name, tensor in batch.items()}


def _examples_per_second(model: PreTrainedModel, batch: Batch) -> float:
    """0 where memory is too small for the batch."""
    try:
        [timing] = measure_inference({"": model}, [batch], rounds=FEWEST_ROUNDS, budget_seconds=0)[""]
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        return 0.0
    return 1000 * timing.batch / timing.median_ms
