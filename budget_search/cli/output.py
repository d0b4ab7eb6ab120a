"""Files that commands write beside what they print."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from budget_search.core.errors import UsageError

DEFAULT_STUDIES = "studies"


def write_text(path: Path, text: str, option: str) -> None:
    """Raises UsageError, which names the option."""
    try:
        path.write_text(text + "\n", encoding="utf8")
    except OSError as error:
        raise UsageError(f"{option} {path} cannot be written: {error.strerror}") from error


def save_plots(figures: Any, folder: Path, option: str) -> None:
    """Figures as PNG and SVG. Raises UsageError, which names the option."""
    from budget_search.report.plots.figures import save

    try:
        written = save(figures, folder)
    except OSError as error:
        raise UsageError(f"{option} {folder} cannot be written: {error.strerror}") from error
    print(f"wrote {len(written)} pictures to {folder}", file=sys.stderr)
