"""Import the scripts in examples/, which is not a package, as modules."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent / "examples"
# As for `python examples/NAME.py`: a script may import another.
sys.path.append(str(ROOT))


def example(name: str) -> ModuleType:
    """The script of this name as a module. Raises FileNotFoundError if there is none."""
    spec = importlib.util.spec_from_file_location(f"examples_{name}", ROOT / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
