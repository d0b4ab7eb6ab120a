"""budget-search tells how few layers of a pre-trained transformer a task needs.

``search`` does what the command does, ``minimize_layers`` searches with a training of your own, ``read_report`` reads
the report of a study, ``keep_layers`` makes a smaller model of any transformers model, ``LayerSet`` names the layers
that are kept. Importing this package imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from budget_search.core.layers import LayerSet
from budget_search.core.objective import Measured, Outcome
from budget_search.core.versions import VERSION

if TYPE_CHECKING:
    from budget_search.api import minimize_layers, read_report, search
    from budget_search.data.metrics import contributions
    from budget_search.models.keep_layers import keep_layers

__version__ = VERSION
__all__ = [
    "LayerSet",
    "Measured",
    "Outcome",
    "__version__",
    "contributions",
    "keep_layers",
    "minimize_layers",
    "read_report",
    "search",
]

# Loaded on first use: torch and transformers take seconds to import.
_LAZY = {
    "contributions": "budget_search.data.metrics",
    "keep_layers": "budget_search.models.keep_layers",
    "minimize_layers": "budget_search.api",
    "read_report": "budget_search.api",
    "search": "budget_search.api",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
