"""Where an export may go: a new folder, or an earlier export; asked before a search begins, so without torch."""

from __future__ import annotations

import json
from pathlib import Path

from budget_search.core.errors import UsageError

MARKER = "budget_search.json"


def refuse_foreign(output: Path) -> None:
    """Raises UsageError when ``output`` is anything but absent, an empty folder, or an earlier export and no more."""
    advice = "choose another folder for --output"
    if not output.exists() and not output.is_symlink():
        return
    if output.is_symlink() or not output.is_dir():
        raise UsageError(f"{output} is not a folder; {advice}")
    present = {path.name for path in output.iterdir()}
    if not present:
        return
    try:
        ours = set(json.loads((output / MARKER).read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"{output} is not empty and not an export of budget-search; {advice}") from None
    if foreign := sorted(present - ours):
        raise UsageError(f"{output} holds more than an export of budget-search ({', '.join(foreign)}); {advice}")
