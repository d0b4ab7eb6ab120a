"""Finished trials in an Optuna study. All other data of a study is in plain files beside it.

A trial is written in one transaction when it is finished, so a killed process leaves no partial trial. Only
measurements are stored, so a search with another delta, strategy or criterion can reuse all of them.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import warnings
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from budget_search.core.errors import StudyError, UsageError
from budget_search.core.layers import LayerSet
from budget_search.core.serialization import read_record
from budget_search.core.trial import Trial, TrialKey, TrialsByKey
from budget_search.storage.credentials import mask_passwords
from budget_search.storage.database import NO_WAIT, Database, LockWait, database_message, is_lock
from budget_search.storage.files import atomic_path, write_atomically
from budget_search.storage.study_folder import StudyFolder

if TYPE_CHECKING:
    import optuna

# The fields of a trial stored as Optuna user attributes. Layers are Optuna parameters; score and depth are the two
# objective values.
_ATTRIBUTES = tuple(field.name for field in dataclasses.fields(Trial) if field.name not in ("key", "score"))


class StudyStore:
    """The trials of one Optuna study: objectives score (maximised) and depth (minimised), one flag per layer.

    While another process holds the database, finished trials are kept in a file of the study's folder, so that none is
    lost however the wait ends.
    """

    def __init__(self, study: optuna.Study, trials: TrialsByKey, folder: StudyFolder, database: Database) -> None:
        self._study = study
        self._trials = trials
        self._folder = folder
        self._database = database
        self._unrecorded = _unrecorded(folder, trials)
        for trial in self._unrecorded:
            trials.add(trial)

    @classmethod
    def open(
        cls,
        name: str,
        total: int,
        *,
        folder: StudyFolder,
        storage: str | None = None,
        wait: LockWait = NO_WAIT,
    ) -> StudyStore:
        """Open the study with this name, or create it. ``study.db`` holds one study, under the name that its folder had
        when it was created. Raises StudyError if the storage cannot be read."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        database = Database(folder.database, storage, wait)

        def opened() -> tuple[optuna.Study, TrialsByKey]:
            if not storage:
                _require_database(folder)
            connection = database.storage()
            study = optuna.create_study(
                study_name=_name_in(connection, name, shared=bool(storage)),
                storage=connection,
                directions=["maximize", "minimize"],
                load_if_exists=True,
                sampler=optuna.samplers.RandomSampler(seed=0),
                pruner=optuna.pruners.NopPruner(),
            )
            if study.metric_names is None:
                study.set_metric_names(["score", "depth"])
            return study, TrialsByKey(_from_row(row, total) for row in study.get_trials(deepcopy=False))

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study, trials = database.access(opened)
        return cls(study, trials, folder, database)

    @property
    def history(self) -> list[Trial]:
        """Finished trials, sorted by key. A re-run after a machine failure replaces the failed trial of the same key.

        Trials appended by other processes after opening are not seen; appending requires the study's lock.
        """
        return self._trials.to_list()

    def find(self, key: TrialKey) -> Trial | None:
        return self._trials.find(key)

    def append(self, trial: Trial) -> None:
        """Record a finished trial. Raises StudyError if it cannot be written."""
        self._trials.add(trial)
        self._unrecorded.append(trial)
        self.record_all()

    def keep(self, trial: Trial) -> None:
        """Keep a finished trial in the study's folder; it is recorded when the study is next searched."""
        self._trials.add(trial)
        self._unrecorded.append(trial)
        self._keep_unrecorded()

    def record_all(self) -> None:
        """Record the trials that could not be recorded before. Raises StudyError if they cannot be written."""
        while self._unrecorded:
            add = partial(self._study.add_trial, _to_row(self._unrecorded[0]))
            self._database.access(add, when_locked=self._keep_unrecorded)
            self._unrecorded.pop(0)
        if self._folder.unrecorded.exists():
            self._folder.unrecorded.unlink()

    def _keep_unrecorded(self) -> None:
        content = json.dumps([dataclasses.asdict(trial) for trial in self._unrecorded], indent=2)
        write_atomically(self._folder.unrecorded, content.encode())

    @property
    def facts(self) -> dict[str, Any]:
        """Values determined once per study and kept as user attributes, such as the device that "auto" stands for."""
        return self._database.access(lambda: dict(self._study.user_attrs))

    def set_facts(self, **facts: Any) -> None:
        def write() -> None:
            for name, value in facts.items():
                self._study.set_user_attr(name, value)

        self._database.access(write)


def recorded_trials(
    name: str,
    total: int,
    *,
    folder: StudyFolder,
    storage: str | None = None,
    wait: LockWait = NO_WAIT,
) -> list[Trial]:
    """The finished trials of a study, sorted by key; none if the storage has no such study. Creates nothing.

    Raises StudyError if the storage cannot be read.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    database = Database(folder.database, storage, wait)

    def loaded() -> list[optuna.trial.FrozenTrial]:
        if not storage and not folder.database.exists():
            return []
        connection = database.storage()
        known = _name_in(connection, name, shared=bool(storage))
        if known not in optuna.get_all_study_names(connection):
            return []
        return optuna.load_study(study_name=known, storage=connection).get_trials(deepcopy=False)

    trials = database.access(lambda: TrialsByKey(_from_row(row, total) for row in loaded()))
    for trial in _unrecorded(folder, trials):
        trials.add(trial)
    return trials.to_list()


def _name_in(connection: optuna.storages.BaseStorage, name: str, *, shared: bool) -> str:
    """The name under which a storage has the study: in the database of a folder that was renamed, its former name."""
    import optuna

    names = optuna.get_all_study_names(connection)
    return names[0] if len(names) == 1 and not shared else name


def require_storage(url: str) -> None:
    """Raises UsageError if an Optuna storage cannot be reached. One that another process holds is there."""
    import optuna
    import sqlalchemy.exc

    try:
        optuna.storages.get_storage(url)
    except (sqlalchemy.exc.SQLAlchemyError, ImportError, ValueError, OSError, RuntimeError) as error:
        if is_lock(error):
            return
        extra = "; pip install 'budget-search[postgres]'" if isinstance(error, ImportError) else ""
        raise UsageError(
            f"--storage {mask_passwords(url)} cannot be used: {mask_passwords(database_message(error))}{extra}"
        ) from error


def _require_database(folder: StudyFolder) -> None:
    """Create ``study.db`` of a new study. Raises StudyError if that of an old one is gone."""
    if folder.database.is_file() and folder.database.stat().st_size:
        return
    if any(folder.path.glob("artifacts/*")):
        raise StudyError(
            f"study.db of the study {folder.path.name} is missing or empty, though evaluations have finished; "
            "restore it from a copy (or give the --storage they are in); to measure everything again, delete "
            "artifacts"
        )
    # If the process died between creating a table and its unique index, two studies could get the same name.
    with atomic_path(folder.database) as draft:
        created: Any = Database(draft, None).storage()
        created.remove_session()
        created.engine.dispose()


def _unrecorded(folder: StudyFolder, recorded: TrialsByKey) -> list[Trial]:
    """Finished trials that are kept in the folder only. Raises StudyError if their file is damaged."""
    try:
        fields = json.loads(folder.unrecorded.read_text(encoding="utf8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise StudyError(
            f"{folder.unrecorded.name} of the study {folder.path.name} is damaged ({error}); delete it: its "
            "evaluations are then run again"
        ) from error
    kept = [read_record(Trial, each, folder.unrecorded.name) for each in fields]
    # A process may have died after it recorded a trial and before it removed the file.
    return [trial for trial in kept if recorded.find(trial.key) != trial]


def _to_row(trial: Trial) -> optuna.trial.FrozenTrial:
    import optuna

    flags = {f"layer_{index:02d}": index in trial.layers.kept for index in range(trial.layers.total)}
    attributes = {name: getattr(trial, name) for name in _ATTRIBUTES}
    attributes["metrics"] = dict(trial.metrics)
    row = optuna.trial.create_trial(
        state=optuna.trial.TrialState.FAIL if trial.score is None else optuna.trial.TrialState.COMPLETE,
        values=None if trial.score is None else [trial.score, trial.layers.depth],
        params=flags,
        distributions=dict.fromkeys(flags, optuna.distributions.CategoricalDistribution([True, False])),
        # Layers and start time are recorded only for people who look at the study with Optuna's tools.
        user_attrs={"layers": str(trial.layers), "rung": trial.key.rung, "seed": trial.key.seed, **attributes},
    )
    seconds = trial.train_seconds + trial.evaluation_seconds
    row.datetime_start = datetime.datetime.now() - datetime.timedelta(seconds=seconds)
    return row


def _from_row(row: optuna.trial.FrozenTrial, total: int) -> Trial:
    kept = tuple(sorted(int(name.removeprefix("layer_")) for name, is_kept in row.params.items() if is_kept))
    attributes: Mapping[str, Any] = row.user_attrs
    return Trial(
        key=TrialKey(LayerSet(kept, total), attributes["rung"], attributes["seed"]),
        score=row.values[0] if row.values else None,
        **{name: attributes[name] for name in _ATTRIBUTES if name in attributes},
    )
