"""Processes for a few seconds of work, forked from this one: they need not import torch again."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager

from budget_search.core.signals import leave_terminal_to_coordinator

# A fork holds none of the threads of its parent. Windows cannot fork and the libraries of macOS do not stand it: there
# every process imports torch anew.
_METHOD = "fork" if sys.platform == "linux" else "spawn"


@contextmanager
def forked_processes(count: int) -> Iterator[Executor]:
    """So many processes, which end when this one does; what waits for them is dropped at the end.

    They are forked at once: to be called before torch calculates, because a fork cannot use the threads, nor the GPU,
    that its parent has begun to use.
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
