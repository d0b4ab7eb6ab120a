"""The signals that end a command cleanly: SIGINT (Ctrl-C), SIGTERM, SIGHUP (a closed terminal)."""

from __future__ import annotations

import signal

ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Those that this platform has: Windows has no SIGHUP."""


def leave_terminal_to_coordinator() -> None:
    """In a worker process: ignore the signals that a terminal sends to all of its processes."""
    for number in ENDING:
        # SIGTERM is sent to a worker alone, to end it.
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
