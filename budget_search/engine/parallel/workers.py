"""Run evaluations in this process, in one process per core or GPU of this machine, or on a Dask cluster."""

from __future__ import annotations

import concurrent.futures.process
import ctypes
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Executor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch

from budget_search.core.errors import StudyError
from budget_search.core.trial import Job, Trial, TrialKey
from budget_search.engine.device import default_workers, one_of, slots, visible_name
from budget_search.engine.evaluation import EvaluationContext, run_job, score_from_weights
from budget_search.engine.gpu.gpu_processes import GpuProcesses
from budget_search.engine.gpu.lane_pool import LanePool
from budget_search.engine.gpu.lanes import lanes_that_pay
from budget_search.engine.measurements.speed import measure_speed, side_by_side
from budget_search.engine.parallel.pools import LocalPool, Pool, completed, trial_of
from budget_search.simulation.evaluation_costs import Speed

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

# For glibc's mallopt (malloc.h): from which size on memory comes from the system, and goes back to it, at once.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES = 2**30


class Workers:
    """Runs jobs and yields each trial as it finishes, in any order.

    ``count`` is how many run at a time; None lets the device decide. ``asked`` is the device as the user named it:
    ``auto`` and ``cuda`` mean every device of that kind.
    """

    def __init__(
        self, context: EvaluationContext, count: int | None, *, asked: str = "", cluster: Pool | None = None
    ) -> None:
        self.context = context
        self._asked = asked
        self._pool: Pool | None = cluster or _local_pool(context, count, asked)
        self.untaken: list[Trial] = []
        """Trials that had finished when the search ended early; only after ``run``."""

    @property
    def count(self) -> int:
        return self._pool.count if self._pool else 1

    def run(self, jobs: Iterable[Job | None]) -> Iterator[Trial]:
        """Takes a job whenever a slot is free; None says that the next one depends on trials still to come."""
        if self._pool is None:
            yield from self._each(run_job, jobs)
            return
        self.untaken = []
        for job, future in completed(self._pool, partial(self._place, run_job), iter(jobs), self.untaken):
            try:
                yield trial_of(self._pool, job, future)
            except CancelledError:
                raise StudyError(
                    "the Dask scheduler is gone; finished evaluations are kept: restart it, then run the same command"
                ) from None

    def score(self, keys: Sequence[TrialKey]) -> None:
        """Have the kept weights of these confirmations predict ``held_out``, once."""
        for _ in self._each(score_from_weights, keys):
            pass

    def speeds(self, total: int, processes: Executor) -> list[Speed]:
        """The speed of each worker while all of them are busy, for a model with this number of layers.

        ``processes`` stand for the workers on the cores of this machine.
        """
        totals = [total] * self.count
        if not isinstance(self._pool, LocalPool):
            return list(self._each(measure_speed, totals))
        try:
            return list(processes.map(partial(self._place, measure_speed), totals))
        except concurrent.futures.process.BrokenProcessPool:
            raise StudyError("a process that timed a few steps was killed (out of memory?)") from None

    @property
    def _place(self) -> Callable[..., Any]:
        """Run a function with the current context and an item, in any process."""
        return partial(_at_a_free_device, self.context, self._asked, self._pool.sharing if self._pool else 1)

    def _each(
        self, function: Callable[[EvaluationContext, Item], Outcome], items: Iterable[Item | None]
    ) -> Iterator[Outcome]:
        if self._pool is None:
            yield from (self._place(function, item) for item in items if item is not None)
            return
        lost: tuple[type[BaseException], ...] = (*self._pool.lost, CancelledError)
        try:
            finished = completed(self._pool, partial(self._place, function), iter(items), self.untaken)
            yield from (future.result() for _, future in finished)
        except lost:
            raise StudyError(
                "a worker was lost (out of memory?); finished evaluations are kept: run the same command again"
            ) from None


def _local_pool(context: EvaluationContext, count: int | None, asked: str) -> Pool | None:
    """On one GPU lanes of this process, on several one process with lanes per GPU, on a CPU processes. None to run one
    evaluation at a time in this thread."""
    if count == 1:
        return None
    if context.device.kind != "cuda":
        count = count or default_workers(context.device)
        return LocalPool(count) if count > 1 else None
    gpus, measure = slots(context.device, asked), partial(_lanes_of_a_gpu, context)
    if len(gpus) > 1:
        return GpuProcesses(list(map(visible_name, gpus)), count, measure)
    return LanePool(count, measure)


def _lanes_of_a_gpu(context: EvaluationContext) -> int:
    """The number of lanes with the highest total speed, measured."""
    from budget_search.engine.gpu.cuda import lane_fits

    return lanes_that_pay(side_by_side(context), lambda lanes: lane_fits(context.device.name, lanes))


def _at_a_free_device(
    context: EvaluationContext,
    asked: str,
    workers: int,
    function: Callable[[EvaluationContext, Item], Outcome],
    item: Item,
) -> Outcome:
    if context.device.kind == "cpu":
        torch.set_num_threads(1)
    with one_of(slots(context.device, asked, workers)) as name, _memory_at_hand():
        return function(replace(context, device=replace(context.device, name=name)), item)


@contextmanager
def _memory_at_hand() -> Iterator[None]:
    """Inside, C's allocator keeps freed memory: a training step frees and allocates hundreds of megabytes, and the
    system would clear every page before returning it.

    Afterwards free memory is returned: if psutil is installed, loky takes kept memory for a leak and replaces the
    worker, and the next one has to load model and examples again.
    """
    library: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(library, "mallopt"):
        library.mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        library.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
    try:
        yield
    finally:
        if hasattr(library, "malloc_trim"):
            library.malloc_trim(0)
