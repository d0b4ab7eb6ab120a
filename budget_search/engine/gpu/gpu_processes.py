"""Use several GPUs: one process per GPU, which sees only that GPU and runs one thread per lane.

With one GPU no process is started (``lane_pool``). This module imports no torch, because a new process must first be
assigned its GPU.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.managers import BaseManager
from typing import Any, TypeVar

from joblib.externals.loky.backend.context import get_context
from joblib.externals.loky.process_executor import BrokenProcessPool

from budget_search.engine.worker_process import begin_worker

Outcome = TypeVar("Outcome")


class _Evaluations:
    """Runs evaluations in the process of a GPU; each calling thread gets a thread of its own there."""

    def run(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, Exception | None]:
        """The outcome, or what was raised: an exception of the call itself then means that the process is gone."""
        try:
            return function(*arguments), None
        except Exception as error:
            return None, error


class _GpuProcess(BaseManager):
    """The process of one GPU."""

    @classmethod
    def started(cls, gpu: str) -> tuple[_GpuProcess, Any]:
        """A process that sees this GPU alone, and what to call there."""
        # Unlike multiprocessing's own, loky's processes do not import the user's script again.
        process = cls(ctx=get_context("loky"))
        process.start(_begin, (os.getpid(), gpu))
        return process, process.evaluations()  # type: ignore[attr-defined]


_GpuProcess.register("evaluations", _Evaluations)


def _begin(coordinator: int, gpu: str) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    begin_worker(coordinator)


class GpuProcesses:
    """Runs ``count`` evaluations at a time; by default, on every GPU the number that ``measure`` returns on the first.

    ``gpus`` are their names in CUDA_VISIBLE_DEVICES. An evaluation goes to the GPU with the fewest.
    """

    lost: tuple[type[BaseException], ...] = (BrokenProcessPool,)

    def __init__(self, gpus: Sequence[str], count: int | None, measure: Callable[[], int]) -> None:
        self._count, self._measure = count, measure
        self._running = dict.fromkeys(gpus, 0)
        self._processes: dict[str, tuple[_GpuProcess, Any]] = {}
        self._lock = threading.Lock()
        self._callers: ThreadPoolExecutor | None = None
        self._abandoned = False

    @property
    def count(self) -> int:
        if self._count is None:
            self._count = len(self._running) * self._run_on(next(iter(self._running)), self._measure)
        return self._count

    @property
    def sharing(self) -> int:
        return math.ceil(self.count / len(self._running))

    def submit(self, function: Callable[..., Outcome], *arguments: Any) -> Future[Outcome]:
        if self._callers is None:
            self._callers = ThreadPoolExecutor(self.count, "gpu")
        return self._callers.submit(self._run, function, *arguments)

    def abandon(self) -> None:
        """End the processes and their evaluations."""
        with self._lock:
            self._abandoned = True
            while self._processes:
                self._processes.popitem()[1][0].shutdown()
        if self._callers is not None:
            self._callers.shutdown(wait=True, cancel_futures=True)
        self._callers, self._abandoned = None, False

    def _run(self, function: Callable[..., Outcome], *arguments: Any) -> Outcome:
        with self._lock:
            gpu = min(self._running, key=self._running.__getitem__)
            self._running[gpu] += 1
        try:
            return self._run_on(gpu, function, *arguments)
        finally:
            with self._lock:
                self._running[gpu] -= 1

    def _run_on(self, gpu: str, function: Callable[..., Outcome], *arguments: Any) -> Outcome:
        """Raises BrokenProcessPool when the process dies; the next evaluation gets a new one."""
        with self._lock:
            if self._abandoned:
                raise BrokenProcessPool("this evaluation was abandoned")
            if gpu not in self._processes:
                self._processes[gpu] = _GpuProcess.started(gpu)
            there = self._processes[gpu]
        outcome: Outcome
        try:
            outcome, error = there[1].run(function, arguments)
        except (EOFError, OSError) as gone:
            with self._lock:
                if self._processes.get(gpu) is there:
                    del self._processes[gpu]
            raise BrokenProcessPool(f"the process of GPU {gpu} has ended") from gone
        if error is not None:
            raise error
        return outcome
