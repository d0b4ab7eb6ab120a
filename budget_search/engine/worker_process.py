"""Initialise a worker process: leave terminal signals to the search, and exit when the search is gone."""

from __future__ import annotations

import os
import threading
import time

from budget_search.core.signals import leave_terminal_to_coordinator


def begin_worker(coordinator: int) -> None:
    """Ignore terminal signals, which the parent process handles, and exit when the parent is gone."""
    leave_terminal_to_coordinator()

    def watch() -> None:
        while os.getppid() == coordinator:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
