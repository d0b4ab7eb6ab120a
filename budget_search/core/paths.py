"""Paths as users write them: what can be one, and what ``~`` stands for."""

from __future__ import annotations

import os
from pathlib import Path

from budget_search.core.errors import UsageError

# The longest name and the longest path that file systems take.
LONGEST_NAME, LONGEST_PATH = 255, 4096


def problem_with_place(option: str, value: str | None) -> str | None:
    """What keeps a text from being a path, a hub id or a URL."""
    if value is None:
        return None
    if "\0" in value:
        return f"{option} {value[:40]!r}: no file can have that name"
    if max(map(len, value.split("/"))) > LONGEST_NAME or len(value) > LONGEST_PATH:
        return f"{option} {value[:40]}...: too long, {len(value):,} characters"
    return None


def require_place(option: str, value: str | None) -> None:
    """Raises UsageError for a text that cannot be a path."""
    if problem := problem_with_place(option, value):
        raise UsageError(problem)


def place(text: str | Path) -> Path:
    """A path with ``~`` as the shell reads it; a user whom nobody knows is left as it stands."""
    return Path(os.path.expanduser(text))  # noqa: PTH111 - Path.expanduser raises for such a user
