"""What a process that works for a search does first: leave signals to the search, and end when it is gone."""

from __future__ import annotations

import os
import signal
import threading
import time

from budget_search.core.signals import ENDING


def begin_worker(coordinator: int) -> None:
    """Leave what a terminal sends to the process that this worker works for, and end when that is gone."""
    for number in ENDING:
        # SIGTERM is sent to a worker alone, to end it.
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == coordinator:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
