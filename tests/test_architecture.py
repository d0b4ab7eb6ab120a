"""The shape of the package: imports point down, decisions load no torch, every module says what it is for."""

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

# From the bottom up; a module imports its own band and those before it.
BANDS = {
    "say": "errors layers limits config phases trial history request records wording digests environment passwords "
    "changes",
    "decide": "verdict surrogate ladder confirmations screens plan findings allowance loop binding generated "
    "strategies",
    "know": "tables labels tasks data hub_data phrases grouping resemble splits texts encode metrics demo "
    "demo_language layer_stack layer_match model parent",
    "do": "files store batches device cpu_kernels optimizer vocabulary layer_drop freezing last_layer finetune "
    "evaluate probe dispatch cluster similarity cost churn evidence replay rehearsal",
    "tell": "report curves layout beside sections details comparison protocols averages inspection layer_sections "
    "canvas pictures layer_pictures strategy_pictures plots page render card push destination export summary progress "
    "outlook",
    "wire": "heritage location archive planning interim capacity session creation finish prices forecast handover "
    "layerwise examine reference listing settings arguments cli __main__",
}
BAND_OF = {name: band for band, names in BANDS.items() for name in names.split()}
ORDER = list(BANDS)
# Reading a report, listing studies and refusing bad input must not cost the seconds that torch takes.
WITHOUT_TORCH = (
    f"{BANDS['say']} {BANDS['decide']} tables labels tasks data hub_data splits encode metrics parent store report "
    "curves layout beside sections details comparison protocols averages inspection layer_sections canvas pictures "
    "layer_pictures strategy_pictures plots page churn render card push destination summary progress outlook "
    "heritage location archive planning interim session examine reference listing settings arguments cli"
)


def modules() -> dict[str, Path]:
    """Dotted names inside the package, ``strategies.greedy``, to files; the package's own start is left out."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        if name:
            found[name] = path
    return found


MODULES = modules()


def imported_at_start(statements: list[ast.stmt]) -> Iterator[str]:
    """The modules that importing runs: not those for type checking alone, nor those inside functions."""
    for statement in statements:
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            assert statement.level == 0, "imports are absolute"
            module = statement.module or ""
            yield module
            # `from budget_search import tables` names modules, or things inside one.
            yield from (f"{module}.{alias.name}" for alias in statement.names)
        elif isinstance(statement, ast.If) and "TYPE_CHECKING" not in ast.unparse(statement.test):
            yield from imported_at_start([*statement.body, *statement.orelse])
        elif isinstance(statement, ast.Try):
            handlers = [each for handler in statement.handlers for each in handler.body]
            yield from imported_at_start([*statement.body, *handlers, *statement.orelse, *statement.finalbody])
        elif isinstance(statement, ast.ClassDef | ast.With):
            yield from imported_at_start(statement.body)


def imports_of(name: str) -> tuple[set[str], set[str]]:
    """A module's imports at its start: modules of this package, and top-level packages of others."""
    own, others = set(), set()
    for imported in imported_at_start(ast.parse(MODULES[name].read_text("utf8")).body):
        package, _, inside = imported.partition(".")
        if package != "budget_search":
            others.add(package)
        elif inside in MODULES:
            own.add(inside)
    return own - {name}, others


def band(name: str) -> int:
    top = name.partition(".")[0]
    assert top in BAND_OF, f"{name} is new: say in BANDS where it belongs"
    return ORDER.index(BAND_OF[top])


def test_every_module_has_its_place_and_no_place_is_empty() -> None:
    assert {name.partition(".")[0] for name in MODULES} == set(BAND_OF)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_point_down(name: str) -> None:
    own, _ = imports_of(name)
    assert [imported for imported in sorted(own) if band(imported) > band(name)] == []


def test_no_module_imports_itself_through_others() -> None:
    graph = {name: imports_of(name)[0] for name in MODULES}
    # A package's own start stands for the package: its parts may be imported by it, not the other way round.
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"imports run in a circle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("name", BANDS["say"].split())
def test_the_bottom_needs_the_standard_library_alone(name: str) -> None:
    assert imports_of(name)[1] <= sys.stdlib_module_names


@pytest.mark.parametrize("name", [name for name in sorted(MODULES) if BAND_OF[name.partition(".")[0]] == "decide"])
def test_decisions_know_no_model(name: str) -> None:
    assert imports_of(name)[1].isdisjoint({"torch", "transformers", "datasets", "huggingface_hub"})


def test_nothing_loads_torch_that_need_not(tmp_path: Path) -> None:
    names = [f"budget_search.{name}" for name in MODULES if name.partition(".")[0] in WITHOUT_TORCH.split()]
    script = (
        "import importlib, sys\n"
        f"for name in ['budget_search', *{sorted(names)!r}]:\n"
        "    importlib.import_module(name)\n"
        "    loaded = [heavy for heavy in ('torch', 'transformers', 'datasets') if heavy in sys.modules]\n"
        "    assert not loaded, (name, loaded)\n"
    )
    done = tiny.run_script(script, tmp_path, tiny.environment(tmp_path))
    assert done.returncode == 0, done.stderr


def test_the_package_offers_what_it_promises_without_torch(tmp_path: Path) -> None:
    script = (
        "import sys\nimport budget_search as bs\n"
        "assert bs.LayerSet(kept=(0, 1, 2), total=12).depth == 3\n"
        "assert callable(bs.search)\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = tiny.run_script(script, tmp_path, tiny.environment(tmp_path))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", sorted(MODULES))
def test_every_module_says_what_it_is_for(name: str) -> None:
    text = ast.get_docstring(ast.parse(MODULES[name].read_text("utf8")))
    assert text
    assert len(text.splitlines()[0].split()) >= 4


def test_no_module_is_a_drawer_for_everything() -> None:
    drawers = {"utils", "util", "helpers", "common", "misc", "tools"}
    assert [name for name in MODULES if drawers & set(name.split("."))] == []
