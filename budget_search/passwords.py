"""Passwords in storage URLs: never in a message, a report, or the process title that everybody on a machine can read."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence

OPTION, VARIABLE = "--storage", "BUDGET_SEARCH_STORAGE"
_PASSWORD = re.compile(r"(?<=://)([^/:@\s]*):[^\s]*@")
_QUERY = re.compile(r"([?&][^=&\s]*(?:pass|pwd|secret|token)[^=&\s]*=)[^&\s]*", re.IGNORECASE)


def hidden(text: str) -> str:
    """The text with ``***`` for every password in a URL."""
    return _QUERY.sub(r"\1***", _PASSWORD.sub(r"\1:***@", text))


def leave_the_title(argv: Sequence[str]) -> None:
    """Start this program again with a storage URL that holds a password in the environment, which only its user can
    read, instead of on the command line; returns where there is none."""
    joined = [f"{word}={argv[place + 1]}" if word == OPTION and place + 1 < len(argv) else word
              for place, word in enumerate(argv)]  # fmt: skip
    given = [word.removeprefix(f"{OPTION}=") for word in joined if word.startswith(f"{OPTION}=")]
    if not given or hidden(given[-1]) == given[-1]:
        return
    others = [word for place, word in enumerate(argv)
              if not word.startswith(f"{OPTION}=") and OPTION not in (word, argv[place - 1] if place else "")]  # fmt: skip
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(
        sys.executable, [sys.executable, "-m", "budget_search", *others], {**os.environ, VARIABLE: given[-1]}
    )
