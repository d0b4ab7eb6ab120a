"""Keep passwords in storage URLs out of messages, reports and the process list."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence

OPTION, VARIABLE = "--storage", "BUDGET_SEARCH_STORAGE"
_PASSWORD = re.compile(r"(?<=://)([^/:@\s]*):[^\s]*@")
_QUERY = re.compile(r"([?&][^=&\s]*(?:pass|pwd|secret|token)[^=&\s]*=)[^&\s]*", re.IGNORECASE)


def mask_passwords(text: str) -> str:
    """Replace every password in a URL by ``***``."""
    return _QUERY.sub(r"\1***", _PASSWORD.sub(r"\1:***@", text))


def move_password_to_environment(argv: Sequence[str]) -> None:
    """Restart this program with the storage URL in the environment if the URL on the command line holds a password.

    All users can read a command line in the process list, but only the owner can read the environment. Returns without
    effect if there is no password.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument(OPTION)
    try:
        given, others = parser.parse_known_args(argv)
    except argparse.ArgumentError:
        # The main parser reports the error.
        return
    if given.storage is None or mask_passwords(given.storage) == given.storage:
        return
    environment = {**os.environ, VARIABLE: given.storage}
    os.execve(sys.executable, [sys.executable, "-m", "budget_search", *others], environment)
