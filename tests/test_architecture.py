"""The shape of the package: rooms are folders, imports point down, decisions load no torch, modules stay small."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import budget_search
from tests import tiny

ROOT = Path(budget_search.__file__).parent

# From the bottom up. A module imports its own room and those before it, inside functions too.
ROOMS = ("core", "layer_search", "storage", "data", "simulation", "models", "engine", "report", "app", "cli")
# What stands above all rooms: the package for Python, and for the command line.
ABOVE = ("api", "errors", "__main__", "")
# Reading a report, listing studies and refusing bad input must not cost the seconds that torch takes.
WITHOUT_TORCH = {"core", "layer_search", "storage", "data", "simulation", "report", "cli"}
HEAVY = {"torch", "transformers", "datasets"}
MOST_MODULES, MOST_LINES = 15, 350


def modules() -> dict[str, Path]:
    """Dotted names inside the package, ``core.layers``, to files; the package itself is the empty name."""
    paths = {path: path.relative_to(ROOT).with_suffix("").parts for path in ROOT.rglob("*.py")}
    return {".".join(part for part in parts if part != "__init__"): path for path, parts in paths.items()}


MODULES = modules()


def imported(name: str) -> Iterator[str]:
    """Everything that a module imports anywhere in it, for type checking and inside functions too."""
    for node in ast.walk(ast.parse(MODULES[name].read_text("utf8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(name: str) -> set[str]:
    """The modules of this package that a module imports; of ``package.module.name`` the module."""
    found = set()
    for full in imported(name):
        package, _, inside = full.partition(".")
        if package == "budget_search":
            found.add(inside if inside in MODULES else inside.rpartition(".")[0])
    return found - {name}


def room(name: str) -> str:
    return name.partition(".")[0]


def height(name: str) -> int:
    return len(ROOMS) if name in ABOVE else ROOMS.index(room(name))


def test_every_module_lies_in_a_room() -> None:
    assert {room(name) for name in MODULES} == {*ROOMS, *ABOVE}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_point_down(name: str) -> None:
    assert [each for each in sorted(own_imports(name)) if height(each) > height(name)] == []


def test_no_module_imports_itself_through_others() -> None:
    try:
        TopologicalSorter({name: own_imports(name) for name in MODULES}).prepare()
    except CycleError as error:
        pytest.fail(f"imports run in a circle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("name", [name for name in sorted(MODULES) if room(name) == "core"])
def test_the_core_needs_the_standard_library_alone(name: str) -> None:
    assert {full.partition(".")[0] for full in imported(name)} <= {*sys.stdlib_module_names, "budget_search"}


@pytest.mark.parametrize("name", [name for name in sorted(MODULES) if room(name) in ("layer_search", "simulation")])
def test_decisions_know_no_model(name: str) -> None:
    assert {full.partition(".")[0] for full in imported(name)}.isdisjoint({*HEAVY, "huggingface_hub"})


def test_nothing_loads_torch_that_need_not(tmp_path: Path) -> None:
    names = sorted(f"budget_search.{name}" for name in MODULES if room(name) in {*WITHOUT_TORCH, "api", "errors"})
    script = (
        "import importlib, sys\n"
        f"for name in ['budget_search', *{names!r}]:\n"
        "    importlib.import_module(name)\n"
        f"    loaded = [heavy for heavy in {sorted(HEAVY)!r} if heavy in sys.modules]\n"
        "    assert not loaded, (name, loaded)\n"
    )
    done = tiny.run_script(script, tmp_path, tiny.environment(tmp_path))
    assert done.returncode == 0, done.stderr


def test_the_parser_needs_the_standard_library_alone(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom budget_search.cli import parser\nparser.build_parser()\n"
        "foreign = {name.partition('.')[0] for name in sys.modules} & {'numpy', 'tabulate', 'filelock', 'yaml'}\n"
        "assert not foreign, foreign\n"
    )
    done = tiny.run_script(script, tmp_path, tiny.environment(tmp_path))
    assert done.returncode == 0, done.stderr


def test_the_package_offers_what_it_promises_without_torch(tmp_path: Path) -> None:
    script = (
        "import sys\nimport budget_search as bs\n"
        "assert bs.LayerSet(kept=(0, 1, 2), total=12).depth == 3\n"
        "assert callable(bs.search) and callable(bs.read_report)\n"
        "import budget_search.errors\n"
        "assert issubclass(budget_search.errors.UnsupportedModelError, budget_search.errors.BudgetSearchError)\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = tiny.run_script(script, tmp_path, tiny.environment(tmp_path))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", sorted(MODULES))
def test_every_module_says_what_it_is_for_and_is_small(name: str) -> None:
    text = MODULES[name].read_text("utf8")
    purpose = ast.get_docstring(ast.parse(text))
    assert purpose
    assert len(purpose.splitlines()[0].split()) >= 4
    assert text.count("\n") <= MOST_LINES


@pytest.mark.parametrize("name", ROOMS)
def test_a_room_says_what_lives_in_it_and_is_not_crowded(name: str) -> None:
    welcome = ast.get_docstring(ast.parse(MODULES[name].read_text("utf8"))) or ""
    assert "Imports" in welcome
    assert "Start with" in welcome
    folders = [ROOT / name, *(path for path in (ROOT / name).rglob("*") if any(path.glob("*.py")))]
    counts = {folder.name: len([file for file in folder.glob("*.py") if file.stem != "__init__"]) for folder in folders}
    assert all(count <= MOST_MODULES for count in counts.values()), counts


def test_no_module_is_a_drawer_for_everything() -> None:
    drawers = {"utils", "util", "helpers", "common", "misc", "tools"}
    assert [name for name in MODULES if drawers & set(name.split("."))] == []
