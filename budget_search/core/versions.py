"""The versions of this package and of the libraries that can change a result."""

from __future__ import annotations

import importlib.metadata

VERSION = "0.1.0"
RECORDED = ("torch", "transformers", "datasets", "optuna", "joblib", "numpy", "scipy", "scikit-learn")


def versions() -> dict[str, str]:
    """By distribution name; ``unknown`` where a library is there without its metadata."""
    return {"budget-search": VERSION, **{name: _version(name) for name in RECORDED}}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
