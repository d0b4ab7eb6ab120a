"""Where evaluations run: in this process, or one per worker process on this machine."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import TypeVar

import torch
from joblib import Parallel, delayed
from joblib.externals.loky.process_executor import TerminatedWorkerError

from budget_search.evaluate import Workplace, run_job, score_from_weights
from budget_search.probe import Speed, measure_speed
from budget_search.trial import Job, Trial, TrialKey

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


class Workers:
    """Runs jobs and yields each trial as it finishes, in any order.

    On a CPU every worker calculates with one thread: two threads of one process wait for each other whenever another
    process has the second core.
    """

    def __init__(self, workplace: Workplace, count: int) -> None:
        self.workplace = workplace
        self.count = count

    def run(self, jobs: Sequence[Job]) -> Iterator[Trial]:
        waiting = {job.key: job for job in jobs}
        try:
            for trial in self._each(run_job, jobs):
                del waiting[trial.key]
                yield trial
        except TerminatedWorkerError:
            # Nobody can tell which job it was: all that had not finished come back as the machine's failures.
            for job in waiting.values():
                yield Trial(job.key, job.split, "failed", error="its worker process was killed", machine_failure=True)

    def score(self, keys: Sequence[TrialKey]) -> None:
        """Have the kept weights of these confirmations predict ``held_out``, once."""
        for _ in self._each(score_from_weights, keys):
            pass

    def speeds(self, total: int) -> list[Speed]:
        """How fast each worker is while all of them work, for a model of so many layers."""
        return list(self._each(measure_speed, [total] * self.count))

    def _each(self, function: Callable[[Workplace, Item], Outcome], items: Sequence[Item]) -> Iterator[Outcome]:
        if self.count == 1 or len(items) == 1:
            if self.workplace.device.kind == "cpu":
                torch.set_num_threads(1)
            yield from (function(self.workplace, item) for item in items)
            return
        with Parallel(
            n_jobs=self.count,
            batch_size=1,
            pre_dispatch=self.count,
            return_as="generator_unordered",
            inner_max_num_threads=1,
            backend="loky",
        ) as pool:
            yield from pool(delayed(_in_worker)(function, self.workplace, item, os.getpid()) for item in items)


def _in_worker(
    function: Callable[[Workplace, Item], Outcome], workplace: Workplace, item: Item, coordinator: int
) -> Outcome:
    _end_with(coordinator)
    try:
        return function(workplace, item)
    finally:
        _give_memory_back()


def _give_memory_back() -> None:
    """Return freed memory to the system.

    C's allocator keeps what the last fine-tune freed. Where psutil is installed, loky takes that for a leak and
    replaces the worker, and the next one loads model and examples anew.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


@lru_cache
def _end_with(coordinator: int) -> None:
    """Have this worker process end when the process that it works for is gone, however that ended."""

    def watch() -> None:
        while os.getppid() == coordinator:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
