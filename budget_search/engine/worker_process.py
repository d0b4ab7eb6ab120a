"""What a process that works for a search does first: leave signals to the search, and end when it is gone."""

from __future__ import annotations

import os
import threading
import time

from budget_search.core.signals import leave_terminal_to_coordinator


def begin_worker(coordinator: int) -> None:
    """Leave what a terminal sends to the process that this worker works for, and end when that is gone."""
    leave_terminal_to_coordinator()

    def watch() -> None:
        while os.getppid() == coordinator:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
