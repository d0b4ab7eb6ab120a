"""A source tree that is not installed: no metadata of this package, and the program works."""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
from pathlib import Path

import pytest

import budget_search
from tests import tiny

# Every command as `python -m budget_search` runs it, in one process: each of its own would import torch again.
SCRIPT = """
import importlib.metadata, runpy, sys
try:
    importlib.metadata.version("budget-search")
except importlib.metadata.PackageNotFoundError:
    print("no metadata", file=sys.stderr)
for command in {commands!r}:
    sys.argv = ["budget-search", *command]
    try:
        runpy.run_module("budget_search", run_name="__main__", alter_sys=True)
    except SystemExit as exit_:
        if exit_.code:
            raise
"""


@pytest.fixture
def source_tree(tmp_path: Path) -> dict[str, str]:
    """The environment of processes that find a copy of the source, the libraries, and no installed budget-search."""
    package = Path(budget_search.__file__).parent
    shutil.copytree(package, tmp_path / "source" / "budget_search", ignore=shutil.ignore_patterns("__pycache__"))
    libraries = tmp_path / "libraries"
    libraries.mkdir()
    for folder in site.getsitepackages():
        for path in Path(folder).iterdir():
            if "budget_search" not in path.name:
                (libraries / path.name).symlink_to(path)
    found = os.pathsep.join(map(str, (tmp_path / "source", libraries)))
    return tiny.environment(tmp_path, PYTHONPATH=found, HF_HUB_OFFLINE="1")


@pytest.mark.slow
def test_a_source_tree_that_is_not_installed_searches_reports_and_tells_versions(
    source_tree: dict[str, str], tmp_path: Path, bert: Path, sst2: Path
) -> None:
    here = tiny.context(tmp_path, bert=bert, sst2=sst2)
    search = [*tiny.search_options("sst2"), "--delta", "0.05", "--layers", "0-1", "--quiet"]
    commands = [["--version"], ["doctor"], search, ["report", "sst2", "--format", "json"]]
    # -S: without site-packages, where the metadata of an installed copy lies.
    done = subprocess.run(
        [sys.executable, "-S", "-c", SCRIPT.format(commands=commands)],
        cwd=here, env=source_tree, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "no metadata" in done.stderr
    assert done.stdout.startswith(f"budget-search {budget_search.__version__}\n")
    assert f"budget-search          {budget_search.__version__}\n" in done.stdout
    report = json.loads(done.stdout[done.stdout.index("\n{") :])
    assert report["versions"]["budget-search"] == budget_search.__version__
    assert report["results"][0]["delta"] == 0.05
