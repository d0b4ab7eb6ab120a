"""Paths from user input: validation and ``~`` expansion."""

from __future__ import annotations

import os
from pathlib import Path

from budget_search.core.errors import UsageError

# The usual limits of file systems.
LONGEST_NAME, LONGEST_PATH = 255, 4096


def path_problem(option: str, value: str | None) -> str | None:
    """Why a text cannot be a path, a hub id or a URL; None if it can."""
    if value is None:
        return None
    if "\0" in value:
        return f"{option} {value[:40]!r}: this is not a valid file name"
    if max(map(len, value.split("/"))) > LONGEST_NAME or len(value) > LONGEST_PATH:
        return f"{option} {value[:40]}...: too long, {len(value):,} characters"
    return None


def require_valid_path(option: str, value: str | None) -> None:
    """Raises UsageError if the text cannot be a path."""
    if problem := path_problem(option, value):
        raise UsageError(problem)


def expand_path(text: str | Path) -> Path:
    """Expand ``~`` as the shell does; ``~user`` stays unchanged if there is no such user."""
    return Path(os.path.expanduser(text))  # noqa: PTH111 - Path.expanduser raises for an unknown user
