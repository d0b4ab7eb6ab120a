"""Where evaluations run: in this process, in one process per device slot on this machine, or on a Dask cluster."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import torch
from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.process_executor import BrokenProcessPool

from budget_search.device import one_of, slots
from budget_search.errors import StudyError
from budget_search.evaluate import Workplace, run_job, score_from_weights
from budget_search.trial import Job, Trial, TrialKey

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

# Loading the model again costs more than a waiting process does.
IDLE_SECONDS = 600
ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}


class Pool(Protocol):
    """Processes that work for a search; ``lost`` are the exceptions that their deaths raise."""

    @property
    def lost(self) -> tuple[type[BaseException], ...]: ...

    @property
    def count(self) -> int:
        """How many evaluations to hand out at a time."""
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
        self.count = count

    def submit(self, function: Callable[..., Outcome], *arguments: Any) -> Future[Outcome]:
        # Asked for anew each time: it replaces an executor that broke because a worker was killed.
        return self._executor().submit(function, *arguments)

    def abandon(self) -> None:
        self._executor().shutdown(wait=True, kill_workers=True)

    def _executor(self) -> Any:
        return get_reusable_executor(
            self.count, timeout=IDLE_SECONDS, initializer=_begin_worker, initargs=(os.getpid(),), env=ONE_THREAD
        )


class Workers:
    """Runs jobs and yields each trial as it finishes, in any order.

    ``asked`` is the device as the user named it: ``auto`` and ``cuda`` stand for every device of the kind.
    """

    def __init__(self, workplace: Workplace, count: int, *, asked: str = "", cluster: Pool | None = None) -> None:
        self.workplace = workplace
        self._asked = asked
        self._pool: Pool | None = cluster or (LocalPool(count) if count > 1 else None)

    @property
    def count(self) -> int:
        return self._pool.count if self._pool else 1

    def run(self, jobs: Iterable[Job | None]) -> Iterator[Trial]:
        """Takes a job whenever a slot is free; None says that the next one depends on trials still to come."""
        if self._pool is None:
            yield from (_at_a_free_device(run_job, self.workplace, self._asked, job) for job in jobs if job)
            return
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
        if self._pool is None:
            for key in keys:
                _at_a_free_device(score_from_weights, self.workplace, self._asked, key)
            return
        for _, future in self._finished(self._pool, score_from_weights, iter(keys)):
            future.result()

    def _finished(
        self, pool: Pool, function: Callable[[Workplace, Item], Outcome], items: Iterator[Item | None]
    ) -> Iterator[tuple[Item, Future[Outcome]]]:
        running: dict[Future[Outcome], Item] = {}
        try:
            while True:
                while len(running) < pool.count and (item := next(items, None)) is not None:
                    running[pool.submit(_at_a_free_device, function, self.workplace, self._asked, item)] = item
                if not running:
                    return
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                yield from ((running.pop(future), future) for future in done)
        finally:
            if running:
                pool.abandon()


def _at_a_free_device(
    function: Callable[[Workplace, Item], Outcome], workplace: Workplace, asked: str, item: Item
) -> Outcome:
    if workplace.device.kind == "cpu":
        torch.set_num_threads(1)
    with one_of(slots(workplace.device, asked)) as name:
        return function(replace(workplace, device=replace(workplace.device, name=name)), item)


def _begin_worker(coordinator: int) -> None:
    """Leave Ctrl-C to the process that this worker works for, and end when that is gone, however it ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == coordinator:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
