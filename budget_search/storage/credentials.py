"""Passwords in storage URLs: never in a message, a report, or the process title that everybody can read."""

from __future__ import annotations

import argparse
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
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument(OPTION)
    try:
        given, others = parser.parse_known_args(argv)
    except argparse.ArgumentError:
        # For the real parser to complain of.
        return
    if given.storage is None or hidden(given.storage) == given.storage:
        return
    environment = {**os.environ, VARIABLE: given.storage}
    os.execve(sys.executable, [sys.executable, "-m", "budget_search", *others], environment)
