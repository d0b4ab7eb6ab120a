"""The programs in examples/, which are no package, as modules."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent / "examples"


def example(name: str) -> ModuleType:
    """Raises FileNotFoundError when there is none of this name."""
    spec = importlib.util.spec_from_file_location(f"examples_{name}", ROOT / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
