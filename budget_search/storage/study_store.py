"""Finished trials in an Optuna study. All other data of a study is in plain files beside it.

A trial is written in one transaction when it is finished, so a killed process leaves no partial trial. Only
measurements are stored, so a search with another delta, strategy or criterion can reuse all of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import signal
import threading
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from budget_search.core.errors import StudyError, UsageError
from budget_search.core.layers import LayerSet
from budget_search.core.trial import Trial, TrialKey, TrialsByKey
from budget_search.storage.credentials import mask_passwords
from budget_search.storage.files import atomic_path
from budget_search.storage.study_folder import StudyFolder

if TYPE_CHECKING:
    import optuna

# The fields of a trial stored as Optuna user attributes. Layers are Optuna parameters; score and depth are the two
# objective values.
_ATTRIBUTES = tuple(field.name for field in dataclasses.fields(Trial) if field.name not in ("key", "score"))

# The advice in errors about a storage that cannot be read or written.
SQLITE_ADVICE = "free disk space or restore study.db from a copy; to start over, move the study's folder away"
SERVER_ADVICE = "check the server of --storage, then run the same command again: everything finished is kept"


class StudyStore:
    """The trials of one Optuna study: objectives score (maximised) and depth (minimised), one flag per layer."""

    def __init__(self, study: optuna.Study, trials: TrialsByKey, advice: str) -> None:
        self._study = study
        self._trials = trials
        self._advice = advice

    @classmethod
    def open(cls, name: str, total: int, *, folder: StudyFolder, storage: str | None = None) -> StudyStore:
        """Open the study with this name, or create it. Raises StudyError if the storage cannot be read."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        advice = SQLITE_ADVICE if storage is None else SERVER_ADVICE
        with _explain_storage_errors(advice), warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study = optuna.create_study(
                study_name=name,
                storage=_open_storage(folder, storage),
                directions=["maximize", "minimize"],
                load_if_exists=True,
                sampler=optuna.samplers.RandomSampler(seed=0),
                pruner=optuna.pruners.NopPruner(),
            )
            if study.metric_names is None:
                study.set_metric_names(["score", "depth"])
            trials = TrialsByKey(_from_row(row, total) for row in study.get_trials(deepcopy=False))
        return cls(study, trials, advice)

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
        with _explain_storage_errors(self._advice):
            self._study.add_trial(_to_row(trial))
        self._trials.add(trial)

    @property
    def facts(self) -> dict[str, Any]:
        """Values determined once per study and kept as user attributes, such as the device that "auto" stands for."""
        with _explain_storage_errors(self._advice):
            return dict(self._study.user_attrs)

    def set_facts(self, **facts: Any) -> None:
        with _explain_storage_errors(self._advice):
            for name, value in facts.items():
                self._study.set_user_attr(name, value)


def require_storage(url: str) -> None:
    """Raises UsageError if an Optuna storage cannot be reached."""
    import optuna
    import sqlalchemy.exc

    try:
        optuna.storages.get_storage(url)
    except (sqlalchemy.exc.SQLAlchemyError, ImportError, ValueError, OSError, RuntimeError) as error:
        extra = "; pip install 'budget-search[postgres]'" if isinstance(error, ImportError) else ""
        raise UsageError(
            f"--storage {mask_passwords(url)} cannot be used: {mask_passwords(_database_message(error))}{extra}"
        ) from error


def _open_storage(folder: StudyFolder, url: str | None) -> Any:
    if url:
        return url
    if not (folder.database.is_file() and folder.database.stat().st_size):
        if any(folder.path.glob("artifacts/*")):
            raise StudyError(
                f"study.db of the study {folder.path.name} is missing or empty, though evaluations have finished; "
                "restore it from a copy (or give the --storage they are in); to measure everything again, delete "
                "artifacts"
            )
        # If the process died between creating a table and its unique index, two studies could get the same name.
        with atomic_path(folder.database) as draft:
            created = _sqlite(draft)
            created.remove_session()
            created.engine.dispose()
    return _sqlite(folder.database)


def _sqlite(file: Path) -> optuna.storages.RDBStorage:
    import optuna

    return optuna.storages.RDBStorage(f"sqlite:///{file.resolve()}", engine_kwargs={"connect_args": {"timeout": 60}})


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


@contextlib.contextmanager
def _defer_signals() -> Iterator[None]:
    """Defer a first Ctrl-C or SIGTERM: an interrupted connection may leave the database locked."""
    pending: list[tuple[int, FrameType | None]] = []
    handlers: dict[int, Any] = {}

    def defer(number: int, frame: FrameType | None) -> None:
        pending.append((number, frame))
        if len(pending) > 1:
            # Deliver the first signal now. Its handler may have installed another handler for the second.
            with contextlib.suppress(KeyboardInterrupt):
                handlers[pending[0][0]](*pending[0])
            current = signal.getsignal(number)
            (current if callable(current) and current is not defer else handlers[number])(number, frame)

    # Only the main thread can set signal handlers.
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        handlers = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number in handlers:
        signal.signal(number, defer)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number, frame in pending[:1]:
            handlers[number](number, frame)


def _database_message(error: BaseException) -> str:
    """The first line of the database's own message, which Optuna and SQLAlchemy wrap."""
    own = getattr(error, "orig", None) or getattr(error.__cause__, "orig", None) or error
    return str(own).strip().splitlines()[0] if str(own).strip() else type(own).__name__


@contextlib.contextmanager
def _explain_storage_errors(advice: str) -> Iterator[None]:
    """Raise a one-line StudyError if the database is damaged or unreachable; signals are deferred meanwhile."""
    import sqlalchemy.exc
    from optuna.exceptions import OptunaError

    try:
        with _defer_signals():
            yield
    except (OptunaError, sqlalchemy.exc.SQLAlchemyError, LookupError, ValueError, TypeError, RuntimeError) as error:
        raise StudyError(
            f"the study cannot be read or written ({mask_passwords(_database_message(error))}); {advice}"
        ) from error
