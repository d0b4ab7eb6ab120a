"""Evaluate with a user's objective, in this process or in several. Imports no torch."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from joblib.externals.loky.backend.reduction import dumps

from budget_search.core.objective import Objective, Outcome
from budget_search.core.trial import Job, Trial
from budget_search.engine.parallel.pools import LocalPool, completed, trial_of
from budget_search.storage.files import write_array
from budget_search.storage.study_folder import StudyFolder

WORK_OF_A_RUN = 1_000_000
"""A full run of one layer, in the unit of ``Trial.training_work``; only ratios are ever read."""
MEAN_TOLERANCE = 1e-4
"""How far, in points, the mean of ``per_example`` may be from the score: they may be float32."""


class InvalidOutcomeError(Exception):
    """An objective returned no valid Outcome."""


@dataclass(frozen=True)
class ObjectiveWorkers:
    """Evaluates with the objective, ``count`` evaluations at a time: one runs in this process, several in others.

    An objective that cannot be pickled runs in this process.
    """

    objective: Objective
    folder: StudyFolder
    pool: LocalPool | None
    untaken: list[Trial]

    @classmethod
    def start(cls, objective: Objective, folder: StudyFolder, count: int) -> ObjectiveWorkers:
        return cls(objective, folder, LocalPool(count) if count > 1 and _can_be_sent(objective) else None, [])

    @property
    def count(self) -> int:
        return self.pool.count if self.pool else 1

    def run(self, jobs: Iterable[Job | None]) -> Iterator[Trial]:
        """Takes a job whenever a worker is free; None says that the next one depends on trials still to come."""
        evaluate = partial(run_objective, self.objective, self.folder)
        if self.pool is None:
            yield from (evaluate(job) for job in jobs if job is not None)
            return
        for job, future in completed(self.pool, evaluate, iter(jobs), self.untaken):
            yield trial_of(self.pool, job, future)


def _can_be_sent(objective: Objective) -> bool:
    try:
        dumps(objective)
    except Exception:  # whatever an object's own way of being pickled raises
        return False
    return True


def run_objective(objective: Objective, folder: StudyFolder, job: Job) -> Trial:
    """Call the objective once; an exception or an invalid outcome becomes a failed trial with the reason.

    ``per_example`` is written to the study's folder before the trial exists.
    """
    started = time.perf_counter()
    try:
        outcome = _valid(objective(job.key.layers, job.key.seed, job.key.rung, job.split))
    except MemoryError as error:
        return Trial(job.key, job.split, "failed", error=f"out of memory: {error}", machine_failure=True)
    except Exception as error:
        return Trial(job.key, job.split, "failed", error=_reason(error))
    seconds = time.perf_counter() - started
    if outcome.per_example is not None:
        write_array(folder.outputs(job.key, job.split), np.asarray(outcome.per_example, dtype=np.float64))
    train_seconds = seconds if outcome.seconds is None else min(outcome.seconds, seconds)
    return Trial(
        key=job.key,
        split=job.split,
        state="complete",
        score=outcome.score,
        metrics=outcome.metrics,
        train_seconds=train_seconds,
        evaluation_seconds=seconds - train_seconds,
        train_tokens=round(WORK_OF_A_RUN * job.key.rung),
    )


def _valid(returned: Any) -> Outcome:
    """Raises InvalidOutcomeError."""
    outcome = returned if isinstance(returned, Outcome) else Outcome(returned)
    try:
        score = float(outcome.score)
        metrics = {name: float(value) for name, value in outcome.metrics.items()}
    except (TypeError, ValueError):
        raise InvalidOutcomeError(
            "the objective must return a score in points, or a budget_search.Outcome with a score and metrics that are "
            f"numbers, received {returned!r}"
        ) from None
    if wrong := {name: value for name, value in {"score": score, **metrics}.items() if not math.isfinite(value)}:
        name, value = next(iter(wrong.items()))
        raise InvalidOutcomeError(f"the {name} is {value}")
    checked = replace(outcome, score=score, metrics=metrics)
    if outcome.per_example is None:
        return checked
    values = np.asarray(outcome.per_example, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
        raise InvalidOutcomeError(
            f"per_example must be one finite number per example, for at least two; received shape {values.shape}"
        )
    if abs(float(values.mean()) - score) > MEAN_TOLERANCE:
        raise InvalidOutcomeError(
            f"per_example must average to the score {score:.4f}, in points; it averages to {values.mean():.4f} "
            "(leave it out where the score is no mean over examples)"
        )
    return checked


def _reason(error: Exception) -> str:
    """The exception and where it was raised."""
    said = str(error).splitlines()[0] if str(error) else ""
    if isinstance(error, InvalidOutcomeError):
        return said
    text = f"{type(error).__name__}: {said}" if said else type(error).__name__
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{text} ({Path(last.filename).name}, line {last.lineno})"
