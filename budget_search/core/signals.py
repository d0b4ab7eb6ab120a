"""The signals that end a command in good order: Ctrl-C, a request to terminate, a closed terminal."""

from __future__ import annotations

import signal

ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Those that this platform has: Windows has no SIGHUP."""
