"""The versions of this package and of the libraries that can affect a result."""

from __future__ import annotations

import importlib.metadata

VERSION = "0.1.0"
LIBRARIES = ("torch", "transformers", "datasets", "optuna", "joblib", "numpy", "scipy", "scikit-learn")


def versions() -> dict[str, str]:
    """Versions by distribution name; ``unknown`` if a library has no metadata."""
    return {"budget-search": VERSION, **{name: _version(name) for name in LIBRARIES}}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
