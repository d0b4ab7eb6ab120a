"""Pools of worker processes: start them, submit work, end them. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any, Protocol, TypeVar

from joblib.externals.loky.process_executor import BrokenProcessPool, ProcessPoolExecutor

from budget_search.core.trial import Job, Trial
from budget_search.engine.worker_process import begin_worker

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
        """The number of concurrent evaluations."""
        ...

    @property
    def sharing(self) -> int:
        """How many evaluations share the devices visible to one process."""
        ...

    def submit(self, function: Callable[..., Outcome], *arguments: Any) -> Future[Outcome]: ...

    def abandon(self) -> None:
        """Cancel the running evaluations."""
        ...


class LocalPool:
    """One process per slot on this machine, started when there is something to do.

    On a CPU every worker uses one thread: two threads of one process would wait for each other whenever another
    process uses the second core.
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
            # A worker was killed, which ends the others of its pool.
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


def completed(
    pool: Pool, function: Callable[[Item], Outcome], items: Iterator[Item | None], untaken: list[Trial]
) -> Iterator[tuple[Item, Future[Outcome]]]:
    """Each item with its finished future, in any order.

    Takes an item whenever a worker is free; None says that the next one depends on results still to come. If the
    caller stops early, the pool is abandoned, and trials that had finished by then are added to ``untaken``.
    """
    running: dict[Future[Outcome], Item] = {}
    try:
        while True:
            while len(running) < pool.count and (item := next(items, None)) is not None:
                running[pool.submit(function, item)] = item
            if not running:
                return
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            yield from ((running.pop(future), future) for future in done)
    finally:
        if running:
            untaken += [each for each in map(_result, running) if isinstance(each, Trial)]
            pool.abandon()


def trial_of(pool: Pool, job: Job, future: Future[Trial]) -> Trial:
    """The trial of a finished job; a machine failure if a worker process died.

    It is unknown which evaluation the dead worker ran, so all running evaluations are returned as failures.
    """
    try:
        return future.result()
    except pool.lost:
        return Trial(job.key, job.split, "failed", error="its worker process was killed", machine_failure=True)


def _result(future: Future[Outcome]) -> Outcome | None:
    """The outcome of an evaluation; None if it is still running or failed."""
    return None if not future.done() or future.cancelled() or future.exception() else future.result()
