"""Which versions of what are at work, for the record."""

from __future__ import annotations

import importlib.metadata

VERSIONED = ("budget-search", "torch", "transformers", "datasets", "optuna", "joblib", "numpy", "scipy", "scikit-learn")


def versions() -> dict[str, str]:
    """Of this package and of those that can change a result."""
    return {name: importlib.metadata.version(name) for name in VERSIONED}
