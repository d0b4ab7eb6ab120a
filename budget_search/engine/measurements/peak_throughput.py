"""Measure throughput at a batch size that saturates a GPU.

A GPU takes about as long for one example as for dozens, because it waits for kernel launches or leaves most of its
processors idle. The cost of layers shows only in a batch that saturates it. A few examples saturate a CPU core.
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
    """Time every model on as many copies of a batch as saturate the device with the first model, the baseline."""
    baseline = next(iter(models.values()))
    copies = largest_that_pays(REPEATS, lambda count: _examples_per_second(baseline, repeated(batch, count)))
    timings = measure_inference(models, [repeated(batch, copies)], budget_seconds=budget_seconds)
    return {name: timing for name, (timing,) in timings.items()}


def repeated(batch: Batch, copies: int) -> Batch:
    """The examples of a batch, each repeated ``copies`` times: (copies x examples, tokens)."""
    return {name: tensor.repeat(copies, 1) for name, tensor in batch.items()}


def _examples_per_second(model: PreTrainedModel, batch: Batch) -> float:
    """Examples per second; 0 if the batch does not fit into memory."""
    try:
        [timing] = measure_inference({"": model}, [batch], rounds=FEWEST_ROUNDS, budget_seconds=0)[""]
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        return 0.0
    return 1000 * timing.batch / timing.median_ms
