"""The versions of this package and of the libraries that can affect a result."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping

VERSION = "0.1.0"
# The oldest and the newest version of each library that the core tests passed with: `make test-versions`.
TRIED = {
    "torch": ("2.11", "2.14"),
    "transformers": ("5.17", "5.24"),
    "datasets": ("4.0", "5.2"),
    "optuna": ("5.0", "5.0"),
    "joblib": ("1.4", "1.6"),
    "numpy": ("2.0", "2.5"),
    "scipy": ("1.15", "1.18"),
    "scikit-learn": ("1.7", "1.9"),
}


def versions() -> dict[str, str]:
    """Versions by distribution name; ``unknown`` if a library has no metadata."""
    return {"budget-search": VERSION, **{name: _version(name) for name in TRIED}}


def untried(found: Mapping[str, str]) -> dict[str, str]:
    """Libraries in an untested version (by its first two numbers), each with the tested range."""
    return {
        name: f"{found[name]} is untested; tested: {oldest} to {newest}"
        for name, (oldest, newest) in TRIED.items()
        if found.get(name, "unknown") != "unknown" and not _release(oldest) <= _release(found[name]) <= _release(newest)
    }


def _release(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
