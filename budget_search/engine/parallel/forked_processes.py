"""Short-lived processes, forked from a server that has imported torch, so that torch is imported only once.

The server starts before this process imports torch itself, so that the two import at the same time.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import forkserver

from budget_search.core.signals import leave_terminal_to_coordinator

PRELOADED = ["budget_search.engine.parallel.workers", "transformers.models.auto.modeling_auto"]
# Windows cannot fork: there every process imports torch anew.
_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


def start_server() -> None:
    """Start the server and return at once, while it imports torch. The server ends with this process."""
    if _METHOD == "forkserver":
        forkserver.set_forkserver_preload(PRELOADED)
        forkserver.ensure_running()


def forked_processes(count: int) -> Executor:
    """A pool of ``count`` processes, which end with this one. Starts the server if needed."""
    start_server()
    return ProcessPoolExecutor(count, multiprocessing.get_context(_METHOD), initializer=_begin)


def _begin() -> None:
    leave_terminal_to_coordinator()
    threading.Thread(target=_end_with_coordinator, daemon=True).start()


def _end_with_coordinator() -> None:
    if coordinator := multiprocessing.parent_process():
        coordinator.join()
        os._exit(1)
