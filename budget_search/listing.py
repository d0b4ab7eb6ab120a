"""Looking around: which studies there are, which tasks are built in, what this machine can do."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tabulate import tabulate

from budget_search.archive import read_report, stored_config
from budget_search.config import RECIPES
from budget_search.environment import versions
from budget_search.errors import StudyError, UsageError
from budget_search.layers import compact_indices
from budget_search.sections import to_export
from budget_search.store import StudyFolder, StudyStore
from budget_search.tasks import DEMO_RECIPE, TASKS
from budget_search.wording import pairs, printable, tolerance


def find_study(name: str, studies_dir: str) -> StudyFolder:
    """The study of this name, of this unique beginning of a name, or at this path. Raises UsageError."""
    if _is_study(Path(name)):
        return StudyFolder(Path(name))
    matching = [path for path in _studies(studies_dir) if path.name.startswith(name)]
    exact = [path for path in matching if path.name == name]
    if len(exact or matching) == 1:
        return StudyFolder((exact or matching)[0])
    names = " ".join(path.name for path in matching or _studies(studies_dir)) or "none"
    if matching:
        raise UsageError(f"{name!r} is the beginning of several studies: {names}; write more of the name")
    raise UsageError(f"there is no study {name!r} in {studies_dir}; there are: {names}")


def studies_table(studies_dir: str) -> str:
    """One line per study."""
    rows = [_study_row(StudyFolder(path)) for path in _studies(studies_dir)]
    if not rows:
        return f"There are no studies in {studies_dir}. Begin one: budget-search --task demo --model demo"
    headers = ("study", "task", "model", "recipe", "trials", "state", "best answer")
    return tabulate(rows, headers=headers, tablefmt="simple")


def tasks_table() -> str:
    """One line per built-in task."""
    rows = [
        (
            spec.name,
            " ".join(spec.text_columns),
            spec.label_column,
            " ".join((spec.metric, *spec.also)),
            *(f"{count:,}" for count in spec.examples or ()),
        )
        for spec in TASKS.values()
    ]
    headers = ("task", "texts", "label", "metric (first: primary)", "train", "held-out")
    return tabulate(rows, headers=headers, tablefmt="simple", disable_numparse=True) + (
        "\n\nAlso: hub:org/name[:config], or a csv, tsv, jsonl or parquet file or folder with --text-columns."
    )


def doctor_table() -> str:
    """What a search would find on this machine."""
    from huggingface_hub.constants import HF_HUB_CACHE

    from budget_search.device import available_devices, default_workers, resolve_device

    device = resolve_device("auto", "auto")
    rows = [
        *versions().items(),
        ("devices", " ".join(available_devices())),
        ("chosen", f"{device.name} with {device.precision}"),
        ("evaluations at a time", default_workers(device, "auto")),
        ("model cache", HF_HUB_CACHE),
        ("hub", _hub_state()),
    ]
    return tabulate(rows, tablefmt="plain", disable_numparse=True)


def _studies(studies_dir: str) -> list[Path]:
    folder = Path(studies_dir)
    return sorted(path for path in folder.iterdir() if _is_study(path)) if folder.is_dir() else []


def _is_study(path: Path) -> bool:
    return (path / "config.json").is_file() and not path.name.startswith(".")


def _study_row(folder: StudyFolder) -> Iterator[str]:
    """Name, task, model, recipe, trials, state, best answer; a damaged study is shown as such."""
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
            best = to_export(report)
            yield f"{best.depth} of {report.layers_total} ({compact_indices(best.kept)}) within {tolerance(best.delta)}"
            return
        trials = 0
        if folder.database.exists():
            trials = len(StudyStore.open(folder.path.name, int(facts["layers_total"]), folder=folder).history)
        yield str(trials)
        yield "unfinished"
        yield "-"
    except (StudyError, KeyError) as error:
        yield f"damaged: {error}"


def _recipe(recipe: Mapping[str, Any]) -> str:
    """Its name, and what is otherwise than in the recipe of that name."""
    known = {**RECIPES, DEMO_RECIPE.name: DEMO_RECIPE}.get(recipe["name"])
    usual = known.to_json() if known else recipe
    changed = {name: value for name, value in recipe.items() if usual.get(name) != value}
    return ", ".join(filter(None, (recipe["name"], pairs(changed))))


def _hub_state() -> str:
    """Whether the hub answers within three seconds."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return "offline (HF_HUB_OFFLINE is set)"
    try:
        get_session().head(constants.ENDPOINT, timeout=3)
    except Exception as error:
        return f"not reachable ({type(error).__name__}); local files and the cache work"
    return f"reachable ({os.environ.get('HF_ENDPOINT') or constants.ENDPOINT})"
