"""Threads of this process, one per lane: they share the model and the examples, and start at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from budget_search.engine.gpu.lanes import lanes_that_pay

Outcome = TypeVar("Outcome")

# Set while running fine-tunes are to end because no one waits for them.
abandoned = threading.Event()


class AbandonedError(Exception):
    """The fine-tune was ended because no one waits for it."""


def end_if_abandoned() -> None:
    """Raises AbandonedError while the threads of a pool are being ended."""
    if abandoned.is_set():
        raise AbandonedError


class LanePool:
    """As many threads as asked for; otherwise as many per GPU as make the total faster.

    ``rate`` measures the steps per second of so many fine-tunes side by side, given as many threads; ``fits`` says
    whether another lane fits into memory.
    """

    lost: tuple[type[BaseException], ...] = ()

    def __init__(
        self,
        count: int | None,
        gpus: int = 1,
        *,
        rate: Callable[[ThreadPoolExecutor, int], float],
        fits: Callable[[int], bool],
    ) -> None:
        self._count, self._gpus, self._rate, self._fits = count, gpus, rate, fits
        self._executor: ThreadPoolExecutor | None = None

    @property
    def count(self) -> int:
        if self._count is None:
            self._count = self._gpus * self._lanes_per_gpu()
        return self._count

    def submit(self, function: Callable[..., Outcome], *arguments: Any) -> Future[Outcome]:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(self.count, "lane")
        return self._executor.submit(function, *arguments)

    def abandon(self) -> None:
        """End the running fine-tunes at their next check, and wait for that."""
        if self._executor is None:
            return
        abandoned.set()
        try:
            self._executor.shutdown(wait=True, cancel_futures=True)
        finally:
            abandoned.clear()
        self._executor = None

    def _lanes_per_gpu(self) -> int:
        def total(lanes: int) -> float:
            with ThreadPoolExecutor(lanes, "lane") as executor:
                return self._rate(executor, lanes)

        return lanes_that_pay(total, self._fits)
