"""Threads of this process, one per lane: they share the model and the examples, and start at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Outcome = TypeVar("Outcome")

# Set while running fine-tunes are to end because no one waits for them.
abandoned = threading.Event()


class AbandonedError(Exception):
    """The fine-tune was cancelled."""


def end_if_abandoned() -> None:
    """Raises AbandonedError while the threads of a pool are being ended."""
    if abandoned.is_set():
        raise AbandonedError


class LanePool:
    """A pool of ``count`` threads, or else the number that ``measure`` returns."""

    lost: tuple[type[BaseException], ...] = ()

    def __init__(self, count: int | None, measure: Callable[[], int]) -> None:
        self._count, self._measure = count, measure
        self._executor: ThreadPoolExecutor | None = None

    @property
    def count(self) -> int:
        if self._count is None:
            self._count = self._measure()
        return self._count

    @property
    def sharing(self) -> int:
        return self.count

    def submit(self, function: Callable[..., Outcome], *arguments: Any) -> Future[Outcome]:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(self.count, "lane")
        return self._executor.submit(function, *arguments)

    def abandon(self) -> None:
        """Cancel the running fine-tunes at their next check, and wait for them to end."""
        if self._executor is None:
            return
        abandoned.set()
        try:
            self._executor.shutdown(wait=True, cancel_futures=True)
        finally:
            abandoned.clear()
        self._executor = None
