"""Runs the core tests with the oldest or the newest versions that pyproject.toml allows, in a new environment.

    python -m tests.versions oldest
    python -m tests.versions newest --python python3.13

Builds build/versions/NAME with pip: about 6 GB with a torch for GPUs.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
# A search from the command line to a checkpoint, keep_layers, the storage, the strategies, metrics.
CORE = (
    "test_end_to_end.py::test_the_mission_to_the_letter",
    "test_model.py",
    "test_store.py",
    "test_strategies.py",
    "test_metrics.py",
)
RUNNERS = ("pytest", "pytest-timeout", "hypothesis", "html5lib")


def oldest_of(dependencies: list[str]) -> list[str]:
    """``torch>=2.11,<3`` as ``torch==2.11.*``."""
    return [re.sub(r">=([\d.]+).*", r"==\1.*", each) for each in dependencies]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=("oldest", "newest"))
    parser.add_argument("--python", default=sys.executable, help="the interpreter (default: this one)")
    options = parser.parse_args()
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text("utf8"))["project"]["dependencies"]
    python = ROOT / "build" / "versions" / options.which / "bin" / "python"
    subprocess.run([options.python, "-m", "venv", python.parent.parent], check=True)
    install = [python, "-m", "pip", "install", "--quiet", "--upgrade", "--editable", ".", *RUNNERS]
    subprocess.run([*install, *(oldest_of(asked) if options.which == "oldest" else asked)], cwd=ROOT, check=True)
    subprocess.run([python, "-m", "budget_search", "doctor"], cwd=ROOT, check=True)
    threads = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    tests = [python, "-m", "pytest", "-m", "not slow", *(f"tests/{each}" for each in CORE)]
    return subprocess.run(tests, cwd=ROOT, env=threads, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
