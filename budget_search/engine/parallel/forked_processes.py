"""Short-lived processes, forked from this one so that they need not import torch again."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager

from budget_search.core.signals import leave_terminal_to_coordinator

# A forked process has none of its parent's threads. Windows cannot fork, and system libraries of macOS do not
# support it: there every process imports torch again.
_METHOD = "fork" if sys.platform == "linux" else "spawn"


@contextmanager
def forked_processes(count: int) -> Iterator[Executor]:
    """A pool of ``count`` processes, which end with this one. Work that has not started at the end is cancelled.

    The processes are forked at once. Call this before torch calculates: a forked process can use neither the threads
    nor the GPU that its parent has started to use.
    """
    processes = ProcessPoolExecutor(count, multiprocessing.get_context(_METHOD), initializer=_begin)
    try:
        processes.submit(os.getpid).result()
        yield processes
    finally:
        processes.shutdown(cancel_futures=True)


def _begin() -> None:
    leave_terminal_to_coordinator()
    threading.Thread(target=_end_with_coordinator, daemon=True).start()


def _end_with_coordinator() -> None:
    if coordinator := multiprocessing.parent_process():
        coordinator.join()
        os._exit(1)
