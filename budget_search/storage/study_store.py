"""Studies on disk: finished trials in one Optuna study, everything else in plain files beside it.

A trial is written once, when it is finished, in one transaction: a kill leaves no half trial. Only measurements are
stored, so another delta, strategy or criterion finds everything that was ever measured.
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
from budget_search.storage.credentials import hidden
from budget_search.storage.files import appearing
from budget_search.storage.study_folder import StudyFolder

if TYPE_CHECKING:
    import optuna

# Measurements of a trial that are stored as attributes of their own; layers are Optuna parameters, score and depth
# are its two values.
_ATTRIBUTES = tuple(field.name for field in dataclasses.fields(Trial) if field.name not in ("key", "score"))


# What to do when the trials cannot be read or written.
OWN_FILE = "free the disk or restore study.db from a copy; to begin anew, move the study's folder away"
A_SERVER = "see to the server of --storage, then run the same command again: everything finished is kept"


class StudyStore:
    """Trials as rows of one Optuna study: score (maximised) and depth (minimised), a flag per layer."""

    def __init__(self, study: optuna.Study, trials: TrialsByKey, advice: str) -> None:
        self._study = study
        self._trials = trials
        self._advice = advice

    @classmethod
    def open(cls, name: str, total: int, *, folder: StudyFolder, storage: str | None = None) -> StudyStore:
        """Open the study of this name, or create it. Raises StudyError when the storage cannot be read."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        advice = OWN_FILE if storage is None else A_SERVER
        with _study_errors(advice), warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study = optuna.create_study(
                study_name=name,
                storage=_storage(folder, storage),
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
        """Finished trials by key, sorted; of several with one key (a re-run after the machine failed) the last.

        What was there when the study was opened, and what was appended since: whoever appends holds the study.
        """
        return self._trials.in_order()

    def find(self, key: TrialKey) -> Trial | None:
        return self._trials.find(key)

    def append(self, trial: Trial) -> None:
        """Record a finished trial. Raises StudyError when it could not be written."""
        with _study_errors(self._advice):
            self._study.add_trial(_to_row(trial))
        self._trials.add(trial)

    @property
    def facts(self) -> dict[str, Any]:
        """What was found out once about the study, such as the device that "auto" came to."""
        with _study_errors(self._advice):
            return dict(self._study.user_attrs)

    def note(self, **facts: Any) -> None:
        with _study_errors(self._advice):
            for name, value in facts.items():
                self._study.set_user_attr(name, value)


def require_storage(url: str) -> None:
    """Raises UsageError when an Optuna storage cannot be reached."""
    import optuna
    import sqlalchemy.exc

    try:
        optuna.storages.get_storage(url)
    except (sqlalchemy.exc.SQLAlchemyError, ImportError, ValueError, OSError, RuntimeError) as error:
        extra = "; pip install 'budget-search[postgres]'" if isinstance(error, ImportError) else ""
        raise UsageError(f"--storage {hidden(url)} cannot be used: {hidden(_reason(error))}{extra}") from error


def _storage(folder: StudyFolder, url: str | None) -> Any:

    if url:
        return url
    if not (folder.database.is_file() and folder.database.stat().st_size):
        if any(folder.path.glob("artifacts/*")):
            raise StudyError(
                f"study.db of the study {folder.path.name} is gone or empty, though evaluations have finished; restore "
                "it from a copy (or give the --storage they are in); to measure everything anew, delete artifacts"
            )
        # A database killed between making a table and its index would hold a study of one name twice.
        with appearing(folder.database) as draft:
            made = _sqlite(draft)
            made.remove_session()
            made.engine.dispose()
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
        # The layers once more, for people who look at the study with Optuna's tools; so does the time it took.
        user_attrs={"layers": str(trial.layers), "rung": trial.key.rung, "seed": trial.key.seed, **attributes},
    )
    seconds = trial.train_seconds + trial.evaluation_seconds
    row.datetime_start = datetime.datetime.now() - datetime.timedelta(seconds=seconds)
    return row


def _from_row(row: optuna.trial.FrozenTrial, total: int) -> Trial:
    kept = tuple(sorted(int(name.removeprefix("layer_")) for name, stays in row.params.items() if stays))
    attributes: Mapping[str, Any] = row.user_attrs
    return Trial(
        key=TrialKey(LayerSet(kept, total), attributes["rung"], attributes["seed"]),
        score=row.values[0] if row.values else None,
        **{name: attributes[name] for name in _ATTRIBUTES if name in attributes},
    )


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Let a first Ctrl-C or SIGTERM wait: interrupted half-way, a connection may keep the database locked."""
    waiting: list[tuple[int, FrameType | None]] = []
    handlers: dict[int, Any] = {}

    def wait(number: int, frame: FrameType | None) -> None:
        waiting.append((number, frame))
        if len(waiting) > 1:
            # The handler learns of the first, and may have said what is to happen at the second.
            with contextlib.suppress(KeyboardInterrupt):
                handlers[waiting[0][0]](*waiting[0])
            then = signal.getsignal(number)
            (then if callable(then) and then is not wait else handlers[number])(number, frame)

    # Only the main thread is told of signals.
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        handlers = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number in handlers:
        signal.signal(number, wait)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number, frame in waiting[:1]:
            handlers[number](number, frame)


def _reason(error: BaseException) -> str:
    """What the database itself said, in one line: Optuna and SQLAlchemy wrap it."""
    own = getattr(error, "orig", None) or getattr(error.__cause__, "orig", None) or error
    return str(own).strip().splitlines()[0] if str(own).strip() else type(own).__name__


@contextlib.contextmanager
def _study_errors(advice: str) -> Iterator[None]:
    """Turn what a damaged or unreachable database raises into one clear line; signals wait until it is let go of."""
    import sqlalchemy.exc
    from optuna.exceptions import OptunaError

    try:
        with _undisturbed():
            yield
    except (OptunaError, sqlalchemy.exc.SQLAlchemyError, LookupError, ValueError, TypeError, RuntimeError) as error:
        raise StudyError(f"the study cannot be read or written ({hidden(_reason(error))}); {advice}") from error
