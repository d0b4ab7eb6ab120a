"""``budget-search ls``: the studies, one line each."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from budget_search.cli.options import add_studies_dir, studies_dir
from budget_search.core.config import METHODS, RECIPES
from budget_search.core.errors import StudyError
from budget_search.core.formatting import pairs, printable, tolerance
from budget_search.core.layers import compact_indices

HELP = "list the studies: task, model, trials, state, best answer"
DESCRIPTION = HELP


def add_options(parser: argparse.ArgumentParser) -> None:
    add_studies_dir(parser)
    parser.add_argument("--storage", metavar="URL", help="the --storage that searches used, if any")


def run(arguments: argparse.Namespace, received: Sequence[str]) -> int:
    print(studies_table(studies_dir(arguments), arguments.storage))
    return 0


def studies_table(folder: str, storage: str | None = None) -> str:
    """One line per study; the trials of an unfinished one are counted in its folder and in ``storage``."""
    from tabulate import tabulate

    from budget_search.storage.study_folder import study_paths

    rows = [_study_row(path, storage) for path in study_paths(folder)]
    if not rows:
        return f"There are no studies in {folder}. Start one: budget-search --task demo --model demo"
    headers = ("study", "task", "model", "recipe", "trials", "state", "best answer")
    return tabulate(rows, headers=headers, tablefmt="simple")


def _study_row(path: Path, storage: str | None) -> Iterator[str]:
    """Name, task, model, recipe, trials, state, best answer; for a damaged study, what is damaged."""
    from budget_search.app.study_report import read_report
    from budget_search.storage.study_folder import StudyFolder, stored_config
    from budget_search.storage.study_store import recorded_trials

    folder = StudyFolder(path)
    yield folder.path.name
    try:
        stored = stored_config(folder)
        config, facts = stored["config"], stored["facts"]
        yield printable(str(config["task"]))
        yield printable(str(config["model"]))
        yield _recipe(config["recipe"])
        if folder.report.exists():
            report = read_report(folder)
            yield str(report.cost.fine_tunes)
            yield "finished"
            best = report.best
            yield f"{best.depth} of {report.layers_total} ({compact_indices(best.kept)}) within {tolerance(best.delta)}"
            return
        name, total = folder.path.name, int(facts["layers_total"])
        places = (None, storage) if storage else (None,)
        yield str(max(len(recorded_trials(name, total, folder=folder, storage=place)) for place in places))
        yield "unfinished"
        yield "-"
    except (StudyError, KeyError) as error:
        yield f"damaged: {error}"


def _recipe(recipe: Mapping[str, Any]) -> str:
    """The name of the recipe, and the fields that differ from it."""
    from budget_search.data.tasks import DEMO_RECIPE

    # A recipe does not name the methods that it does not use.
    used = {**METHODS, **recipe}
    known = {**RECIPES, DEMO_RECIPE.name: DEMO_RECIPE}.get(recipe["name"])
    original = {**METHODS, **known.to_json()} if known else used
    changed = {name: value for name, value in used.items() if original[name] != value}
    return ", ".join(filter(None, (recipe["name"], pairs(changed))))
