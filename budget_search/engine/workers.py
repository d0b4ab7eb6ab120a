"""Where evaluations run: in this process, in processes for cores or GPUs of this machine, or on a Dask cluster."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from joblib.externals.loky.process_executor import BrokenProcessPool, ProcessPoolExecutor

from budget_search.core.errors import StudyError
from budget_search.core.trial import Job, Trial, TrialKey
from budget_search.engine.device import default_workers, one_of, slots, visible_name
from budget_search.engine.evaluation import EvaluationContext, run_job, score_from_weights
from budget_search.engine.gpu.gpu_processes import GpuProcesses
from budget_search.engine.gpu.lane_pool import LanePool
from budget_search.engine.gpu.lanes import lanes_that_pay
from budget_search.engine.measurements.speed import Speed, measure_speed, side_by_side
from budget_search.engine.worker_process import begin_worker

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

# Loading the model again costs more than a waiting process does.
IDLE_SECONDS = 600
# For glibc's mallopt (malloc.h): from which size on memory comes from the system, and goes back to it, at once.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES = 2**30
ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}


class Pool(Protocol):
    """Processes that work for a search; ``lost`` are the exceptions that their deaths raise."""

    @property
    def lost(self) -> tuple[type[BaseException], ...]: ...

    @property
    def count(self) -> int:
        """How many evaluations to hand out at a time."""
        ...

    @property
    def sharing(self) -> int:
        """How many of them share the devices that one process sees."""
        ...

    def submit(self, function: Callable[..., Outcome], *arguments: Any) -> Future[Outcome]: ...

    def abandon(self) -> None:
        """Nobody waits for what is running any more."""
        ...


class LocalPool:
    """One process per slot on this machine, started when there is something to do.

    On a CPU every worker calculates with one thread: two threads of one process wait for each other whenever another
    process has the second core.
    """

    lost: tuple[type[BaseException], ...] = (BrokenProcessPool,)

    def __init__(self, count: int) -> None:
        self.count = self.sharing = count
        self._executor: ProcessPoolExecutor | None = None

    def submit(self, function: Callable[..., Outcome], *arguments: Any) -> Future[Outcome]:
        if self._executor is None:
            self._executor = self._new()
        try:
            future: Future[Outcome] = self._executor.submit(function, *arguments)
        except BrokenProcessPool:
            # A worker was killed, and its fellows ended with it.
            self._executor = self._new()
            future = self._executor.submit(function, *arguments)
        return future

    def abandon(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=True, kill_workers=True)
        self._executor = None

    def _new(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            self.count, timeout=IDLE_SECONDS, initializer=begin_worker, initargs=(os.getpid(),), env=ONE_THREAD
        )


class Workers:
    """Runs jobs and yields each trial as it finishes, in any order.

    ``count`` is how many run at a time; None lets the device decide. ``asked`` is the device as the user named it:
    ``auto`` and ``cuda`` stand for every device of the kind.
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
        for job, future in self._finished(self._pool, run_job, iter(jobs)):
            try:
                yield future.result()
            except self._pool.lost:
                # Nobody can tell which job it was: all that were running come back as the machine's failures.
                yield Trial(job.key, job.split, "failed", error="its worker process was killed", machine_failure=True)
            except CancelledError:
                raise StudyError(
                    "the Dask scheduler is gone; everything finished is kept: start it again, then run the same command"
                ) from None

    def score(self, keys: Sequence[TrialKey]) -> None:
        """Have the kept weights of these confirmations predict ``held_out``, once."""
        for _ in self._each(score_from_weights, keys):
            pass

    def speeds(self, total: int) -> list[Speed]:
        """How fast each worker is while all of them work, for a model of so many layers."""
        return list(self._each(measure_speed, [total] * self.count))

    @property
    def _place(self) -> Callable[..., Any]:
        """Runs a function with the workplace as it is now and an item, in whichever process."""
        return partial(_at_a_free_device, self.context, self._asked, self._pool.sharing if self._pool else 1)

    def _each(
        self, function: Callable[[EvaluationContext, Item], Outcome], items: Iterable[Item | None]
    ) -> Iterator[Outcome]:
        if self._pool is None:
            yield from (self._place(function, item) for item in items if item is not None)
            return
        lost: tuple[type[BaseException], ...] = (*self._pool.lost, CancelledError)
        try:
            yield from (future.result() for _, future in self._finished(self._pool, function, iter(items)))
        except lost:
            raise StudyError(
                "a worker was lost (out of memory?); everything finished is kept: run the same command again"
            ) from None

    def _finished(
        self, pool: Pool, function: Callable[[EvaluationContext, Item], Outcome], items: Iterator[Item | None]
    ) -> Iterator[tuple[Item, Future[Outcome]]]:
        running: dict[Future[Outcome], Item] = {}
        try:
            while True:
                while len(running) < pool.count and (item := next(items, None)) is not None:
                    running[pool.submit(self._place, function, item)] = item
                if not running:
                    return
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                yield from ((running.pop(future), future) for future in done)
        finally:
            if running:
                self.untaken += [each for each in map(_result, running) if isinstance(each, Trial)]
                pool.abandon()


def _result(future: Future[Outcome]) -> Outcome | None:
    """The outcome of an evaluation; None if it is still running or failed."""
    return None if not future.done() or future.cancelled() or future.exception() else future.result()


def _local_pool(context: EvaluationContext, count: int | None, asked: str) -> Pool | None:
    """Lanes of this process on one GPU, of a process for each on several; processes on a CPU. None where one evaluation
    at a time runs in this thread."""
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
    """As many as make the total faster, measured."""
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
    """Meanwhile C's allocator keeps what is freed: a step of training frees and wants hundreds of megabytes, and the
    system clears every page that it hands out again.

    Afterwards all that is free is returned: where psutil is installed, loky takes kept memory for a leak and replaces
    the worker, and the next one loads model and examples anew.
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
