"""budget-search tells how few layers of a pre-trained transformer a task needs.

``search`` does what the command does, ``read_report`` reads the report of a study, ``keep_layers`` makes a smaller
model of any transformers model, ``LayerSet`` names the layers that are kept. Importing this package imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from budget_search.core.layers import LayerSet
from budget_search.core.versions import VERSION

if TYPE_CHECKING:
    from budget_search.api import read_report, search
    from budget_search.models.keep_layers import keep_layers

__version__ = VERSION
__all__ = ["LayerSet", "__version__", "keep_layers", "read_report", "search"]

# Loaded on first use: torch and transformers take seconds to import.
_LAZY = {
    "keep_layers": "budget_search.models.keep_layers",
    "read_report": "budget_search.api",
    "search": "budget_search.api",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
