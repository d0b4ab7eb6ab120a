"""Fine-tunes of the full model that another study has finished already.

How a smaller model is made (``--dropping``, ``--recovery``, ``--distil``) does not change the full model's fine-tune. A
study that differs from another one in nothing else takes over its runs of the full model with their outputs and
weights, so trying another method does not fine-tune the baseline again.
"""

from __future__ import annotations

import contextlib
import filecmp
import os
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from budget_search.app.resolve import ResolvedRequest
from budget_search.core.errors import StudyError
from budget_search.core.formatting import plural
from budget_search.core.layers import LayerSet
from budget_search.core.trial import FULL_RUNG, Trial, TrialKey
from budget_search.layer_search.settings import SearchObserver
from budget_search.storage.files import atomic_path
from budget_search.storage.study_folder import StudyFolder, stored_config, study_paths
from budget_search.storage.study_store import StudyStore, recorded_trials

OF_SMALLER_MODELS = ("dropping", "recovery", "distil")
"""The fields of a recipe that do not affect the full model."""


@dataclass(frozen=True)
class SharedRun:
    """A finished run of the full model, and the study that has its outputs and weights."""

    trial: Trial
    study: StudyFolder


def take_over_baseline(resolved: ResolvedRequest, store: StudyStore, observer: SearchObserver) -> None:
    """Record the runs of the full model that other studies have and this one lacks. The caller holds its lock.

    A run that cannot be copied is left to be fine-tuned.
    """
    taken = Counter[str]()
    for run in shared_runs(resolved, resolved.folder):
        if store.find(run.trial.key) is None:
            try:
                _copy(run, resolved.folder)
            except StudyError as error:
                observer.stage(f"the run of the full model with seed {run.trial.key.seed} is not taken over: {error}")
                continue
            store.append(run.trial)
            taken[run.study.path.name] += 1
    store.record_all()
    for name, number in taken.items():
        observer.stage(f"{plural(number, 'run')} of the full model taken over from the study {name}")


def shared_runs(resolved: ResolvedRequest, folder: StudyFolder) -> list[SharedRun]:
    """At most one run per seed of the request, sorted by seed. ``folder`` has the configuration and the examples.

    Studies that cannot be read, and other folders with a file config.json, have none.
    """
    full = LayerSet.full(stored_config(folder)["facts"]["layers_total"])
    keys = {TrialKey(full, FULL_RUNG, seed) for seed in resolved.request.confirmation_seeds}
    found: dict[TrialKey, SharedRun] = {}
    for path in study_paths(resolved.request.studies_dir):
        if path.name != resolved.folder.path.name:
            with contextlib.suppress(StudyError, OSError, LookupError, TypeError):
                for run in _full_runs(StudyFolder(path), folder, full.total, resolved.request.storage):
                    if run.trial.key in keys:
                        found.setdefault(run.trial.key, run)
    return [found[key] for key in sorted(found)]


def _full_runs(study: StudyFolder, folder: StudyFolder, total: int, storage: str | None) -> list[SharedRun]:
    """The usable runs of the full model in a study that fine-tunes it as ``folder`` does: same configuration, same
    examples, same kind of device. Raises StudyError and OSError."""
    if _of_full_model(study) != _of_full_model(folder):
        return []
    if not filecmp.cmp(study.examples, folder.examples, shallow=False):
        return []
    trials = recorded_trials(study.path.name, total, folder=study, storage=storage)
    return [
        SharedRun(trial, study)
        for trial in trials
        if trial.layers.is_full
        and trial.state == "complete"
        and study.outputs(trial.key, trial.split).is_file()
        and study.weights(trial.key).is_dir()
    ]


def _of_full_model(folder: StudyFolder) -> dict[str, Any]:
    """What a study's configuration says about the full model's fine-tune. Raises StudyError."""
    stored = stored_config(folder)
    recipe: Mapping[str, Any] = stored["config"]["recipe"]
    plain = {name: value for name, value in recipe.items() if name not in OF_SMALLER_MODELS}
    return {**stored["config"], "recipe": plain, "device": stored["facts"]["device"]}


def _copy(run: SharedRun, folder: StudyFolder) -> None:
    """Copy outputs and weights. Raises StudyError if they cannot be written."""
    key, split = run.trial.key, run.trial.split
    with atomic_path(folder.outputs(key, split)) as temporary:
        shutil.copyfile(run.study.outputs(key, split), temporary)
    with atomic_path(folder.weights(key)) as temporary:
        shutil.copytree(run.study.weights(key), temporary, copy_function=_link_or_copy)


def _link_or_copy(source: str, target: str) -> str:
    """A hard link takes no space. Files of a study are replaced, never changed, so both studies can share one."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
    return target
